"""A broken contract is refused, with a message that says what is allowed."""

import math
from collections.abc import Callable
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest

import moe_gates
from moe_gates.testing import assert_k_sparse, assert_on_simplex

XP = array_api_compat.numpy
# Wrong types are the point here, so the type checker looks away.
gates: Any = moe_gates
F, F32, INT = np.zeros((3, 2, 4)), np.zeros((3, 2, 4), dtype=np.float32), np.zeros(4, dtype=int)
TABLE = {"num_experts": 4, "seed": 0, "xp": XP}
ONE_HOT = {"num_experts": 4, "dtype": np.float32}

ROWS, SPLITS, LEAVES = np.zeros((3, 5)), np.zeros((2, 3, 5)), np.zeros((2, 4, 5))
PAIRS = moe_gates.SparseWeights(np.zeros((3, 2), dtype=int), np.zeros((3, 2)))


def linear(step: Any, **changes: Any) -> Any:
    return gates.linear_schedule(step, **{"start": 1.0, "end": 0.0, "num_steps": 4} | changes)


BAD_NUMBERS = [
    (lambda: gates.check_k(0, 4), ValueError, "`k` must be in [1, num_experts=4], got 0."),
    (lambda: gates.check_k(5, 4), ValueError, "`k` must be in [1, num_experts=4], got 5."),
    (lambda: gates.check_k(2.5, 4), TypeError, "integer in [1, num_experts=4], got 2.5."),
    (
        lambda: gates.check_k(k=True, num_experts=4),
        TypeError,
        "integer in [1, num_experts=4], got True.",
    ),
    (lambda: gates.check_gamma(0), ValueError, "`gamma` must be in [1e-30, 1e+30], got 0."),
    (lambda: gates.check_gamma(-1.0), ValueError, "got -1.0."),
    (lambda: gates.check_gamma(math.nan), ValueError, "got nan."),
    (lambda: gates.check_gamma(math.inf), ValueError, "got inf."),
    (lambda: gates.check_gamma(1e-40), ValueError, "got 1e-40."),
    (lambda: gates.check_gamma(gamma=True), TypeError, "real number in [1e-30, 1e+30], got True."),
    (lambda: gates.check_gamma("1"), TypeError, "got '1'."),
    (lambda: gates.leaf_order(1), ValueError, "`num_experts` must be in [2, inf), got 1."),
    (lambda: gates.leaf_order(4.0), TypeError, "an integer in [2, inf), got 4.0."),
    (lambda: gates.hash_table(-1, **TABLE), ValueError, "`num_ids` must be in [0, inf), got -1."),
    (lambda: gates.hash_table(2, **TABLE | {"seed": -1}), ValueError, "`seed` must be in [0, "),
    (lambda: gates.hash_table(2, **TABLE | {"seed": 2**64}), ValueError, "got 184467440737"),
    (lambda: gates.hash_table(2, **TABLE | {"num_experts": 1}), ValueError, "got 1."),
    (lambda: gates.smooth_step(F, gamma=0.0), ValueError, "`gamma`"),
    (lambda: gates.comet_gate(F[..., 1:], F, gamma=0.0), ValueError, "`gamma`"),
    (lambda: gates.unsaturated_fraction(F, gamma=0.0), ValueError, "`gamma`"),
    (
        lambda: gates.comet_gate(F[..., 1:], F, gamma=1.0, hard="yes"),
        TypeError,
        "`hard` must be a bool, got 'yes'.",
    ),
    (
        lambda: gates.dselect_k_gate(F, F[..., 0], num_experts=16, gamma=1.0, hard=1),
        TypeError,
        "`hard` must be a bool, got 1.",
    ),
    (lambda: gates.top_k_gate(F, k=5), ValueError, "`k` must be in [1, num_experts=4], got 5."),
    (lambda: gates.top_k_gate(None, k=2), TypeError, "`scores` must be an array"),
    (lambda: gates.comet_route(None, None, None), TypeError, "`rows` must be an array"),
    (
        lambda: gates.comet_gate(F[..., None, :-1], F[..., None, :], gamma=1.0, split_scale=2.0),
        TypeError,
        "`split_scale` must be an array",
    ),
    (lambda: gates.top_k_gate(F, k=2, affinity="relu"), ValueError, "\"sigmoid\", got 'relu'."),
    (lambda: gates.top_k_gate(F, k=2, renormalize=0), TypeError, "`renormalize` must be a bool"),
    (lambda: gates.top_k_gate(F, k=2, num_groups=3), ValueError, "divide num_experts=4, got 3."),
    (lambda: gates.top_k_gate(F, k=2, num_groups=5), ValueError, "[1, num_experts=4], got 5."),
    (
        lambda: gates.top_k_gate(F, k=2, num_groups=2, num_groups_kept=3),
        ValueError,
        "`num_groups_kept` must be in [1, num_groups=2], got 3.",
    ),
    (
        lambda: gates.top_k_gate(F, k=3, num_groups=2),
        ValueError,
        "`k` must be in [1, 2], the experts of the groups kept, got 3.",
    ),
    (lambda: gates.top_k_sparsemax_gate(F, k=0), ValueError, "[1, num_experts=4], got 0."),
    (lambda: gates.relu_gate(F, k=5), ValueError, "[1, num_experts=4], got 5."),
    (lambda: gates.subset_marginals(F, k=5), ValueError, "[1, num_experts=4], got 5."),
    (lambda: gates.exact_k_gate(F, k=0), ValueError, "[1, num_experts=4], got 0."),
    (lambda: gates.tree_top_k_gate(F[..., 1:], F, k=5), ValueError, "got 5."),
    (
        lambda: gates.cosine_scores(F, F[0], temperature=0),
        ValueError,
        "`temperature` must be in [1e-30, 1e+30], got 0.",
    ),
    (lambda: gates.cosine_scores(F, F[0], temperature=math.nan), ValueError, "got nan."),
    (lambda: gates.cosine_scores(F, F[0], temperature="1"), TypeError, "or an array, got '1'."),
    (lambda: gates.cosine_scores(F, F[0], temperature=True), TypeError, "got True."),
    (lambda: gates.balanced_hash_table([1], num_experts=1, xp=XP), ValueError, "got 1."),
    (
        lambda: gates.balanced_hash_table([3, -1], num_experts=2, xp=XP),
        ValueError,
        "`counts` must be finite and >= 0, got -1 for id 1.",
    ),
    (lambda: gates.balanced_hash_table([math.inf], num_experts=2, xp=XP), ValueError, "got inf"),
    (lambda: gates.balanced_hash_table([math.nan], num_experts=2, xp=XP), ValueError, "got nan"),
    (lambda: gates.balanced_hash_table(["3"], num_experts=2, xp=XP), TypeError, "got '3' for id 0"),
    (lambda: gates.balanced_hash_table([[3]], num_experts=2, xp=XP), TypeError, "got [3] for id 0"),
    (
        lambda: gates.balanced_hash_table(np.asarray(3), num_experts=2, xp=XP),
        TypeError,
        "`counts` must be a sequence of numbers, one for each id, got 3.",
    ),
    (lambda: assert_on_simplex(F + 0.25, k=5), ValueError, "[1, num_experts=4], got 5."),
    (lambda: assert_k_sparse(F, k=0), ValueError, "`k` must be in [1, num_experts=4], got 0."),
    (
        lambda: gates.to_sparse(F, max_nonzero=5),
        ValueError,
        "`max_nonzero` must be in [1, num_experts=4], got 5.",
    ),
    (lambda: gates.to_sparse(F, max_nonzero=1.5), TypeError, "`max_nonzero` must be an integer"),
    (lambda: gates.trimmed_lasso_penalty(F, k=0), ValueError, "`k` must be in"),
    (lambda: gates.update_bias_by_quantile(F[0, 0], F, k=5), ValueError, "`k` must be in"),
    (
        lambda: gates.update_bias_by_sign(F[0, 0], F[0, 0], rate=0),
        ValueError,
        "`rate` must be a finite number > 0, got 0.",
    ),
    (lambda: gates.update_bias_by_sign(F[0, 0], F[0, 0], rate="1"), TypeError, "got '1'."),
    (
        lambda: gates.entropy_penalty(F, reduction="none"),
        ValueError,
        '`reduction` must be "mean" or "sum", got \'none\'.',
    ),
    (lambda: linear(-1), ValueError, "`step` must be in [0, inf), got -1."),
    (lambda: linear(0.5), TypeError, "`step` must be an integer in [0, inf), got 0.5."),
    (lambda: linear(1, num_steps=0), ValueError, "`num_steps` must be in [1, inf), got 0."),
    (lambda: linear(1, num_hold_steps=-1), ValueError, "`num_hold_steps` must be in [0, inf)"),
    (lambda: linear(1, end=math.inf), ValueError, "`end` must be a finite number, got inf."),
    (lambda: linear(1, start=None), TypeError, "`start` must be a finite number, got None."),
    (
        lambda: gates.exponential_schedule(1, start=1.0, end=0.0, num_steps=4),
        ValueError,
        "`end` must be a finite number > 0, got 0.0.",
    ),
    (lambda: gates.cosine_schedule(1, start=True, end=0.0, num_steps=4), TypeError, "got True."),
]
NO_LIST = "must be an array of NumPy, PyTorch, JAX or another array-API library, got list."
BAD_ARRAYS = [
    (lambda: gates.top_k_gate([[1.0, 2.0]], k=1), TypeError, f"`scores` {NO_LIST}"),
    (lambda: gates.top_k_gate([[1.0, 2.0]], k=1, xp=XP), TypeError, f"`scores` {NO_LIST}"),
    (lambda: gates.comet_gate(F[..., 1:], F.tolist(), gamma=1.0), TypeError, "`leaf_scores` must"),
    (lambda: gates.smooth_step(INT, gamma=1.0), TypeError, "`t` must have a real floating dtype"),
    (lambda: gates.top_k_gate(INT, k=1), TypeError, "real floating dtype, got int64."),
    (lambda: gates.top_k_gate(np.zeros(()), k=1), ValueError, "(*batch, num_experts)"),
    (lambda: gates.top_k_gate(np.zeros((3, 0)), k=1), ValueError, "got (3, 0)."),
    (lambda: gates.top_k_gate(F.astype(complex), k=1), TypeError, "got complex128."),
    (lambda: gates.softmax_gate(INT), TypeError, "real floating dtype, got int64."),
    (lambda: gates.softmax_gate(np.zeros(())), ValueError, "(*batch, num_experts)"),
    (lambda: gates.top_k_gate(F, k=1, noise=INT), TypeError, "`noise` must have a real floating"),
    (lambda: gates.top_k_gate(F, k=1, noise=F[0]), ValueError, "(3, 2, 4), that of `scores`, got"),
    (lambda: gates.top_k_gate(F, k=1, bias=[0.0] * 4), TypeError, f"`bias` {NO_LIST}"),
    (lambda: gates.top_k_gate(F, k=1, bias=F[0]), ValueError, "(4,), one for each expert, got (2"),
    (lambda: gates.top_k_sparsemax_gate(INT, k=1), TypeError, "`scores` must have a real"),
    (lambda: gates.relu_gate(INT, k=1), TypeError, "`scores` must have a real floating dtype"),
    (lambda: gates.subset_marginals(INT, k=1), TypeError, "`scores` must have a real floating"),
    (lambda: gates.exact_k_gate(INT, k=1), TypeError, "`scores` must have a real floating dtype"),
    (lambda: gates.exact_k_gate(F, k=1, uniforms=INT), TypeError, "`uniforms` must have a real"),
    (lambda: gates.exact_k_gate(F, k=1, uniforms=F), ValueError, "(3, 2, 3), one less than"),
    (lambda: gates.tree_top_k_gate(F, F, k=1), ValueError, "(3, 2, 3), one split less than"),
    (lambda: gates.tree_top_k_gate(F32[..., 1:], F, k=1), TypeError, "float32, got float64."),
    (lambda: gates.cosine_scores(INT, F[0], temperature=1), TypeError, "`rows` must have a real"),
    (lambda: gates.cosine_scores(F, F, temperature=1), ValueError, "`expert_embeddings` must have"),
    (lambda: gates.cosine_scores(F, F[0, :, 1:], temperature=1), ValueError, "the features of"),
    (lambda: gates.cosine_scores(F, F[0], temperature=F), ValueError, "shape (), one for all, got"),
    (lambda: gates.comet_gate(F, F, gamma=1.0), ValueError, "(3, 2, 3), one split less than"),
    (lambda: gates.comet_gate(F[:2, :, 1:], F, gamma=1.0), ValueError, "got (2, 2, 3)."),
    (lambda: gates.comet_gate(F32[..., 1:], F, gamma=1.0), TypeError, "float32, got float64."),
    (lambda: gates.comet_gate(F[..., :0], F[..., :1], gamma=1.0), ValueError, "[2, inf), got 1."),
    (lambda: gates.comet_gate(F[:, :0, 1:], F[:, :0], gamma=1.0), ValueError, "num_slots and"),
    (lambda: gates.dselect_k_gate(F, F[..., 0], num_experts=4, gamma=1.0), ValueError, "(3, 2, 2)"),
    (lambda: gates.dselect_k_gate(F, F, num_experts=16, gamma=1.0), ValueError, "`bit_scores`"),
    (lambda: gates.hash_gate(F, INT, **ONE_HOT), TypeError, "`ids` must have an integer dtype"),
    (lambda: gates.hash_gate(INT, F, **ONE_HOT), TypeError, "`table` must have an integer"),
    (lambda: gates.hash_gate(INT, INT[None], **ONE_HOT), ValueError, "`table` must have one axis"),
    (lambda: gates.hash_gate(INT, INT[:0], **ONE_HOT), ValueError, "length >= 1, got shape (0,)."),
    (lambda: gates.hash_gate(INT, INT, num_experts=4, dtype=np.int32), TypeError, "`dtype`"),
    (lambda: gates.permute(F, F), TypeError, "`permutation` must have an integer dtype"),
    (lambda: gates.permute(F, INT[:3]), ValueError, "shape (4,) or (2, 4), got (3,)."),
    (lambda: gates.permute(F, np.zeros((3, 4), dtype=int)), ValueError, "got (3, 4)."),
    (lambda: gates.permute(F[0, 0], INT[None]), ValueError, "must have shape (4,), got (1, 4)."),
    (lambda: gates.mix(F, np.eye(3)), ValueError, "(4, 4) or (2, 4, 4), got (3, 3)."),
    (lambda: gates.mix(F, np.eye(4, dtype=int)), TypeError, "`matrix` must have a real"),
    (lambda: gates.normalize(INT), TypeError, "`weights`"),
    (lambda: gates.entropy_penalty(F[0, 0]), ValueError, "(*batch, num_slots, num_experts)"),
    (lambda: gates.unreachable_penalty(F[0, 0]), ValueError, "got (4,)."),
    (lambda: gates.expert_load(INT), TypeError, "`weights`"),
    (lambda: gates.dead_experts(INT), TypeError, "`weights`"),
    (lambda: gates.count_nonzero(INT), TypeError, "`weights`"),
    (lambda: gates.unsaturated_fraction(INT, gamma=1.0), TypeError, "`scores`"),
    (lambda: gates.mutual_information_penalty(F[0, 0]), ValueError, "got (4,)."),
    (lambda: gates.z_penalty(INT), TypeError, "`scores` must have a real floating dtype"),
    (lambda: gates.trimmed_lasso_penalty(INT, k=1), TypeError, "`weights`"),
    (lambda: gates.load_balance_penalty(F, INT), TypeError, "`weights`"),
    (lambda: gates.load_balance_penalty(F, F[0]), ValueError, "that of `probabilities`, got"),
    (lambda: gates.update_bias_by_sign(F, F, rate=1.0), ValueError, "`bias` must have one axis"),
    (lambda: gates.update_bias_by_sign(F[0, 0], F, rate=1.0), ValueError, "`load` must have"),
    (lambda: gates.update_bias_by_sign(F[0, 0], INT, rate=1.0), TypeError, "`load` must have"),
    (lambda: gates.update_bias_by_quantile(F, F, k=1), ValueError, "one for each expert of"),
    (lambda: gates.update_bias_by_quantile(F32[0, 0], F, k=1), TypeError, "float64, got float32"),
    (lambda: gates.count_union(F[0, 0]), ValueError, "(*batch, num_gates, num_experts)"),
    (lambda: gates.count_duplicates(INT), TypeError, "`slot_weights`"),
    (lambda: gates.simplex_error(INT), TypeError, "`weights`"),
    (lambda: gates.total_variation(F, F[0]), ValueError, "`other_weights` must have shape"),
    (lambda: gates.score_scale(F[0, 0]), ValueError, "(*batch, num_slots, num_splits)"),
    (
        lambda: gates.comet_gate(F[..., 1:], F, gamma=1.0, split_scale=F[0]),
        ValueError,
        "`split_scale` must be broadcastable to (num_slots, num_splits) = (2, 3), got shape (2, 4)",
    ),
    (
        lambda: gates.comet_gate(F[..., 1:], F, gamma=1.0, split_scale=F[..., 1:]),
        ValueError,
        "got shape (3, 2, 3).",
    ),
    (
        lambda: gates.dselect_k_gate(F, F[..., 0], num_experts=16, gamma=1.0, bit_scale=INT),
        TypeError,
        "`bit_scale` must have a real floating dtype",
    ),
    (lambda: gates.to_sparse(INT, max_nonzero=1), TypeError, "`weights`"),
    (lambda: gates.to_dense((F, F), num_experts=4), TypeError, "`experts` must have an integer"),
    (lambda: gates.to_dense(PAIRS[::-1], num_experts=4), TypeError, "`experts`"),
    (lambda: gates.to_dense(PAIRS, num_experts=1), ValueError, "[2, inf), got 1."),
    (
        lambda: gates.to_dense((PAIRS.experts[:1], PAIRS.weights), num_experts=4),
        ValueError,
        "`experts` must have shape (3, 2), that of `weights`, got (1, 2).",
    ),
    (lambda: gates.comet_route(ROWS, LEAVES, LEAVES), ValueError, "one split less than"),
    (lambda: gates.comet_route(ROWS[:, 1:], SPLITS, LEAVES), ValueError, "that of `rows`, got"),
    (lambda: gates.comet_route(INT, SPLITS, LEAVES), TypeError, "`rows` must have a real"),
    (
        lambda: gates.comet_route(ROWS, SPLITS, LEAVES, merge=1),
        TypeError,
        "`merge` must be a bool, got 1.",
    ),
    (
        lambda: gates.comet_route(ROWS, SPLITS.astype(np.float32), LEAVES),
        TypeError,
        "`split_weights` must have the dtype of `rows`, float64, got float32.",
    ),
    (
        lambda: gates.comet_route(ROWS, SPLITS, LEAVES, split_bias=LEAVES[..., 0]),
        ValueError,
        "`split_bias` must have shape (2, 3), that of the splits, got (2, 4).",
    ),
    (
        lambda: gates.comet_route(ROWS, SPLITS, LEAVES, leaf_bias=SPLITS[..., 0]),
        ValueError,
        "`leaf_bias` must have shape (2, 4), that of the leaves, got (2, 3).",
    ),
    (lambda: gates.comet_route(ROWS, SPLITS[:, :0], LEAVES[:, :1]), ValueError, "got 1."),
    (lambda: gates.comet_route(ROWS, SPLITS, ROWS.tolist()), TypeError, "`leaf_weights` must"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_NUMBERS + BAD_ARRAYS)
def test_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as refusal:
        call()
    assert message in str(refusal.value)


def test_arrays_of_two_libraries_are_refused() -> None:
    other = pytest.importorskip("array_api_strict").asarray(F)
    message = "`split_scores` and `leaf_scores` must be arrays of one library, got ndarray and "
    with pytest.raises(TypeError) as refusal:
        gates.comet_gate(F[..., 1:], other, gamma=1.0)
    assert str(refusal.value) == f"{message}Array."


def test_integers_of_numpy_are_integers() -> None:
    gates.check_k(np.int64(2), 4)
    gates.check_gamma(np.float32(0.5))
    gates.check_gamma(1)
