"""What a model is told of its tokens, for mixtures deep inside it that are told nothing.

Axes: B sequences, S tokens.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from moe_runtime.convert._pytorch import LAYERS, counted


class Tokens:
    """The padding mask and the ids of the tokens in the call that is going on, and its penalties.

    A hook on the model, and on each module in it that is told the ids, notes them
    before it runs; PyTorch's own layers are told the padding of their tokens. After the call they
    are forgotten, but for layers that transformers' activation checkpointing runs again in the
    backward pass. Calls in several threads at once are mixed up.

    Parameters
    ----------
    mask_argument, ids_argument
        Names of arguments of ``forward``: 1 where a token counts and 0 for padding, shape (B, S);
        and integer ids (B, S). None where there are none.
    """

    def __init__(self, mask_argument: str | None, ids_argument: str | None) -> None:
        self.mask_argument, self.ids_argument = mask_argument, ids_argument
        self.mask: Tensor | None = None
        self.ids: Tensor | None = None
        self.penalties: list[Tensor] = []
        # Of the last call whose layers may run again in a backward pass; and how many there were
        # since layers last did.
        self._again: tuple[Tensor | None, Tensor | None] | None = None
        self._awaited = 0
        self._running_again = False
        self._without_gradient = False  # whether a layer of the call ran so
        # Modules whose calls go on, and what counted outside of each.
        self._outer: list[tuple[nn.Module, Tensor | None, Tensor | None]] = []
        self._outside_layer: list[Tensor | None] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy without what belongs to a call."""
        copied = type(self)(self.mask_argument, self.ids_argument)
        memo[id(self)] = copied
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process is to have: nothing of a call."""
        copied = type(self)(self.mask_argument, self.ids_argument)
        return copied.__dict__

    def watch(self, model: nn.Module) -> Callable[[], None]:
        """Put the hooks on a model, where they are not yet; returns what takes them off."""
        handles = []
        for module in model.modules():
            if self._watches(module):
                continue
            if module is model or self._is_told(module):
                handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after, always_call=True))
            if isinstance(module, LAYERS):  # within the other two
                before, after = self._before_layer, self._after_layer
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, prepend=True, always_call=True))
            if module is model:
                handles.append(module.register_forward_hook(self._add_penalty))

        def take_off() -> None:
            for handle in handles:
                handle.remove()

        return take_off

    def _watches(self, module: nn.Module) -> bool:
        hooks = module._forward_pre_hooks.values()  # noqa: SLF001 - there is no public name
        return any(getattr(hook, "__self__", None) is self for hook in hooks)

    def _is_told(self, module: nn.Module) -> bool:
        named = inspect.signature(module.forward).parameters
        return self.ids_argument is not None and self.ids_argument in named

    def mask_for(self, x: Tensor) -> Tensor | None:
        """Return the mask (B, S) of tokens (B, S, D), bool; None where all count."""
        return None if self.mask is None else self._last("mask", self.mask, x) != 0

    def ids_for(self, x: Tensor) -> Tensor | None:
        """Return the ids (B, S) of tokens (B, S, D)."""
        return None if self.ids is None else self._last("ids", self.ids, x)

    def ids_required(self, x: Tensor) -> Tensor:
        """Return the ids (B, S) of tokens (B, S, D), for a router that reads them."""
        ids = self.ids_for(x)
        if ids is None:
            msg = (
                "the ids of the tokens must be given to the model, as the argument that "
                f"`ids_argument` of `convert` names, {self.ids_argument!r}: a HashRouter reads "
                "them."
            )
            raise ValueError(msg)
        return ids

    def _last(self, kind: str, given: Tensor, x: Tensor) -> Tensor:
        leading = x.shape[:-1]
        if given.shape == leading:
            return given
        if len(leading) == 1 and given.numel() == leading[0]:
            return given.reshape(-1)  # of layers that are given sequences one after the other
        # While text is generated the ids are the new tokens, and the mask is that of all so far.
        ids = self.ids
        if kind == "mask" and ids is not None and ids.shape[0] == given.shape[0]:
            new = given[:, given.shape[1] - ids.shape[1] :]
            if ids.shape[1] < given.shape[1] and (
                ids.shape == leading or ids.numel() == x[..., 0].numel()
            ):
                return new.reshape(leading)
        argument = self.mask_argument if kind == "mask" else self.ids_argument
        msg = (
            f"`{argument}` must have one entry a token of a converted layer's input "
            f"{tuple(x.shape)}, sequences first, got shape {tuple(given.shape)}. Where it is about "
            f"other tokens, leave the layer out by `names`, or convert with `{kind}_argument`=None."
        )
        raise ValueError(msg)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(each is module for each, *_ in self._outer) and not _is_called_within(module):
            # An interruption from the keyboard left its call open: torch closes those of errors.
            self._outer, self._outside_layer, self.mask, self.ids = [], [], None, None
        if not self._outer:
            self.penalties = []
            self._without_gradient = False
            self._begin(module)
        self._outer.append((module, self.mask, self.ids))
        given = _arguments(module, args, kwargs)
        mask, ids = (_two_axes(given, each) for each in (self.mask_argument, self.ids_argument))
        nested = len(self._outer) > 1
        # A model within another may be told embeddings and a prepared mask of the same tokens.
        same_tokens = nested and (ids is None or ids is self.ids)
        self.mask = self.mask if mask is None and same_tokens else mask
        self.ids = self.ids if ids is None and same_tokens else ids

    def _before_layer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._outside_layer.append(self.mask)
        mask = counted(module, _arguments(module, args, kwargs))
        self.mask = self.mask if mask is None else mask

    def _after_layer(self, _module: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
        self.mask = self._outside_layer.pop()

    def _begin(self, module: nn.Module) -> None:
        """Count the calls whose layers may have to run again."""
        if torch.is_grad_enabled() and _runs_again(module):
            self._awaited = 1 if self._running_again else self._awaited + 1
            self._running_again = False

    def _after(self, module: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
        if not self._outer:
            return  # a call in another thread has begun anew
        _, mask, ids = self._outer.pop()
        if not self._outer and torch.is_grad_enabled() and _runs_again(module):
            self._again = (self.mask, self.ids)
        self.mask, self.ids = mask, ids

    def _add_penalty(self, module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        """Add the penalty to the loss of a model of transformers, in training."""
        loss = getattr(output, "loss", None)
        outermost = not self._outer
        if outermost and module.training and isinstance(loss, Tensor) and self.penalties:
            if loss.requires_grad and self._without_gradient:
                msg = (
                    "layers ran without gradients, as with reentrant checkpointing: the penalty of "
                    "their routers is in the loss and has no gradient. Use `use_reentrant=False`."
                )
                warnings.warn(msg, stacklevel=2)
            output.loss = loss + self.penalty(loss)  # type: ignore[attr-defined]

    @contextmanager
    def call_of_layer(self) -> Iterator[None]:
        """Let a layer that runs again, in a backward pass, see what the call was told."""
        if self._outer or self._again is None:
            yield
            return
        if self._awaited > 1:
            self._awaited = 0  # a step that was skipped, without a backward pass, blocks no other
            msg = (
                "the model was called more than once before the backward pass: with activation "
                "checkpointing, layers that run again would take one call's padding for another's. "
                "Go backward after each call, or train without checkpointing."
            )
            raise RuntimeError(msg)
        self._running_again = True
        self.mask, self.ids = self._again
        try:
            yield
        finally:
            self.mask = self.ids = None

    def add(self, penalty: Tensor) -> None:
        """Take note of a layer's penalty; what runs again in the backward pass is counted once."""
        if self._outer:
            self.penalties.append(penalty)
            self._without_gradient |= not torch.is_grad_enabled()

    def penalty(self, like: Tensor) -> Tensor:
        """Return the sum of the penalties of the last call."""
        return torch.stack([each.to(like) for each in self.penalties]).sum()


def _arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Mapping[str, Any]:
    """Return what a call was given, by name."""
    signature = inspect.signature(module.forward)
    given = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _is_called_within(module: nn.Module) -> bool:
    """Whether a module whose hook asks runs inside a call of its own."""
    frame, calls = inspect.currentframe(), 0
    while frame is not None:
        is_call = frame.f_code is nn.Module._call_impl.__code__  # noqa: SLF001
        calls += is_call and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls > 1


def _two_axes(given: Mapping[str, Any], argument: str | None) -> Tensor | None:
    """Return what was given for an argument, where it is a tensor with two axes."""
    value = None if argument is None else given.get(argument)
    return value if isinstance(value, Tensor) and value.ndim == 2 else None


def _runs_again(module: nn.Module) -> bool:
    """Whether a model of transformers runs its layers a second time, in the backward pass."""
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")  # before transformers 5
    return module.training and next(
        (bool(getattr(module, each)) for each in names if hasattr(module, each)), False
    )
