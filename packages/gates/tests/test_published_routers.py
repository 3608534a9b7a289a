"""Published routers are settings of `top_k_gate`: each against a loop from its paper."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from moe_gates import cosine_scores, top_k_gate

Row = list[float]


def softmax(row: Row) -> Row:
    exps = [math.exp(score - max(row)) for score in row]
    return [each / math.fsum(exps) for each in exps]


def largest(row: Row, k: int) -> list[int]:
    return sorted(range(len(row)), key=lambda expert: (-row[expert], expert))[:k]


def only(weights: dict[int, float], num_experts: int) -> Row:
    return [weights.get(expert, 0.0) for expert in range(num_experts)]


def switch(h: Row) -> Row:
    """Fedus et al., arXiv:2101.03761, eqs. (1) and (2)."""
    p = softmax(h)
    (best,) = largest(p, 1)
    return only({best: p[best]}, len(h))


def gshard(h: Row) -> Row:
    """Lepikhin et al., arXiv:2006.16668, algorithm 1, lines 8 and 9."""
    gates = softmax(h)
    first, second = largest(gates, 2)
    both = gates[first] + gates[second]
    return only({first: gates[first] / both, second: gates[second] / both}, len(h))


def noisy_top_k(clean: Row, noise_scores: Row, normal: Row, k: int) -> Row:
    """Shazeer et al., arXiv:1701.06538, eqs. (3) to (5)."""
    h = [
        c + z * math.log1p(math.exp(n)) for c, n, z in zip(clean, noise_scores, normal, strict=True)
    ]
    kept = largest(h, k)
    weights = softmax([h[expert] for expert in kept])
    return only(dict(zip(kept, weights, strict=True)), len(h))


def v_moe(h: Row, noise: Row, k: int) -> Row:
    """Riquelme et al., arXiv:2106.05974, eq. (1) and section 2.2."""
    p = softmax([a + b for a, b in zip(h, noise, strict=True)])
    return only({expert: p[expert] for expert in largest(p, k)}, len(h))


def x_moe(row: Row, experts: list[Row], temperature: float) -> Row:
    """Chi et al., arXiv:2204.09179, section 3.2."""
    scores = []
    for expert in experts:
        inner = math.fsum(a * b for a, b in zip(row, expert, strict=True))
        scores.append(inner / math.hypot(*row) / math.hypot(*expert) / temperature)
    p = softmax(scores)
    (best,) = largest(scores, 1)
    return only({best: p[best]}, len(experts))


class Groups(NamedTuple):
    num_experts: int
    num_groups: int
    num_groups_kept: int
    k: int


def deepseek_v3(h: Row, bias: Row, groups: Groups) -> Row:
    """DeepSeek-AI, arXiv:2412.19437, eqs. (12) to (16), node-limited as in section 2.1.2."""
    s = [1 / (1 + math.exp(-score)) for score in h]
    biased = [a + b for a, b in zip(s, bias, strict=True)]
    size = groups.num_experts // groups.num_groups
    goodness = [
        math.fsum(sorted(biased[start : start + size])[-2:])
        for start in range(0, groups.num_experts, size)
    ]
    nodes = largest(goodness, groups.num_groups_kept)
    reachable = [b if expert // size in nodes else -math.inf for expert, b in enumerate(biased)]
    chosen = largest(reachable, groups.k)
    total = math.fsum(s[expert] for expert in chosen)
    return only({expert: s[expert] / total for expert in chosen}, groups.num_experts)


def loop(router: Callable[..., Row], *arrays: Any) -> Any:
    return np.asarray([router(*rows) for rows in zip(*(a.tolist() for a in arrays), strict=True)])


def draw(num_experts: int, count: int) -> list[Any]:
    rng = np.random.default_rng(num_experts)
    return [rng.normal(size=(6, num_experts), scale=2) for _ in range(count)]


NUM_EXPERTS = pytest.mark.parametrize("num_experts", [4, 7, 64])


@NUM_EXPERTS
def test_switch(lib: Any, num_experts: int) -> None:
    (h,) = draw(num_experts, 1)
    got = lib.run(lambda s: top_k_gate(s, k=1, renormalize=False, xp=lib.xp), h)
    np.testing.assert_allclose(np.asarray(got), loop(switch, h), rtol=1e-13)


@NUM_EXPERTS
def test_gshard(lib: Any, num_experts: int) -> None:
    (h,) = draw(num_experts, 1)
    got = lib.run(lambda s: top_k_gate(s, k=2, xp=lib.xp), h)
    np.testing.assert_allclose(np.asarray(got), loop(gshard, h), rtol=1e-13)


@NUM_EXPERTS
def test_noisy_top_k(lib: Any, num_experts: int) -> None:
    clean, noise_scores, normal = draw(num_experts, 3)
    noise = normal * np.logaddexp(0, noise_scores)
    got = lib.run(lambda s, n: top_k_gate(s, k=3, noise=n, xp=lib.xp), clean, noise)
    expected = loop(lambda c, n, z: noisy_top_k(c, n, z, 3), clean, noise_scores, normal)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-13)


@NUM_EXPERTS
def test_v_moe(lib: Any, num_experts: int) -> None:
    h, normal = draw(num_experts, 2)
    noise = normal / num_experts
    got = lib.run(lambda s, n: top_k_gate(s, k=2, renormalize=False, noise=n, xp=lib.xp), h, noise)
    expected = loop(lambda row, eps: v_moe(row, eps, 2), h, noise)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-13)


@NUM_EXPERTS
def test_x_moe(lib: Any, num_experts: int) -> None:
    rng = np.random.default_rng(num_experts)
    rows, experts = rng.normal(size=(6, 3)), rng.normal(size=(num_experts, 3))

    def route(r: Any, e: Any) -> Any:
        scores = cosine_scores(r, e, temperature=0.1, xp=lib.xp)
        return top_k_gate(scores, k=1, renormalize=False, xp=lib.xp)

    expected = [x_moe(row, experts.tolist(), 0.1) for row in rows.tolist()]
    np.testing.assert_allclose(np.asarray(lib.run(route, rows, experts)), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "groups",
    [Groups(256, 8, 4, 8), Groups(8, 4, 2, 3), Groups(6, 3, 1, 2), Groups(5, 5, 3, 2)],
    ids=lambda groups: "-".join(map(str, groups)),
)
def test_deepseek_v3(lib: Any, groups: Groups) -> None:
    (h,) = draw(groups.num_experts, 1)
    bias = np.random.default_rng(1).normal(size=groups.num_experts, scale=0.3)

    def route(s: Any, b: Any) -> Any:
        return top_k_gate(
            s,
            k=groups.k,
            affinity="sigmoid",
            bias=b,
            num_groups=groups.num_groups,
            num_groups_kept=groups.num_groups_kept,
            xp=lib.xp,
        )

    expected = loop(lambda row: deepseek_v3(row, bias.tolist(), groups), h)
    np.testing.assert_allclose(np.asarray(lib.run(route, h, bias)), expected, rtol=1e-12)
