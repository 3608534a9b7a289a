"""Packed experts are for inference: whatever else is asked of them is refused, and says why."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _reference import DIM, ROUTERS, make_mixture
from torch import nn

from moe_runtime import (
    Experts,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    load_tensors,
    pack_experts,
    save_checkpoint,
)


def multi_gate() -> MultiGateMixtureOfExperts:
    return MultiGateMixtureOfExperts([ROUTERS["top_k"](4, 2)] * 2, Experts(4, (DIM, 3)))


def already_packed() -> nn.Module:
    mixture = multi_gate()
    pack_experts(mixture)
    return mixture


AnyPack: Any = pack_experts
BAD_CALLS: list[tuple[Callable[[], object], str]] = [
    (
        lambda: pack_experts(multi_gate(), weights="int4"),
        "`weights` must be one of ['bfloat16', 'float32', 'int8'], got 'int4'.",
    ),
    (
        lambda: pack_experts(nn.Linear(3, 2)),
        "`model` must hold a mixture whose experts can be packed, got none.",
    ),
    (
        lambda: pack_experts(nn.Sequential(already_packed())),
        "`model` must have `Experts` that are not packed yet, got PackedExperts in '0'.",
    ),
    (
        lambda: pack_experts(nn.Sequential(multi_gate().double())),
        "got torch.float64 on cpu in '0'.",
    ),
    (
        lambda: pack_experts(multi_gate().to("meta")),
        "`model` must have experts in float32, bfloat16 or float16 and on the CPU, got",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_a_model_that_cannot_be_packed_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AnyPack("model"), "`model` must be a torch.nn.Module, got str."),
        (
            lambda: AnyPack(multi_gate(), example_inputs=3),
            "`example_inputs` must be a sequence of tensors, got int.",
        ),
        (
            lambda: AnyPack(multi_gate(), example_inputs=[[1.0]]),
            "`example_inputs[0]` must be a torch.Tensor, got list.",
        ),
    ],
)
def test_arguments_of_other_types_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        call()


def test_a_refusal_changes_nothing() -> None:
    mixture = make_mixture("top_k").double()
    with pytest.raises(ValueError, match="float64"):
        pack_experts(mixture)
    assert type(mixture.experts) is Experts
    assert len(mixture.experts.layers) == 2


REFUSED: list[tuple[Callable[[MixtureOfExperts], object], str]] = [
    (lambda model: model.train(), "cannot train: train the model before"),
    (lambda model: model.state_dict(), "have no state_dict: save the model before"),
    (
        lambda model: model.load_state_dict(make_mixture("top_k").state_dict()),
        "cannot load weights: load them before",
    ),
    (
        lambda model: load_tensors(model, make_mixture("top_k").state_dict()),
        "have no state_dict: save the model before",
    ),
    (
        lambda model: save_checkpoint("never.ckpt", model.state_dict()),
        "have no state_dict: save the model before",
    ),
    (
        lambda model: model.save_pretrained("never"),
        "have no state_dict: save the model before",
    ),
    (lambda model: model.double(), "stay torch.float32 on the CPU: convert the model before"),
    (lambda model: model.to("meta"), "stay torch.float32 on the CPU: convert the model before"),
    (
        lambda model: model(torch.randn(3, DIM, requires_grad=True)),
        "pass no gradient: run the model under `torch.inference_mode()`",
    ),
    (
        lambda model: model.experts.every(torch.randn(3, DIM, requires_grad=True)),
        "pass no gradient: run the model under `torch.inference_mode()`",
    ),
]


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("use", "message"), REFUSED)
def test_all_but_inference_is_refused(
    weights: str, use: Callable[[MixtureOfExperts], object], message: str
) -> None:
    mixture = make_mixture("top_k")
    pack_experts(mixture, weights=weights)
    with pytest.raises(RuntimeError, match=re.escape(f"packed experts {message}")):
        use(mixture)


def test_a_gradient_may_be_required_where_none_is_computed() -> None:
    mixture = make_mixture("top_k")
    pack_experts(mixture)
    with torch.no_grad():
        assert mixture(torch.randn(3, DIM, requires_grad=True)).output.shape == (3, 4)


def test_a_pickle_is_refused() -> None:
    mixture = make_mixture("top_k")
    pack_experts(mixture)
    with pytest.raises(TypeError, match="cannot be pickled: save the model before"):
        torch.save(mixture, io.BytesIO())


def test_onnx_export_is_refused(tmp_path: Any) -> None:
    for extra in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')
    from moe_runtime.onnx import export  # noqa: PLC0415 - the extra

    mixture = make_mixture("top_k")
    pack_experts(mixture)
    names: Any = {"input_names": ["x"], "output_names": ["y", "penalty", "weights"]}
    with pytest.raises(ValueError, match="must be exported before `pack_experts`"):
        export(mixture, (torch.randn(9, DIM),), tmp_path, hard=True, **names)
    assert list(tmp_path.iterdir()) == []
