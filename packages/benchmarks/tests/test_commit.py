import shutil
import subprocess
from pathlib import Path

import pytest

from moe_benchmarks._experiments._commit import commit_of

SOURCE, OTHER = "packages/one/src/one/_a.py", "packages/two/src/two/_b.py"
WHO = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ("git", "-C", str(folder), *arguments),  # noqa: S607 - whichever git there is
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Return a repository with the sources of two packages and a README, all committed."""
    for name in (SOURCE, OTHER, "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, *WHO, "commit", "--no-gpg-sign", "-m", "all")
    commit_of.cache_clear()
    return tmp_path


def test_the_commit_is_that_of_the_sources(clone: Path) -> None:
    (clone / "README.md").write_text("of no number")
    commit = commit_of(clone / SOURCE)
    assert commit is not None
    assert git(clone, "rev-parse", "HEAD").startswith(commit)
    assert len(commit) == 12


@pytest.mark.parametrize("name", [SOURCE, OTHER, "packages/two/src/two/_new.py"])
def test_a_change_in_any_package_is_marked(clone: Path, name: str) -> None:
    (clone / name).write_text("changed = True")
    assert str(commit_of(clone / SOURCE)).endswith("+")


def test_an_installed_file_has_no_commit_of_the_repository_around_it(clone: Path) -> None:
    installed = clone / ".venv" / "one" / "_a.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    assert commit_of(installed) is None
    assert commit_of(clone / "nowhere" / "_a.py") is None
