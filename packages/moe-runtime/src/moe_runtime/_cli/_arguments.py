"""What the arguments of several commands have in common."""

import argparse

from moe_runtime.onnx._targets import TARGETS

__all__ = ["TARGETS", "TARGET_HELP", "parse_count", "parse_counts", "parse_names", "parse_positive"]
TARGET_HELP = (
    "graph to write: unrolled (standard operators, one product a layer and expert), scan (standard "
    "operators, whose number does not grow with the experts), onnxruntime (its MoE operator), int8 "
    "(unrolled, with 8-bit weights), or qmoe (its MoE operator with 8-bit weights)"
)


def parse_counts(text: str) -> list[int]:
    """Read integers of at least 1, separated by commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        msg = f"must be integers >= 1 separated by commas, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return [int(part) for part in parts]


def parse_count(text: str) -> int:
    """Read one integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        msg = f"must be an integer >= 1, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def parse_positive(text: str) -> float:
    """Read one finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        msg = f"must be a finite number > 0, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return number


def parse_names(text: str) -> list[str]:
    """Read names, separated by commas."""
    names = text.split(",")
    if not all(names):
        msg = f"must be names separated by commas, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return names
