"""An exported model gives PyTorch's answers, wherever it runs and whatever the batch."""

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from _reference import ACTIVATIONS, DIM, NUM_IDS, ROUTERS, awake, make_mixture, router_of
from torch import Tensor, nn

from moe_runtime import (
    CometRouter,
    Experts,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    Router,
    hard_routing,
)
from moe_runtime.onnx import Verification, export
from moe_runtime.onnx._decided import decided_rows

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

BATCH_SIZES = (0, 1, 2, 7, 33, 700, 1000)
# float32: two layers of a few terms, and a softmax, on each side.
TOLERANCE = 2e-6

# Runs a model as a server would: with NumPy and ONNX Runtime, and nothing of ours.
SERVE = """
import sys
import numpy as np
import onnxruntime as ort

model, inputs, answers = sys.argv[1:]
session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
assert "torch" not in sys.modules
batches = np.load(inputs)
found = {}
for size in sorted({name.split(".")[0] for name in batches}):
    feeds = {v.name: batches[f"{size}.{v.name}"] for v in session.get_inputs()}
    for value, answer in zip(session.get_outputs(), session.run(None, feeds)):
        found[f"{size}.{value.name}"] = answer
np.savez(answers, **found)
"""


def serve(model: Path, batches: dict[int, dict[str, Tensor]]) -> dict[str, Any]:
    """Run batches in a fresh process; answers by "<batch size>.<output>"."""
    inputs, answers = model.with_name("inputs.npz"), model.with_name("answers.npz")
    feeds = {
        f"{size}.{name}": value.numpy()
        for size, batch in batches.items()
        for name, value in batch.items()
    }
    np.savez(inputs, **feeds)  # type: ignore[arg-type]
    command = [sys.executable, "-I", "-c", SERVE, str(model), str(inputs), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(answers))


class AllRouters(nn.Module):
    """A mixture of each router side by side, because one export is slow enough."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        names = zip(sorted(ROUTERS), cycle(sorted(ACTIVATIONS)), strict=False)
        self.mixtures = nn.ModuleDict(
            {
                name: make_mixture(name, num_experts, activation=activation)
                for name, activation in names
            }
        )

    def forward(self, x: Tensor, ids: Tensor) -> list[Tensor]:
        return [
            mixture(x, ids if name == "hash" else None).output
            for name, mixture in self.mixtures.items()
        ]


class Exported(NamedTuple):
    model: AllRouters
    hard: bool
    folder: Path
    verification: Verification


def draw(num_rows: int) -> dict[str, Tensor]:
    return {"x": torch.randn(num_rows, DIM), "ids": torch.randint(NUM_IDS, (num_rows,))}


def draw_decided(model: nn.Module, num_rows: int) -> dict[str, Tensor]:
    """Draw rows whose route no rounding changes."""
    inputs = draw(num_rows + 20)
    decided = decided_rows(model, tuple(inputs.values()))
    return {name: value[decided][:num_rows] for name, value in inputs.items()}


# The least number of experts, and powers of two and others; one of them routed softly.
CASES = [(2, True), (3, True), (5, False), (16, True)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-hard={case[1]}")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    num_experts, hard = request.param
    torch.manual_seed(num_experts)
    model = AllRouters(num_experts)
    folder = tmp_path_factory.mktemp("model")
    verification = export(
        model,
        tuple(draw(300).values()),
        folder,
        hard=hard,
        input_names=["x", "ids"],
        output_names=list(model.mixtures),
    )
    return Exported(model, hard, folder, verification)


def test_a_fresh_process_without_torch_gives_the_same_answers(exported: Exported) -> None:
    model = exported.model
    with hard_routing(model), torch.no_grad():
        batches = {size: draw_decided(model, size) for size in BATCH_SIZES}
    assert [len(batch["x"]) for batch in batches.values()] == list(BATCH_SIZES)
    answers = serve(exported.folder / "model.onnx", batches)
    routers = [module for module in model.modules() if isinstance(module, Router)]
    try:
        for router in routers:
            router.hard = exported.hard
        for size, batch in batches.items():
            for name, wanted in zip(model.mixtures, model(**batch), strict=True):
                answer = torch.from_numpy(answers[f"{size}.{name}"])
                torch.testing.assert_close(answer, wanted.detach(), rtol=0, atol=TOLERANCE)
    finally:
        for router in routers:
            router.hard = False


def test_the_graph_holds_standard_operators_only_and_scatters_nothing(exported: Exported) -> None:
    import onnx  # noqa: PLC0415 - the extra

    proto = onnx.load(exported.folder / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert {entry.domain for entry in proto.opset_import} == {""}
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    operators = {node.op_type for node in proto.graph.node}
    # ScatterND with additions is a data race in ONNX Runtime (1.32) on the CPU.
    assert not {name for name in operators if name.startswith("Scatter")}
    assert {"NonZero", "Split", "Gemm"} <= operators


def test_each_weight_is_stored_once(exported: Exported) -> None:
    import onnx  # noqa: PLC0415 - the extra

    proto = onnx.load(exported.folder / "model.onnx")
    stored = sum(int(np.prod(each.dims)) for each in proto.graph.initializer)
    held = sum(each.numel() for each in exported.model.state_dict().values())
    # Beside them there are only indices and shapes.
    assert held <= stored + 4 * 3 * 16 + NUM_IDS
    assert stored < held + 1000


def test_the_verification_says_what_was_compared(exported: Exported) -> None:
    verification = exported.verification
    assert verification.batch_sizes == (0, 1, 2, 7, 33, 700)
    assert list(verification.output_errors) == list(exported.model.mixtures)
    assert len(verification.mixture_errors) == len(ROUTERS)
    assert verification.largest_error < TOLERANCE
    info = json.loads((exported.folder / "model_info.json").read_text())
    assert info["verification"]["output_errors"] == verification.output_errors
    assert info["hard"] is exported.hard
    assert [value["name"] for value in info["inputs"]] == ["x", "ids"]
    assert {each["name"] for each in info["mixtures"]} == {
        f"mixtures.{name}" for name in exported.model.mixtures
    }
    assert set(info["files"]) == {"examples.npz", "model.onnx"}


class Block(nn.Module):
    """Two mixtures one after the other with a residual, one of them used twice; rows of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.first = make_mixture("comet", out_features=DIM)
        routers = [awake(ROUTERS[name](5, 2)) for name in ("dselect_k", "top_k")]
        self.tasks = MultiGateMixtureOfExperts(routers, Experts(5, (DIM, 7, 3)))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(self.norm(x)).output
        x = x + self.first(self.norm(x)).output
        output: Tensor = self.tasks(self.dropout(x)).output
        return output.movedim(0, 1)


@pytest.mark.parametrize("hard", [True, False])
def test_several_mixtures_in_one_model(tmp_path: Path, *, hard: bool) -> None:
    model = Block()
    model.norm.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    x = torch.randn(200, 4, DIM)
    export(model, (x,), tmp_path, hard=hard, input_names=["x"], output_names=["y"])
    # It is left as it was: training, with a part in evaluation, and routed softly.
    assert {name: module.training for name, module in model.named_modules()} == modes
    routers = [module for module in model.modules() if isinstance(module, Router)]
    assert [router.hard for router in routers] == [False] * 3
    model.eval()
    with torch.no_grad():
        if hard:
            with hard_routing(model):
                x, wanted = _decided_answers(model, x)
        else:
            x, wanted = _decided_answers(model, x)
    answer = serve(tmp_path / "model.onnx", {len(x): {"x": x}})[f"{len(x)}.y"]
    # Three layers of outputs up to 10.
    torch.testing.assert_close(torch.from_numpy(answer), wanted, rtol=1e-5, atol=1e-5)


def _decided_answers(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x[decided_rows(model, (x,))]
    return x, model(x)


@pytest.mark.parametrize("name", ["comet", "dselect_k"])
def test_a_mixture_by_itself_exports_its_output_penalty_and_weights(
    tmp_path: Path, name: str
) -> None:
    mixture = make_mixture(name, 5)
    x = torch.randn(50, DIM)
    names = ["output", "penalty", "weights"]
    verification = export(
        mixture, (x,), tmp_path, hard=False, input_names=["x"], output_names=names
    )
    # The penalty of dselect_k is a sum over 700 rows of up to 1e6 each.
    assert verification.largest_error < 1e-5
    nothing = serve(tmp_path / "model.onnx", {0: {"x": x[:0]}})
    assert nothing["0.penalty"] == 0
    assert nothing["0.output"].shape == (0, 4)


@pytest.mark.parametrize("name", ["biased_top_k", "tree_top_k"])
def test_more_experts_a_row_than_are_selected_one_by_one(name: str, tmp_path: Path) -> None:
    mixture = make_mixture(name, num_experts=9, k=6).eval()
    names = ["output", "penalty", "weights"]
    x = torch.randn(50, DIM)
    verification = export(mixture, (x,), tmp_path, hard=True, input_names=["x"], output_names=names)
    assert verification.largest_error < TOLERANCE


def test_a_router_that_is_hard_by_itself_is_exported_as_that(tmp_path: Path) -> None:
    mixture = make_mixture("comet")
    router_of(mixture).hard = True
    names = ["output", "penalty", "weights"]
    x = torch.randn(50, DIM)
    export(mixture, (x,), tmp_path, hard=False, input_names=["x"], output_names=names)
    assert json.loads((tmp_path / "model_info.json").read_text())["hard"] is True


def test_a_permutation_is_folded_into_the_model(tmp_path: Path) -> None:
    mixture = make_mixture("comet")
    x = torch.randn(64, DIM)
    names = ["output", "penalty", "weights"]
    for permutation in (router_of(mixture).permutation.flip(-1), torch.arange(5).repeat(2, 1)):
        router_of(mixture).set_permutation(permutation)
        export(mixture, (x,), tmp_path, hard=False, input_names=["x"], output_names=names)
        answers = serve(tmp_path / "model.onnx", {64: {"x": x}})
        wanted = mixture(x).weights.detach()
        torch.testing.assert_close(torch.from_numpy(answers["64.weights"]), wanted)


class AnyInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixture = MixtureOfExperts(CometRouter(DIM, 3, k=1), Experts(3, [DIM, DIM]))

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        output: Tensor = self.mixture(first + sum(others)).output
        return output


def test_inputs_may_be_taken_together(tmp_path: Path) -> None:
    inputs = tuple(torch.randn(20, DIM) for _ in range(3))
    names = ["a", "b", "c"]
    found = export(AnyInputs(), inputs, tmp_path, hard=True, input_names=names, output_names=["y"])
    assert found.largest_error < 1e-5
    assert found.batch_sizes == (0, 1, 2, 7, 33, 700)


def test_inputs_that_may_be_taken_together_may_be_none(tmp_path: Path) -> None:
    x = torch.randn(20, DIM)
    found = export(AnyInputs(), (x,), tmp_path, hard=True, input_names=["x"], output_names=["y"])
    assert found.largest_error < 1e-5


class WithState(AnyInputs):
    """Its state is more than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


def test_a_state_may_hold_what_is_no_tensor(tmp_path: Path) -> None:
    x = torch.randn(20, DIM)
    found = export(WithState(), (x,), tmp_path, hard=True, input_names=["x"], output_names=["y"])
    assert found.largest_error < 1e-5


class Outputs(nn.Module):
    """Outputs that are no floating numbers, beside one that may be infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = make_mixture("top_k")

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        output, _, weights = self.mixture(x)
        used = weights > 0
        return output, used, used.sum(-1), torch.where(used, weights, -torch.inf)


class SoftmaxTwice(nn.Module):
    """An output, and a value inside that torch.onnx names after its operator."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = make_mixture("top_k")

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.mixture(x.softmax(-1)).output
        return output.softmax(-1)


def test_an_output_may_have_the_name_of_a_value_inside(tmp_path: Path) -> None:
    x = torch.randn(50, DIM)
    found = export(
        SoftmaxTwice(), (x,), tmp_path, hard=True, input_names=["x"], output_names=["softmax"]
    )
    assert [*found.output_errors] == ["softmax"]
    assert found.largest_error < TOLERANCE


def test_outputs_may_be_booleans_integers_and_infinite(tmp_path: Path) -> None:
    names = ["y", "used", "count", "masked"]
    x = torch.randn(50, DIM)
    verification = export(
        Outputs(), (x,), tmp_path, hard=True, input_names=["x"], output_names=names
    )
    assert verification.output_errors["used"] == verification.output_errors["count"] == 0
    assert verification.largest_error < TOLERANCE


@pytest.mark.parametrize("name", ["comet", "dselect_k", "top_k"])
def test_rows_that_rounding_alone_reroutes_are_left_out_and_counted(
    tmp_path: Path, name: str
) -> None:
    mixture = make_mixture(name, 4, k=1)
    decision = next(iter(router_of(mixture).children()))
    assert isinstance(decision, nn.Linear)
    x = torch.randn(200, DIM, dtype=torch.float64)
    with torch.no_grad():
        decision.bias.zero_()
        # The first split, bit, or difference of the two largest scores.
        normal = decision.weight[0].double().clone()
        if name == "top_k":
            decision.weight[2:] = 0
            decision.bias[2:] = -100
            normal = normal - decision.weight[1].double()
        # Half of the rows to within rounding of the jump.
        x[::2] -= torch.outer(x[::2] @ normal, normal) / normal.square().sum()
    with torch.no_grad(), hard_routing(mixture):
        decided = decided_rows(mixture, (x.float(),))
    assert not decided[::2].any()
    assert decided[1::2].sum() > 95
    verification = export(
        mixture,
        (x.float(),),
        tmp_path,
        hard=True,
        input_names=["x"],
        output_names=["y", "penalty", "weights"],
    )
    assert verification.num_undecided == int((~decided).sum())
    info = json.loads((tmp_path / "model_info.json").read_text())
    assert info["verification"]["num_undecided"] == verification.num_undecided
