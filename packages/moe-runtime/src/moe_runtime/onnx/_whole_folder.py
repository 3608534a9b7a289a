"""A folder appears under its name when it is whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_replaceable(folder: Path, *, overwrite: bool, holds: str) -> None:
    """Refuse what is already there, unless it may be overwritten and is of our making.

    `holds` names a file that every such folder has: without it nothing is removed.
    """
    if not folder.exists():
        return
    if not overwrite:
        msg = f"{folder} already exists; pass `overwrite=True` to replace it."
        raise FileExistsError(msg)
    if not (folder / holds).is_file():
        msg = f"{folder} holds no {holds}, so it is not replaced: remove it yourself."
        raise FileExistsError(msg)


def missing_folders(folder: Path) -> list[Path]:
    """List a folder and its parents as far as they do not exist yet, the innermost first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, but for those in which somebody has put something."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside to fill, which takes the name when nothing was raised."""
    # Where a link leads, what it leads to is replaced.
    folder = folder.resolve()
    missing = missing_folders(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    # A folder in it, since the mode of a temporary one keeps others out.
    beside = stage / "new"
    try:
        beside.mkdir()
        yield beside
        _put_in_place(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        # But for a stage that holds the folder that was there and could not be put back.
        remove_empty([stage, *missing])
        raise
    shutil.rmtree(stage)


def write_whole_file(path: Path, text: str) -> None:
    """Write a text that appears under its name when it is whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _put_in_place(beside: Path, folder: Path) -> None:
    if not folder.exists():
        beside.rename(folder)
        return
    # No call swaps two folders everywhere: for a moment there is none of that name.
    old = beside.with_name("old")
    folder.rename(old)
    try:
        beside.rename(folder)
    except OSError:
        old.rename(folder)
        raise
