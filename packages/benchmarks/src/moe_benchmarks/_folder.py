"""The output folder: new, or begun by the same quickstart, and nobody else's."""

from importlib.metadata import version
from pathlib import Path

from moe_benchmarks._files import DamagedFileError, read_json, write_json
from moe_benchmarks._settings import QuickstartSettings

SETTINGS = "settings.json"


class OutputFolderError(ValueError):
    """The output folder cannot be used, or holds something else."""


def claim_folder(folder: Path, settings: QuickstartSettings) -> None:
    """Make the folder this quickstart's, or refuse one that is not."""
    wanted = {**settings.to_dict(), "version": version("moe-benchmarks")}
    if folder.exists() and not folder.is_dir():
        msg = f"`--out` must be a folder, got the file {folder}."
        raise OutputFolderError(msg)
    if folder.exists() and any(folder.iterdir()) and not (folder / SETTINGS).exists():
        msg = f"`--out` must be a new or empty folder or one of a quickstart, got {folder}."
        raise OutputFolderError(msg)
    if not (folder / SETTINGS).exists():
        try:
            write_json(folder / SETTINGS, wanted)
        except OSError as error:
            msg = f"`--out` must be a folder to write to, got {folder}: {error.strerror}."
            raise OutputFolderError(msg) from error
        return
    try:
        found = read_json(folder / SETTINGS)
    except DamagedFileError as error:
        msg = (
            f"{folder / SETTINGS} is damaged; delete the folder {folder} and run again, "
            "or choose another with --out."
        )
        raise OutputFolderError(msg) from error
    if set(found) != set(wanted):
        msg = f"`--out` must be a folder of this version's quickstart, got {folder}."
        raise OutputFolderError(msg)
    changes = ", ".join(
        f"{name} is {found[name]!r} there and {value!r} here"
        for name, value in wanted.items()
        if found[name] != value
    )
    if changes:
        msg = (
            f"{folder} holds a quickstart with other settings ({changes}); "
            "choose another folder with --out, or delete it."
        )
        raise OutputFolderError(msg)
