"""What a converted model learns from the dense one.

Axes: B examples, S tokens, D features, C classes, L layers.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime._checks import check_tensor, check_type


def symmetric_divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over rows of half the divergence of teacher from student and of student from teacher.

    Parameters
    ----------
    logits, teacher_logits
        Scores of the classes, shape (..., C), in nats.

    Returns
    -------
    Tensor
        A scalar in nats, >= 0; it has gradients of both.

    References
    ----------
    Zuo et al., NAACL 2022, arXiv:2204.07675, eq. (9).

    Examples
    --------
    >>> import torch
    >>> from moe_runtime.convert import symmetric_divergence
    >>> a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 3.0]])
    >>> round(float(symmetric_divergence(a, b)), 4), float(symmetric_divergence(a, a))
    (0.2215, 0.0)
    """
    _check_alike("teacher_logits", teacher_logits, logits)
    log_p = logits.float().log_softmax(-1)
    log_q = teacher_logits.float().log_softmax(-1)
    # Half of KL(p, q) + KL(q, p).
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean() / 2


def hidden_state_loss(
    hidden_states: Sequence[Tensor], teacher_states: Sequence[Tensor], mask: Tensor | None = None
) -> Tensor:
    """Sum over layers of the mean squared difference of hidden states, padding left out.

    Parameters
    ----------
    hidden_states, teacher_states
        One tensor a layer, shape (B, S, D), as ``output.hidden_states`` of transformers has them.
    mask
        1 where a token counts, 0 for padding, shape (B, S).

    Returns
    -------
    Tensor
        A scalar, in squared units of the states.

    References
    ----------
    Zuo et al., NAACL 2022, arXiv:2204.07675, eq. (8).
    """
    check_type("hidden_states", hidden_states, Sequence, "a sequence of tensors")
    if not hidden_states:
        msg = "`hidden_states` must hold the states of at least one layer, got none."
        raise ValueError(msg)
    if len(hidden_states) != len(teacher_states):
        msg = (
            f"`teacher_states` must be {len(hidden_states)} layers, as `hidden_states` are, "
            f"got {len(teacher_states)}."
        )
        raise ValueError(msg)
    if mask is not None:
        _check_mask(mask, hidden_states[0])
    total = hidden_states[0].new_zeros(())
    for layer, (states, teacher) in enumerate(zip(hidden_states, teacher_states, strict=True)):
        _check_alike(f"teacher_states[{layer}]", teacher, states)
        if mask is None:
            total = total + F.mse_loss(states, teacher)
        else:
            kept = mask != 0
            total = total + F.mse_loss(states[kept], teacher[kept])
    return total


def _check_mask(mask: Tensor, states: Tensor) -> None:
    check_tensor("mask", mask)
    if mask.shape != states.shape[:-1] or not mask.any():
        msg = (
            f"`mask` must be 1 for some tokens and have shape {tuple(states.shape[:-1])}, got "
            f"{int((mask != 0).sum())} of them and shape {tuple(mask.shape)}."
        )
        raise ValueError(msg)


def _check_alike(name: str, given: Tensor, expected: Tensor) -> None:
    check_tensor(name, given)
    if given.shape != expected.shape:
        msg = (
            f"`{name}` must have the student's shape {tuple(expected.shape)}, got "
            f"{tuple(given.shape)}."
        )
        raise ValueError(msg)
