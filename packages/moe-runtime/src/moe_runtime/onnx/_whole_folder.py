"""A folder appears under its name when it is whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
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


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside to fill, which takes the name when nothing was raised."""
    parent_is_new = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir()
        yield beside
        _put_in_place(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        if parent_is_new:
            # Not where somebody else has put something into it meanwhile.
            with suppress(OSError):
                folder.parent.rmdir()
        raise


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
    old = beside.with_suffix(".old")
    folder.rename(old)
    try:
        beside.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)
