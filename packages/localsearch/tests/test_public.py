"""What the package offers, and what it does not bring along."""

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

import pytest

import moe_localsearch
import moe_localsearch.testing


@pytest.mark.parametrize("name", ["moe_localsearch", "moe_localsearch.testing"])
def test_all_is_the_public_names_and_sorted(name: str) -> None:
    module = import_module(name)
    assert module.__all__ == sorted(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_all_leaves_out_no_public_name() -> None:
    public = {
        name
        for name, value in vars(moe_localsearch).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "version"
    }
    assert public | {"__version__"} == set(moe_localsearch.__all__)


def test_every_public_function_has_an_example_and_names_its_errors() -> None:
    for module in (moe_localsearch, moe_localsearch.testing):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and name.islower():
                assert ">>>" in value.__doc__, name
                assert "Raises" in value.__doc__, name


def test_version_is_that_of_the_distribution() -> None:
    assert moe_localsearch.__version__ == version("moe-localsearch")


def test_importing_brings_no_other_array_library() -> None:
    code = (
        "import sys, moe_localsearch, moe_localsearch.testing\n"
        "print([m for m in ('torch', 'jax', 'moe_gates', 'moe_runtime') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
