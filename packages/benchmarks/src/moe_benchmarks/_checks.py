"""Checks of settings, whose messages name the setting, what it may be, and what it is."""

from typing import NoReturn

LARGEST_SEED = 2**31 - 1


def check_integer(name: str, value: object) -> None:
    """Refuse what is no integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(name, "an integer", value)


def check_range(name: str, value: int, low: int, high: int | None = None, bound: str = "") -> None:
    """Refuse an integer out of range; `bound` says what the upper end stands for."""
    if high is None:
        if value < low:
            refuse(name, f">= {low}", value)
    elif not low <= value <= high:
        refuse(name, f"in [{low}, {bound}{'=' if bound else ''}{high}]", value)


def refuse(name: str, allowed: str, value: object) -> NoReturn:
    """Raise the error of a setting that cannot work."""
    msg = f"`{name}` must be {allowed}, got {value!r}."
    raise ValueError(msg)
