"""Experts on a few rows each, compiled by numba: products, and sums over a row's pairs.

A library's product takes microseconds a call, and one of a single row does not read its weights as
fast as memory gives them. Here an expert's weights are read once for all its rows: four outputs
at a time, whose sums stay in registers.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert) pairs.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moe_runtime._numba_rows import compiled

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
Number: TypeAlias = "np.floating[Any]"
# Outputs, and rows, whose sums go on side by side.
TILE = 4


@compiled()
def list_pairs(mask_TE: NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """List each pair's row (P,), sorted by expert, and where each expert's begin (E + 1,)."""
    num_rows, num_experts = mask_TE.shape
    first_E = np.zeros(num_experts + 1, np.int64)
    for row in range(num_rows):
        for expert in range(num_experts):
            first_E[expert + 1] += mask_TE[row, expert]
    for expert in range(num_experts):
        first_E[expert + 1] += first_E[expert]
    row_P = np.empty(first_E[num_experts], np.int64)
    next_E = first_E.copy()
    for row in range(num_rows):
        for expert in range(num_experts):
            if mask_TE[row, expert]:
                row_P[next_E[expert]] = row
                next_E[expert] += 1
    return row_P, first_E


# Sums may be reordered, or they could not be vectorised; nothing else is assumed.
@compiled("reassoc", "contract")
def _dot(x_TD: Floats, row: int, weight_OD: Floats, output: int) -> Number:
    total = x_TD.dtype.type(0)
    for feature in range(x_TD.shape[1]):
        total += weight_OD[output, feature] * x_TD[row, feature]
    return total


@compiled("reassoc", "contract")
def _one_row(
    x_TD: Floats, row: int, weight_OD: Floats, output: int, y_PO: Floats, pair: int
) -> None:
    """Write four outputs of one row."""
    y0 = y1 = y2 = y3 = x_TD.dtype.type(0)
    for feature in range(x_TD.shape[1]):
        x = x_TD[row, feature]
        y0 += weight_OD[output, feature] * x
        y1 += weight_OD[output + 1, feature] * x
        y2 += weight_OD[output + 2, feature] * x
        y3 += weight_OD[output + 3, feature] * x
    y_PO[pair, output], y_PO[pair, output + 1] = y0, y1
    y_PO[pair, output + 2], y_PO[pair, output + 3] = y2, y3


@compiled("reassoc", "contract")
def _four_rows(
    x_TD: Floats, row_P: Integers, weight_OD: Floats, output: int, y_PO: Floats, pair: int
) -> None:
    """Write four outputs of the rows of four pairs, a to d."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = x_TD.dtype.type(0)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = x_TD.dtype.type(0)
    row_a, row_b, row_c, row_d = row_P[pair], row_P[pair + 1], row_P[pair + 2], row_P[pair + 3]
    for feature in range(x_TD.shape[1]):
        a, b = x_TD[row_a, feature], x_TD[row_b, feature]
        c, d = x_TD[row_c, feature], x_TD[row_d, feature]
        weight = weight_OD[output, feature]
        a0, b0, c0, d0 = a0 + weight * a, b0 + weight * b, c0 + weight * c, d0 + weight * d
        weight = weight_OD[output + 1, feature]
        a1, b1, c1, d1 = a1 + weight * a, b1 + weight * b, c1 + weight * c, d1 + weight * d
        weight = weight_OD[output + 2, feature]
        a2, b2, c2, d2 = a2 + weight * a, b2 + weight * b, c2 + weight * c, d2 + weight * d
        weight = weight_OD[output + 3, feature]
        a3, b3, c3, d3 = a3 + weight * a, b3 + weight * b, c3 + weight * c, d3 + weight * d
    y_PO[pair, output], y_PO[pair, output + 1] = a0, a1
    y_PO[pair, output + 2], y_PO[pair, output + 3] = a2, a3
    y_PO[pair + 1, output], y_PO[pair + 1, output + 1] = b0, b1
    y_PO[pair + 1, output + 2], y_PO[pair + 1, output + 3] = b2, b3
    y_PO[pair + 2, output], y_PO[pair + 2, output + 1] = c0, c1
    y_PO[pair + 2, output + 2], y_PO[pair + 2, output + 3] = c2, c3
    y_PO[pair + 3, output], y_PO[pair + 3, output + 1] = d0, d1
    y_PO[pair + 3, output + 2], y_PO[pair + 3, output + 3] = d2, d3


@compiled()
def _linear_of_one(
    x_TD: Floats, row_P: Integers, pairs: tuple[int, int], weight_OD: Floats, y_PO: Floats
) -> None:
    """Map the rows of one expert's pairs, from the first to before the second."""
    first, end = pairs
    num_outputs = weight_OD.shape[0]
    tiled = num_outputs - num_outputs % TILE
    fours = end - (end - first) % TILE
    for output in range(0, tiled, TILE):
        for pair in range(first, fours, TILE):
            _four_rows(x_TD, row_P, weight_OD, output, y_PO, pair)
        for pair in range(fours, end):
            _one_row(x_TD, row_P[pair], weight_OD, output, y_PO, pair)
    for output in range(tiled, num_outputs):
        for pair in range(first, end):
            y_PO[pair, output] = _dot(x_TD, row_P[pair], weight_OD, output)


@compiled()
def _add(bias_O: Floats, pairs: tuple[int, int], y_PO: Floats) -> None:
    for pair in range(pairs[0], pairs[1]):
        for output in range(bias_O.shape[0]):
            y_PO[pair, output] += bias_O[output]


@compiled()
def linear(
    x_TD: Floats,
    row_P: Integers,
    first_E: Integers,
    weight_EOD: Floats,
    bias_EO: Floats,  # (0, O) for none
    y_PO: Floats,
) -> None:
    """Map the row of each pair by its expert."""
    for expert in range(weight_EOD.shape[0]):
        pairs = first_E[expert], first_E[expert + 1]
        if pairs[0] < pairs[1]:
            _linear_of_one(x_TD, row_P, pairs, weight_EOD[expert], y_PO)
            if bias_EO.shape[0] > 0:
                _add(bias_EO[expert], pairs, y_PO)


@compiled()
def combine(
    y_PO: Floats, row_P: Integers, first_E: Integers, weight_GTE: Floats, total_GTO: Floats
) -> None:
    """Write the weighted sum over each row's pairs, in the order of the experts."""
    total_GTO[:] = 0
    for expert in range(first_E.shape[0] - 1):
        for pair in range(first_E[expert], first_E[expert + 1]):
            row = row_P[pair]
            for gate in range(total_GTO.shape[0]):
                weight = weight_GTE[gate, row, expert]
                for output in range(y_PO.shape[1]):
                    total_GTO[gate, row, output] += weight * y_PO[pair, output]
