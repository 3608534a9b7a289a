"""Functions that torch.compile leaves as they are."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that torch.compile is to call as it is, between two graphs.

    As `torch.compiler.disable`, which takes two seconds to import what only torch.compile needs.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            result: R = torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]
            return result
        return function(*args, **kwargs)

    return call
