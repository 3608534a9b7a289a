"""The numbers are those of a loop over rows, whatever batches they came in."""

import re
from typing import Any

import pytest
import torch
from _reference import DIM, ROUTERS, awake, draw_inputs, make_mixture, router_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_runtime import (
    Experts,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    Router,
    Watcher,
    hard_routing,
)


def make_model(name: str = "comet", num_gates: int = 2, num_experts: int = 5) -> nn.ModuleDict:
    routers = [awake(ROUTERS[name](num_experts, 2)) for _ in range(num_gates)]
    return nn.ModuleDict(
        {"moe": MultiGateMixtureOfExperts(routers, Experts(num_experts, (DIM, 4)))}
    )


def counted_by_row(model: nn.ModuleDict, x: Tensor) -> dict[str, float]:
    """Count row by row, gate by gate."""
    mixture = model["moe"]
    assert isinstance(mixture, MultiGateMixtureOfExperts)
    num_rows, num_gates = len(x), len(mixture.routers)
    numbers: dict[str, float] = {"moe/rows": num_rows}
    used = torch.zeros(num_rows, num_gates, mixture.experts.num_experts, dtype=torch.bool)
    for gate, router in enumerate(mixture.routers):
        assert isinstance(router, Router)
        unsaturated = duplicates = 0
        for row in range(num_rows):
            routing = router(x[row])
            used[row, gate] = routing.weights != 0
            seen: set[int] = set()
            for slot, weights in enumerate(routing.slot_weights):
                selected = [int(router.permutation[slot, i]) for i in weights.nonzero()[:, 0]]
                unsaturated += len(selected) > 1
                duplicates += sum(expert in seen for expert in selected)
                seen.update(selected)
        path = "moe" if num_gates == 1 else f"moe/gate{gate}"
        load = used[:, gate].double().mean(0)
        numbers[f"{path}/experts_per_row"] = float(load.sum())
        numbers[f"{path}/most_experts"] = int(used[:, gate].sum(-1).max())
        numbers[f"{path}/dead_experts"] = int((load == 0).sum())
        numbers[f"{path}/smallest_load"] = float(load.min())
        numbers[f"{path}/largest_load"] = float(load.max())
        if router.k == router.num_slots:
            numbers[f"{path}/unsaturated_share"] = unsaturated / num_rows / router.num_slots
        if router.num_slots > 1:
            numbers[f"{path}/duplicates_per_row"] = duplicates / num_rows
        numbers |= {f"{path}/load/{expert}": float(each) for expert, each in enumerate(load)}
    if num_gates > 1:
        numbers["moe/union_per_row"] = float(used.any(1).double().sum(-1).mean())
    return numbers


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("num_gates", [1, 2])
@pytest.mark.parametrize("name", ["comet", "dselect_k", "top_k"])
def test_numbers_are_those_of_a_loop_over_all_batches(
    name: str, num_gates: int, *, hard: bool
) -> None:
    model, x = make_model(name, num_gates), torch.randn(37, DIM)
    with Watcher(model) as watcher:
        for batch in (x[:7], x[7:7], x[7:8], x[8:].reshape(1, 29, DIM)):
            if hard:
                with hard_routing(model):
                    model["moe"](batch)
            else:
                model["moe"](batch)
    model["moe"](x)  # not watched any more
    numbers = watcher.compute()
    if hard:
        with hard_routing(model):
            expected = counted_by_row(model, x)
    else:
        expected = counted_by_row(model, x)
    assert numbers == pytest.approx(expected, rel=1e-12)
    assert all(type(each) in {int, float} for each in numbers.values())


def test_every_mixture_has_its_path_and_the_model_itself_has_a_name() -> None:
    model = nn.Sequential(make_mixture("hash"), nn.Identity(), make_mixture("top_k"))
    with Watcher(model) as watcher:
        model[0](*draw_inputs("hash", 6))
    numbers = watcher.compute()
    assert (numbers["0/rows"], numbers["2/rows"]) == (6, 0)
    assert list(watcher.loads()) == ["0", "2"]
    assert "2/unsaturated_share" not in numbers  # two experts from one slot
    assert numbers["0/unsaturated_share"] == 0
    assert Watcher(make_mixture("comet")).compute()["mixture/rows"] == 0


def test_a_watcher_that_saw_nothing_gives_the_same_names() -> None:
    model = make_model()
    watcher = Watcher(model)
    before = watcher.compute()
    model["moe"](torch.randn(3, DIM))
    during = watcher.compute()
    watcher.reset()
    assert watcher.compute() == before
    assert list(before) == list(during)
    assert before["moe/rows"] == before["moe/union_per_row"] == 0
    assert before["moe/gate0/dead_experts"] == 5
    assert torch.equal(watcher.loads()["moe"], torch.zeros(2, 5, dtype=torch.float64))


def test_loads_are_shares_of_rows_by_gate() -> None:
    model, x = make_model(), torch.randn(11, DIM)
    with Watcher(model) as watcher:
        weights_GTE = model["moe"](x).weights
    assert torch.equal(watcher.loads()["moe"], (weights_GTE != 0).double().mean(1))


class Masked(MixtureOfExperts):
    """Takes rows out as padding."""

    def forward(
        self, x: Tensor, router_input: Tensor | None = None, mask: Tensor | None = None
    ) -> Any:
        assert mask is not None
        kept = super().forward(x[mask], router_input)
        weights = kept.weights.new_zeros(*x.shape[:-1], kept.weights.shape[-1])
        weights[mask] = kept.weights
        return kept._replace(weights=weights)


def test_padding_counts_nowhere() -> None:
    routers = [awake(ROUTERS["comet"](5, 2)) for _ in range(2)]
    experts = Experts(5, (DIM, 4))
    masked, plain = (MixtureOfExperts(routers[0], experts), Masked(routers[0], experts))
    x, mask = torch.randn(3, 4, DIM), torch.rand(3, 4) < 0.5
    numbers = []
    for mixture, args, kwargs in (
        (masked, (x[mask],), {}),
        (plain, (x, None, mask), {}),
        (plain, (x,), {"mask": mask}),
    ):
        with Watcher(mixture) as watcher:
            mixture(*args, **kwargs)
        numbers.append(watcher.compute())
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[0]["mixture/rows"] == int(mask.sum())


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_counted_once(*, reentrant: bool) -> None:
    mixture, x = make_mixture("comet"), torch.randn(9, DIM, requires_grad=True)
    with Watcher(mixture) as watcher:
        output = checkpoint(lambda x: mixture(x).output.sin().exp(), x, use_reentrant=reentrant)
        output.sum().backward()
    numbers = watcher.compute()
    assert numbers["mixture/rows"] == 9
    assert numbers["mixture/duplicates_per_row"] <= 5


def test_only_what_goes_through_a_mixture_is_counted() -> None:
    mixture, x = make_mixture("comet"), torch.randn(9, DIM)
    with Watcher(mixture) as watcher:
        mixture(x)
        before = watcher.compute()
        mixture.explain(x)
        mixture.route(x)
        with pytest.raises(ValueError, match="finite"):
            mixture(torch.full_like(x, torch.nan))
        router_of(mixture)(x)
    assert watcher.compute() == before
    assert before["mixture/unsaturated_share"] > 0


def test_a_hook_that_raises_stops_no_counting() -> None:
    mixture, x = make_mixture("comet"), torch.randn(9, DIM)

    def refuse(*_: object) -> None:
        raise ArithmeticError

    handle = mixture.register_forward_pre_hook(refuse)
    with Watcher(mixture) as watcher:
        with pytest.raises(ArithmeticError):
            mixture(x)
        handle.remove()
        mixture(x)
    assert watcher.compute()["mixture/unsaturated_share"] > 0


def test_a_traced_forward_is_not_counted() -> None:
    mixture, x = make_mixture("comet", kernel="dense"), torch.randn(9, DIM)
    with Watcher(mixture) as watcher:
        mixture(x)
        before = watcher.compute()
        torch.export.export(mixture, (x,), strict=False)
    assert watcher.compute() == before


def test_watching_changes_no_output_and_no_gradient() -> None:
    mixture, x = make_mixture("comet"), torch.randn(9, DIM)
    gradients = []
    for watched in (False, True):
        watcher = Watcher(mixture)
        if not watched:
            watcher.close()
        mixture.zero_grad()
        output, penalty, _ = mixture(x)
        (output.sum() + penalty).backward()
        gradients.append([output, *(each.grad for each in mixture.parameters())])
    assert watcher.compute()["mixture/rows"] == 9
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_model_without_a_mixture_is_refused() -> None:
    message = "`model` must contain a mixture, got a Linear without one."
    with pytest.raises(ValueError, match=re.escape(message)):
        Watcher(nn.Linear(2, 2))
    nothing: Any = None
    with pytest.raises(TypeError, match=re.escape("`model` must be a torch.nn.Module")):
        Watcher(nothing)
