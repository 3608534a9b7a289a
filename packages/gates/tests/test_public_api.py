"""What is promised is there, documented by examples that run, and imports nothing large."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

import moe_gates
import moe_gates.testing

MODULES = [f"moe_gates.{found.name}" for found in pkgutil.iter_modules(moe_gates.__path__)]
PUBLIC = [name for name in moe_gates.__all__ if not name.startswith("_")]


def test_all_is_what_the_package_imports() -> None:
    imported = {
        name
        for name, thing in vars(moe_gates).items()
        if str(getattr(thing, "__module__", "")).startswith("moe_gates.")
    }
    assert imported == set(PUBLIC)
    assert sorted(moe_gates.__all__, key=str.lower) == sorted(set(moe_gates.__all__), key=str.lower)


def test_the_version_is_that_of_the_distribution() -> None:
    assert moe_gates.__version__ == version("moe-gates")


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_has_an_example(name: str) -> None:
    public: Any = getattr(moe_gates, name)
    assert ">>> " in public.__doc__


def test_imports_no_array_library() -> None:
    code = "import sys, moe_gates, moe_gates.testing; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not {"torch", "jax", "numpy", "cupy"} & set(done.stdout.split())
