"""Every function compiles into one graph, whatever the batch, without a warning."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import moe_gates as gates

SPLITS, LEAVES = (np.random.default_rng(0).normal(size=(7, 2, n)) for n in (4, 5))
BITS, SELECTORS = (np.random.default_rng(1).normal(size=size) for size in [(7, 2, 3), (7, 2)])
ORDERS, TABLE = np.asarray([[3, 0, 4, 1, 2], [0, 1, 2, 4, 3]]), np.arange(9) % 5
UNIFORMS, EXPERT_BIAS = (
    np.random.default_rng(3).random((7, 4)),
    np.asarray([0.2, 0.0, -0.1, 0.0, 0.1]),
)
EXPERTS = np.random.default_rng(4).normal(size=(5, 4))
MATRICES = np.random.default_rng(2).random((2, 5, 5))

ROWS, NODES, BIAS = (
    np.random.default_rng(3).normal(size=(7, 6)),
    *(np.random.default_rng(4).normal(size=size) for size in [(2, 9, 6), (2, 9)]),
)
PAIRS = np.random.default_rng(5).integers(0, 5, size=(7, 2)), LEAVES[..., 0]


def route(xp: Any, rows: Any, nodes: Any, bias: Any) -> Any:
    """Route through trees with 5 leaves."""
    split_bias, leaf_bias = bias[:, :4], bias[:, 4:]
    parts = (nodes[:, :4, :], nodes[:, 4:, :])
    return gates.comet_route(rows, *parts, split_bias=split_bias, leaf_bias=leaf_bias, xp=xp)


# Name, function of the namespace and the arrays, arrays; the first axis of those before
# the count is the batch.
Case = tuple[str, Callable[..., Any], tuple[Any, ...], int]
CASES: list[Case] = [
    ("comet", lambda xp, s, a: gates.comet_gate(s, a, gamma=3.0, xp=xp), (SPLITS, LEAVES), 2),
    (
        "hard_comet",
        lambda xp, s, a: gates.comet_gate(s, a, gamma=3.0, hard=True, xp=xp),
        (SPLITS, LEAVES),
        2,
    ),
    (
        "dselect_k",
        lambda xp, b, a: gates.dselect_k_gate(b, a, num_experts=5, gamma=3.0, xp=xp),
        (BITS, SELECTORS),
        2,
    ),
    ("top_k", lambda xp, s: gates.top_k_gate(s, k=2, xp=xp), (LEAVES,), 1),
    ("softmax", lambda xp, s: gates.softmax_gate(s, xp=xp), (LEAVES,), 1),
    (
        "noisy_top_k",
        lambda xp, s, n: gates.top_k_gate(s, k=2, renormalize=False, noise=n, xp=xp),
        (LEAVES, LEAVES[::-1].copy()),
        2,
    ),
    (
        "top_k_in_groups",
        lambda xp, s, b: gates.top_k_gate(
            s, k=2, affinity="sigmoid", bias=b, num_groups=5, num_groups_kept=3, xp=xp
        ),
        (LEAVES, EXPERT_BIAS),
        1,
    ),
    ("sparsemax", lambda xp, s: gates.top_k_sparsemax_gate(s, k=3, xp=xp), (LEAVES,), 1),
    ("relu", lambda xp, s: gates.relu_gate(s, k=2, xp=xp), (LEAVES,), 1),
    ("marginals", lambda xp, s: gates.subset_marginals(s, k=2, xp=xp), (LEAVES,), 1),
    (
        "exact_k",
        lambda xp, s, u: gates.exact_k_gate(s, k=2, uniforms=u, xp=xp),
        (LEAVES[:, 0], UNIFORMS),
        2,
    ),
    (
        "tree_top_k",
        lambda xp, s, a: gates.tree_top_k_gate(s, a, k=2, xp=xp),
        (SPLITS, LEAVES),
        2,
    ),
    (
        "cosine",
        lambda xp, r, e: gates.cosine_scores(r, e, temperature=0.5, xp=xp),
        (SPLITS, EXPERTS),
        1,
    ),
    (
        "hash",
        lambda xp, i, t: gates.hash_gate(i, t, num_experts=5, dtype=xp.float32, xp=xp),
        (np.arange(7), TABLE),
        1,
    ),
    ("permute", lambda xp, w, p: gates.permute(w, p, xp=xp), (LEAVES, ORDERS), 1),
    ("permute_all", lambda xp, w, p: gates.permute(w, p, xp=xp), (LEAVES, ORDERS[0]), 1),
    ("mix", lambda xp, w, m: gates.mix(w, m, xp=xp), (LEAVES, MATRICES), 1),
    ("normalize", lambda xp, w: gates.normalize(w * w, xp=xp), (LEAVES,), 1),
    ("entropy", lambda xp, p: gates.entropy_penalty(p * p, xp=xp), (LEAVES,), 1),
    ("unreachable", lambda xp, p: gates.unreachable_penalty(p * p, xp=xp), (LEAVES,), 1),
    ("load", lambda xp, w: gates.expert_load(w, xp=xp), (LEAVES,), 1),
    ("dead", lambda xp, w: gates.dead_experts(w, xp=xp), (LEAVES,), 1),
    ("count", lambda xp, w: gates.count_nonzero(w, xp=xp), (LEAVES,), 1),
    (
        "scaled_comet",
        lambda xp, s, a, c: gates.comet_gate(s, a, gamma=3.0, split_scale=c * c, xp=xp),
        (SPLITS, LEAVES, SPLITS[0]),
        2,
    ),
    ("route", route, (ROWS, NODES, BIAS), 1),
    ("to_sparse", lambda xp, w: gates.to_sparse(w * w, max_nonzero=2, xp=xp), (LEAVES,), 1),
    (
        "to_dense",
        lambda xp, *p: gates.to_dense(gates.SparseWeights(*p), num_experts=5, xp=xp),
        PAIRS,
        2,
    ),
    ("information", lambda xp, p: gates.mutual_information_penalty(p * p, xp=xp), (LEAVES,), 1),
    ("z", lambda xp, s: gates.z_penalty(s, xp=xp), (LEAVES,), 1),
    ("lasso", lambda xp, w: gates.trimmed_lasso_penalty(w * w, k=2, xp=xp), (LEAVES,), 1),
    ("balance", lambda xp, p: gates.load_balance_penalty(p * p, p, xp=xp), (LEAVES,), 1),
    ("sign", lambda xp, b: gates.update_bias_by_sign(b, b, rate=0.1, xp=xp), (BIAS[0],), 0),
    (
        "quantile",
        lambda xp, a, b: gates.update_bias_by_quantile(b, a, k=2, xp=xp),
        (BIAS.repeat(4, 0)[:7], BIAS[0]),
        1,
    ),
    ("scale", lambda xp, s: gates.score_scale(s, xp=xp), (SPLITS,), 1),
    ("union", lambda xp, w: gates.count_union(w, xp=xp), (LEAVES,), 1),
    ("duplicates", lambda xp, w: gates.count_duplicates(w, xp=xp), (LEAVES,), 1),
    ("simplex", lambda xp, w: gates.simplex_error(w, xp=xp), (LEAVES,), 1),
    ("variation", lambda xp, w: gates.total_variation(w, w * w, xp=xp), (LEAVES,), 1),
    ("band", lambda xp, s: gates.unsaturated_fraction(s, gamma=1.0, xp=xp), (SPLITS,), 1),
]
CASE = pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])


def as_tuple(answer: Any) -> tuple[Any, ...]:
    """Flatten an array, or a tuple of arrays and tuples."""
    if not isinstance(answer, tuple):
        return (answer,)
    return tuple(array for part in answer for array in as_tuple(part))


def batches(lib: Any, case: Case) -> list[list[Any]]:
    """Return the arrays of the case with 7, 3, 1 and 0 rows."""
    _, _, arrays, num_batched = case
    fixed = [lib.asarray(array) for array in arrays[num_batched:]]
    return [
        [lib.asarray(array[:rows]) for array in arrays[:num_batched]] + fixed
        for rows in (7, 3, 1, 0)
    ]


@pytest.mark.parametrize("dynamic", [False, True])
@CASE
def test_torch_compiles_one_graph(torch_lib: Any, case: Case, *, dynamic: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    function = case[1]
    # Graph capture and autograd tracing are what a gate can break; the code generator
    # after them needs a C++ compiler and is torch's own.
    compiled = torch.compile(
        lambda *arrays: function(torch_lib.xp, *arrays),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for arrays in batches(torch_lib, case):
        expected = as_tuple(function(torch_lib.xp, *arrays))
        for ours, theirs in zip(as_tuple(compiled(*arrays)), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_torch_recompiles_for_an_annealed_gamma_and_stays_correct(torch_lib: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()

    def weights(splits: Any, leaves: Any, gamma: float) -> Any:
        return gates.comet_gate(splits, leaves, gamma=gamma, xp=torch_lib.xp).weights

    compiled = torch.compile(weights, fullgraph=True, backend="aot_eager")
    splits, leaves = torch_lib.asarray(SPLITS), torch_lib.asarray(LEAVES)
    for gamma in (4.0, 2.0, 1.0, 0.5):
        torch.testing.assert_close(compiled(splits, leaves, gamma), weights(splits, leaves, gamma))


def test_torch_compiles_the_gradient_of_exactly_k(torch_lib: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.compiler.reset()

    def loss(scores: Any) -> Any:
        return torch.sum(gates.exact_k_gate(scores, k=2, xp=torch_lib.xp) * scores.detach())

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        scores = torch_lib.asarray(LEAVES).requires_grad_()
        function(scores).backward()
        gradients.append(scores.grad)
    torch.testing.assert_close(*gradients)
    assert torch.any(gradients[0] != 0)


@CASE
def test_jax_traces(case: Case) -> None:
    jax = pytest.importorskip("jax", reason="needs jax: install the dependency group `interop`")
    _, function, arrays, _ = case
    arrays = tuple(jax.numpy.asarray(array) for array in arrays)
    traced = jax.jit(lambda *arrays: function(jax.numpy, *arrays))(*arrays)
    for ours, theirs in zip(as_tuple(traced), as_tuple(function(jax.numpy, *arrays)), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-6)


TREES = [case for case in CASES if case[0] in ("comet", "hard_comet", "dselect_k", "tree_top_k")]


@pytest.mark.parametrize("case", TREES, ids=[case[0] for case in TREES])
def test_torch_maps_a_tree_over_an_axis(torch_lib: Any, case: Case) -> None:
    torch = pytest.importorskip("torch")
    _, function, arrays, _ = case
    given = [torch_lib.asarray(array) for array in arrays]
    mapped = torch.func.vmap(lambda *row: as_tuple(function(torch_lib.xp, *row)))(*given)
    for ours, theirs in zip(mapped, as_tuple(function(torch_lib.xp, *given)), strict=True):
        torch.testing.assert_close(ours, theirs)


SHARDED = """
import jax, numpy as np, moe_gates as gates
devices = jax.devices()
mesh = jax.sharding.Mesh(np.asarray(devices), ("rows",))
spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows", None))
x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
found = gates.top_k_gate(jax.device_put(x, spread), k=1)
assert np.array_equal(found, gates.top_k_gate(x, k=1)), found
gates.to_sparse(found, max_nonzero=1), gates.simplex_error(found)
there = jax.device_put(x, devices[1])
moved = gates.permute(there, jax.numpy.asarray([1, 2, 0]))
assert np.array_equal(moved, x[:, [2, 0, 1]]), moved
"""


def test_jax_arrays_on_several_devices_stay_where_they_are() -> None:
    pytest.importorskip("jax", reason="needs jax: install the dependency group `interop`")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=os.environ | flags, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
