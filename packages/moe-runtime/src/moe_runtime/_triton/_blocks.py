"""Sizes of tiles: a table instead of a search at run time, which would make timings a lottery."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """Tile of one product: M x N of the result, K at a time."""

    m: int
    n: int
    k: int
    warps: int
    stages: int  # loads in flight
    programs: int  # for each multiprocessor


class Kind(NamedTuple):
    """What a tile is chosen by."""

    product: str  # "output", "gated output", "input gradient" or "weight gradient"
    itemsize: int  # bytes of a number: 2 or 4
    many: bool  # at least MANY_PAIRS pairs for an expert, if all have the same


Table = Mapping[Kind, Blocks]

PRODUCTS = ("output", "gated output", "input gradient", "weight gradient")
# From here on a tile of 128 pairs is full more often than not.
MANY_PAIRS = 128
# Tiles side by side in the cache before the next columns are taken.
GROUP = 8

# Not tuned on a GPU yet: chosen so that for sm_90 the compiler spills nothing, products
# of 16 bits are wgmma, and `programs` of them fit on a multiprocessor. `bench/gpu.py` tunes.
HOPPER: Table = {
    Kind("output", 2, many=True): Blocks(128, 128, 64, warps=8, stages=4, programs=1),
    Kind("output", 2, many=False): Blocks(64, 128, 64, warps=4, stages=3, programs=2),
    Kind("gated output", 2, many=True): Blocks(128, 128, 64, warps=8, stages=4, programs=1),
    Kind("gated output", 2, many=False): Blocks(64, 64, 64, warps=4, stages=3, programs=2),
    Kind("input gradient", 2, many=True): Blocks(128, 128, 64, warps=8, stages=4, programs=1),
    Kind("input gradient", 2, many=False): Blocks(64, 64, 64, warps=4, stages=3, programs=2),
    Kind("weight gradient", 2, many=True): Blocks(128, 128, 64, warps=8, stages=3, programs=2),
    Kind("weight gradient", 2, many=False): Blocks(128, 128, 64, warps=8, stages=3, programs=2),
    Kind("output", 4, many=True): Blocks(64, 64, 32, warps=4, stages=3, programs=2),
    Kind("output", 4, many=False): Blocks(32, 64, 32, warps=4, stages=3, programs=2),
    Kind("gated output", 4, many=True): Blocks(64, 32, 32, warps=4, stages=3, programs=2),
    Kind("gated output", 4, many=False): Blocks(32, 32, 32, warps=4, stages=3, programs=2),
    Kind("input gradient", 4, many=True): Blocks(64, 64, 32, warps=4, stages=3, programs=2),
    Kind("input gradient", 4, many=False): Blocks(32, 64, 32, warps=4, stages=3, programs=2),
    Kind("weight gradient", 4, many=True): Blocks(64, 64, 32, warps=4, stages=3, programs=2),
    Kind("weight gradient", 4, many=False): Blocks(64, 64, 32, warps=4, stages=3, programs=2),
}


def _everywhere(blocks: Blocks) -> Table:
    kinds = (
        Kind(name, size, many) for name in PRODUCTS for size in (2, 4) for many in (False, True)
    )
    return dict.fromkeys(kinds, blocks)


# Fits the shared memory of every GPU that has tensor cores.
PORTABLE = _everywhere(Blocks(64, 64, 32, warps=4, stages=2, programs=2))
# The interpreter takes milliseconds for a program, of whatever size; tests want several tiles.
INTERPRETED = _everywhere(Blocks(32, 32, 32, warps=4, stages=2, programs=3))


def choose_table(x: Tensor) -> Table:
    """Choose the table of a tensor's device."""
    if x.device.type != "cuda":
        return INTERPRETED
    is_hopper_or_newer = torch.cuda.get_device_capability(x.device)[0] >= 9
    return HOPPER if is_hopper_or_newer else PORTABLE


def count_programs(x: Tensor, blocks: Blocks) -> int:
    """Count the programs that run at the same time: they share the tiles."""
    if x.device.type != "cuda":
        return blocks.programs
    properties = torch.cuda.get_device_properties(x.device)
    return properties.multi_processor_count * blocks.programs
