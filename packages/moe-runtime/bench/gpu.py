"""The Triton kernels on a GPU: right, without a synchronisation, how fast; writes JSON.

One call checks, tunes and times everything, and goes on where one part fails:

    python gpu.py --tune

Without a GPU it says so and ends; `TRITON_INTERPRET=1 python gpu.py --toy` runs all of it at
toy sizes on the CPU, where its times mean nothing. ScatterMoE is timed if it can be imported.

Axes: T rows, D input features, H hidden units, E experts, P (row, expert) pairs.
"""

import argparse
import json
import platform
import re
import statistics
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime._triton import run_experts
from moe_runtime._triton._blocks import Blocks, Kind, Table, choose_table

RESULTS = Path(__file__).parent / "results"
REPEATS = 20
# ||ours - float64|| / ||float64||: rounding of the dtype, with room for sums of rounded terms.
ALLOWED = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
CANDIDATES = (
    Blocks(128, 256, 64, warps=8, stages=4, programs=1),
    Blocks(128, 128, 64, warps=8, stages=3, programs=1),
    Blocks(128, 128, 64, warps=8, stages=4, programs=1),
    Blocks(128, 128, 64, warps=4, stages=3, programs=1),
    Blocks(128, 64, 64, warps=4, stages=3, programs=2),
    Blocks(64, 256, 64, warps=4, stages=3, programs=1),
    Blocks(64, 128, 64, warps=4, stages=3, programs=2),
    Blocks(64, 128, 64, warps=4, stages=4, programs=2),
)


class Size(NamedTuple):
    """One layer and batch."""

    rows: int
    dim: int
    hidden: int
    experts: int
    k: int
    activation: str

    @property
    def flop(self) -> int:
        """Arithmetic of the selected pairs, forward."""
        products = 3 if self.activation == "swiglu" else 2
        return 2 * self.rows * self.k * products * self.dim * self.hidden


class Problem(NamedTuple):
    """Tensors of one size; the same for every variant."""

    x_TD: Tensor
    weights_TE: Tensor
    up: Tensor  # (E, H or 2H, D)
    down: Tensor  # (E, D, H)
    grad_TD: Tensor


Variant = Callable[[Problem, Size], Tensor]


def sizes(*, toy: bool) -> list[Size]:
    """List what is timed."""
    if toy:
        return [Size(48, 32, 32, 3, 2, "swiglu"), Size(48, 32, 64, 2, 1, "gelu")]
    rows = (4096, 16384, 65536)
    return [
        *(Size(each, 2048, 1024, 64, 8, "swiglu") for each in rows),
        *(Size(each, 768, 3072, 8, 2, "gelu") for each in rows),
    ]


def draw(size: Size, device: str, dtype: torch.dtype) -> Problem:
    """Draw a problem whose rows each use k experts."""
    wide = size.hidden * (2 if size.activation == "swiglu" else 1)
    scores_TE = torch.randn(size.rows, size.experts, device=device)
    top, index = scores_TE.topk(size.k)
    weights_TE = torch.zeros_like(scores_TE).scatter_(1, index, top.softmax(1))
    tensors = (
        torch.randn(size.rows, size.dim, device=device),
        weights_TE,
        torch.randn(size.experts, wide, size.dim, device=device) / size.dim**0.5,
        torch.randn(size.experts, size.dim, size.hidden, device=device) / size.hidden**0.5,
        torch.randn(size.rows, size.dim, device=device),
    )
    return Problem(
        *(each if each is weights_TE else each.to(dtype) for each in tensors[:4]),
        tensors[4].to(dtype),
    )


def ours(problem: Problem, size: Size, table: Table | None = None) -> Tensor:
    """Run this package's kernels."""
    stacks = (problem.up, None, problem.down, None)
    activations = (size.activation, "identity")
    weights_GTE = problem.weights_TE[None]
    return run_experts(
        problem.x_TD, weights_GTE, stacks, activations, max_active=size.k, table=table
    )[0]


def activated(z: Tensor, name: str) -> Tensor:
    """Apply an activation, gated or not."""
    if name == "gelu":
        return F.gelu(z)
    gate, value = z.chunk(2, -1)
    return F.silu(gate) * value


def grouped(problem: Problem, size: Size) -> Tensor:
    """Sort, gather, run `torch.nn.functional.grouped_mm`, and add up by row."""
    top, index_TK = problem.weights_TE.topk(size.k)
    order_P = index_TK.flatten().argsort(stable=True)
    offsets_E = torch.bincount(index_TK.flatten(), minlength=size.experts).cumsum(0).int()
    x_PD = problem.x_TD[order_P // size.k]
    h_PH = activated(F.grouped_mm(x_PD, problem.up.mT, offs=offsets_E), size.activation)
    y_PD = F.grouped_mm(h_PH, problem.down.mT, offs=offsets_E)
    y_TKD = y_PD[order_P.argsort()].view(size.rows, size.k, -1)
    return (y_TKD * top[:, :, None].to(y_TKD.dtype)).sum(1)


def scattermoe_variant(problem: Problem, size: Size) -> Tensor:
    """Run ScatterMoE's own layer on the same weights."""
    import scattermoe  # noqa: PLC0415 - optional

    experts = scattermoe.parallel_experts
    top, index_TK = problem.weights_TE.topk(size.k)
    sorted_experts, order, offsets = experts.flatten_sort_count(index_TK, size.experts)
    arguments = (sorted_experts, order, offsets)
    h_PH = experts.parallel_linear(
        problem.x_TD, problem.up.mT, size.k, *arguments, grouped_out=True
    )
    return experts.parallel_linear(
        activated(h_PH, size.activation),
        problem.down.mT,
        1,
        *arguments,
        grouped_in=True,
        gates=top.to(problem.x_TD.dtype),
    )


VARIANTS: dict[str, Variant] = {
    "triton": ours,
    "grouped_mm": grouped,
    "scattermoe": scattermoe_variant,
}


def reference(problem: Problem, size: Size) -> Tensor:
    """Run every expert for every row in float64."""
    z_ETH = torch.einsum("td,ehd->eth", problem.x_TD, problem.up)
    y_ETD = torch.einsum("eth,edh->etd", activated(z_ETH, size.activation), problem.down)
    return torch.einsum("te,etd->td", problem.weights_TE, y_ETD)


def step(variant: Variant, problem: Problem, size: Size) -> list[Tensor]:
    """Return the output and the gradients of rows, gate weights, and both stacks."""
    leaves = [each.detach().requires_grad_() for each in problem[:4]]
    output = variant(Problem(*leaves, problem.grad_TD), size)
    return [output, *torch.autograd.grad(output, leaves, problem.grad_TD)]


def relative(got: Tensor, wanted: Tensor) -> float:
    """Return the norm of a difference over that of what is wanted."""
    got, wanted = got.detach().double(), wanted.detach().double()
    return float((got - wanted).norm() / wanted.norm())


def check(device: str) -> list[dict[str, Any]]:
    """Compare with float64 at odd sizes, in every dtype; repeats must be equal to the bit."""
    rows = []
    for dtype, allowed in ALLOWED.items():
        for size in (Size(33, 40, 24, 5, 2, "swiglu"), Size(7, 17, 35, 3, 1, "gelu")):
            problem = draw(size, device, dtype)
            got, again = step(ours, problem, size), step(ours, problem, size)
            wanted = step(reference, Problem(*(each.double() for each in problem)), size)
            # The reference also says what a pair without weight would do if it had one.
            wanted[2] *= problem.weights_TE != 0
            errors = [relative(a, b) for a, b in zip(got, wanted, strict=True)]
            rows.append(
                {
                    "dtype": str(dtype),
                    "size": size._asdict(),
                    "errors": errors,
                    "right": all(error < allowed for error in errors),
                    "repeats": all(map(torch.equal, got, again)),
                }
            )
            print(f"check {dtype} {size}: {rows[-1]['right']}, {max(errors):.1e}", flush=True)
    return rows


def check_synchronisation(device: str) -> str:
    """Run a step in which it is an error to wait for the device."""
    size = Size(64, 64, 64, 4, 2, "swiglu")
    problem = draw(size, device, torch.bfloat16)
    step(ours, problem, size)
    if device != "cuda":
        return "not checked without a GPU"
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(ours, problem, size)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def milliseconds(function: Callable[[], object], device: str) -> float:
    """Time one call."""
    if device != "cuda":
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def interleaved(functions: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Take medians, one call of each in turn, after warming up."""
    repeats, warm = (REPEATS, 3) if device == "cuda" else (1, 0)
    for _ in range(warm):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(milliseconds(function, device))
    return {name: statistics.median(each) for name, each in times.items()}


def inference(variant: Variant, problem: Problem, size: Size) -> None:
    """Run the output alone."""
    with torch.inference_mode():
        variant(problem, size)


def peak_bytes(function: Callable[[], object], device: str) -> int | None:
    """Return the most memory that a call takes on top of what is there."""
    if device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def measure(size: Size, device: str, table: Table, matmul_rate: float) -> dict[str, Any]:
    """Time all variants of one size; one that fails is reported, and left out."""
    problem = draw(size, device, torch.bfloat16)
    variants: dict[str, Variant] = {**VARIANTS, "triton": lambda p, s: ours(p, s, table)}
    failures, differences, memory = {}, {}, {}
    outputs: list[Tensor] = []
    for name, variant in list(variants.items()):
        try:
            got = step(variant, problem, size)[0]
            memory[name] = peak_bytes(lambda v=variant: step(v, problem, size), device)
            outputs = outputs or [got]
            differences[name] = relative(got, outputs[0])
        except Exception as error:  # noqa: BLE001 - one variant must not cost the others' numbers
            failures[name] = f"{type(error).__name__}: {str(error)[:300]}"
            del variants[name]
    forward = {n: lambda v=v: inference(v, problem, size) for n, v in variants.items()}
    both = {n: lambda v=v: step(v, problem, size) for n, v in variants.items()}
    row: dict[str, Any] = {
        "size": size._asdict(),
        "forward_milliseconds": interleaved(forward, device),
        "forward_and_backward_milliseconds": interleaved(both, device),
        "extra_peak_bytes": memory,
        "difference_from_triton": differences,
        "failures": failures,
    }
    for name, each in row["forward_and_backward_milliseconds"].items():
        rate = 3 * size.flop / each / 1e9
        row.setdefault("share_of_matmul_rate", {})[name] = rate / matmul_rate
        print(f"{size} {name}: {each:.3f} ms, {rate:.1f} TFLOP/s", flush=True)
    for name, reason in failures.items():
        print(f"{size} {name}: failed, {reason}", flush=True)
    return row


def measure_matmul(device: str, width: int) -> float:
    """Measure the rate of one large product, in TFLOP/s."""
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * width**3 / interleaved({"": lambda: a @ b}, device)[""] / 1e9


def tune(size: Size, device: str, best: dict[Kind, Blocks]) -> list[dict[str, Any]]:
    """Try other tiles for one product after the other, on a whole step; put them in `best`."""
    problem, log = draw(size, device, torch.bfloat16), []
    up = "gated output" if size.activation == "swiglu" else "output"
    candidates = CANDIDATES if device == "cuda" else (Blocks(16, 32, 16, 4, 2, 2),)
    for product in dict.fromkeys((up, "output", "input gradient", "weight gradient")):
        kind = Kind(product, 2, many=True)
        times = {}
        for blocks in dict.fromkeys((best[kind], *candidates)):
            tried = {**best, kind: blocks}
            entry: dict[str, Any] = {"product": product, "blocks": blocks._asdict()}
            try:
                times[blocks] = step_time(problem, size, tried, device)
                entry["milliseconds"] = times[blocks]
            except Exception as error:  # noqa: BLE001 - a tile that does not fit is no tile
                entry["failed"] = str(error)[:200]
            log.append(entry)
        best[kind] = min(times, key=times.__getitem__)
        print(f"tuned {product} {size}: {best[kind]}, {times[best[kind]]:.3f} ms", flush=True)
    return log


def step_time(problem: Problem, size: Size, table: Table, device: str) -> float:
    """Time a step of this package's kernels with a table of tiles."""
    return interleaved({"": lambda: step(lambda p, s: ours(p, s, table), problem, size)}, device)[
        ""
    ]


class Report:
    """Numbers so far, in a file that is rewritten with every part: a killed run keeps them."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.parts = path, about
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it measures
        """Run one part; if it fails, say so and return None."""
        try:
            self.parts[name] = answer = function()
        except Exception as error:  # noqa: BLE001 - later parts have numbers of their own
            self.parts[name], answer = {"failed": f"{type(error).__name__}: {error}"}, None
            print(f"{name} failed:\n{traceback.format_exc()[-2000:]}", flush=True)
        self.path.write_text(json.dumps(self.parts, indent=1) + "\n")
        return answer


def run_all(report: Report, device: str, *, toy: bool, tunes: bool) -> None:
    """Check, time what is shipped, and, if asked, tune and time again."""
    report.add("checks", lambda: check(device))
    report.add("synchronisations", lambda: check_synchronisation(device))
    width = 256 if toy else 8192
    rate = report.add("matmul_teraflops", lambda: measure_matmul(device, width)) or 1.0
    table = choose_table(torch.empty(0, device=device))
    for number, size in enumerate(sizes(toy=toy)):
        report.add(f"as shipped {number}", lambda s=size: measure(s, device, table, rate))
    if not tunes:
        return
    tables: dict[str, Table] = {}
    for number, size in enumerate(sizes(toy=toy)):
        if size.activation not in tables:
            # One number of rows for all of a layer's: 16384, or the toy's.
            middle = size if toy else size._replace(rows=16384)
            found = dict(table)
            report.add(f"tuning {number}", lambda s=middle, b=found: tune(s, device, b))
            tables[size.activation] = found
        chosen = tables[size.activation]
        report.add(f"tuned {number}", lambda s=size, t=chosen: measure(s, device, t, rate))


def main() -> None:
    """Check, tune, time, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="toy sizes, in the interpreter")
    parser.add_argument("--tune", action="store_true", help="try other tiles")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_known_args()[0]
    if not options.toy and not torch.cuda.is_available():
        print("no CUDA device: nothing measured")
        return
    torch.manual_seed(0)
    name = platform.machine() if options.toy else torch.cuda.get_device_name()
    kind = "toy" if options.toy else re.sub(r"\W+", "_", name).lower()
    versions = {"torch": torch.__version__, "triton": version("triton")}
    about = {"device": name, "toy": options.toy, "versions": versions}
    report = Report(options.output / f"gpu_{kind}.json", about)
    device = "cpu" if options.toy else "cuda"
    run_all(report, device, toy=options.toy, tunes=options.tune)
    print(f"wrote {report.path}")


if __name__ == "__main__":
    main()
