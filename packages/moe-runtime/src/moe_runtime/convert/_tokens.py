"""What a model is told of its tokens, for mixtures deep inside it that are told nothing.

Axes: B sequences, S tokens.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn


class Tokens:
    """The padding mask and the ids of the tokens in the call that is going on, and its penalties.

    A hook on the model, and on each module in it that is told the ids, notes them
    before it runs. After the call they are forgotten, but where gradient checkpointing will run
    layers again in the backward pass.

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
        self._outer: list[tuple[Tensor | None, Tensor | None]] = []

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
        """Put the hooks on a model; returns what takes them off."""
        handles = []
        for module in model.modules():
            named = inspect.signature(module.forward).parameters
            if module is not model and (
                self.ids_argument is None or self.ids_argument not in named
            ):
                continue
            handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._after, always_call=True))
        handles.append(model.register_forward_hook(self._add_penalty))

        def take_off() -> None:
            for handle in handles:
                handle.remove()

        return take_off

    def mask_for(self, x: Tensor) -> Tensor | None:
        """Return the mask (B, S) of tokens (B, S, D), bool; None where all count."""
        # While text is generated the mask is that of all tokens so far.
        return None if self.mask is None else self._last("mask", self.mask, x) != 0

    def ids_for(self, x: Tensor) -> Tensor | None:
        """Return the ids (B, S) of tokens (B, S, D)."""
        return None if self.ids is None else self._last("ids", self.ids, x)

    def _last(self, kind: str, given: Tensor, x: Tensor) -> Tensor:
        *leading, _features = x.shape
        if len(leading) == 1 and given.numel() == leading[0]:
            return given.reshape(-1)  # of layers that are given sequences one after the other
        if len(leading) == 2 and given.shape[0] == leading[0] and given.shape[1] >= leading[1]:
            return given[:, given.shape[1] - leading[1] :]
        argument = self.mask_argument if kind == "mask" else self.ids_argument
        msg = (
            f"`{argument}` must have one entry a token of the layer's input {tuple(x.shape)}, got "
            f"shape {tuple(given.shape)}. Where it is not about these tokens, convert with "
            f"`{kind}_argument`=None."
        )
        raise ValueError(msg)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._outer:
            self.penalties = []
        self._outer.append((self.mask, self.ids))
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        self.mask = _integers(given, self.mask_argument)
        self.ids = _integers(given, self.ids_argument)

    def _after(self, module: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
        outer = self._outer.pop()
        if not _runs_again(module):
            self.mask, self.ids = outer

    def _add_penalty(self, module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        """Add the penalty to the loss of a model of transformers, in training."""
        loss = getattr(output, "loss", None)
        if module.training and isinstance(loss, Tensor) and self.penalties:
            output.loss = loss + self.penalty(loss)  # type: ignore[attr-defined]

    def add(self, penalty: Tensor) -> None:
        """Take note of a layer's penalty; what runs again in the backward pass is counted once."""
        if self._outer:
            self.penalties.append(penalty)

    def penalty(self, like: Tensor) -> Tensor:
        """Return the sum of the penalties of the last call."""
        return torch.stack([each.to(like) for each in self.penalties]).sum()


def _integers(given: Mapping[str, Any], argument: str | None) -> Tensor | None:
    """Return what was given for an argument, where it is a tensor with two axes."""
    value = None if argument is None else given.get(argument)
    return value if isinstance(value, Tensor) and value.ndim == 2 else None


def _runs_again(module: nn.Module) -> bool:
    """Whether a model of transformers runs its layers a second time, in the backward pass."""
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")  # before transformers 5
    return next((bool(getattr(module, each)) for each in names if hasattr(module, each)), False)
