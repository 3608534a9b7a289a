"""What the benchmarks have in common: options, one training step, the GEMM rate, JSON files.

Axes: T rows, D input features, O output features.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Named beside PyTorch where they are installed.
ALSO = ("onnxruntime",)
RESULTS = Path(__file__).parent / "results"
# Seconds of rounds for one size, unless the fewest rounds take longer.
SECONDS, QUICK_SECONDS = 4.0, 0.05
MIN_ROUNDS, MAX_ROUNDS = 7, 200
WARM_SECONDS = 5e-3  # of untimed calls before a timed one
# Products that show what the machine can do where the measured sizes are too small to.
GEMM_ROWS, GEMM_SIZE = (1024, 4096), 1024


class Options(NamedTuple):
    """What a benchmark was asked for."""

    quick: bool
    large: bool
    results: Path

    @property
    def seconds(self) -> float:
        """How long to measure one size."""
        return QUICK_SECONDS if self.quick else SECONDS


class Model(NamedTuple):
    """A variant: what is called, and the module whose gradients are dropped after a step."""

    call: Callable[[Tensor], Tensor]
    module: nn.Module


def parse_options(description: str | None) -> Options:
    """Read the command line; options of other benchmarks are ignored."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--quick", action="store_true", help="few small sizes, to see that it runs")
    parser.add_argument("--large", action="store_true", help="also sizes that take many minutes")
    parser.add_argument("--results", type=Path, help="folder for the JSON file")
    given = parser.parse_known_args()[0]
    torch.set_num_threads(given.threads)
    default = RESULTS / "quick" if given.quick else RESULTS
    return Options(given.quick, given.large, given.results or default)


def write(name: str, options: Options, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write what was measured, and on what, as ``<name>_cpu.json``."""
    document = {
        "device": f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
        "quick": options.quick,
        "versions": {"torch": torch.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ALSO if find_spec(name)},
        "rows": list(rows),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{name}_cpu.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def infer(model: Model, x_TD: Tensor) -> Tensor:
    """Run inference."""
    with torch.inference_mode():
        return model.call(x_TD)


def train(model: Model, x_TD: Tensor, grad_TO: Tensor) -> None:
    """Run forward and backward, with gradients that are made anew as an optimiser's are."""
    model.call(x_TD).backward(grad_TO)
    model.module.zero_grad(set_to_none=True)
    x_TD.grad = None


def time_models(
    models: Mapping[str, Model],
    x_TD: Tensor,
    *,
    training: bool,
    options: Options,
    operations: float = 0.0,
) -> dict[str, Any]:
    """Time all variants in turns with plain products.

    Returns
    -------
    dict
        Median milliseconds of each variant, its median ratio to the first one in the same
        round, the best rate of a product in GFLOP/s, and what `operations` take at that rate.
    """
    run: Callable[..., object] = infer
    if training:
        with torch.no_grad():
            output_TO = next(iter(models.values())).call(x_TD)
        run = partial(train, grad_TO=torch.randn_like(output_TO))
        x_TD = x_TD.detach().requires_grad_()
    calls = {name: partial(run, model, x_TD) for name, model in models.items()}
    products = {
        (rows, library): product for rows in GEMM_ROWS for library, product in gemms(rows).items()
    }
    times = take_turns(calls | products, seconds=options.seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rate = max(2e-6 * rows * GEMM_SIZE**2 / medians[rows, name] for rows, name in products)
    first = times[next(iter(models))]
    ratios = {
        name: statistics.median(map(truediv, values, first)) for name, values in times.items()
    }
    return {
        "milliseconds": {name: medians[name] for name in models},
        "ratios": {name: ratios[name] for name in models},
        "gemm_gflops": rate,
        "floor_milliseconds": 1e-6 * operations / rate,
    }


def gemms(rows: int) -> dict[str, Callable[[], object]]:
    """Return a product by each library that PyTorch brings: MKL may be far behind on AMD."""
    left, right = torch.randn(rows, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    calls: dict[str, Callable[[], object]] = {
        "torch.mm": partial(torch.mm, left, right, out=torch.empty_like(left))
    }
    if torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - there is no public name
        calls["oneDNN"] = partial(onednn, left, right, None, "none", [], "")
    return calls


def take_turns(
    calls: Mapping[Hashable, Callable[[], object]], *, seconds: float
) -> dict[Hashable, list[float]]:
    """Time calls in turns, each right after untimed ones of its own.

    Without them, a call that comes after another one with the same weights would find them in
    the cache, and the one after a large product would not. Short calls need several: after a
    product of 16 MB one of 0.2 ms takes 0.5 ms even the second time.

    Returns
    -------
    dict of list of float
        Milliseconds of each round.
    """
    times: dict[Hashable, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for done in range(1, MAX_ROUNDS + 1):
        for name, call in calls.items():
            warm = time.perf_counter()
            call()
            while time.perf_counter() - warm < WARM_SECONDS:
                call()
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
        if done >= MIN_ROUNDS and time.perf_counter() - begin > seconds:
            break
    return times
