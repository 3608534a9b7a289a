"""Which rows have a route that rounding cannot change, so that two runtimes must agree.

A hard split, and the last place of Top-k, jump where two scores meet. PyTorch and ONNX
Runtime add in different orders and may send a row at the jump to different experts; both
are right, and such a row can verify nothing.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from moe_runtime._router import Router, Routing

# Relative size of the noise on a router's input, in roundings of its dtype: those of the layers
# before it included. 1e-5 for float32.
NOISE_ROUNDINGS = 80
# A score within rounding of a jump crosses it in about half of the draws.
NUM_DRAWS = 16


def decided_rows(model: nn.Module, example_inputs: Sequence[Tensor]) -> Tensor:
    """Mark the rows whose experts stay the same under noise of the size of rounding, (T,)."""
    decided = torch.ones(example_inputs[0].shape[0], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    look = partial(_mark_changed, decided, generator)
    routers = [module for module in model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(look) for router in routers]
    try:
        model(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return decided


def _mark_changed(
    decided: Tensor, generator: torch.Generator, router: Router, args: tuple[Tensor], out: Routing
) -> None:
    (x,) = args
    num_rows = decided.shape[0]
    # Ids have no rounding; and a router that does not see the model's rows tells nothing of them.
    if not x.is_floating_point() or out.weights[..., 0].numel() % num_rows:
        return
    scale = NOISE_ROUNDINGS * torch.finfo(x.dtype).eps
    for _ in range(NUM_DRAWS):
        noise = 1 + scale * torch.randn(x.shape, generator=generator, dtype=torch.float32)
        slot_weights = router.forward((x * noise).to(x.dtype)).slot_weights
        changed = (slot_weights != 0) != (out.slot_weights != 0)
        rerouted = changed.flatten(-2).any(-1)
        # Rows come first, flattened with others or not, if they can; sequences may before them.
        is_first = rerouted.shape[0] % num_rows == 0 or num_rows not in rerouted.shape
        axis = 0 if is_first else rerouted.shape.index(num_rows)
        decided &= ~rerouted.movedim(axis, 0).reshape(num_rows, -1).any(-1)
