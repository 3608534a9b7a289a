"""Every target of one model gives PyTorch's answers, from the model or from an earlier export."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _reference import DIM, make_mixture, router_of
from torch import Tensor, nn

from moe_runtime import (
    CometRouter,
    Experts,
    MixtureOfExperts,
    ModuleExperts,
    MultiGateMixtureOfExperts,
    TopKRouter,
    hard_routing,
)
from moe_runtime.onnx import (
    ExportError,
    ModelError,
    TargetError,
    Verification,
    export,
    lower,
    verify,
)
from moe_runtime.onnx._decided import decided_rows

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

TARGETS = ("unrolled", "scan", "onnxruntime", "int8")
EXACT_TARGETS = TARGETS[:3]


class Tower(nn.Module):
    """An embedding, a mixture that is used twice, and two gates over one set of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, DIM)
        self.block = make_mixture("comet", 5, activation="relu", out_features=DIM)
        routers = [router_of(make_mixture(name, 4)) for name in ("top_k", "dselect_k")]
        experts = Experts(4, (DIM, 16, DIM), activation="swiglu")
        self.tasks = MultiGateMixtureOfExperts(routers, experts)

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.embedding(ids)
        x = x + self.block(x).output
        x = x + self.block(x).output
        first, second = self.tasks(x).output
        return first, second


NAMES: dict[str, Any] = {"input_names": ["ids", "x"], "output_names": ["first", "second"]}


def draw(num_rows: int) -> tuple[Tensor, Tensor]:
    return torch.randint(20, (num_rows,)), torch.randn(num_rows, DIM)


def answers(model: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    import onnxruntime as ort  # noqa: PLC0415 - the extra

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(each) for each in session.run(None, feeds)]


def operators(model: Path) -> set[str]:
    import onnx  # noqa: PLC0415 - the extra

    return {node.op_type for node in onnx.load(model).graph.node}


@pytest.fixture(scope="module")
def tower() -> Tower:
    torch.manual_seed(1)
    return Tower().eval()


@pytest.fixture(scope="module")
def exported(tower: Tower, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verification]:
    folder = tmp_path_factory.mktemp("canonical")
    return folder, export(tower, draw(300), folder, hard=True, canonical=True, **NAMES)


@pytest.mark.parametrize("target", EXACT_TARGETS)
def test_an_export_is_lowered_again_for_another_target(
    tower: Tower, exported: tuple[Path, Verification], tmp_path: Path, target: str
) -> None:
    folder, first = exported
    again = lower(folder, tmp_path, target=target)
    assert again.largest_error < 1e-5
    assert again.num_undecided == first.num_undecided
    assert again.hardening == first.hardening
    with torch.no_grad(), hard_routing(tower):
        inputs = draw(200)
        decided = decided_rows(tower, inputs)
        inputs = (inputs[0][decided], inputs[1][decided])
        for found, wanted in zip(
            answers(tmp_path / "model.onnx", inputs), tower(*inputs), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    info = json.loads((tmp_path / "model_info.json").read_text())
    assert info["target"] == target
    kept = ("inputs", "outputs", "mixtures", "hard")
    before = json.loads((folder / "model_info.json").read_text())
    assert {name: info[name] for name in kept} == {name: before[name] for name in kept}


def test_each_target_is_made_of_its_own_operators(
    exported: tuple[Path, Verification], tmp_path: Path
) -> None:
    found = {}
    for target in TARGETS:
        # The first layers' rounding sends some rows to other experts in 8 bits.
        tolerance = 0.5 if target == "int8" else None
        lower(exported[0], tmp_path / target, target=target, tolerance=tolerance)
        found[target] = operators(tmp_path / target / "model.onnx")
    assert {"Gemm", "NonZero"} <= found["unrolled"]
    assert "Scan" in found["scan"]
    assert "MoE" in found["onnxruntime"]
    assert "MatMulIntegerToFloat" in found["int8"]
    for target, names in found.items():
        assert not {name for name in names if name.startswith("Scatter")}, target
        assert ("Scan" in names) == (target == "scan")
        assert ("MoE" in names) == (target == "onnxruntime")


def test_a_mixture_that_is_used_twice_is_stored_once(
    tower: Tower, exported: tuple[Path, Verification], tmp_path: Path
) -> None:
    import onnx  # noqa: PLC0415 - the extra

    held = sum(each.numel() for each in tower.parameters())
    for target in EXACT_TARGETS[:2]:
        lower(exported[0], tmp_path, target=target)
        proto = onnx.load(tmp_path / "model.onnx")
        floats = [each for each in proto.graph.initializer if each.data_type == 1]
        assert sum(int(np.prod(each.dims)) for each in floats) < held + 200


def test_8_bit_integers_say_their_error_and_take_a_quarter(tmp_path: Path) -> None:
    mixture = MixtureOfExperts(TopKRouter(64, 8, k=2), Experts(8, (64, 128, 64)))
    sizes = {}
    for target in ("unrolled", "int8", "qmoe"):
        verification = export(
            mixture,
            (torch.randn(200, 64),),
            tmp_path / target,
            hard=True,
            input_names=["x"],
            output_names=["y", "penalty", "weights"],
            target=target,
        )
        sizes[target] = (tmp_path / target / "model.onnx").stat().st_size
        error = verification.output_errors["y"]
        assert (0.002 < error < 0.02) if target != "unrolled" else error < 1e-5
        assert verify(tmp_path / target).holds
    assert max(sizes["int8"], sizes["qmoe"]) < 0.35 * sizes["unrolled"]


def test_a_target_that_cannot_run_a_mixture_is_refused_by_its_name(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("body", Block("gelu", TopKRouter(DIM, 4, k=2)))
    message = r"`target`='onnxruntime' cannot run every mixture: body.mixture: the GELU of"
    with pytest.raises(TargetError, match=message):
        export_block(model, tmp_path, target="onnxruntime")
    assert not list(tmp_path.iterdir())


class Block(nn.Module):
    def __init__(self, activation: str, router: nn.Module) -> None:
        super().__init__()
        experts = Experts(4, (DIM, 16, DIM), activation=activation)
        assert isinstance(router, TopKRouter | CometRouter)
        self.mixture = MixtureOfExperts(router, experts)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.mixture(x).output
        return output


def export_block(model: nn.Module, folder: Path, **options: Any) -> Verification:
    given: dict[str, Any] = {"hard": True, "input_names": ["x"], "output_names": ["y"], **options}
    inputs = given.pop("example_inputs", (torch.randn(100, DIM),))
    return export(model, inputs, folder, **given)


def test_a_soft_gate_is_refused_by_the_operator_that_would_cut_it(tmp_path: Path) -> None:
    model = Block("relu", CometRouter(DIM, 4, k=2))
    with pytest.raises(TargetError, match="may use all 4: export with `hard`=True and `k` below"):
        export_block(model, tmp_path, hard=False, target="onnxruntime")
    assert export_block(model, tmp_path, target="onnxruntime").largest_error < 1e-5


def test_hardening_says_what_it_changed(tmp_path: Path) -> None:
    model = Block("relu", CometRouter(DIM, 4, k=1, gamma=20.0)).eval()
    x = torch.randn(100, DIM)
    with torch.no_grad():
        soft = model(x)
        with hard_routing(model):
            apart = model(x) - soft
    change = export_block(model, tmp_path, example_inputs=(x,)).hardening["y"]
    assert change.largest == pytest.approx(float(apart.abs().max()), rel=1e-5)
    assert change.relative == pytest.approx(float(apart.norm() / soft.norm()), rel=1e-5)
    assert change.relative > 0.1
    assert export_block(model, tmp_path, hard=False).hardening == {}


@pytest.mark.parametrize("target", EXACT_TARGETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_its_weights(tmp_path: Path, target: str, dtype: torch.dtype) -> None:
    import onnx  # noqa: PLC0415 - the extra

    model = Block("relu", TopKRouter(DIM, 4, k=2))
    model.mixture.experts = Experts(4, (DIM, 128, DIM))
    model = model.to(dtype).eval()
    x = torch.randn(100, DIM).to(dtype)
    export_block(model, tmp_path, example_inputs=(x,), target=target)
    stored = {"torch.float16": 10, "torch.bfloat16": 16}[str(dtype)]
    sizes: dict[int, int] = {}
    for each in onnx.load(tmp_path / "model.onnx").graph.initializer:
        if len(each.dims) > 1 and each.data_type in {1, 10, 16}:
            sizes[each.data_type] = sizes.get(each.data_type, 0) + int(np.prod(each.dims))
    if not (target == "unrolled" and dtype is torch.bfloat16):  # too small each to be worth a cast
        assert max(sizes, key=sizes.__getitem__) == stored
    assert {each.dtype for each in model.parameters()} == {dtype}
    info = json.loads((tmp_path / "model_info.json").read_text())
    assert info["mixtures"][0]["dtype"] == str(dtype).removeprefix("torch.")
    wide = model.float()
    with torch.no_grad():
        (found,) = answers(tmp_path / "model.onnx", (x if dtype is torch.float16 else x.float(),))
        # Float16 rounds to 11 bits in each layer; bfloat16 is computed with in float32.
        tolerance = 1e-2 if dtype is torch.float16 else 1e-5
        torch.testing.assert_close(found.float(), wide(x.float()), rtol=tolerance, atol=tolerance)


class Images(nn.Module):
    """One expert of an image mixture: convolution, pooling, a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3)
        self.linear = nn.Linear(3 * 3 * 3, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.reshape(-1, 1, 8, 8)
        features = nn.functional.max_pool2d(torch.relu(self.convolution(images)), 2)
        output: Tensor = self.linear(features.flatten(1))
        return output


def test_modules_as_experts_are_exported_and_get_their_rows_only(tmp_path: Path) -> None:
    experts = ModuleExperts([Images() for _ in range(4)], in_features=64, out_features=5)
    routers = [CometRouter(64, 4, k=1), TopKRouter(64, 4, k=2)]
    mixture = MultiGateMixtureOfExperts(routers, experts)
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y", "penalty", "weights"]}
    x = torch.randn(60, 64)
    verification = export(mixture, (x,), tmp_path, hard=True, canonical=True, **names)
    assert len(verification.mixture_errors) == 1
    assert verification.largest_error < 1e-5
    for num_rows in (0, 1, 5):
        output = answers(tmp_path / "model.onnx", (x[:num_rows],))[0]
        assert output.shape == (2, num_rows, 5)
    for target in ("scan", "int8"):
        assert lower(tmp_path, tmp_path / target, target=target).largest_error < 1e-5
    with pytest.raises(TargetError, match="its experts are modules, of which no operator knows"):
        lower(tmp_path, tmp_path / "onnxruntime", target="onnxruntime")


class Encoder(nn.Module):
    """Tokens and their padding: attention, then a mixture that skips what is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        experts = Experts(4, (16, 32, 16), activation="gelu")
        self.mixture = MixtureOfExperts(TopKRouter(16, 4, k=2), experts)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embedding(tokens)
        attended = self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        output: Tensor = self.mixture(x + attended, mask=mask).output
        return output


@pytest.mark.parametrize("target", EXACT_TARGETS[:2])
def test_a_transformer_block_takes_any_batch_and_any_length(tmp_path: Path, target: str) -> None:
    model = Encoder().eval()
    tokens = torch.randint(30, (40, 12))
    mask = torch.arange(12) < torch.randint(1, 13, (40, 1))
    axes = {"tokens": {1: "sequence"}, "mask": {1: "sequence"}}
    names: dict[str, Any] = {"input_names": ["tokens", "mask"], "output_names": ["y"]}
    example_inputs = (tokens, mask)
    export(model, example_inputs, tmp_path, hard=True, target=target, dynamic_axes=axes, **names)
    for batch, length in ((1, 1), (3, 7), (2, 40), (0, 5)):
        tokens = torch.randint(30, (batch, length))
        mask = torch.arange(length) < torch.randint(1, length + 1, (batch, 1))
        with torch.no_grad():
            wanted = model(tokens, mask)
        (found,) = answers(tmp_path / "model.onnx", (tokens, mask))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


class WithPenalty(Encoder):
    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        output, penalty, _ = self.mixture(self.embedding(tokens), mask=mask)
        return output, penalty


def test_a_penalty_that_would_count_padding_is_refused(tmp_path: Path) -> None:
    inputs = (torch.randint(30, (40, 12)), torch.rand(40, 12) < 0.5)
    names: dict[str, Any] = {"input_names": ["tokens", "mask"], "output_names": ["y", "penalty"]}
    with pytest.raises(ExportError, match="'penalty': nan"):
        export(WithPenalty(), inputs, tmp_path, hard=True, **names)


def test_a_bfloat16_model_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    model = Block("relu", TopKRouter(DIM, 4, k=2)).to(torch.bfloat16)
    x = torch.randn(50, DIM).to(torch.bfloat16)
    model.left = model(x)
    with pytest.raises(ValueError, match="`model` must be one that can be copied, to compute in"):
        export_block(model, tmp_path, example_inputs=(x,))


def test_an_export_is_not_lowered_over_itself(exported: tuple[Path, Verification]) -> None:
    folder = exported[0]
    with pytest.raises(ValueError, match="`folder` must be another one than `source`, which"):
        lower(folder, folder / ".." / folder.name, target="scan")
    assert (folder / "canonical.onnx").exists()


def test_a_refused_export_leaves_no_new_folder(tmp_path: Path) -> None:
    model = Block("relu", TopKRouter(DIM, 4, k=2))
    with pytest.raises(ExportError, match="above `tolerance`"):
        export_block(model, tmp_path / "new" / "in" / "new", tolerance=1e-12)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_weights_of_a_large_model_are_in_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    from moe_runtime.onnx import _files, _verify, _write  # noqa: PLC0415 - the extra

    for module in (_files, _write):
        monkeypatch.setattr(module, "EXTERNAL_BYTES", 2000)
    monkeypatch.setattr(_verify, "MAX_PACKED_BYTES", 2000)
    model = Block("relu", TopKRouter(DIM, 4, k=2))
    model.mixture.experts = Experts(4, (DIM, 64, DIM))
    x = torch.randn(50, DIM)
    options: dict[str, Any] = {"example_inputs": (x,), "target": target, "canonical": True}
    # Many rows are left to each mixture alone.
    assert export_block(model.eval(), tmp_path, **options).batch_sizes == (0, 1, 2, 7, 33)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.onnx.data", "canonical.onnx.data"} <= names
    assert (tmp_path / "model.onnx").stat().st_size < 40_000
    with torch.no_grad():
        (found,) = answers(tmp_path / "model.onnx", (x,))
        tolerance = 0.05 if target == "int8" else 1e-5
        torch.testing.assert_close(found, model(x), rtol=tolerance, atol=tolerance)
    lower(tmp_path, tmp_path / "again", target="unrolled")
    # A small model in its place leaves nothing of it.
    monkeypatch.undo()
    export_block(model, tmp_path, example_inputs=(x,))
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "examples.npz",
        "model.onnx",
        "model_info.json",
    }


def test_nothing_of_the_users_machine_is_in_the_model(
    exported: tuple[Path, Verification],
) -> None:
    for name in ("model.onnx", "canonical.onnx", "model_info.json"):
        data = (exported[0] / name).read_bytes()
        assert b"File " not in data
        assert str(Path(__file__).parent).encode() not in data


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "canonical.onnx").unlink(), "canonical.onnx is missing: "),
        (lambda folder: (folder / "examples.npz").write_bytes(b"PK"), "npz is damaged: its SHA"),
        (lambda folder: (folder / "canonical.onnx").write_bytes(b""), "onnx is damaged: its SHA"),
        (lambda folder: (folder / "model_info.json").write_text("{"), "model_info.json is damaged"),
    ],
)
def test_a_damaged_export_is_not_lowered(
    exported: tuple[Path, Verification], tmp_path: Path, damage: Any, message: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in exported[0].iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    damage(source)
    with pytest.raises(ModelError, match=re.escape(message)):
        lower(source, tmp_path / "out", target="scan")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_export_is_not_lowered(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="`source` must be the folder of an export"):
        lower(tmp_path / "nothing", tmp_path / "out", target="scan")
    with pytest.raises(ModelError, match=re.escape("model_info.json cannot be read: No such")):
        lower(tmp_path, tmp_path / "out", target="scan")


def test_an_export_without_its_canonical_form_is_not_lowered(tmp_path: Path) -> None:
    export_block(Block("relu", TopKRouter(DIM, 4, k=2)), tmp_path)
    with pytest.raises(ModelError, match=r"has no canonical\.onnx: export with `canonical`=True"):
        lower(tmp_path, tmp_path / "out", target="scan")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "fast"}, "`target` must be one of ['unrolled', 'scan', 'onnxruntime', "),
        ({"dynamic_axes": {"z": {1: "n"}}}, "`dynamic_axes` must name inputs of ['x'], got 'z'."),
        ({"dynamic_axes": {"x": {0: "n"}}}, "must map axes from 1 to 1 to names other than"),
        ({"dynamic_axes": {"x": {1: "batch"}}}, "other than 'batch', got 1: 'batch'."),
    ],
)
def test_a_bad_argument_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    model = Block("relu", TopKRouter(DIM, 4, k=2))
    with pytest.raises(ValueError, match=re.escape(message)):
        export_block(model, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_two_threads_never_lose_a_contribution_in_a_thousand_runs(tmp_path: Path) -> None:
    import onnxruntime as ort  # noqa: PLC0415 - the extra

    mixture = make_mixture("top_k", 16)
    x = torch.randn(1024, DIM)
    with torch.no_grad():
        x = x[decided_rows(mixture, (x,))]
        wanted = mixture(x).output.numpy()
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y", "penalty", "weights"]}
    export(mixture, (x,), tmp_path, hard=True, **names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = ort.InferenceSession(tmp_path / "model.onnx", options)
    feeds = {"x": x.numpy()}
    errors = [np.abs(session.run(["y"], feeds)[0] - wanted).max() for _ in range(1000)]
    assert max(errors) < 2e-6
