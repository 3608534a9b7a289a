"""The kernel that runs is the one that is expected to be fastest, and it is said why."""

import pytest
import torch
from _reference import make_mixture
from torch import Tensor

from moe_runtime import Experts, _numba_use
from moe_runtime._choice import explain
from moe_runtime._costs import XEON_5, ZEN_5, Processor
from moe_runtime._kernels import KERNELS
from moe_runtime._plan import Plan, make_plan

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is chosen should not depend on an extra here; see test_numba_experts for that.
    monkeypatch.setattr(_numba_use, "has_numba", lambda: False)


def draw_plan(num_rows: int, num_experts: int, k: int) -> Plan:
    scores_TE = torch.rand(num_rows, num_experts)
    smallest_T1 = scores_TE.topk(k).values[:, -1:]
    return make_plan((scores_TE * (scores_TE >= smallest_T1))[None])


def chosen(num_rows: int, num_experts: int, k: int, width: int, *, training: bool = False) -> str:
    experts = Experts(num_experts, (width, width, width))
    plan = draw_plan(num_rows, num_experts, k)
    return explain(experts, plan, CPU, training=training).kernel


@pytest.mark.parametrize(
    ("work", "kernel"),
    [
        ((1, 64, 2, 256), "gathered"),
        ((2048, 16, 2, 256), "sorted"),
        ((64, 8, 8, 8), "dense"),
    ],
    ids=["one row", "many rows", "tiny experts that are all selected"],
)
@pytest.mark.parametrize("processor", [ZEN_5, XEON_5], ids=["Zen 5", "Xeon"])
def test_the_clear_cases_are_decided_as_measured(
    processor: Processor,
    work: tuple[int, int, int, int],
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moe_runtime._choice.HERE", processor)
    assert chosen(*work) == kernel


def test_a_soft_gate_is_trained_densely_where_mkl_is_not_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 64 rows with all of 16 experts of one layer: 4.6 ms dense, 6.9 sorted on the Xeon.
    monkeypatch.setattr("moe_runtime._choice.HERE", XEON_5)
    assert chosen(64, 16, 16, 256, training=True) == "dense"
    assert chosen(64, 16, 2, 256, training=True) == "sorted"


def test_training_does_not_go_from_pair_to_pair() -> None:
    assert chosen(1, 64, 2, 256, training=True) == "sorted"


def test_many_pairs_are_not_gathered_one_by_one() -> None:
    # 64 experts of 2.4 MB read for each of 128 pairs: 21 ms, 13 where each is read once.
    assert chosen(64, 64, 2, 768) == "sorted"


def test_nothing_to_do_is_a_choice_too() -> None:
    plan = Plan(torch.zeros(0, 3) > 0)
    explanation = explain(Experts(3, (4, 4)), plan, CPU, training=False)
    assert explanation.num_pairs == 0


def test_what_is_asked_for_is_what_is_explained() -> None:
    explanation = make_mixture("top_k", kernel="loop").explain(torch.randn(9, 6))
    assert (explanation.kernel, explanation.reason) == ("loop", "asked for")


def test_the_explanation_counts_the_work_and_lists_what_it_compared() -> None:
    explanation = make_mixture("top_k", num_experts=5).eval().explain(torch.randn(2, 9, 6))
    assert (explanation.num_rows, explanation.num_experts, explanation.num_pairs) == (18, 5, 36)
    assert explanation.microseconds[explanation.kernel] == min(explanation.microseconds.values())
    first, second, *times = str(explanation).splitlines()
    assert first.startswith(f"{explanation.kernel}: ")
    assert second == "36 of 18 x 5 pairs (40.0%)"
    assert len(times) == len(explanation.microseconds)


def test_a_single_row_is_not_said_to_have_been_compared() -> None:
    explanation = make_mixture("softmax").eval().explain(torch.randn(1, 6))
    assert explanation.kernel == "gathered"
    assert "nothing is compared" in explanation.reason


def test_masked_rows_are_not_part_of_the_work() -> None:
    mask = torch.tensor([True] * 4 + [False] * 5)
    explanation = make_mixture("top_k").explain(torch.randn(9, 6), mask=mask)
    assert (explanation.num_rows, explanation.num_pairs) == (4, 8)


@pytest.mark.parametrize(("share", "kernel"), [(0.6, "sorted"), (0.8, "dense")])
def test_a_device_without_measurements_goes_by_the_share_of_the_pairs(
    share: float, kernel: str
) -> None:
    plan = draw_plan(20, 10, round(10 * share))
    explanation = explain(Experts(10, (4, 4)), plan, torch.device("cuda"), training=True)
    assert explanation.kernel == kernel
    assert explanation.microseconds == {}


def test_auto_runs_the_kernel_that_it_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = make_mixture("top_k", num_experts=8).eval()
    x = torch.randn(1, 6)
    kernel = mixture.explain(x).kernel
    ran: list[str] = []
    for name, run in KERNELS.items():

        def noted(*args: Tensor, name: str = name, run: object = run) -> Tensor:
            ran.append(name)
            return run(*args)  # type: ignore[operator, no-any-return]

        monkeypatch.setitem(KERNELS, name, noted)
    with torch.no_grad():
        mixture(x)
    assert ran == [kernel]


def test_what_is_learned_does_not_depend_on_the_kernel_that_auto_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient of exact-k's weights goes straight through, also of those that are 0."""
    x = torch.randn(9, 6)
    mixture = make_mixture("exact_k")
    parameters = list(mixture.parameters())
    gradients = []
    for kernel in ("dense", "sorted"):
        monkeypatch.setattr("moe_runtime._mixture.choose", lambda *_, kernel=kernel, **__: kernel)
        loss = mixture(x).output.square().sum()
        gradients.append(torch.autograd.grad(loss, parameters))
    assert gradients[0][0].abs().max() > 0
    torch.testing.assert_close(*gradients)
