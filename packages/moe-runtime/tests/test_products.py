"""Products are those of the definition, whichever library takes them."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime import Experts, SoftmaxRouter
from moe_runtime import _products as products
from moe_runtime._kernels import run_loop, run_sorted
from moe_runtime._plan import make_plan

needs_onednn = pytest.mark.skipif(
    products._onednn_linear() is None, reason="this build of PyTorch has no oneDNN"
)
# Multiplications and rows around the bounds from which on oneDNN takes over.
SIZES = [(0, 8, 4), (1, 1024, 1200), (2, 1024, 512), (2, 1024, 511), (17, 256, 300), (65, 300, 130)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that oneDNN was given, as on a processor where it is used."""
    seen: list[tuple[int, ...]] = []
    operator = products._onednn_linear()
    assert operator is not None

    def noted(x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return operator(x, *rest)

    monkeypatch.setattr(products, "_ONEDNN_LINEAR", noted)
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_a_linear_map_is_the_one_of_float64(
    size: tuple[int, int, int], *, bias: bool, transposed: bool
) -> None:
    num_rows, inputs, outputs = size
    x = torch.randn(num_rows, inputs)
    weight = torch.randn(inputs, outputs).T if transposed else torch.randn(outputs, inputs)
    offset = torch.randn(outputs) if bias else None
    got = products.linear(x, weight, offset)
    wanted = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    # Sums of `inputs` terms of size 1.
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-6 * inputs**0.5 * 5)


@pytest.mark.parametrize(
    "size", [(0, 8, 4), (15, 500, 400), (16, 500, 400), (65, 300, 130)], ids=str
)
@torch.no_grad()
def test_a_gradient_of_a_weight_is_the_one_of_float64(size: tuple[int, int, int]) -> None:
    num_rows, inputs, outputs = size
    grad, x = torch.randn(num_rows, outputs), torch.randn(num_rows, inputs)
    got = torch.full((2, outputs, inputs), torch.nan)[1]
    products.weight_gradient(grad, x, got)
    torch.testing.assert_close(got.double(), grad.double().T @ x.double(), rtol=0, atol=1e-4)


@needs_onednn
def test_only_large_float32_products_without_autograd_go_to_onednn(
    calls: list[tuple[int, ...]],
) -> None:
    large, weight = torch.randn(2, 1024), torch.randn(512, 1024, requires_grad=True)
    with torch.no_grad():
        products.linear(large, weight)
        assert calls == [(2, 1024)]
        products.linear(large[:1], weight)
        products.linear(large, weight[:-1])
        products.linear(large.double(), weight.double())
        products.linear(large.bfloat16(), weight.bfloat16())
    assert products.linear(large, weight).requires_grad
    assert calls == [(2, 1024)]


@needs_onednn
@pytest.mark.parametrize("leading", [(40,), (4, 10)], ids=str)
def test_scores_of_many_rows_use_it(calls: list[tuple[int, ...]], leading: tuple[int, ...]) -> None:
    router, x = SoftmaxRouter(256, 128), torch.randn(*leading, 256)
    wanted = router.double()(x.double()).weights
    with torch.no_grad():
        weights = router.float()(x).weights
    assert calls == [(*leading, 256)]
    torch.testing.assert_close(weights.double(), wanted, rtol=0, atol=1e-5)


@needs_onednn
def test_what_is_traced_holds_no_product_of_onednn(calls: list[tuple[int, ...]]) -> None:
    router, x = SoftmaxRouter(256, 128), torch.randn(40, 256)
    with torch.no_grad():
        wanted = router(x).weights
        assert len(calls) == 1
        program = torch.export.export(router, (x,))
        compiled = torch.compile(router, fullgraph=True, backend="eager")(x).weights
    assert "mkldnn" not in str(program.graph)
    assert len(calls) == 1
    torch.testing.assert_close(compiled, wanted)


@needs_onednn
def test_large_experts_use_it_forward_and_backward_and_are_right(
    calls: list[tuple[int, ...]],
) -> None:
    experts = Experts(3, (256, 300, 200), activation="swiglu")
    weights_GTE = torch.rand(1, 64, 3) * (torch.rand(1, 64, 3) < 0.7)
    x_TD = torch.randn(64, 256, requires_grad=True)
    found = []
    for run in (run_sorted, run_loop):
        output = run(experts, x_TD, weights_GTE, make_plan(weights_GTE))
        grads = torch.autograd.grad(output.square().sum(), [x_TD, *experts.parameters()])
        found.append([output, *grads])
        if run is run_sorted:
            # Two layers of three experts, once forward and twice backward.
            assert len(calls) == 18
    assert len(calls) == 18
    for ours, theirs in zip(*found, strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)
