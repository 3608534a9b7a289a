"""Experts that are modules of the user's own.

Axes: T rows, D input features, O output features, P (row, expert) pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe_runtime._checks import check_positive, check_type
from moe_runtime._expert_set import ExpertSet


class ModuleExperts(ExpertSet):
    """Any modules as experts: slower than `Experts`, whose layers are stacked, but as sparse.

    Parameters
    ----------
    experts
        One module an expert, each mapping (rows, D) to (rows, O) row by row: what a row gives
        must not depend on the others, as it would with batch normalisation.
    in_features, out_features
        D and O.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> from torch import nn
    >>> modules = [nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)) for _ in range(8)]
    >>> experts = moe_runtime.ModuleExperts(modules, in_features=6, out_features=4)
    >>> mixture = moe_runtime.MixtureOfExperts(moe_runtime.TopKRouter(6, 8, k=2), experts)
    >>> mixture(torch.randn(5, 6)).output.shape
    torch.Size([5, 4])
    """

    def __init__(
        self, experts: Sequence[nn.Module], *, in_features: int, out_features: int
    ) -> None:
        super().__init__()
        check_type("experts", experts, (Sequence, nn.ModuleList), "a sequence of modules")
        if not experts:
            msg = "`experts` must hold at least one module, got none."
            raise ValueError(msg)
        for index, expert in enumerate(experts):
            check_type(f"experts[{index}]", expert, nn.Module, "a torch.nn.Module")
        check_positive("in_features", in_features)
        check_positive("out_features", out_features)
        self.num_experts = len(experts)
        self.in_features, self.out_features = in_features, out_features
        self.experts = nn.ModuleList(experts)
        linear = [each for each in self.experts[0].modules() if isinstance(each, nn.Linear)]
        sizes = [(each.in_features, each.out_features) for each in linear]
        self.layer_sizes = sizes or [(in_features, out_features)]

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating parameter; the default of PyTorch where there is none."""
        dtypes = (each.dtype for each in self.parameters() if each.is_floating_point())
        return next(dtypes, torch.get_default_dtype())

    def forward(self, x_PD: Tensor, counts_E: list[int]) -> Tensor:
        """Run the pairs of a plan, sorted by expert: (P, D) to (P, O)."""
        # An expert without rows takes part in training, on no rows, so that each of its
        # parameters gets a gradient in every step.
        blocks = [
            self.one(expert, block)
            for expert, block in enumerate(torch.split(x_PD, counts_E))
            if block.shape[0] or torch.is_grad_enabled()
        ]
        return torch.cat(blocks) if blocks else self.one(0, x_PD)

    def one(self, expert: int, x_TD: Tensor) -> Tensor:
        """Run one expert on every row: (T, D) to (T, O)."""
        y: Tensor = self.experts[expert](x_TD)
        if y.shape != (x_TD.shape[0], self.out_features):
            msg = (
                f"`experts[{expert}]` must map {tuple(x_TD.shape)} to "
                f"{(x_TD.shape[0], self.out_features)}, got {tuple(y.shape)}."
            )
            raise ValueError(msg)
        return y
