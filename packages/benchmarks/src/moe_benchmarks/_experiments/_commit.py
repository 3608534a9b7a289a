"""The commit that numbers were made with."""

import subprocess
from functools import cache
from pathlib import Path

# The sources of all packages, which the numbers depend on.
SOURCES = ":(top,glob)packages/*/src/**"


@cache
def commit_of(source: Path, /) -> str | None:
    """Return the commit of a source file, with a + where sources are changed.

    None outside of git, and where the repository around it is another one: an environment may
    lie in any.
    """
    try:
        _git(source.parent, "ls-files", "--error-unmatch", "--", source.name)
        commit = _git(source.parent, "rev-parse", "--short=12", "HEAD")
        changed = _git(source.parent, "status", "--porcelain", "--", SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(  # noqa: S603 - our own command
        ("git", "-C", str(folder), *arguments),  # noqa: S607 - whichever git there is
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
