"""Whatever computes a COMET router, its answer is the same; and it says what does."""

import re
import sys

import pytest
import torch
from _reference import DIM, awake
from torch import Tensor

from moe_runtime import CometRouter, Router, Routing, _numba_use, hard_routing

KERNEL = pytest.mark.parametrize("kernel", ["auto", "numba", "torch"])


@pytest.fixture
def _without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_numba_use, "has_numba", lambda: False)


def need_numba(kernel: str) -> None:
    if kernel == "numba":
        reason = 'needs the extra: pip install "moe-runtime[numba]"'
        pytest.importorskip("numba", reason=reason)


def make(num_experts: int = 17, k: int = 3, *, kernel: str = "auto") -> CometRouter:
    router = awake(CometRouter(DIM, num_experts, k=k, kernel=kernel))
    assert isinstance(router, CometRouter)
    return router


def route(router: Router, x: Tensor, *, hard: bool) -> Routing:
    router.hard = hard
    routing = router(x)
    assert isinstance(routing, Routing)
    return routing


@KERNEL
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("leading", [(), (0,), (1,), (7,), (3, 5)], ids=str)
def test_every_kernel_gives_the_dense_answer(
    kernel: str, leading: tuple[int, ...], *, hard: bool
) -> None:
    need_numba(kernel)
    router = make(kernel=kernel).double()
    x = torch.randn(*leading, DIM, dtype=torch.float64)
    with torch.no_grad():
        found = route(router, x, hard=hard)
        router.kernel = "dense"
        wanted = route(router, x, hard=hard)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@KERNEL
@pytest.mark.parametrize("hard", [False, True])
def test_every_kernel_gives_the_dense_gradients(kernel: str, *, hard: bool) -> None:
    need_numba(kernel)
    router = make(kernel=kernel).double()
    x = torch.randn(20, DIM, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(17, dtype=torch.float64)

    def gradients() -> list[Tensor]:
        routing = route(router, x, hard=hard)
        loss = (routing.weights @ mix).square().sum() + routing.penalty
        return list(
            torch.autograd.grad(
                loss, (x, *router.parameters()), allow_unused=True, materialize_grads=True
            )
        )

    found = gradients()
    router.kernel = "dense"
    for ours, theirs in zip(found, gradients(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@KERNEL
def test_a_narrow_input_is_routed_in_float32(kernel: str) -> None:
    need_numba(kernel)
    router = make(kernel=kernel)
    x = torch.randn(9, DIM).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = route(router, x, hard=True), route(router, x.float(), hard=True)
    assert found.weights.dtype is torch.float32
    assert torch.equal(found.weights, wanted.weights)


@pytest.mark.usefixtures("_without_numba")
def test_without_numba_the_walk_is_taken_where_it_is_ahead() -> None:
    x = torch.randn(3, DIM)
    small, large = make(5), make(100)
    assert small.explain(x) == "dense gate: soft, or with a gradient"
    with hard_routing(small), hard_routing(large):
        assert small.explain(x) == "dense gate: soft, or with a gradient"
        with torch.no_grad():
            assert small.explain(x) == "torch walk: hard, and no numba"
            assert large.explain(x) == "torch walk: hard, and no numba"
            many = x.new_empty(100_000, DIM)
            assert small.explain(many) == "dense gate: few experts for so many rows"
            assert large.explain(many) == "torch walk: hard, and no numba"


def test_what_is_asked_for_is_taken_and_said() -> None:
    x = torch.randn(3, DIM)
    with torch.no_grad():
        for kernel, wanted in (("dense", "dense gate: asked for"), ("torch", "torch walk: asked")):
            router = make(kernel=kernel)
            router.hard = True
            assert router.explain(x).startswith(wanted)


def test_numba_is_taken_where_it_is_installed() -> None:
    need_numba("numba")
    router, x = make(), torch.randn(3, DIM)
    assert router.explain(x) == "numba gate: soft, or with a gradient"
    with torch.no_grad(), hard_routing(router):
        assert router.explain(x) == "numba walk: no gradient"
        assert router.explain(x.to("meta")).startswith("torch walk")


def test_numba_where_there_is_none_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    message = (
        "a router with `kernel='numba'` needs the package 'numba', which is not installed: "
        'pip install "moe-runtime[numba]"'
    )
    with pytest.raises(ModuleNotFoundError, match=re.escape(message)) as caught:
        make(kernel="numba")(torch.randn(3, DIM))
    assert caught.value.name == "numba"


def test_a_kernel_that_there_is_not_is_refused() -> None:
    message = "`kernel` must be one of ['auto', 'dense', 'numba', 'torch'], got 'fast'."
    with pytest.raises(ValueError, match=re.escape(message)):
        CometRouter(DIM, 4, k=2, kernel="fast")


@pytest.mark.parametrize("kernel", ["auto", "torch", "dense"])
@pytest.mark.parametrize("num_experts", [5, 17])
def test_a_compiled_router_gives_the_same_in_one_graph(kernel: str, num_experts: int) -> None:
    torch.compiler.reset()  # or each router here would count as a recompilation of one
    router = make(num_experts, kernel=kernel).double()
    x = torch.randn(9, DIM, dtype=torch.float64)
    compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
    for router.hard in (False, True):
        with torch.no_grad():
            found, wanted = compiled(x), router(x)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["jit.is_tracing", "compiler.is_exporting"])
def test_what_is_exported_or_traced_holds_no_numba(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    router = make()
    router.hard = True
    monkeypatch.setattr(f"torch.{name}", lambda: True)
    with torch.no_grad():
        assert router.explain(torch.randn(3, DIM)).startswith("dense gate: exported")


def test_a_row_that_overflows_reaches_no_other_row() -> None:
    x = torch.randn(4, DIM)
    router = make(kernel="dense")
    with torch.no_grad():
        router.split.bias.fill_(-1e30)
        router.split.weight.fill_(1e30)
    alone = route(router, x[:3], hard=True).weights
    x[3] = 1e30
    torch.testing.assert_close(route(router, x, hard=True).weights[:3], alone)


@KERNEL
def test_what_hard_training_teaches_does_not_depend_on_the_kernel(kernel: str) -> None:
    need_numba(kernel)
    router = make(kernel=kernel)
    routing = route(router, torch.randn(20, DIM), hard=True)
    torch.autograd.backward(routing.weights.square().sum())
    # An optimizer moves a parameter of gradient 0, by its momentum, and none without a gradient.
    for parameter in router.split.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
