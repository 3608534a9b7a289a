"""Matrix products, without gradients, by the fastest library that PyTorch brings.

PyTorch (2.13) sends float32 products on x86 to MKL, which on AMD processors reaches less than
half of the rate of oneDNN: 106 against 222 GFLOP/s for 256 rows through 768x384 on one core of
a Zen 5. oneDNN is in the same wheel, but costs 12 us a call, so that small products stay with MKL.
On Intel's own processors MKL is ahead for all sizes: 131 against 97 GFLOP/s for the gradient of a
weight, of 512 rows and 256x256, and 129 against 118 forward, on one core of a Xeon.

Axes: T rows, D input features, O output features.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

# Multiplications, and rows, from which on oneDNN is ahead (bench/kernels.py).
ONEDNN_MULTIPLICATIONS = 2**20
ONEDNN_ROWS = 2
# The same for the gradient of a weight, whose result has to be copied to its place.
ONEDNN_ROWS_OF_GRADIENT = 16


def _onednn_linear() -> Callable[..., Tensor] | None:
    """Find the operator that torch.compile itself uses for linear maps on the CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    found: Callable[..., Tensor] | None = operator and operator.default
    return found


@cache
def prefers_mkl() -> bool:
    """Whether this is a processor of Intel's, where MKL is not held back."""
    capabilities = torch.cpu.get_capabilities()
    return "Intel" in str(capabilities.get("cpu_name", ""))


_ONEDNN_LINEAR = None if prefers_mkl() else _onednn_linear()


def linear(
    x_TD: Tensor,
    weight_OD: Tensor,
    bias_O: Tensor | None = None,
    *,
    out_TO: Tensor | None = None,
) -> Tensor:
    """Map rows, which may have more axes, as `torch.nn.functional.linear` does; or to `out_TO`."""
    if _suits_onednn(x_TD, weight_OD.shape[0], ONEDNN_ROWS):
        assert _ONEDNN_LINEAR is not None
        y_TO = _ONEDNN_LINEAR(x_TD, weight_OD, bias_O, "none", [], "")
        return y_TO if out_TO is None else out_TO.copy_(y_TO)
    if out_TO is None:
        return F.linear(x_TD, weight_OD, bias_O)
    if bias_O is None:
        return torch.mm(x_TD, weight_OD.T, out=out_TO)
    return torch.addmm(bias_O, x_TD, weight_OD.T, out=out_TO)


def weight_gradient(grad_TO: Tensor, x_TD: Tensor, out_OD: Tensor) -> None:
    """Write the gradient of a linear map's weight, the sum over rows of outer products."""
    if _suits_onednn(x_TD, grad_TO.shape[1], ONEDNN_ROWS_OF_GRADIENT):
        assert _ONEDNN_LINEAR is not None
        out_OD.copy_(_ONEDNN_LINEAR(grad_TO.T, x_TD.T, None, "none", [], ""))
    else:
        torch.mm(grad_TO.T, x_TD, out=out_OD)


def _suits_onednn(x_TD: Tensor, out_features: int, min_rows: int) -> bool:
    in_features = x_TD.shape[-1]
    num_rows = x_TD.numel() // max(1, in_features)
    return (
        num_rows * in_features * out_features >= ONEDNN_MULTIPLICATIONS
        and num_rows >= min_rows
        and x_TD.dtype is torch.float32
        and x_TD.device.type == "cpu"
        and _ONEDNN_LINEAR is not None
        and not torch.is_grad_enabled()
    )
