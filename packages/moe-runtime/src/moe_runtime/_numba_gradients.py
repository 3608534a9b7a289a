"""Gradients of the experts' linear maps on few rows each, compiled by numba.

Both are rows, each times a factor, added to a row of the result: several at a time, so that it is
read and written seldom. Where fewer are left, the last one is repeated with a factor of 0.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert) pairs,
N rows of any kind.
"""

from moe_runtime._numba_experts import Floats, Integers, Number
from moe_runtime._numba_rows import compiled

FEW, MANY = 4, 8


@compiled("contract")
def _set_few(
    y_ND: Floats,
    row: int,
    x_ND: Floats,
    sources: tuple[int, int, int, int],
    factors: tuple[Number, Number, Number, Number],
) -> None:
    s0, s1, s2, s3 = sources
    f0, f1, f2, f3 = factors
    for feature in range(y_ND.shape[1]):
        y_ND[row, feature] = (
            f0 * x_ND[s0, feature]
            + f1 * x_ND[s1, feature]
            + f2 * x_ND[s2, feature]
            + f3 * x_ND[s3, feature]
        )


@compiled("contract")
def _add_few(
    y_ND: Floats,
    row: int,
    x_ND: Floats,
    sources: tuple[int, int, int, int],
    factors: tuple[Number, Number, Number, Number],
) -> None:
    s0, s1, s2, s3 = sources
    f0, f1, f2, f3 = factors
    for feature in range(y_ND.shape[1]):
        y_ND[row, feature] += (
            f0 * x_ND[s0, feature]
            + f1 * x_ND[s1, feature]
            + f2 * x_ND[s2, feature]
            + f3 * x_ND[s3, feature]
        )


@compiled("contract")
def _add_many(y_ND: Floats, row: int, x_ND: Floats, first: int, factor_NO: Floats) -> None:
    """Add the eight rows from `first` on, whose factors begin there in the result's row."""
    f0, f1 = factor_NO[row, first], factor_NO[row, first + 1]
    f2, f3 = factor_NO[row, first + 2], factor_NO[row, first + 3]
    f4, f5 = factor_NO[row, first + 4], factor_NO[row, first + 5]
    f6, f7 = factor_NO[row, first + 6], factor_NO[row, first + 7]
    for feature in range(y_ND.shape[1]):
        y_ND[row, feature] += (
            f0 * x_ND[first, feature]
            + f1 * x_ND[first + 1, feature]
            + f2 * x_ND[first + 2, feature]
            + f3 * x_ND[first + 3, feature]
            + f4 * x_ND[first + 4, feature]
            + f5 * x_ND[first + 5, feature]
            + f6 * x_ND[first + 6, feature]
            + f7 * x_ND[first + 7, feature]
        )


@compiled("contract")
def _add_one(y_ND: Floats, row: int, x_ND: Floats, source: int, factor: Number) -> None:
    for feature in range(y_ND.shape[1]):
        y_ND[row, feature] += factor * x_ND[source, feature]


@compiled()
def gradient_of_rows(
    grad_PO: Floats, first_E: Integers, weight_EOD: Floats, grad_PD: Floats
) -> None:
    """Write the gradient of what the maps were given."""
    num_outputs = grad_PO.shape[1]
    in_eights = num_outputs - num_outputs % MANY
    grad_PD[:] = 0
    for expert in range(weight_EOD.shape[0]):
        weight_OD = weight_EOD[expert]
        pairs = range(first_E[expert], first_E[expert + 1])
        for output in range(0, in_eights, MANY):
            for pair in pairs:
                _add_many(grad_PD, pair, weight_OD, output, grad_PO)
        for output in range(in_eights, num_outputs):
            for pair in pairs:
                _add_one(grad_PD, pair, weight_OD, output, grad_PO[pair, output])


@compiled()
def _factor(grad_PO: Floats, pair: int, end: int, output: int) -> Number:
    return grad_PO[pair, output] if pair < end else grad_PO.dtype.type(0)


@compiled()
def gradient_of_weights(
    grad_PO: Floats, x_TD: Floats, row_P: Integers, first_E: Integers, grad_EOD: Floats
) -> None:
    """Write the gradient of the weights, 0 for experts without rows."""
    for expert in range(grad_EOD.shape[0]):
        first, end = first_E[expert], first_E[expert + 1]
        grad_OD = grad_EOD[expert]
        if first == end:
            grad_OD[:] = 0
        for pair in range(first, end, FEW):
            rows = (
                row_P[pair],
                row_P[min(pair + 1, end - 1)],
                row_P[min(pair + 2, end - 1)],
                row_P[min(pair + 3, end - 1)],
            )
            for output in range(grad_OD.shape[0]):
                factors = (
                    grad_PO[pair, output],
                    _factor(grad_PO, pair + 1, end, output),
                    _factor(grad_PO, pair + 2, end, output),
                    _factor(grad_PO, pair + 3, end, output),
                )
                if pair == first:
                    _set_few(grad_OD, output, x_TD, rows, factors)
                else:
                    _add_few(grad_OD, output, x_TD, rows, factors)


@compiled()
def gradient_of_biases(grad_PO: Floats, first_E: Integers, grad_EO: Floats) -> None:
    """Write the gradient of the biases, 0 for experts without rows."""
    grad_EO[:] = 0
    for expert in range(grad_EO.shape[0]):
        for pair in range(first_E[expert], first_E[expert + 1]):
            for output in range(grad_EO.shape[1]):
                grad_EO[expert, output] += grad_PO[pair, output]


@compiled("reassoc", "contract")
def gradients_of_combine(
    grad_GTO: Floats,
    y_PO: Floats,
    row_P: Integers,
    first_E: Integers,
    weight_GTE: Floats,
    grad_PO: Floats,
    grad_GTE: Floats,
) -> None:
    """Write the gradient of the experts' outputs, and those of the pairs' weights."""
    grad_PO[:] = 0
    for expert in range(first_E.shape[0] - 1):
        for pair in range(first_E[expert], first_E[expert + 1]):
            row = row_P[pair]
            for gate in range(grad_GTO.shape[0]):
                weight, total = weight_GTE[gate, row, expert], grad_GTE.dtype.type(0)
                for output in range(y_PO.shape[1]):
                    total += grad_GTO[gate, row, output] * y_PO[pair, output]
                for output in range(y_PO.shape[1]):
                    grad_PO[pair, output] += weight * grad_GTO[gate, row, output]
                grad_GTE[gate, row, expert] = total


@compiled()
def add_up(y_PD: Floats, row_P: Integers, total_TD: Floats) -> None:
    """Add each pair's part to its row, in the order of the experts."""
    for pair in range(row_P.shape[0]):
        for feature in range(y_PD.shape[1]):
            total_TD[row_P[pair], feature] += y_PD[pair, feature]
