"""Adam of several runs at once, each with a rate and a number of steps of its own.

Axes: S runs, N parameters of a model.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A parameter's value and its two moments: rows of (S, 3, N).
VALUE, MEAN, SQUARE = range(3)


class StackedAdam:
    """The formula of `torch.optim.Adam`, whose rate is one number for all that it trains.

    Parameters
    ----------
    values
        Values and moments, (S, 3, N), which steps change in place.
    num_steps
        Steps that each run has done.
    learning_rates
        Of each run.
    like
        Whose constants are taken.
    """

    def __init__(
        self,
        values: Tensor,
        *,
        num_steps: Sequence[int],
        learning_rates: Sequence[float],
        like: torch.optim.Optimizer,
    ) -> None:
        self.values = values
        self.num_steps = list(num_steps)
        self.learning_rates = learning_rates
        self.betas: tuple[float, float] = like.defaults["betas"]
        self.epsilon: float = like.defaults["eps"]

    @torch.no_grad()
    def step(self, grad_SN: Tensor) -> None:
        """Take a step of each run along its gradient."""
        mean_rate, square_rate = self.betas
        self.num_steps = [number + 1 for number in self.num_steps]
        rates = [
            -rate / (1 - mean_rate**number)
            for rate, number in zip(self.learning_rates, self.num_steps, strict=True)
        ]
        roots = [math.sqrt(1 - square_rate**number) for number in self.num_steps]
        factors = torch.tensor([rates, roots], dtype=self.values.dtype)
        rate_S1, root_S1 = factors.to(self.values.device)[..., None]
        value_SN, mean_SN, square_SN = (self.values[:, row] for row in (VALUE, MEAN, SQUARE))
        mean_SN.lerp_(grad_SN, 1 - mean_rate)
        square_SN.mul_(square_rate).addcmul_(grad_SN, grad_SN, value=1 - square_rate)
        value_SN.addcdiv_(mean_SN * rate_S1, (square_SN.sqrt() / root_S1).add_(self.epsilon))
