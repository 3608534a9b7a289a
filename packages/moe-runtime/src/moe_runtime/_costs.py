"""What experts take on two kinds of processors, fitted to measurements on one core of each.

Only ratios decide, so that a table serves for processors like the one that it is of.
"""

from typing import NamedTuple

from moe_runtime._products import prefers_mkl


class Products(NamedTuple):
    """What the products of one kind take: microseconds on one core, float32."""

    call: float  # of each layer of each expert
    thousand: float  # a thousand multiplications
    rows_for_weights: float  # reading an expert's weights costs as much as so many rows

    def time(self, num_rows: float, num_weights: int, layers: int, thousands: float) -> float:
        """Time of so many rows through so many experts, which have so many layers."""
        rows = num_rows + self.rows_for_weights * num_weights
        return self.call * layers * num_weights + self.thousand * thousands * rows


class Costs(NamedTuple):
    """What the sorted form, the dense one and numba's loops take, in microseconds."""

    sorted_base: float
    sorted_weight: float  # looking at a thousand gate weights
    sorted_moved: float  # moving a thousand numbers to the experts' blocks, or back
    small: Products
    large: Products  # those that oneDNN takes, where it takes any
    dense_base: float
    dense_moved: float
    dense: Products
    numba_base: float
    numba_weight: float  # as above
    numba_moved: float
    numba: Products


class Processor(NamedTuple):
    """What all forms take on one kind of processor."""

    inference: Costs
    training: Costs  # forward and backward
    # Going from pair to pair, in inference.
    gathered_base: float
    gathered_row: float
    gathered: Products


# Zen 5, large products by oneDNN (bench/kernels.py). The form that it names took 1.5 % longer than
# the best in the mean of 263 sizes in inference, and 0.1 % of 263 in training.
ZEN_5 = Processor(
    inference=Costs(
        sorted_base=60,
        sorted_weight=9.8,
        sorted_moved=0.37,
        small=Products(8.2, 0.032, 4),
        large=Products(24, 0.0088, 27),
        dense_base=41,
        dense_moved=0.45,
        dense=Products(0, 0.019, 8.5),
        numba_base=38,
        numba_weight=4.5,
        numba_moved=0,
        numba=Products(0.1, 0.0125, 3.5),
    ),
    training=Costs(
        sorted_base=390,
        sorted_weight=38,
        sorted_moved=1.7,
        small=Products(17, 0.038, 30),
        large=Products(71, 0.025, 31),
        dense_base=140,
        dense_moved=2.9,
        dense=Products(0, 0.058, 29),
        numba_base=155,
        numba_weight=20,
        numba_moved=1.5,
        numba=Products(1, 0.046, 5),
    ),
    gathered_base=19,
    gathered_row=0.6,
    gathered=Products(7.4, 0.0144, 6.9),
)
# Xeon of the fifth generation (Emerald Rapids), all products by MKL. On 141 sizes each, the
# form that it names took 1 % longer than the best in the mean; by ZEN_5, 7 and 11 %. What numba
# takes was not measured there: it has the ratio to the other forms that it has on Zen 5.
XEON_5 = Processor(
    inference=Costs(
        sorted_base=252,
        sorted_weight=66,
        sorted_moved=0.86,
        small=Products(24, 0.025, 9),
        large=Products(24, 0.025, 9),
        dense_base=151,
        dense_moved=0.87,
        dense=Products(0, 0.021, 8.2),
        numba_base=150,
        numba_weight=20,
        numba_moved=0,
        numba=Products(0.3, 0.033, 3.5),
    ),
    training=Costs(
        sorted_base=1200,
        sorted_weight=84,
        sorted_moved=3.5,
        small=Products(32, 0.06, 33),
        large=Products(32, 0.06, 33),
        dense_base=505,
        dense_moved=4.4,
        dense=Products(0, 0.062, 10.2),
        numba_base=450,
        numba_weight=60,
        numba_moved=3.5,
        numba=Products(3, 0.11, 5),
    ),
    gathered_base=103,
    gathered_row=6.4,
    gathered=Products(18.2, 0.0274, 6.9),
)
HERE = XEON_5 if prefers_mkl() else ZEN_5
