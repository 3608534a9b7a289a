"""Rows whose experts rounding alone changes are found wherever the rows are."""

import torch
from _reference import DIM, make_mixture, router_of
from torch import Tensor, nn

from moe_runtime import CometRouter, hard_routing
from moe_runtime.onnx._decided import decided_rows

NUM_ROWS, LENGTH, ON_THE_JUMP = 6, 4, 5


class Sequences(nn.Module):
    """Rows of tokens, routed as they come, as tokens of rows, or as tokens."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.mixture = make_mixture("comet", 2, k=1)
        self.order = order

    def forward(self, x_TSD: Tensor) -> Tensor:
        x = x_TSD.transpose(0, 1) if self.order == "tokens first" else x_TSD
        output: Tensor = self.mixture(x.flatten(0, 1) if self.order == "flat" else x).output
        return output


def test_a_row_with_a_token_at_a_jump_is_undecided_wherever_the_rows_are() -> None:
    # As many windows as rows, of tokens in the end.
    sizes = {"rows first": (LENGTH,), "tokens first": (LENGTH,), "flat": (3, NUM_ROWS)}
    for order, inner in [*sizes.items(), ("flat", (LENGTH,))]:
        model = Sequences(order)
        router = router_of(model.mixture)
        assert isinstance(router, CometRouter)
        x = torch.ones(NUM_ROWS, *inner, DIM)
        with torch.no_grad():
            router.split.weight.fill_(1.0)
            router.split.bias.zero_()
            # Terms that cancel to rounding.
            x[ON_THE_JUMP, 1] = torch.tensor([0.1, 0.2, -0.3, 0.7, -0.8, 0.1])
        with torch.no_grad(), hard_routing(model):
            decided = decided_rows(model, (x,))
        assert (~decided).nonzero().flatten().tolist() == [ON_THE_JUMP], order
