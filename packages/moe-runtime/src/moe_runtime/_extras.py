"""Packages that only some of the library needs, imported at use."""

import importlib
from typing import Any

# The package that each extra is about.
PACKAGES = {"plots": "matplotlib", "tensorboard": "tensorboard"}


def require(module: str, *, extra: str, purpose: str) -> Any:  # noqa: ANN401 - an untyped module
    """Import a module of an extra's package, or say how to install that.

    `purpose` begins the message: who needs it.
    """
    try:
        importlib.import_module(PACKAGES[extra])
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != PACKAGES[extra]:
            raise
        msg = (
            f"{purpose} needs the package {error.name!r}, which is not installed: "
            f'pip install "moe-runtime[{extra}]"'
        )
        raise ModuleNotFoundError(msg, name=error.name) from None
