"""A mixture trains as any layer does: compiled, scaled, checkpointed, in parallel, clipped."""

import copy
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from _parallel import train_in_parallel
from _reference import CPU_KERNELS, DIM, ROUTERS, TRAINED, awake, draw_inputs, make_mixture
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils.checkpoint import checkpoint

from moe_runtime import CometRouter, Experts, MixtureOfExperts

NAME = pytest.mark.parametrize("name", sorted(ROUTERS))
KERNEL = pytest.mark.parametrize("kernel", CPU_KERNELS)


def gradients(mixture: nn.Module, output: Tensor, penalty: Tensor) -> list[Tensor | None]:
    mixture.zero_grad()
    torch.autograd.backward(output.square().sum() + penalty)
    return [parameter.grad for parameter in mixture.parameters()]


# Dynamo (torch 2.13) makes an instance of an autograd function to trace it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", TRAINED)
def test_the_dense_kernel_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    mixture = make_mixture(name, kernel="dense")
    # The code generator after capture needs a C++ compiler, and is torch's own.
    compiled = torch.compile(mixture, backend="aot_eager", fullgraph=True)
    for num_rows in (9, 4):
        inputs = draw_inputs(name, num_rows)
        found = []
        for run in (mixture, compiled):
            output, penalty, _ = run(*inputs)
            found.append([output, *gradients(mixture, output, penalty)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


@NAME
@KERNEL
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_no_bit(
    name: str, kernel: str, *, use_reentrant: bool
) -> None:
    mixture = make_mixture(name, kernel=kernel)
    x, *ids = draw_inputs(name, 30)
    x.requires_grad_()
    plain = gradients(mixture, *mixture(x, *ids)[:2])
    before = copy.deepcopy(mixture.state_dict())
    again = gradients(mixture, *checkpoint(mixture, x, *ids, use_reentrant=use_reentrant)[:2])
    for ours, theirs in zip(again, plain, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    # Running forward twice counts nothing twice.
    after = mixture.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_checkpointing_repeats_dropout_and_forgets_what_is_between() -> None:
    mixture = MixtureOfExperts(
        CometRouter(DIM, 5, k=2), Experts(5, (DIM, 64, DIM), dropout=0.5), kernel="sorted"
    )
    x = torch.randn(30, DIM, requires_grad=True)
    found = []
    again = partial(checkpoint, mixture, use_reentrant=False)
    for run in (mixture, again):
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output, penalty, _ = run(x)
        found.append((saved, gradients(mixture, output, penalty)))
    (plain, grads), (kept, grads_again) = found
    assert kept < plain / 10
    for ours, theirs in zip(grads_again, grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@KERNEL
def test_dropout_zeroes_the_given_share_in_training_only(kernel: str) -> None:
    experts = Experts(3, (DIM, 1000, 1), activation="identity", bias=False, dropout=0.25)
    with torch.no_grad():
        for stack, value in zip(experts.parameters(), (1.0, 0.001), strict=True):
            stack.fill_(value)
    mixture = MixtureOfExperts(CometRouter(DIM, 3, k=1), experts, kernel=kernel)
    x = torch.ones(40, DIM) / DIM
    output = mixture(x).output.detach()
    # A mean of 1000 numbers that are 0 or 4/3: around 1 by 0.018, and never just 1.
    assert 0.002 < float((output - 1).abs().mean()) < 0.05
    assert float(output.mean()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(mixture.eval()(x).output, torch.ones(40, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_dropout_passes_the_gradient_of_what_it_kept(activation: str) -> None:
    experts = Experts(3, (DIM, 8, 8, 4), activation=activation, dropout=0.5).double()
    x = torch.randn(9, DIM, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *_stacks: Tensor) -> Tensor:
        torch.manual_seed(0)
        output: Tensor = experts(x, [4, 0, 5])
        return output

    assert torch.autograd.gradcheck(run, (x, *experts.parameters()))


def test_a_grad_scaler_skips_steps_that_overflow_and_takes_the_others() -> None:
    mixture = make_mixture("comet")
    optimizer = torch.optim.SGD(mixture.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [parameter.detach().clone() for parameter in mixture.parameters()]
    for factor, moves in ((torch.inf, False), (1.0, True)):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output, penalty, _ = mixture(torch.randn(20, DIM))
        scaler.scale(output.float().square().mean() * factor + penalty).backward()
        scaler.step(optimizer)
        scaler.update()
        changed = [
            not torch.equal(ours, theirs)
            for ours, theirs in zip(mixture.parameters(), before, strict=True)
        ]
        assert any(changed) is moves
        assert all(torch.isfinite(parameter).all() for parameter in mixture.parameters())


def test_clipping_by_norm_counts_each_expert_once() -> None:
    mixture = make_mixture("top_k", num_experts=17)
    output, penalty, _ = mixture(torch.randn(4, DIM))
    grads = [grad for grad in gradients(mixture, output, penalty) if grad is not None]
    wanted = torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt()
    norm = nn.utils.clip_grad_norm_(mixture.parameters(), 0.5)
    torch.testing.assert_close(norm.double(), wanted, rtol=1e-6, atol=0)
    clipped = torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt()
    torch.testing.assert_close(clipped, clipped.new_tensor(0.5), rtol=1e-4, atol=0)


@pytest.mark.skipif(os.name != "posix", reason="starts processes by fork of a server")
def test_two_processes_without_rows_for_some_experts_train_as_one(tmp_path: Path) -> None:
    x = torch.randn(10, DIM)
    torch.save(x, tmp_path / "x.pt")
    processes = spawn(train_in_parallel, (str(tmp_path),), nprocs=2, join=False)  # type: ignore[no-untyped-call]
    try:
        # One call waits for one process. Seconds, of which five are enough on an idle machine.
        ended = [processes.join(timeout=120) for _ in range(2)]
        assert ended[-1]
    finally:
        for process in processes.processes:
            process.kill()
    first, second = (
        torch.load(tmp_path / f"grads{rank}.pt", weights_only=True) for rank in range(2)
    )
    torch.manual_seed(0)
    mixture = MixtureOfExperts(awake(CometRouter(DIM, 5, k=2)), Experts(5, (DIM, 7, 4)))
    for _ in range(2):
        for rows in (x[:9], x[9:]):
            output, penalty, _ = mixture(rows)
            ((output.square().sum() + penalty * len(rows)) / 2).backward()
    for name, parameter in mixture.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], parameter.grad, rtol=1e-4, atol=1e-5)
