"""One hypothesis profile, and the oracle on the import path."""

import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# pytest's importlib mode leaves the tests' own folder off the path.
sys.path.insert(0, str(Path(__file__).parent))

# How long drawing takes is a property of the machine, not of the code under test.
hypothesis.settings.register_profile(
    "runtime",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("runtime")


class _TorchRandom:
    """Lets hypothesis seed torch, so that an example that fails can be drawn again."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = _TorchRandom()
hypothesis.register_random(TORCH_RANDOM)

# The sizes here are too small to share: threads would wait for each other more than work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export of a mixture with examples, to be copied before it is changed."""
    from _exported import export_mixture  # noqa: PLC0415 - after its folder is on the path

    return export_mixture(tmp_path_factory.mktemp("exported"))
