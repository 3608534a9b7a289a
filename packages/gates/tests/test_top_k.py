"""Top-k keeps k, by the rule it states."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import count_nonzero, softmax_gate, top_k_gate
from moe_gates.testing import assert_on_simplex

# Few distinct values, so that ties are the rule.
values = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e4, 1e4))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, int]:
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, 17)))
    scores = draw(npst.arrays(np.float64, shape, elements=values))
    return scores, draw(st.integers(1, shape[-1]))


def naive(scores: Any, k: int) -> Any:
    kept = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    masked = np.full_like(scores, -np.inf)
    np.put_along_axis(masked, kept, np.take_along_axis(scores, kept, -1), -1)
    exps = np.exp(masked - masked.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


@given(problem=problems())
def test_rows_are_k_sparse_points_of_the_simplex(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    assert_on_simplex(top_k_gate(eager_lib.asarray(scores), k=k), k=k)


@given(problem=problems())
def test_equals_a_softmax_over_the_first_k_of_a_stable_sort(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    got = np.asarray(top_k_gate(eager_lib.asarray(scores), k=k))
    np.testing.assert_allclose(got, naive(scores, k), atol=1e-15)


@given(problem=problems(), data=st.data())
def test_relabelling_scores_without_ties_relabels_weights(
    problem: Any, data: st.DataObject
) -> None:
    scores, k = problem
    untied = scores + np.linspace(0, 0.5, scores.shape[-1]) * (scores == np.round(scores))
    if untied.size and min(np.unique(row).size for row in untied) < untied.shape[-1]:
        return
    order = data.draw(st.permutations(range(scores.shape[-1])))
    moved = top_k_gate(untied[..., order], k=k)
    np.testing.assert_allclose(moved, top_k_gate(untied, k=k)[..., order], atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_a_tie_keeps_the_lower_index(lib: Any, k: int) -> None:
    got = np.asarray(lib.run(lambda s: top_k_gate(s, k=k, xp=lib.xp), np.ones((3, 8))))
    expected = np.where(np.arange(8) < k, 1 / k, 0)
    np.testing.assert_allclose(got, np.tile(expected, (3, 1)), rtol=1e-15)


@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("num_experts", [16, 31, 64, 1000])
def test_all_libraries_agree(lib: Any, num_experts: int, k: int) -> None:
    scores = np.random.default_rng(k).normal(size=(2, 7, num_experts))
    got = np.asarray(lib.run(lambda s: top_k_gate(s, k=k, xp=lib.xp), scores))
    np.testing.assert_allclose(got, naive(scores, k), atol=1e-15)


def test_minus_infinity_forbids_an_expert(lib: Any) -> None:
    scores = np.asarray([[-np.inf, 1.0, -np.inf, 1.0], [0.0, -np.inf, -np.inf, -np.inf]])
    got = lib.run(lambda s: top_k_gate(s, k=3, xp=lib.xp), scores)
    np.testing.assert_array_equal(np.asarray(got), [[0, 0.5, 0, 0.5], [1, 0, 0, 0]])
    assert np.asarray(count_nonzero(got, xp=lib.xp)).tolist() == [2, 1]


@st.composite
def settings(draw: st.DrawFn) -> tuple[Any, dict[str, Any]]:
    """Draw scores, and everything that selects among their affinities."""
    num_groups = draw(st.integers(1, 4))
    size = draw(st.one_of(st.integers(1, 5), st.sampled_from([16, 31, 250])))
    num_experts = num_groups * size
    kept = draw(st.integers(1, num_groups))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    # Without ties: those of affinities are a matter of rounding.
    scores = rng.normal(size=(draw(st.integers(0, 4)), num_experts))
    options = {
        "k": draw(st.integers(1, kept * size)),
        "affinity": draw(st.sampled_from(["softmax", "sigmoid"])),
        "renormalize": draw(st.booleans()),
        "bias": rng.normal(size=num_experts) if draw(st.booleans()) else None,
        "noise": rng.normal(size=scores.shape) if draw(st.booleans()) else None,
        "num_groups": num_groups,
        "num_groups_kept": kept,
    }
    return scores, options


def of_library(lib: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: lib.asarray(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def affinities_of(scores: Any, affinity: str) -> Any:
    if affinity == "sigmoid":
        return 1 / (1 + np.exp(-scores))
    return softmax_gate(scores)


def naive_row(row: Any, options: dict[str, Any]) -> Any:
    """Weights of one row, by sorting its groups, then its experts."""
    affinities = affinities_of(row, options["affinity"])
    ranks = affinities if options["bias"] is None else affinities + options["bias"]
    groups = np.reshape(np.arange(row.size), (options["num_groups"], -1))
    goodness = [np.sort(ranks[group])[-2:].sum() for group in groups]
    best = np.argsort(np.negative(goodness), kind="stable")[: options["num_groups_kept"]]
    allowed = np.sort(groups[best].ravel())
    kept = allowed[np.argsort(-ranks[allowed], kind="stable")[: options["k"]]]
    weights = np.zeros(row.size)
    weights[kept] = affinities[kept]
    return weights / weights.sum() if options["renormalize"] else weights


@given(problem=settings())
def test_every_setting_equals_a_loop_over_rows(eager_lib: Any, problem: Any) -> None:
    scores, options = problem
    got = top_k_gate(eager_lib.asarray(scores), **of_library(eager_lib, options))
    noisy = scores if options["noise"] is None else scores + options["noise"]
    expected = np.reshape([naive_row(row, options) for row in noisy], scores.shape)
    np.testing.assert_allclose(np.asarray(got), expected, atol=1e-14)


@given(problem=settings())
def test_every_setting_keeps_k_experts_of_the_groups_kept(problem: Any) -> None:
    scores, options = problem
    weights = top_k_gate(scores, **options)
    assert np.all(count_nonzero(weights) == options["k"])
    size = scores.shape[-1] // options["num_groups"]
    used = np.reshape(weights, (len(scores), options["num_groups"], size)).any(axis=-1)
    assert np.all(used.sum(axis=-1) <= options["num_groups_kept"])
    if options["renormalize"]:
        assert_on_simplex(weights, k=options["k"])


@given(problem=problems())
def test_sigmoid_affinities_do_not_underflow_together(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    got = np.asarray(top_k_gate(eager_lib.asarray(scores), k=k, affinity="sigmoid"))
    assert_on_simplex(got, k=k)
    kept = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    logarithms = -np.logaddexp(0, -np.take_along_axis(scores, kept, -1))
    expected = np.zeros_like(scores)
    np.put_along_axis(expected, kept, softmax_gate(logarithms), -1)
    # Logarithms of 1e4: 12 digits are left.
    np.testing.assert_allclose(got, expected, atol=1e-11)


def test_without_a_bias_affinities_that_round_to_1_are_told_apart_by_score(lib: Any) -> None:
    scores = np.asarray([[-300.0, 200.0, 300.0]], dtype=np.float32)
    got = lib.run(
        lambda s: top_k_gate(s, k=1, affinity="sigmoid", renormalize=False, xp=lib.xp), scores
    )
    np.testing.assert_array_equal(np.asarray(got), [[0, 0, 1]])


def test_a_bias_selects_and_does_not_weigh(lib: Any) -> None:
    scores, bias = np.log([[8.0, 4.0, 3.0, 1.0]]), np.asarray([-1.0, 0.0, 0.0, 1.0])
    got = lib.run(
        lambda s, b: top_k_gate(s, k=2, renormalize=False, bias=b, xp=lib.xp), scores, bias
    )
    np.testing.assert_allclose(np.asarray(got), [[0, 0.25, 0, 0.0625]], rtol=1e-14)
    got = lib.run(lambda s, b: top_k_gate(s, k=2, bias=b, xp=lib.xp), scores, bias)
    np.testing.assert_allclose(np.asarray(got), [[0, 0.8, 0, 0.2]], rtol=1e-14)


def test_no_bias_and_no_group_bring_back_a_forbidden_expert(lib: Any) -> None:
    scores = np.asarray([[-np.inf, -np.inf, -3.0, -np.inf, -9.0, -9.0]])
    bias = np.asarray([9.0, 9.0, -1.0, 9.0, 0.0, 0.0])
    for affinity in ("softmax", "sigmoid"):
        got = lib.run(
            lambda s, b, affinity=affinity: top_k_gate(
                s, k=2, affinity=affinity, bias=b, num_groups=3, num_groups_kept=1, xp=lib.xp
            ),
            scores,
            bias,
        )
        # The group of experts 0 and 1 is no group; that of 4 and 5 beats a rank below 0.
        np.testing.assert_allclose(np.asarray(got), [[0, 0, 0, 0, 0.5, 0.5]], rtol=1e-14)


def test_a_group_with_one_expert_left_is_as_good_as_that_expert(lib: Any) -> None:
    scores = np.asarray([[-np.inf, 5.0, -1.0, -1.0]])
    got = lib.run(lambda s: top_k_gate(s, k=2, affinity="sigmoid", num_groups=2, xp=lib.xp), scores)
    np.testing.assert_array_equal(np.asarray(got), [[0, 1, 0, 0]])


def test_a_group_with_less_than_k_left_is_not_filled_up_from_another(lib: Any) -> None:
    scores = np.asarray([[0.5, 0.1, 3.0, -np.inf]])
    got = lib.run(lambda s: top_k_gate(s, k=2, num_groups=2, num_groups_kept=1, xp=lib.xp), scores)
    np.testing.assert_array_equal(np.asarray(got), [[0, 0, 1, 0]])


def test_all_groups_kept_are_no_limit() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 6))
    limited = top_k_gate(scores, k=3, num_groups=3, num_groups_kept=3)
    np.testing.assert_array_equal(limited, top_k_gate(scores, k=3))


def test_noise_and_bias_may_be_wider_than_the_scores(lib: Any) -> None:
    rng = np.random.default_rng(0)
    scores, noise, bias = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=4)
    got = lib.run(
        lambda s, n, b: top_k_gate(s, k=2, noise=n, bias=b, xp=lib.xp),
        scores.astype(np.float32),
        noise,
        bias,
    )
    assert got.dtype == lib.xp.float32
    expected = top_k_gate(scores.astype(np.float32).astype(np.float64), k=2, noise=noise, bias=bias)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-6)
