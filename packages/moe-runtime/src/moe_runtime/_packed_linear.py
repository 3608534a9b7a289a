"""One expert's linear map and activation, prepared once for inference on the CPU.

Axes: M rows of one expert, D input features, O output features of the map.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, NoReturn, Self

import torch
from torch import Tensor

from moe_runtime._activations import ACTIVATIONS
from moe_runtime._products import linear

# What oneDNN calls them, and its algorithm: the exact GELU is its "none".
ONEDNN_ACTIVATIONS = {
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "identity": ("none", ""),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
# A call of oneDNN costs 13 us, one of addmm 1.5, so that it must have something to do. Measured
# for 1 to 256 rows of 32 x 32 to 512 x 512, 64 weights in turn: packed float32 is level with
# addmm at 1 row of 256 x 256 and ahead above; bfloat16 goes through oneDNN anyway.
PACKED_FROM_WEIGHTS = {torch.float32: 2**16, torch.bfloat16: 2**14}
# oneDNN orders packed weights for a number of rows. 16, 64 and 256 differ by 1 %; no number, or
# 1, is up to 70 % slower for 2 to 8 rows.
PACKED_FOR_ROWS = 64
# Rows that become codes in one go: 2048 take half as long again, in fresh pages of memory.
ENCODED_AT_ONCE = 512
LARGEST_CODE = 127
# Two products of an unsigned byte with it fit in 16 bits: 2 * 255 * 63 < 2**15.
SAFE_CODE = 63
# Keeps a row of zeros from dividing by 0. Rows below it are rounded to fewer bits.
SMALLEST_ROW = 1e-30


class PackedLinear(ABC):
    """A linear map and its activation, which nothing changes; copies of a model share it."""

    kernel: str
    num_bytes: int

    @abstractmethod
    def __call__(self, *rows: Tensor) -> Tensor:
        """Map rows that `prepare` made, and apply the activation: shape (M, O)."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Share: there is nothing that a copy could change."""
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: the order of packed weights is the processor's."""
        msg = "packed experts cannot be pickled: save the model before `pack_experts`."
        raise TypeError(msg)


class PlainLinear(PackedLinear):
    """Weights in their own order: small ones, and all where PyTorch has no oneDNN."""

    kernel = "plain"

    def __init__(self, weight_OD: Tensor, bias_O: Tensor | None, activation: str) -> None:
        # A copy, not a view, which would keep the whole stack of experts in memory.
        self._weight_OD = weight_OD.clone(memory_format=torch.contiguous_format)
        self._bias_O = None if bias_O is None else bias_O.clone()
        self._activation = activation
        self.num_bytes = _num_bytes(self._weight_OD, self._bias_O)

    def __call__(self, *rows: Tensor) -> Tensor:
        (x_MD,) = rows
        return ACTIVATIONS[self._activation](linear(x_MD, self._weight_OD, self._bias_O))


class OneDnnLinear(PackedLinear):
    """Weights in the order that oneDNN's kernels read; the activation is part of the product."""

    kernel = "onednn"

    def __init__(self, weight_OD: Tensor, bias_O: Tensor | None, activation: str) -> None:
        pack = torch.ops.mkldnn._reorder_linear_weight.default  # noqa: SLF001 - see has_onednn
        self._weight_OD = pack(weight_OD.contiguous(), PACKED_FOR_ROWS)
        self._bias_O = None if bias_O is None else bias_O.clone()
        self._activation = activation
        # Widths are padded to whole blocks.
        num_bytes: int = torch.ops.mkldnn._nbytes(self._weight_OD)  # noqa: SLF001 - see has_onednn
        self.num_bytes = num_bytes + _num_bytes(self._bias_O)

    def __call__(self, *rows: Tensor) -> Tensor:
        (x_MD,) = rows
        return _onednn_linear(x_MD, self._weight_OD, self._bias_O, self._activation)


class Int8Linear(PackedLinear):
    """Weights as 8-bit codes with a scale an output; each row gets its own scale as it comes.

    With w the largest weight of an output, c the largest code of a weight, and a the largest
    input of a row, weights are off by at most w/2c and inputs by a/254, so that the map is off
    by at most ``w |x|_1 / 2c + a |weight|_1 / 254 + D w a / 508c``. Sums of codes are exact:
    what a row gets does not depend on the others.
    """

    def __init__(self, weight_OD: Tensor, bias_O: Tensor | None, activation: str) -> None:
        product = integer_product()
        largest_O1 = weight_OD.abs().amax(1, keepdim=True).clamp(min=SMALLEST_ROW)
        self._code_OD = (weight_OD * (product.largest_code / largest_O1)).round_().to(torch.int8)
        self._scale_O = largest_O1[:, 0] / (product.largest_code * LARGEST_CODE)
        self._bias_O = torch.zeros_like(self._scale_O) if bias_O is None else bias_O.clone()
        self._activation = activation
        # A single input is a leading dimension that `_int_mm` gets wrong, see integer_product.
        self._multiply = product.multiply if weight_OD.shape[1] > 1 else _float64_mm
        self.kernel = product.kernel
        self.num_bytes = _num_bytes(self._code_OD, self._scale_O, self._bias_O)

    def __call__(self, *rows: Tensor) -> Tensor:
        code_MD, largest_M1 = rows
        sum_MO = self._multiply(code_MD, self._code_OD.T)
        y_MO = torch.addcmul(self._bias_O, sum_MO * largest_M1, self._scale_O)
        return ACTIVATIONS[self._activation](y_MO)


def pack_linear(
    weight_OD: Tensor, bias_O: Tensor | None, activation: str, weights: str
) -> PackedLinear:
    """Prepare one map, for rows that `prepare` makes for the same kind of weights."""
    dtype = _dtype(weights)
    weight_OD = weight_OD.to(dtype)
    bias_O = None if bias_O is None else bias_O.to(dtype)
    if weights == "int8":
        return Int8Linear(weight_OD, bias_O, activation)
    is_packed = has_onednn(dtype) and weight_OD.numel() >= PACKED_FROM_WEIGHTS[dtype]
    form = OneDnnLinear if is_packed else PlainLinear
    return form(weight_OD, bias_O, activation)


def prepare(x_MD: Tensor, weights: str) -> tuple[Tensor, ...]:
    """Make rows what the maps take: one tensor, or for int8 codes and the largest of each row."""
    x_MD = x_MD.to(_dtype(weights))
    if weights != "int8":
        return (x_MD,)
    blocks = [_encode(block) for block in x_MD.split(ENCODED_AT_ONCE)]  # type: ignore[no-untyped-call]
    if len(blocks) == 1:
        return blocks[0]
    return tuple(torch.cat(each) for each in zip(*blocks, strict=True))


def _encode(x_MD: Tensor) -> tuple[Tensor, Tensor]:
    largest_M1 = x_MD.abs().amax(1, keepdim=True).clamp_(min=SMALLEST_ROW)
    code_MD = (x_MD * (LARGEST_CODE / largest_M1)).round_()
    # A new tensor, and so with regular strides, whatever those of a single row were.
    return code_MD.to(torch.int8, memory_format=torch.contiguous_format), largest_M1


def _dtype(weights: str) -> torch.dtype:
    return torch.bfloat16 if weights == "bfloat16" else torch.float32


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's linear operators, for this processor and dtype.

    They are what torch.compile writes for frozen models, and have no public name (PyTorch
    2.13). `torch.utils.mkldnn` is public, converts every input and output, and takes twice as
    long for few rows.
    """
    names = ("_linear_pointwise", "_reorder_linear_weight", "_nbytes", "_is_mkldnn_bf16_supported")
    operators = torch.ops.mkldnn
    # Without oneDNN the operators have names and no kernels.
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_kernels or not all(hasattr(operators, name) for name in names):
        return False
    return dtype is torch.float32 or bool(operators._is_mkldnn_bf16_supported())  # noqa: SLF001


class IntegerProduct(NamedTuple):
    """How 8-bit codes are multiplied here."""

    multiply: Callable[[Tensor, Tensor], Tensor]  # (M, D) and (D, O) to exact sums (M, O)
    largest_code: int  # of a weight
    kernel: str


@cache
def integer_product() -> IntegerProduct:
    """Choose the fastest product of codes that is exact on this processor.

    `torch._int_mm` is private in PyTorch 2.13. It adds pairs of products in 16 bits where the
    processor has neither VNNI nor AMX (PyTorch issue 136746): they overflow, but not with
    weights of 7 bits. It reads the leading dimension from the strides and, where these are
    those of an axis of size 1, returns memory that was never written (issue 195066).
    """
    if hasattr(torch, "_int_mm"):
        for largest_code, kernel in ((LARGEST_CODE, "int8"), (SAFE_CODE, "int8_of_7_bits")):
            if _is_exact(torch._int_mm, largest_code):  # noqa: SLF001 - see above
                return IntegerProduct(torch._int_mm, largest_code, kernel)  # noqa: SLF001
    return IntegerProduct(_float64_mm, LARGEST_CODE, "float64")


def _is_exact(multiply: Callable[[Tensor, Tensor], Tensor], largest_code: int) -> bool:
    code_MD = torch.full((16, 64), LARGEST_CODE, dtype=torch.int8)
    code_MD[1::2] *= -1
    code_OD = torch.full((16, 64), largest_code, dtype=torch.int8)
    code_OD[1::2] *= -1
    wanted_MO = _float64_mm(code_MD, code_OD.T)
    # One row has a kernel of its own.
    return all(
        torch.equal(multiply(code_MD[:rows], code_OD.T).double(), wanted_MO[:rows].double())
        for rows in (1, 16)
    )


def _float64_mm(code_MD: Tensor, code_DO: Tensor) -> Tensor:
    # Exact, as sums stay far below 2**53.
    return (code_MD.double() @ code_DO.double()).float()


def _onednn_linear(
    x_MD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, activation: str
) -> Tensor:
    name, algorithm = ONEDNN_ACTIVATIONS.get(activation, ("none", ""))
    multiply = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001 - see has_onednn
    y_MO: Tensor = multiply(x_MD, weight_OD, bias_O, name, [], algorithm)
    return y_MO if activation in ONEDNN_ACTIVATIONS else ACTIVATIONS[activation](y_MO)


def _num_bytes(*tensors: Tensor | None) -> int:
    return sum(each.numel() * each.element_size() for each in tensors if each is not None)
