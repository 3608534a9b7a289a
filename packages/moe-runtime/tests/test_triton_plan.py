"""The plan that is made on the device lists what the plan that is counted lists."""

import subprocess
import sys

import pytest
import torch
from _reference import draw_gates
from hypothesis import given
from hypothesis import strategies as st

from moe_runtime._plan import make_plan
from moe_runtime._triton import run_experts
from moe_runtime._triton._plan import gather_gates, make_device_plan, spread_gates


@given(
    num_gates=st.integers(1, 3),
    num_rows=st.integers(0, 9),
    num_experts=st.integers(1, 6),
    counts=st.booleans(),
)
def test_lists_the_same_pairs_in_the_same_orders(
    num_gates: int, num_rows: int, num_experts: int, *, counts: bool
) -> None:
    weights_GTE = draw_gates(num_gates, num_rows, num_experts)
    wanted = make_plan(weights_GTE)
    plan = make_device_plan(weights_GTE, max_active=None if counts else num_experts)
    num_pairs = wanted.num_pairs
    assert plan.room == (num_pairs if counts else num_rows * num_experts)
    assert plan.row_P[:num_pairs].tolist() == wanted.expert_and_row_P[1].tolist()
    assert plan.expert_P[:num_pairs].tolist() == wanted.expert_and_row_P[0].tolist()
    assert plan.by_row_P[:num_pairs].tolist() == wanted.by_row_P.tolist()
    assert plan.pair_start.diff().tolist() == wanted.counts_E
    assert plan.row_start[:-1].tolist() == wanted.row_start_T.tolist()
    assert [int(plan.pair_start[-1]), int(plan.row_start[-1])] == [num_pairs, num_pairs]


@given(num_gates=st.integers(1, 3), num_rows=st.integers(0, 9), num_experts=st.integers(1, 6))
def test_gradients_of_the_pairs_weights_go_back_to_where_they_came_from(
    num_gates: int, num_rows: int, num_experts: int
) -> None:
    weights_GTE = draw_gates(num_gates, num_rows, num_experts).float()
    plan = make_device_plan(weights_GTE, max_active=num_experts)
    spread = spread_gates(gather_gates(weights_GTE, plan), plan)
    assert torch.equal(spread, weights_GTE)


def test_more_pairs_than_promised_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="`max_active` is exceeded"):
        make_device_plan(torch.ones(1, 4, 3), max_active=2)


def test_float32_is_rounded_to_tf32_only_where_pytorch_was_told_to() -> None:
    code = """if True:
    import torch
    from moe_runtime._triton._run import choose_precision
    print(choose_precision(allow_tf32=None), choose_precision(allow_tf32=True))
    torch.backends.cuda.matmul.allow_tf32 = True
    print(choose_precision(allow_tf32=None), choose_precision(allow_tf32=False))
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    print(choose_precision(allow_tf32=None))
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    print(choose_precision(allow_tf32=None))
    """
    # In a process of its own: settings of PyTorch cannot all be put back.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["ieee", "tf32", "tf32", "ieee", "ieee", "tf32"]


def test_without_triton_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("moe_runtime._triton._")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "moe-runtime\[gpu\]"') as caught:
        run_experts(torch.zeros(2, 3), torch.ones(1, 2, 1), [], ())
    assert caught.value.name == "triton"
