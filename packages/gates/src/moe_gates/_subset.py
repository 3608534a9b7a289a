"""The distribution over subsets of k experts, p(S) ~ exp(sum of the scores in S).

A balanced tree over the experts counts how many of S are below each node. From the
leaves up, two halves are joined by multiplying their elementary symmetric polynomials
e_0, ..., e_k in exp(score); from the root down, the k are shared between the halves.
Everything on the way is a product or sum of positive numbers, so nothing cancels.
"""

from types import ModuleType

from moe_gates._array import Array, count_up, stop_gradient


def split_shares(scores: Array, k: int, xp: ModuleType) -> list[Array]:
    """How each node shares its experts of S between its halves, lowest level first.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts)
    k : int
    xp : array namespace

    Returns
    -------
    list of array, shape (*batch, num_nodes, 2, num_counts_of_half, num_counts)
        Entry [..., half, a, d] is the probability that a experts of the half are in S,
        given that d of the node are.
    """
    num_experts = scores.shape[-1]
    num_levels = (num_experts - 1).bit_length()
    # An expert with score -inf is in no subset.
    padding = [xp.full_like(scores[..., :1], -xp.inf)] * (2**num_levels - num_experts)
    amounts, exponents = _leaves(xp.concat([scores, *padding], axis=-1), xp)
    shares = []
    for level in range(1, num_levels + 1):
        amounts, exponents, share = _join(amounts, exponents, min(k, 2**level), xp)
        shares.append(share)
    return shares


def _leaves(scores: Array, xp: ModuleType) -> tuple[Array, Array]:
    """Polynomials of one expert each, 1 and exp(score), as amount * exp(exponent)."""
    # Exponents are whole numbers, whose sums are exact: logarithms of the coefficients
    # would lose three digits of float32 at scores of 1e4.
    possible = scores > -xp.inf
    safe = xp.where(possible, scores, 0.0)
    whole = xp.round(stop_gradient(safe, xp))
    amount = xp.exp(safe - whole)
    exponent = xp.where(possible, whole, -xp.inf)
    amounts = xp.stack([xp.ones_like(amount), amount], axis=-1)
    return amounts, xp.stack([xp.zeros_like(exponent), exponent], axis=-1)


def _join(
    amounts: Array, exponents: Array, degree: int, xp: ModuleType
) -> tuple[Array, Array, Array]:
    """Multiply neighbouring polynomials up to `degree`; return what each term has of it."""
    *batch, num_nodes, num_counts = amounts.shape
    pairs = (*batch, num_nodes // 2, 2, num_counts)
    amounts, exponents = xp.reshape(amounts, pairs), xp.reshape(exponents, pairs)
    # Axes: ..., half, count in this half, count in both.
    in_other = count_up(degree + 1, amounts, xp) - count_up(num_counts, amounts, xp)[:, None]
    possible = (in_other >= 0) & (in_other < num_counts)
    index = xp.where(possible, in_other, 0)
    exponent = exponents[..., None] + _take(xp.flip(exponents, axis=-2), index, xp)
    exponent = xp.where(possible, exponent, -xp.inf)
    largest = xp.max(exponent, axis=-2, keepdims=True)
    shift = xp.where(largest > -xp.inf, largest, 0.0)
    terms = amounts[..., None] * _take(xp.flip(amounts, axis=-2), index, xp)
    terms = terms * xp.exp(exponent - shift)
    total = xp.sum(terms, axis=-2, keepdims=True)
    shares = terms / xp.where(total > 0, total, 1.0)

    total, largest = total[..., 0, 0, :], largest[..., 0, 0, :]  # both halves say the same
    growth = xp.round(xp.log(stop_gradient(xp.where(total > 0, total, 1.0), xp)))
    return total * xp.exp(-growth), largest + growth, shares


def _take(array: Array, index: Array, xp: ModuleType) -> Array:
    """Index the last axis by a matrix."""
    size = index.shape[0] * index.shape[1]
    taken = xp.take(array, xp.reshape(index, (size,)), axis=-1)
    return xp.reshape(taken, (*array.shape[:-1], *index.shape))


def marginals(scores: Array, shares: list[Array], k: int, xp: ModuleType) -> Array:
    """Probability of each expert to be in S, given the `split_shares` of the scores."""
    # Counts at a node are distributed; those of the root are k for certain.
    count_is_k = xp.astype(count_up(k + 1, scores, xp) == k, scores.dtype)
    probabilities = xp.zeros_like(scores[..., :1])[..., None] + count_is_k
    for share in reversed(shares):
        halves = xp.sum(share * probabilities[..., :, None, None, :], axis=-1)
        *batch, num_nodes, _, num_counts = halves.shape
        probabilities = xp.reshape(halves, (*batch, 2 * num_nodes, num_counts))
    return probabilities[..., : scores.shape[-1], 1]


def draw(scores: Array, shares: list[Array], uniforms: Array, k: int, xp: ModuleType) -> Array:
    """Draw S, exactly, given the `split_shares` of the scores: mark the experts in it.

    `uniforms`, of shape (*batch, num_experts - 1), has a number in [0, 1) for each node
    with experts in both halves, highest level first.
    """
    num_experts = scores.shape[-1]
    counts = xp.full_like(scores[..., :1], k, dtype=xp.int32)
    for level in range(len(shares), 0, -1):
        # Nodes are full from the left; the others have no choice, so any number will do.
        num_choices = (num_experts + 2 ** (level - 1) - 1) // 2**level
        numbers, uniforms = uniforms[..., :num_choices], uniforms[..., num_choices:]
        no_choice = xp.zeros_like(counts[..., num_choices:], dtype=numbers.dtype)
        numbers = xp.concat([numbers, no_choice], axis=-1)
        left = _draw_left(shares[level - 1], counts, numbers, xp)
        halves = xp.stack([left, counts - left], axis=-1)
        counts = xp.reshape(halves, (*counts.shape[:-1], 2 * counts.shape[-1]))
    return counts[..., :num_experts] > 0


def _draw_left(share: Array, counts: Array, numbers: Array, xp: ModuleType) -> Array:
    """Draw how many of the experts of each node are in its left half."""
    *_, num_left, num_counts = share.shape
    given = counts[..., None, None] == count_up(num_counts, share, xp)
    chances = xp.sum(xp.where(given, share[..., 0, :, :], 0.0), axis=-1)
    # The last possible count whose smaller ones have no more chance together than the
    # number: there is one whatever the rounding, so S always has k experts. Summed by
    # comparing, since Dynamo (torch 2.13) warns inside array-api-compat's cumulative_sum.
    left = xp.astype(count_up(num_left, share, xp), counts.dtype)
    smaller = left[None, :] < left[:, None]
    before = xp.sum(xp.where(smaller, chances[..., None, :], 0.0), axis=-1)
    fits = (before <= numbers[..., None]) & (chances > 0)
    return xp.max(xp.where(fits, left, 0), axis=-1)
