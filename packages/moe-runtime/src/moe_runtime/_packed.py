"""Experts for inference only: weights packed once, or as 8-bit codes, one expert at a time.

Axes: T rows, D input features, O output features, E experts, L layers, P (row, expert) pairs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn

from moe_runtime._checks import check_tensor, check_type
from moe_runtime._expert_set import ExpertSet
from moe_runtime._experts import Experts, StackedLinear
from moe_runtime._mixture import MultiGateMixtureOfExperts
from moe_runtime._packed_linear import PackedLinear, pack_linear, prepare
from moe_runtime._transforms import is_transformed
from moe_runtime._untraced import untraced

WEIGHTS = ("bfloat16", "float32", "int8")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Rows that go through all layers of an expert before the next: their hidden units stay in the
# cache, and memory does not grow with the rows of the busiest expert.
ROWS_AT_ONCE = 512


class PackingReport(NamedTuple):
    """What `pack_experts` did.

    Kernels are ``"onednn"`` for packed weights; ``"plain"`` for small weights, which are not
    packed, and for all where PyTorch has no oneDNN; ``"int8"``; ``"int8_of_7_bits"`` on
    processors with neither VNNI nor AMX, where weights have half as many codes; and
    ``"float64"``, which is slow, where PyTorch has no product of 8-bit codes.
    """

    bytes_before: int  # of the experts' weights and biases
    bytes_after: int
    kernels: tuple[str, ...]
    largest_error: float | None  # absolute where the answer is below 1, relative above


class PackedExperts(ExpertSet):
    """What `pack_experts` makes of `Experts`: for inference on the CPU only.

    Has no parameters. Training, saving, and moving to another device or dtype are refused;
    copies share the packed weights. Autocast changes nothing in it.

    Raises
    ------
    RuntimeError
        If an input requires a gradient, or any of the above is asked for.
    """

    def __init__(self, experts: Experts, weights: str) -> None:
        super().__init__()
        self.training = False
        self.num_experts = experts.num_experts
        self.activations = experts.activations
        self.in_features, self.out_features = experts.in_features, experts.out_features
        self.layer_sizes = experts.layer_sizes
        self.weights = weights
        self._dtype = experts.dtype
        self._products_EL: list[list[PackedLinear]] = [[] for _ in range(experts.num_experts)]
        for activation in self.activations:
            self._take(experts.layers[0], activation)
            # Packed: let it go before the next.
            del experts.layers[0]

    def _take(self, layer: nn.Module, activation: str) -> None:
        assert isinstance(layer, StackedLinear)
        for expert, products_L in enumerate(self._products_EL):
            weight_OD, bias_O = layer.weight.detach()[expert], _expert_of(layer.bias, expert)
            products_L.append(pack_linear(weight_OD, bias_O, activation, self.weights))

    @property
    def dtype(self) -> torch.dtype:
        """Of the input and the output: what the parameters had."""
        return self._dtype

    @property
    def products(self) -> list[PackedLinear]:
        """Every map of every expert."""
        return [product for products_L in self._products_EL for product in products_L]

    def forward(self, x_PD: Tensor, counts_E: list[int]) -> Tensor:
        """Run the pairs of a plan, sorted by expert: (P, D) to (P, O)."""
        _check_no_gradient(x_PD)
        y_PO = x_PD.new_empty(x_PD.shape[0], self.out_features, dtype=self._dtype)
        start = 0
        with _no_autocast(), torch.no_grad():
            prepared = prepare(x_PD, self.weights)
            for products_L, count in zip(self._products_EL, counts_E, strict=True):
                if count:
                    self._run(products_L, prepared, start, y_PO[start : start + count])
                start += count
        return y_PO

    def one(self, expert: int, x_TD: Tensor) -> Tensor:
        """Run one expert on every row: (T, D) to (T, O)."""
        _check_no_gradient(x_TD)
        y_TO = x_TD.new_empty(x_TD.shape[0], self.out_features, dtype=self._dtype)
        with _no_autocast(), torch.no_grad():
            self._run(self._products_EL[expert], prepare(x_TD, self.weights), 0, y_TO)
        return y_TO

    # The weights are opaque to a compiler, which looks at no other of these methods.
    @untraced
    def every(self, x_TD: Tensor) -> Tensor:
        """Run every expert on every row: (T, D) to (E, T, O)."""
        _check_no_gradient(x_TD)
        shape = (self.num_experts, x_TD.shape[0], self.out_features)
        y_ETO = x_TD.new_empty(shape, dtype=self._dtype)
        with _no_autocast(), torch.no_grad():
            prepared = prepare(x_TD, self.weights)
            for products_L, y_TO in zip(self._products_EL, y_ETO, strict=True):
                self._run(products_L, prepared, 0, y_TO)
        return y_ETO

    def _run(
        self,
        products_L: list[PackedLinear],
        prepared: tuple[Tensor, ...],
        start: int,
        y_MO: Tensor,
    ) -> None:
        """Write one expert's answers to the rows from `start` on."""
        first, *others = products_L
        for begin in range(0, y_MO.shape[0], ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, y_MO.shape[0])
            hidden = first(*(each[start + begin : start + end] for each in prepared))
            for product in others:
                hidden = product(*prepare(hidden, self.weights))
            y_MO[begin:end] = hidden

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        """Refuse training; evaluation is what it is in."""
        if mode:
            _refuse("cannot train: train the model before `pack_experts`")
        return self

    def _save_to_state_dict(self, *args: object) -> NoReturn:  # noqa: ARG002 - torch's signature
        _refuse("have no state_dict: save the model before `pack_experts`")

    def _load_from_state_dict(self, *args: object) -> NoReturn:  # noqa: ARG002 - as above
        _refuse("cannot load weights: load them before `pack_experts`")

    def _apply(self, fn: object, recurse: bool = True) -> Self:  # noqa: ARG002, FBT001, FBT002
        assert callable(fn)
        probe = torch.empty(0, dtype=self._dtype)
        moved = fn(probe)
        if (moved.device, moved.dtype) != (probe.device, probe.dtype):
            _refuse(f"stay {self._dtype} on the CPU: convert the model before `pack_experts`")
        return self

    def extra_repr(self) -> str:
        """Say what was packed."""
        widths = f"{self.in_features} -> {self.out_features}"
        return (
            f"{self.num_experts} x {widths}, weights={self.weights!r}, "
            f"activations={self.activations}"
        )


def pack_experts(
    model: nn.Module,
    *,
    weights: str = "float32",
    example_inputs: Sequence[Tensor] | None = None,
) -> PackingReport:
    """Replace the experts of every mixture in `model` by packed ones, for inference on the CPU.

    The model is changed in place and left in evaluation mode; load, train, save and export it
    before. The original `Experts` are emptied layer by layer, so that the model is never
    in memory twice.

    Parameters
    ----------
    model
        Holds at least one mixture; float32, bfloat16 or float16, and on the CPU.
    weights
        ``"float32"``: the same weights in the order that the processor reads fastest.
        ``"bfloat16"``: rounded to it, and inputs and hidden units too.
        ``"int8"``: 8-bit codes with a scale for each output of each expert, and for each row
        of inputs and hidden units as it comes: a quarter of the memory. One weight or input
        that is far larger than the others of its output or row costs the others precision.
    example_inputs
        Rows to measure the largest error on: what ``model(*example_inputs)`` takes.

    Returns
    -------
    PackingReport
        Bytes before and after, the kernels that will run, and the largest error. Behind
        another layer it may be that of a row which now goes to other experts.

    Raises
    ------
    ValueError
        If `weights` is unknown, or the model has no mixture, one that is packed already, or
        parameters that cannot be packed. Nothing is changed then.
    TypeError
        If an argument is of another type.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> router = moe_runtime.TopKRouter(6, 8, k=2)
    >>> model = moe_runtime.MixtureOfExperts(router, moe_runtime.Experts(8, (6, 16, 4)))
    >>> report = moe_runtime.pack_experts(model, example_inputs=(torch.randn(9, 6),))
    >>> report.largest_error < 1e-5
    True
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    if weights not in WEIGHTS:
        msg = f"`weights` must be one of {list(WEIGHTS)}, got {weights!r}."
        raise ValueError(msg)
    if example_inputs is not None:
        check_type("example_inputs", example_inputs, Sequence, "a sequence of tensors")
        for index, example in enumerate(example_inputs):
            check_tensor(f"example_inputs[{index}]", example)
    mixtures = _mixtures(model)
    model.eval()
    wanted = None if example_inputs is None else _outputs(model, example_inputs)
    every = [mixture.experts for mixture in mixtures]
    originals = {id(experts): experts for experts in every if isinstance(experts, Experts)}
    parameters = [each for one in originals.values() for each in one.parameters()]
    bytes_before = sum(each.numel() * each.element_size() for each in parameters)
    del every, parameters
    packed: dict[int, PackedExperts] = {}
    for mixture in mixtures:
        # Several mixtures may share their experts.
        key = id(mixture.experts)
        if key not in packed:
            packed[key] = PackedExperts(originals[key], weights)
        mixture.experts = packed[key]
    products = [product for experts in packed.values() for product in experts.products]
    return PackingReport(
        bytes_before,
        sum(product.num_bytes for product in products),
        tuple(sorted({product.kernel for product in products})),
        None if wanted is None else _largest_error(_outputs(model, example_inputs or ()), wanted),
    )


def _mixtures(model: nn.Module) -> list[MultiGateMixtureOfExperts]:
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, MultiGateMixtureOfExperts)
    }
    if not found:
        msg = "`model` must hold a mixture whose experts can be packed, got none."
        raise ValueError(msg)
    for name, mixture in found.items():
        experts = mixture.experts
        if not isinstance(experts, Experts):
            kind = type(experts).__name__
            msg = f"`model` must have `Experts` that are not packed yet, got {kind} in {name!r}."
            raise ValueError(msg)  # noqa: TRY004 - of the right type, in the wrong state
        for each in experts.parameters():
            if each.dtype not in DTYPES or each.device.type != "cpu":
                msg = (
                    "`model` must have experts in float32, bfloat16 or float16 and on the CPU, "
                    f"got {each.dtype} on {each.device} in {name!r}."
                )
                raise ValueError(msg)
    return list(found.values())


@torch.no_grad()
def _outputs(model: nn.Module, example_inputs: Sequence[Tensor]) -> list[Tensor]:
    outputs = model(*example_inputs)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _largest_error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    errors = [
        ((one.double() - other.double()).abs() / other.double().abs().clamp(min=1)).max()
        for one, other in zip(got, wanted, strict=True)
        if one.numel()
    ]
    return float(torch.stack(errors).max()) if errors else 0.0


def _expert_of(stack_EO: Tensor | None, expert: int) -> Tensor | None:
    return None if stack_EO is None else stack_EO.detach()[expert]


def _check_no_gradient(x: Tensor) -> None:
    # Inside torch.func's transforms a tensor does not say whether it has a gradient outside.
    if (x.requires_grad or is_transformed()) and torch.is_grad_enabled():
        _refuse("pass no gradient: run the model under `torch.inference_mode()`")


def _no_autocast() -> AbstractContextManager[object]:
    # Entering autocast costs 5 us, asking for it 0.1.
    if not torch.is_autocast_enabled("cpu"):
        return nullcontext()
    return torch.autocast("cpu", enabled=False)


def _refuse(reason: str) -> NoReturn:
    msg = f"packed experts {reason}."
    raise RuntimeError(msg)
