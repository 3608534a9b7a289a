from collections import Counter

import pytest

from moe_benchmarks.timing import MIN_ROUNDS, interleaved_medians


def test_variants_take_turns() -> None:
    calls: list[str] = []
    variants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    medians = interleaved_medians(variants, seconds=0)
    assert list(medians) == ["a", "b"]
    assert min(medians.values()) > 0
    assert "".join(calls) == "ab" * (MIN_ROUNDS + 1), "one round to warm up"
    assert Counter(calls)["a"] == Counter(calls)["b"]


def test_no_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="`variants` must hold at least one call"):
        interleaved_medians({})
