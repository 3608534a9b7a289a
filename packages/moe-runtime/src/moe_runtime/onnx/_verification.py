"""What `export` returns, in a module that needs none of the extra's packages."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Verification:
    """What was compared, and how far PyTorch and ONNX Runtime were apart at most."""

    batch_sizes: tuple[int, ...]
    output_errors: dict[str, float]  # largest of each output; absolute up to 1, relative above
    mixture_errors: tuple[float, ...]  # of each mixture alone, with every expert reached
    num_undecided: int  # example rows left out: rounding alone changes which experts they use

    @property
    def largest_error(self) -> float:
        """The largest of all; NaN where an answer was not a number."""
        errors = [*self.output_errors.values(), *self.mixture_errors]
        # `max` alone forgets a NaN that does not come first.
        return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)
