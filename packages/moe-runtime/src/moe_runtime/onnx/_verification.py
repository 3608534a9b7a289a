"""What `export` returns, in a module that needs none of the extra's packages."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple


class Change(NamedTuple):
    """How far an output moved."""

    relative: float  # root-mean-square change over the root-mean-square of the output
    largest: float  # absolute


@dataclass(frozen=True)
class Verification:
    """What was compared, and how far PyTorch and ONNX Runtime were apart at most.

    Errors are absolute where an answer is below 1 and relative above. With 8-bit weights they
    are root mean squares relative to the answer: of each output over all batches, and of the worst
    row of each mixture alone, relative to an average row where the row is smaller.
    """

    batch_sizes: tuple[int, ...]
    output_errors: dict[str, float]  # largest of each output
    mixture_errors: tuple[float, ...]  # of each mixture alone, with every expert reached
    num_undecided: int  # example rows left out: rounding alone changes which experts they use
    # What hard routing changed in each output on the example rows; empty with soft routing.
    hardening: dict[str, Change] = field(default_factory=dict)

    @property
    def largest_error(self) -> float:
        """The largest of all; NaN where an answer was not a number."""
        errors = [*self.output_errors.values(), *self.mixture_errors]
        # `max` alone forgets a NaN that does not come first.
        return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)
