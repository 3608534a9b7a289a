"""A model that is wrong, or cannot be, is refused, and nothing of it is left behind."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _reference import DIM, make_mixture, router_of
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from moe_runtime import CometRouter, Experts, MixtureOfExperts, ModuleExperts, TopKRouter
from moe_runtime.onnx import ExportError, Verification, export

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

OUTPUTS = ["y", "penalty", "weights"]


def export_mixture(mixture: nn.Module, folder: Path, **options: Any) -> Verification:
    given: dict[str, Any] = {
        "example_inputs": (torch.randn(50, DIM),),
        "hard": True,
        "input_names": ["x"],
        "output_names": OUTPUTS,
        **options,
    }
    return export(mixture, given.pop("example_inputs"), folder, **given)


@pytest.fixture
def mixture() -> MixtureOfExperts:
    return make_mixture("top_k", 4)


def drop_expert(monkeypatch: pytest.MonkeyPatch, expert: int) -> None:
    """Lower mixtures without one expert's last layer, as a tracer that missed it would."""
    from moe_runtime.onnx import _lower  # noqa: PLC0415 - the extra

    target = _lower.TARGETS["unrolled"]

    def without(stack: Any) -> Any:
        array = stack.array.copy()
        array[expert] = 0
        return stack._replace(array=array)

    def wrong(build: Any, x: Any, gates: Any, contents: Any) -> Any:
        *layers, last = contents.layers
        last = last._replace(weight=without(last.weight), bias=without(last.bias))
        return target.lower(build, x, gates, contents._replace(layers=[*layers, last]))

    monkeypatch.setitem(_lower.TARGETS, "unrolled", target._replace(lower=wrong))


def test_a_model_without_an_expert_is_refused_and_an_earlier_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixture: MixtureOfExperts
) -> None:
    export_mixture(mixture, tmp_path)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    assert sorted(before) == ["examples.npz", "model.onnx", "model_info.json"]
    drop_expert(monkeypatch, 1)
    with pytest.raises(ExportError, match=r"differs from PyTorch by .* above `tolerance`=0\.0001"):
        export_mixture(mixture, tmp_path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_an_expert_that_no_example_reaches_is_verified_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixture: MixtureOfExperts
) -> None:
    router = router_of(mixture)
    assert isinstance(router, TopKRouter)
    assert isinstance(router.score, nn.Linear)
    router.set_permutation(torch.arange(4)[None])
    with torch.no_grad():
        router.score.bias[1] = -1000
    drop_expert(monkeypatch, 1)
    with pytest.raises(ExportError) as caught:
        export_mixture(mixture, tmp_path)
    found = re.search(r"'y': ([^,]+),.*per mixture: \(([^,]+),\)", str(caught.value))
    assert found is not None
    output_error, mixture_error = map(float, found.groups())
    # The examples see nothing of it.
    assert output_error < 1e-6
    assert mixture_error > 0.1
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_below_rounding_refuses(tmp_path: Path, mixture: MixtureOfExperts) -> None:
    with pytest.raises(ExportError, match="above `tolerance`=1e-12"):
        export_mixture(mixture, tmp_path, tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


class NotANumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixture = make_mixture("top_k")

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(self.mixture(x).output)


def test_answers_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="PyTorch gives NaN, by output: "):
        export_mixture(NotANumber(), tmp_path, output_names=["y"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_nan_anywhere_is_the_largest_error(position: int) -> None:
    errors = [0.5, 0.25, 0.125]
    errors[position] = np.nan
    outputs = dict(zip("ab", errors, strict=False))
    assert np.isnan(Verification((1,), outputs, (errors[2],), 0).largest_error)


def test_rows_that_all_lie_on_a_jump_verify_nothing(tmp_path: Path) -> None:
    mixture = make_mixture("comet", 2, k=1)
    router = router_of(mixture)
    assert isinstance(router, CometRouter)
    with torch.no_grad():
        router.split.weight.fill_(1.0)
        router.split.bias.zero_()
    # Terms that cancel to rounding.
    x = torch.tensor([[0.1, 0.2, -0.3, 0.7, -0.8, 0.1]]).repeat(5, 1)
    with pytest.raises(ExportError, match="none of the 5 rows of `example_inputs` can verify"):
        export_mixture(mixture, tmp_path, example_inputs=(x,))
    assert list(tmp_path.iterdir()) == []


class Answers(nn.Module):
    """A mixture whose answer is put together by a function."""

    def __init__(self, mixture: MixtureOfExperts, put_together: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.mixture, self.put_together = mixture, put_together

    def forward(self, x: Tensor) -> Any:
        return self.put_together(self.mixture(x).output)


@pytest.mark.parametrize(
    ("put_together", "found"),
    [
        (lambda y: {"y": y}, "dict"),
        (lambda _y: None, "NoneType"),
        (lambda y: (y, None), "a tuple of Tensor, NoneType"),
        (lambda y: [y, (y, y)], "a list of Tensor, tuple"),
    ],
)
def test_answers_that_are_no_tensors_are_refused(
    tmp_path: Path,
    mixture: MixtureOfExperts,
    put_together: Callable[[Tensor], Any],
    found: str,
) -> None:
    message = f"`model` must return a tensor or a sequence of tensors, got {found}."
    with pytest.raises(TypeError, match=re.escape(message)):
        export_mixture(Answers(mixture, put_together), tmp_path, output_names=["y", "z"])
    assert list(tmp_path.iterdir()) == []


class PastTheCall(nn.Module):
    """A mixture of modules that is not called, so that the tracer does not see which one it is."""

    def __init__(self) -> None:
        super().__init__()
        experts = [nn.Linear(DIM, 3) for _ in range(4)]
        self.mixture = MixtureOfExperts(
            TopKRouter(DIM, 4, k=2), ModuleExperts(experts, in_features=DIM, out_features=3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture.forward(x).output


def test_a_mixture_of_modules_whose_name_is_not_known_is_refused(tmp_path: Path) -> None:
    message = r"`model` must call .* as `mixture\(x\)`, .*: body does\."
    model = nn.Sequential()
    model.add_module("body", PastTheCall())
    with pytest.raises(ValueError, match=message):
        export_mixture(model, tmp_path, output_names=["y"])
    assert list(tmp_path.iterdir()) == []


class CountsRows(nn.Module):
    """A mixture with a token before the rows', whose number the tracer takes for a constant."""

    def __init__(self, mixture: MixtureOfExperts) -> None:
        super().__init__()
        self.mixture, self.first = mixture, nn.Parameter(torch.zeros(1, 1, DIM))

    def forward(self, x_TSD: Tensor) -> Tensor:
        first_T1D = self.first.expand(len(x_TSD), -1, -1)
        mixed: Tensor = self.mixture(torch.cat([first_T1D, x_TSD], 1)).output
        return mixed


def test_a_number_of_rows_that_became_a_constant_is_said(
    tmp_path: Path, mixture: MixtureOfExperts
) -> None:
    x_TSD = torch.randn(50, 3, DIM)
    model, names = CountsRows(mixture), ["y"]
    with pytest.raises(ExportError, match=r"fails with a batch of \d+ rows.* not `len\(x\)`"):
        export_mixture(model, tmp_path, example_inputs=(x_TSD,), output_names=names)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_onnx_runtime_cannot_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixture: MixtureOfExperts
) -> None:
    from moe_runtime.onnx import _lower  # noqa: PLC0415 - the extra

    def unknown(build: Any, x: Any, *_others: Any) -> Any:
        return build.op("NoSuchOperator", x)

    target = _lower.TARGETS["unrolled"]._replace(lower=unknown)
    monkeypatch.setitem(_lower.TARGETS, "unrolled", target)
    with pytest.raises(ExportError, match=r"cannot be opened by ONNX Runtime .*NoSuchOperator"):
        export_mixture(mixture, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_model_is_left_in_its_mode_and_routing(
    tmp_path: Path, mixture: MixtureOfExperts
) -> None:
    mixture.train()
    mixture.routers.eval()
    with pytest.raises(ExportError):
        export_mixture(mixture, tmp_path, tolerance=1e-12)
    assert mixture.training
    assert not mixture.routers.training
    assert not router_of(mixture).hard


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"input_names": ["x", "ids"]},
            "`input_names` must name each of the 1 `example_inputs`, got ['x', 'ids'].",
        ),
        (
            {"output_names": ["y"]},
            "`output_names` must name each of the 3 outputs, got ['y'].",
        ),
        (
            {"example_inputs": (torch.zeros(1, DIM),)},
            "`example_inputs` must be tensors with the same number of rows >= 2, got [1].",
        ),
        ({"example_inputs": (torch.tensor(0.0),)}, "number of rows >= 2, got [0]."),
        ({"example_inputs": (), "input_names": []}, "number of rows >= 2, got []."),
        (
            {
                "example_inputs": (torch.zeros(2, DIM), torch.zeros(3, DIM)),
                "input_names": ["x", "z"],
            },
            "number of rows >= 2, got [2, 3].",
        ),
        (
            {"example_inputs": (torch.zeros(2, DIM, dtype=torch.float64),)},
            "`x` must have the parameters' dtype torch.float32, got torch.float64.",
        ),
        (
            {"input_names": ["y"]},
            "must be all different and not empty, got ['y'] and ['y', 'penalty', 'weights'].",
        ),
        ({"output_names": ["y", "y", "z"]}, "must be all different and not empty"),
        ({"output_names": ["y", "", "z"]}, "must be all different and not empty"),
        ({"input_names": [""]}, "must be all different and not empty"),
        ({"tolerance": 0.0}, "`tolerance` must be > 0, got 0.0."),
        ({"tolerance": float("nan")}, "`tolerance` must be > 0, got nan."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_argument_is_refused(
    tmp_path: Path, mixture: MixtureOfExperts, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        export_mixture(mixture, tmp_path / "model", **options)
    assert not list(tmp_path.glob("model/*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hard": "no"}, "`hard` must be a bool, got str."),
        ({"tolerance": "a"}, "`tolerance` must be a number, got 'a'."),
        (
            {"example_inputs": torch.zeros(1, 8, DIM)},
            "`example_inputs` must be a sequence of tensors, got Tensor.",
        ),
        (
            {"example_inputs": (np.zeros((8, DIM), np.float32),)},
            "`example_inputs[0]` must be a torch.Tensor, got ndarray.",
        ),
        ({"input_names": "x"}, "`input_names` must be a sequence of strings, got 'x'."),
        ({"input_names": [0]}, "`input_names` must be a sequence of strings, got [0]."),
        ({"output_names": None}, "`output_names` must be a sequence of strings, got NoneType."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_of_another_type_is_refused(
    tmp_path: Path, mixture: MixtureOfExperts, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        export_mixture(mixture, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    model: Any = torch.relu
    with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module, got builtin_function"):
        export_mixture(model, tmp_path)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path, mixture: MixtureOfExperts) -> None:
    path = tmp_path / "a"
    path.write_text("text")
    message = f"`folder` must be a folder, got the file {path}."
    with pytest.raises(NotADirectoryError, match=re.escape(message)):
        export_mixture(mixture, path)
    nothing: Any = None
    with pytest.raises(TypeError, match="`folder` must be a path, got NoneType"):
        export_mixture(mixture, nothing)
    assert path.read_text() == "text"


def test_a_model_of_another_dtype_is_refused(tmp_path: Path, mixture: MixtureOfExperts) -> None:
    message = r"`model` must be float32, .*experts.layers.0.bias is torch.float64 on cpu"
    with pytest.raises(ValueError, match=message):
        export_mixture(mixture.double(), tmp_path)


def test_a_model_that_shares_a_folder_with_other_files_leaves_them(
    tmp_path: Path, mixture: MixtureOfExperts
) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n")
    export_mixture(mixture, tmp_path)
    assert (tmp_path / "labels.txt").read_text() == "a\nb\n"


@pytest.mark.parametrize("how", ["pruned", "parametrised"])
@pytest.mark.parametrize("bias", [True, False])
def test_experts_whose_weights_are_no_parameters_are_refused(
    tmp_path: Path, how: str, *, bias: bool
) -> None:
    experts = Experts(4, (DIM, 7, 4), bias=bias)
    if how == "pruned":
        mask = torch.ones(4, 7, DIM)
        mask[1] = 0
        prune.custom_from_mask(experts.layers[0], "weight", mask)  # type: ignore[no-untyped-call]
    else:
        parametrize.register_parametrization(experts.layers[0], "weight", nn.Tanh())
    mixture = MixtureOfExperts(TopKRouter(DIM, 4, k=2), experts)
    with pytest.raises(ValueError, match=r"'experts\.layers\.0' has .*prune\.remove"):
        export_mixture(mixture, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    if how == "pruned":
        prune.remove(experts.layers[0], "weight")  # type: ignore[no-untyped-call]
    else:
        parametrize.remove_parametrizations(experts.layers[0], "weight")
    assert export_mixture(mixture, tmp_path / "model").largest_error < 1e-5


def test_additions_by_scattering_are_refused_wherever_they_are(
    tmp_path: Path, mixture: MixtureOfExperts
) -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixture = mixture

        def forward(self, x: Tensor, to: Tensor) -> Tensor:
            return torch.zeros(9, 4).index_add(0, to, self.mixture(x).output)

    inputs = torch.randn(50, DIM), torch.randint(9, (50,))
    with pytest.raises(ExportError, match=r"would add with Scatter.*index_add"):
        export(
            Summed(), inputs, tmp_path / "m", hard=True, input_names=["x", "to"], output_names=["y"]
        )


def test_an_output_in_bfloat16_is_refused_by_name(
    tmp_path: Path, mixture: MixtureOfExperts
) -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixture = mixture

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.mixture(x).output
            return output.bfloat16()

    with pytest.raises(ValueError, match=r"must not give out bfloat16, .* got 'y'"):
        export_mixture(Narrow(), tmp_path / "model", output_names=["y"])
