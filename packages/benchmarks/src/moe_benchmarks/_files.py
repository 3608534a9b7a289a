"""JSON files that are whole or absent, however a run ends."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"


class DamagedFileError(ValueError):
    """A file in the output folder cannot be read."""


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its name and rename it, so that a kill leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that holds some keys, naming the file where it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is damaged ({error}); delete it and run again."
        raise DamagedFileError(msg) from error
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing or not isinstance(value, dict):
        msg = f"{path} is damaged (it lacks {missing}); delete it and run again."
        raise DamagedFileError(msg)
    return value


def claim_for(folder: Path, settings: Mapping[str, object], *, kind: str) -> None:
    """Make a folder that of a run or a study with these settings, or refuse another one's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    found = read_json(path)
    changes = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
    if changes:
        msg = (
            f"{folder} holds a {kind} with other settings ({', '.join(changes)}); "
            "choose another folder with --out."
        )
        raise ValueError(msg)


def remove_leftovers(folder: Path) -> None:
    """Delete half-written files, and folders of an export, of a run that was killed."""
    for leftover in list(folder.rglob(".*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
