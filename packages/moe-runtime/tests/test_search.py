"""The search finds planted permutations, keeps only confirmed gains, and trains nothing."""

import copy
import re
from typing import Any

import pytest
import torch
from _reference import DIM, ROUTERS, awake, draw_inputs, make_mixture, router_of
from torch import Tensor, nn

from moe_localsearch import SearchResult
from moe_runtime import Experts, MultiGateMixtureOfExperts, SearchRows, _search, search_permutations

NUM_ROWS = 800


def sum_of_outputs(output: Tensor, _rows: Tensor) -> Tensor:
    return output.sum(-1)


def squared_loss(targets: Tensor) -> Any:
    return lambda output, rows: (output - targets[rows]).square().mean(-1)


def search_gate(
    mixture: MultiGateMixtureOfExperts,
    gate: int,
    x: Tensor,
    row_loss: Any,
    *,
    router_input: Tensor | None = None,
    **options: Any,
) -> SearchResult:
    """Search one gate, and leave the others."""
    losses = [row_loss if each == gate else None for each in range(len(mixture.routers))]
    found = search_permutations(mixture, SearchRows(x, losses, router_input), **options)
    assert list(found) == [gate]
    return found[gate]


def planted(name: str, num_experts: int = 5) -> tuple[MultiGateMixtureOfExperts, Tensor, Tensor]:
    """Make a two-gate mixture, and its own outputs as targets, before slots are shuffled."""
    routers = [awake(ROUTERS[name](num_experts, 2)) for _ in range(2)]
    mixture = MultiGateMixtureOfExperts(routers, Experts(num_experts, (DIM, 4)))
    with torch.no_grad():
        for parameter in mixture.experts.parameters():
            parameter.normal_()
    x = torch.randn(NUM_ROWS, DIM)
    return mixture, x, mixture(x).output[1].detach()


@pytest.mark.parametrize("name", ["comet", "dselect_k", "top_k"])
def test_recovers_the_loss_that_a_shuffle_had_cost(name: str) -> None:
    mixture, x, targets = planted(name)
    router = router_of(mixture, 1)
    router.set_permutation(torch.stack([torch.randperm(5) for _ in router.permutation]))

    def loss() -> float:
        return float((mixture(x).output[1].detach() - targets).square().mean())

    shuffled = loss()
    result = search_gate(mixture, 1, x, squared_loss(targets))
    assert result.confirmation is not None
    assert result.confirmation.accepted
    assert torch.equal(router.permutation, torch.from_numpy(result.permutation))
    # A local optimum may be short of the planted one; most of the loss must be gone.
    assert loss() < 0.05 * shuffled
    assert result.cost_before == pytest.approx(shuffled, rel=0.2)


def test_changes_the_permutation_of_that_gate_and_nothing_else() -> None:
    mixture, x, targets = planted("comet")
    router = router_of(mixture, 1)
    router.set_permutation(router.permutation.flip(-1))
    before = copy.deepcopy(mixture.state_dict())
    search_gate(mixture, 1, x, squared_loss(targets))
    changed = [n for n, each in mixture.state_dict().items() if not torch.equal(each, before[n])]
    assert changed == ["routers.1.permutation"]
    assert all(parameter.grad is None for parameter in mixture.parameters())


def test_a_gain_that_other_rows_do_not_confirm_changes_nothing() -> None:
    mixture, x, _ = planted("comet")
    before = router_of(mixture).permutation.clone()
    # The searched half has targets of a relabelled mixture, the other half of this one.
    targets = mixture(x).output[0].detach()
    router_of(mixture).set_permutation(before.flip(-1))
    targets[: NUM_ROWS // 2] = mixture(x[: NUM_ROWS // 2]).output[0].detach()
    router_of(mixture).set_permutation(before)
    result = search_gate(mixture, 0, x, squared_loss(targets))
    assert result.stop_reason == "not_confirmed"
    assert result.confirmation is not None
    assert not result.confirmation.accepted
    assert torch.equal(router_of(mixture).permutation, before)


def test_a_gain_below_the_asked_standard_errors_changes_nothing() -> None:
    mixture, x, targets = planted("comet")
    router_of(mixture, 1).set_permutation(router_of(mixture, 1).permutation.flip(-1))
    before = router_of(mixture, 1).permutation.clone()
    loss = squared_loss(targets)
    result = search_gate(mixture, 1, x, loss, num_standard_errors=1e6)
    assert result.stop_reason == "not_confirmed"
    assert torch.equal(router_of(mixture, 1).permutation, before)


def test_the_loss_sees_rows_in_the_dtype_of_the_input_and_their_numbers() -> None:
    mixture = make_mixture("comet").double()
    x = torch.randn(40, DIM, dtype=torch.float64)
    seen: list[Tensor] = []

    def row_loss(output: Tensor, rows: Tensor) -> Tensor:
        assert output.dtype == torch.float64
        assert output.shape == (len(rows), 4)
        seen.append(rows)
        return output.square().sum(-1)

    search_gate(mixture, 0, x, row_loss, confirm_share=0.25)
    assert set(torch.cat(seen).tolist()) == set(range(40))


def test_a_loss_without_gradient_is_searched_too() -> None:
    mixture, x, targets = planted("top_k")
    shuffled = router_of(mixture, 1).permutation.flip(-1)
    loss, found = squared_loss(targets), []
    for row_loss in (loss, torch.no_grad()(loss)):
        router_of(mixture, 1).set_permutation(shuffled)
        found.append(search_gate(mixture, 1, x, row_loss))
    assert all(each.confirmation is not None and each.confirmation.accepted for each in found)
    with_gradient, without = (each.num_evaluations for each in found)
    assert with_gradient != without  # they took different ways
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in mixture.parameters())


def test_the_callback_can_stop_it() -> None:
    mixture, x, targets = planted("comet")
    before = router_of(mixture, 1).permutation.clone()

    def stop(_progress: Any) -> None:
        raise StopIteration

    result = search_gate(mixture, 1, x, squared_loss(targets), progress=stop)
    assert result.stop_reason == "stopped"
    assert torch.equal(router_of(mixture, 1).permutation, before)


def test_a_hash_gate_is_searched_by_its_ids() -> None:
    mixture = make_mixture("hash")
    x, ids = draw_inputs("hash", 400)
    targets = mixture(x, ids).output.detach()
    router_of(mixture).set_permutation(router_of(mixture).permutation.flip(-1))
    search_gate(mixture, 0, x, squared_loss(targets), router_input=ids)
    # One expert a row makes the search exact.
    assert torch.equal(mixture(x, ids).output, targets)


def test_one_row_confirms_nothing() -> None:
    mixture = make_mixture("comet")
    before = router_of(mixture).permutation.clone()
    result = search_gate(mixture, 0, torch.randn(2, DIM), sum_of_outputs)
    assert result.confirmation is not None
    assert not result.confirmation.accepted
    assert torch.equal(router_of(mixture).permutation, before)


@pytest.mark.parametrize("per", ["gate", "mixture"])
def test_slots_that_are_relabelled_alike_recover_a_common_shuffle(per: Any) -> None:
    mixture, x, _ = planted("comet")
    targets = mixture(x).output.detach()
    before = [router_of(mixture, gate).permutation.clone() for gate in range(2)]
    shuffles = [torch.randperm(5), torch.randperm(5)]
    if per == "mixture":
        shuffles[1] = shuffles[0]
    for gate, shuffle in enumerate(shuffles):
        router_of(mixture, gate).set_permutation(shuffle[before[gate]])
    rows = SearchRows(x, [squared_loss(targets[gate]) for gate in range(2)])
    found = search_permutations(mixture, rows, per=per, move_standard_errors=0)
    for gate in range(2):
        assert torch.equal(router_of(mixture, gate).permutation, before[gate])
        assert torch.equal(torch.from_numpy(found[gate].permutation), before[gate])
    assert torch.equal(mixture(x).output, targets)
    if per == "mixture":  # its cost is the sum of the gates'
        assert found[0].cost_before == found[1].cost_before
        assert found[0].num_evaluations == found[1].num_evaluations


def test_several_gates_are_what_each_of_them_is_alone() -> None:
    mixture, x, _ = planted("top_k")
    loss = squared_loss(torch.randn(NUM_ROWS, 4))
    start = copy.deepcopy(mixture.state_dict())
    together = search_permutations(mixture, SearchRows(x, [loss, loss]))
    for gate in range(2):
        mixture.load_state_dict(start)
        alone = search_gate(mixture, gate, x, loss)
        assert alone.permutation.tolist() == together[gate].permutation.tolist()
        assert alone.cost_after == together[gate].cost_after


@pytest.mark.parametrize("method", ["descend_by_swaps", "replace_and_assign", "frank_wolfe"])
@pytest.mark.parametrize("per", ["slot", "gate"])
def test_the_method_is_the_one_that_was_asked_for(method: Any, per: Any) -> None:
    mixture, x, targets = planted("top_k")
    router_of(mixture, 1).set_permutation(router_of(mixture, 1).permutation.roll(1, -1))
    result = search_gate(mixture, 1, x, squared_loss(targets), method=method, per=per)
    assert result.method == ("relabel_slots" if per == "slot" else method)
    assert result.cost_after < result.cost_before


@pytest.mark.parametrize("num_gates", [1, 2])
def test_the_experts_run_once_a_block_of_rows_for_all_gates(
    num_gates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    routers = [awake(ROUTERS["top_k"](5, 2)) for _ in range(num_gates)]
    mixture = MultiGateMixtureOfExperts(routers, Experts(5, (DIM, 4)))
    seen, every = [], mixture.experts.every

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return every(x)

    monkeypatch.setattr(mixture.experts, "every", counted)
    loss = squared_loss(torch.randn(_search.BLOCK_ROWS + 1, 4))
    search_permutations(
        mixture, SearchRows(torch.randn(_search.BLOCK_ROWS + 1, DIM), [loss] * num_gates)
    )
    assert seen == [_search.BLOCK_ROWS, 1]


def test_a_search_inside_autocast_runs_in_the_parameters_dtype() -> None:
    mixture, x, targets = planted("top_k")
    loss = squared_loss(targets)
    expected = search_gate(mixture, 1, x, loss).cost_before
    with torch.autocast("cpu"):
        assert search_gate(mixture, 1, x, loss).cost_before == expected


@pytest.mark.parametrize(("name", "per"), [("top_k", "slot"), ("comet", "gate")])
def test_the_costs_are_those_of_the_weights_above_the_threshold(name: str, per: Any) -> None:
    mixture, x, targets = planted(name)
    mixture.threshold = 0.3
    loss = squared_loss(targets)
    plain = loss(mixture(x).output[1], torch.arange(NUM_ROWS)).mean().item()
    result = search_gate(mixture, 1, x, loss, per=per)
    assert result.confirmation is not None
    found = (result.cost_before + result.confirmation.cost_before) / 2
    assert found == pytest.approx(plain, rel=1e-5)


def test_slots_whose_sum_a_threshold_cuts_are_not_searched_apart() -> None:
    mixture = make_mixture("comet")
    mixture.threshold = 0.3
    rows = SearchRows(torch.zeros(8, DIM), sum_of_outputs)
    message = "`per` must be 'gate' or 'mixture' with a threshold"
    with pytest.raises(ValueError, match=re.escape(message)):
        search_permutations(mixture, rows)


@pytest.mark.parametrize("losses", [sum_of_outputs, None])
def test_gates_that_share_a_router_are_searched_together(losses: Any) -> None:
    router = awake(ROUTERS["top_k"](5, 2))
    mixture = MultiGateMixtureOfExperts([router, router], Experts(5, (DIM, 4)))
    x = torch.randn(NUM_ROWS, DIM)
    rows = SearchRows(x, [sum_of_outputs, losses])
    message = "`per` must be 'mixture' where gates share a router"
    with pytest.raises(ValueError, match=re.escape(message)):
        search_permutations(mixture, rows)
    both = SearchRows(x, [sum_of_outputs, sum_of_outputs])
    found = search_permutations(mixture, both, per="mixture")
    assert found[0].permutation.tolist() == found[1].permutation.tolist()
    assert router.permutation.tolist() == found[0].permutation.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_loss": []}, "`rows.row_loss` must be a function a gate, 1, got 0."),
        ({"row_loss": [None, None]}, "`rows.row_loss` must be a function a gate, 1, got 2."),
        ({"per": "task"}, "`per` must be one of ['slot', 'gate', 'mixture'], got 'task'."),
        ({"method": "guess"}, "`method` must be one of ['auto', "),
        ({"confirm_share": 0.0}, "`confirm_share` must be in (0, 1), got 0.0."),
        ({"confirm_share": 1.0}, "`confirm_share` must be in (0, 1), got 1.0."),
        ({"num_standard_errors": -1.0}, "`num_standard_errors` must be"),
        ({"move_standard_errors": -1.0}, "`move_standard_errors` must be"),
        ({"x": torch.zeros(DIM)}, "`rows.x` must have shape (T, 6), got (6,)."),
        ({"x": torch.zeros(2, 3, DIM)}, "`rows.x` must have shape (T, 6), got (2, 3, 6)."),
        ({"x": torch.zeros(3, 5)}, "`rows.x` must have shape (T, 6), got (3, 5)."),
        ({"x": torch.zeros(0, DIM)}, "with `confirm_share`=0.5, got 0 rows."),
        ({"x": torch.zeros(1, DIM)}, "with `confirm_share`=0.5, got 1 rows."),
        ({"confirm_share": 0.99}, "`rows.x` must have rows to search and rows to confirm"),
        ({"x": torch.full((3, DIM), torch.nan)}, "`x` must be finite, got 18 non-finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_argument_is_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"x": torch.zeros(8, DIM), "row_loss": sum_of_outputs, **options}
    rows = SearchRows(given.pop("x"), given.pop("row_loss"))
    with pytest.raises(ValueError, match=re.escape(message)):
        search_permutations(make_mixture("comet"), rows, **given)


def test_router_inputs_of_other_rows_are_refused() -> None:
    rows = SearchRows(torch.zeros(50, DIM), sum_of_outputs, torch.zeros(40, DIM))
    message = "`rows.router_input` must have the T=50 rows of `rows.x`, got shape (40, 6)."
    with pytest.raises(ValueError, match=re.escape(message)):
        search_permutations(make_mixture("comet"), rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": [[0.0] * DIM]}, "`rows.x` must be a torch.Tensor, got list."),
        ({"router_input": [0]}, "`rows.router_input` must be a torch.Tensor, got list."),
        ({"row_loss": None}, "`rows.row_loss` must be a function a gate, got NoneType."),
        (
            {"row_loss": [None], "per": "mixture"},
            "`rows.row_loss` must be a function for each gate with `per`='mixture', got None",
        ),
        ({"row_loss": [3]}, "`rows.row_loss` must be a function for gate 0, got 3."),
        ({"confirm_share": "a"}, "`confirm_share` must be a number, got 'a'."),
        ({"num_standard_errors": None}, "`num_standard_errors` must be a number, got None."),
        ({"mixture": nn.Linear(2, 2)}, "`mixture` must be a mixture, got Linear."),
        ({"rows": torch.zeros(8, DIM)}, "`rows` must be SearchRows, got Tensor."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_of_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "mixture": make_mixture("comet"),
        "x": torch.zeros(8, DIM),
        "row_loss": sum_of_outputs,
        "router_input": None,
        **options,
    }
    rows = SearchRows(given.pop("x"), given.pop("row_loss"), given.pop("router_input"))
    with pytest.raises(TypeError, match=re.escape(message)):
        search_permutations(**{"rows": rows, **given})
