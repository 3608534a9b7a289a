"""Everything runs on another device than the CPU; run by `test_second_device.py`, alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _dense import Model, token_batch
from _reference import DIM, PLAIN_KERNELS, ROUTERS, awake, draw_inputs
from _second_device import NAME, register
from torch import Tensor, nn

from moe_runtime import (
    CometRouter,
    Experts,
    MixtureOfExperts,
    ModuleExperts,
    MultiGateMixtureOfExperts,
    PermutationSearch,
    RouterSchedule,
    SearchRows,
    Stateful,
    Watcher,
    hard_routing,
    load_checkpoint,
    load_training_tensors,
    save_checkpoint,
    search_permutations,
    training_tensors,
)
from moe_runtime.convert import (
    ImportanceSplit,
    KMeansSplit,
    RandomSplit,
    Split,
    convert,
    hidden_unit_importance,
)

register()
DEVICE = torch.device(NAME)
NUM_EXPERTS, K, OUT, ROWS = 5, 2, 3, 40
KINDS = ROUTERS | {
    "scale_free": lambda num_experts, k: CometRouter(DIM, num_experts, k=k, scale_free=True)
}
EXPERTS: dict[str, Callable[[], Experts | ModuleExperts]] = {
    "relu": lambda: Experts(NUM_EXPERTS, (DIM, 8, OUT), activation="relu"),
    "swiglu": lambda: Experts(NUM_EXPERTS, (DIM, 8, OUT), activation="swiglu"),
    "modules": lambda: ModuleExperts(
        [nn.Linear(DIM, OUT) for _ in range(NUM_EXPERTS)], in_features=DIM, out_features=OUT
    ),
}


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert found.device.type == NAME
    torch.testing.assert_close(found.detach().cpu(), wanted.detach(), rtol=1e-5, atol=1e-6)


def test_the_device_refuses_what_is_elsewhere() -> None:
    with pytest.raises(RuntimeError, match="is on the CPU"):
        torch.ones(3, device=DEVICE) + torch.ones(3)


@pytest.mark.parametrize("kernel", ["auto", *PLAIN_KERNELS])
@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("router", KINDS)
def test_outputs_and_gradients_are_those_of_the_cpu(router: str, experts: str, kernel: Any) -> None:
    awoken = awake(KINDS[router](NUM_EXPERTS, K))
    layer = MixtureOfExperts(awoken, EXPERTS[experts](), kernel=kernel)
    there = copy.deepcopy(layer).to(DEVICE)
    inputs = draw_inputs(router, ROWS)
    inputs_there = [each.to(DEVICE) for each in inputs]
    mask = torch.rand(ROWS) < 0.8
    wanted = layer(*inputs, mask=mask)
    found = there(*inputs_there, mask=mask.to(DEVICE))
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
    for output in (wanted, found):
        (output.output.square().mean() + output.penalty).backward()
    for one, other in zip(there.parameters(), layer.parameters(), strict=True):
        if other.grad is not None:
            assert one.grad is not None
            assert_same(one.grad, other.grad)
    with hard_routing(layer), hard_routing(there):
        assert_same(there(*inputs_there).output, layer(*inputs).output)


def test_weights_of_a_multi_gate_mixture_are_watched() -> None:
    routers = [ROUTERS[name](NUM_EXPERTS, K) for name in ("comet", "top_k")]
    layer = MultiGateMixtureOfExperts(routers, EXPERTS["relu"]()).eval()
    there = copy.deepcopy(layer).to(DEVICE)
    x = torch.randn(ROWS, DIM)
    with Watcher(layer) as wanted, Watcher(there) as found, torch.no_grad():
        layer(x)
        there(x.to(DEVICE))
    assert found.compute() == pytest.approx(wanted.compute())
    for name, load in wanted.loads().items():
        torch.testing.assert_close(found.loads()[name].cpu(), load)


def planted(device: torch.device | str) -> tuple[MixtureOfExperts, SearchRows]:
    """Make a mixture whose experts another permutation has moved, and the rows that tell."""
    torch.manual_seed(0)
    router = CometRouter(DIM, NUM_EXPERTS, k=1, gamma=0.1)
    layer = MixtureOfExperts(router, EXPERTS["relu"]())
    x = torch.randn(400, DIM)
    target = layer(x).output.detach()
    router.set_permutation(torch.arange(NUM_EXPERTS).roll(1)[None])
    target = target.to(device)
    loss = lambda output, rows: (output - target[rows]).square().sum(-1)  # noqa: E731
    return layer.to(device), SearchRows(x.to(device), loss)


def test_a_search_finds_what_it_finds_on_the_cpu() -> None:
    wanted = search_permutations(*planted("cpu"), num_standard_errors=1.0)[0]
    layer, rows = planted(DEVICE)
    found = search_permutations(layer, rows, num_standard_errors=1.0)[0]
    assert found.cost_after < 1e-6 < found.cost_before
    assert found.permutation.tolist() == wanted.permutation.tolist()
    assert layer.routers[0].get_buffer("permutation").device.type == NAME


def test_a_search_in_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    layer, rows = planted(DEVICE)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    schedule = RouterSchedule(layer, gamma=lambda step: 1 / (1 + step))
    search = PermutationSearch(layer, lambda _step: rows, every=2, max_share=None)
    for _ in range(2):
        optimizer.zero_grad()
        layer(rows.x).output.square().mean().backward()
        optimizer.step()
        schedule.step()
        search.step(len(rows.x))
    assert search.records[-1].accepted
    others: dict[str, Stateful] = {"schedule": schedule, "search": search}
    save_checkpoint(tmp_path / "run.safetensors", training_tensors(layer, optimizer, others))

    again, _ = planted(DEVICE)
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-3)
    schedule = RouterSchedule(again, gamma=lambda step: 1 / (1 + step))
    search = PermutationSearch(again, lambda _step: rows, every=2, max_share=None)
    tensors = load_checkpoint(tmp_path / "run.safetensors").tensors
    load_training_tensors(again, optimizer, tensors, {"schedule": schedule, "search": search})
    optimizer.zero_grad()
    again(rows.x).output.square().mean().backward()
    optimizer.step()
    assert again.routers[0].gamma == layer.routers[0].gamma
    before = layer.routers[0].get_buffer("permutation")
    assert_same(again.routers[0].get_buffer("permutation"), before.cpu())


@pytest.mark.parametrize("split", ["importance", "random", "kmeans"])
def test_a_converted_model_answers_as_on_the_cpu(split: str) -> None:
    outputs = []
    batch = token_batch()
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(0)
        model = Model().eval().to(device)
        given = {name: each.to(device) for name, each in batch.items()}
        importance = hidden_unit_importance(
            model, [given], loss=lambda y, _batch: y.square().sum(-1)
        )
        splits: dict[str, Split] = {
            "importance": ImportanceSplit(importance, width=8, num_shared=4),
            "random": RandomSplit(),
            "kmeans": KMeansSplit(),
        }
        convert(
            model,
            given,
            router=lambda dim: CometRouter(dim, 3, k=1, gamma=1.0),
            split=splits[split],
        )
        outputs.append(model(**given))
    assert_same(outputs[1], outputs[0])
