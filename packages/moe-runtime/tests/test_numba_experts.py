"""numba's experts give the oracle's output, and refuse what they cannot do."""

import sys
from collections.abc import Iterator

import pytest
import torch
from _reference import (
    ACTIVATIONS,
    GATED,
    draw_gates,
    make_mixture,
    reference_mixture,
    stacks_of,
)
from hypothesis import given as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_runtime import Experts, MixtureOfExperts, ModuleExperts, TopKRouter, _numba_use
from moe_runtime._mixture import run_experts

pytest.importorskip("numba", reason='needs the extra: pip install "moe-runtime[numba]"')

# Of the largest entry: a hundred terms a sum and three layers, in units of rounding.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5}
ONE, TWO, THREE = (6, 4), (6, 9, 4), (6, 9, 5, 4)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def compare(
    experts: Experts, *, num_rows: int, num_gates: int = 1, dtype: torch.dtype = torch.float64
) -> None:
    """Compare the output with the oracle's."""
    experts.to(dtype)
    x_TD = torch.randn(num_rows, experts.in_features, dtype=dtype)
    weights_GTE = draw_gates(num_gates, num_rows, experts.num_experts).to(dtype)
    wide = [each.double() for each in (x_TD, weights_GTE, *stacks_of(experts))]
    wanted = reference_mixture(
        wide[0], wide[1], wide[2:], experts.activations, bias=experts.has_bias
    )
    output = run_experts(experts, x_TD, weights_GTE, "numba")
    assert output.dtype == dtype
    scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
    torch.testing.assert_close(output.double(), wanted, rtol=0, atol=TOLERANCES[dtype] * scale)


@pytest.mark.parametrize("num_gates", [1, 2])
@pytest.mark.parametrize("num_experts", [1, 3, 5, 17])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
def test_equals_the_oracle_at_every_size(num_rows: int, num_experts: int, num_gates: int) -> None:
    experts = Experts(num_experts, TWO, activation="silu")
    compare(experts, num_rows=num_rows, num_gates=num_gates)


@pytest.mark.parametrize("widths", [ONE, TWO, THREE], ids=["one", "two", "three"])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_equals_the_oracle_for_every_activation_and_depth(
    widths: tuple[int, ...], activation: str, *, bias: bool
) -> None:
    experts = Experts(5, widths, activation=activation, output_activation=activation, bias=bias)
    compare(experts, num_rows=7, num_gates=2)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_equals_the_oracle_in_both_precisions(dtype: torch.dtype) -> None:
    compare(Experts(5, (130, 67, 33)), num_rows=100, num_gates=2, dtype=dtype)


@examples(
    num_rows=st.integers(0, 12),
    num_experts=st.integers(1, 6),
    num_gates=st.integers(1, 3),
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
)
def test_equals_the_oracle_at_any_shape(
    num_rows: int, num_experts: int, num_gates: int, widths: list[int]
) -> None:
    compare(Experts(num_experts, widths), num_rows=num_rows, num_gates=num_gates)


def test_gates_may_be_wider_than_experts() -> None:
    experts, x_TD = Experts(5, TWO), torch.randn(7, 6)
    weights_GTE = draw_gates(1, 7, 5)
    assert weights_GTE.dtype == torch.float64
    output, wanted = (run_experts(experts, x_TD, weights_GTE, name) for name in ("numba", "loop"))
    assert output.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(output, wanted)


def test_any_layout_gives_the_same() -> None:
    experts, x_TD = Experts(5, TWO).double(), torch.randn(7, 6, dtype=torch.float64)
    weights_GTE = draw_gates(2, 7, 5)
    plain = run_experts(experts, x_TD, weights_GTE, "numba")
    for stack in experts.parameters():
        stack.data = stack.data.mT.contiguous().mT
    strided = x_TD.T.contiguous().T, weights_GTE.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(run_experts(experts, *strided, "numba"), plain)


def test_what_is_not_a_number_stays_one() -> None:
    experts, weights_GTE = Experts(3, TWO), torch.ones(1, 5, 3)
    stacks_of(experts)[0][1, 2, 3] = torch.nan
    assert run_experts(experts, torch.randn(5, 6), weights_GTE, "numba").isnan().all()


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.usefixtures("_threads_restored")
def test_repeats_to_the_bit(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    experts = Experts(17, (16, 32, 8))
    x_TD, weights_GTE = torch.randn(50, 16), draw_gates(2, 50, 17)
    first = run_experts(experts, x_TD, weights_GTE, "numba")
    for _ in range(100):
        assert torch.equal(run_experts(experts, x_TD, weights_GTE, "numba"), first)


def test_dropout_drops_where_it_is_asked_for() -> None:
    experts = Experts(2, (4, 1000, 4), dropout=0.5, bias=False)
    x_TD, weights_GTE = torch.randn(3, 4), torch.ones(1, 3, 2)
    answers = [run_experts(experts, x_TD, weights_GTE, "numba") for _ in range(2)]
    assert not torch.equal(*answers)
    experts.eval()
    wanted = run_experts(experts, x_TD, weights_GTE, "loop")
    torch.testing.assert_close(run_experts(experts, x_TD, weights_GTE, "numba"), wanted)


def few_rows() -> tuple[MixtureOfExperts, Tensor]:
    mixture = MixtureOfExperts(TopKRouter(16, 64, k=2), Experts(64, (16, 32, 16)))
    return mixture.eval(), torch.randn(9, 16)


@pytest.mark.parametrize("num_rows", [1, 9])
def test_is_taken_for_few_rows(num_rows: int) -> None:
    mixture, x = few_rows()
    assert mixture.explain(x[:num_rows]).kernel == "numba"
    assert mixture.train().explain(x[:num_rows]).kernel == "numba"


def test_is_not_taken_where_products_of_many_rows_are_faster() -> None:
    mixture = MixtureOfExperts(TopKRouter(256, 4, k=2), Experts(4, (256, 256, 256))).eval()
    assert mixture.explain(torch.randn(2048, 256)).kernel == "sorted"


def test_is_not_taken_where_numba_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture, x = few_rows()
    wanted = mixture(x[:1]).output
    monkeypatch.setattr(_numba_use, "has_numba", lambda: False)
    assert mixture.explain(x[:1]).kernel == "gathered"
    assert "numba" not in mixture.explain(x).microseconds
    torch.testing.assert_close(mixture(x[:1]).output, wanted)


def test_is_not_taken_for_what_it_does_not_know() -> None:
    mixture, x = few_rows()
    with torch.autocast("cpu", torch.bfloat16):
        assert mixture.explain(x[:1]).kernel == "gathered"
    modules = [nn.Linear(16, 16) for _ in range(64)]
    mixture.experts = ModuleExperts(modules, in_features=16, out_features=16)
    assert mixture.explain(x[:1]).kernel == "gathered"
    assert few_rows()[0].bfloat16().explain(x[:1].bfloat16()).kernel == "gathered"


@pytest.mark.filterwarnings("ignore")  # of torch.jit, about data that decides
def test_a_trace_keeps_no_answer_of_its_example() -> None:
    experts, weights_GTE = Experts(3, TWO).requires_grad_(requires_grad=False), torch.ones(1, 1, 3)
    first, second = torch.randn(2, 1, 6)
    traced = torch.jit.trace(  # type: ignore[no-untyped-call]
        lambda x_TD: run_experts(experts, x_TD, weights_GTE, "auto"), first
    )
    wanted = run_experts(experts, second, weights_GTE, "numba")
    torch.testing.assert_close(traced(second), wanted)


def test_where_numba_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_numba_use, "has_numba", lambda: False)
    monkeypatch.setitem(sys.modules, "numba", None)
    mixture = make_mixture("top_k", kernel="numba")
    message = "a mixture with `kernel='numba'` needs the package 'numba', which is not installed"
    with pytest.raises(ModuleNotFoundError, match=message):
        mixture(torch.randn(3, 6))


@pytest.mark.parametrize("kind", ["modules", "bfloat16", "autocast"])
def test_other_experts_are_refused(kind: str) -> None:
    experts = Experts(3, TWO)
    x_TD, weights_GTE = torch.randn(5, 6), torch.ones(1, 5, 3)
    if kind == "bfloat16":
        experts, x_TD = experts.bfloat16(), x_TD.bfloat16()
    modules = ModuleExperts([nn.Linear(6, 4)] * 3, in_features=6, out_features=4)
    given = modules if kind == "modules" else experts
    message = "`kernel`='numba' runs `Experts` in float32 or float64 only."
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
        pytest.raises(ValueError, match=message),
    ):
        run_experts(given, x_TD, weights_GTE, "numba")
