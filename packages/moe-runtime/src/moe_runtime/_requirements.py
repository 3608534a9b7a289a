"""Packages of the extras, imported at use."""

import importlib
from types import ModuleType


def require(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a package that `purpose` needs, or say which extra brings it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        msg = (
            f"{purpose} needs the package {error.name!r}, which is not installed: "
            f'pip install "moe-runtime[{extra}]"'
        )
        raise ModuleNotFoundError(msg, name=error.name) from None
