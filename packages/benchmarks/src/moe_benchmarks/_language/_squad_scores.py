"""SQuAD 2.0's official scores: exact match and F1, with and without an answer."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
SCORES = ("f1", "exact", "answered_f1", "answered_exact", "unanswerable_exact")


def normalized(text: str) -> str:
    """Leave out case, punctuation, articles and extra blanks, as the official script does."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(answer: str, gold: str) -> float:
    """Return 1 where both are the same but for what is left out, otherwise 0."""
    return float(normalized(answer) == normalized(gold))


def f1(answer: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall of the words."""
    found, wanted = normalized(answer).split(), normalized(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    both = sum((Counter(found) & Counter(wanted)).values())
    return 2 * both / (len(found) + len(wanted))


def score_answers(answers: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the mean over questions of the score against the gold answer that fits best.

    Parameters
    ----------
    answers
        One a question; "" where it is held to have none.
    golds
        Those of each question; none where it has none.

    Returns
    -------
    dict
        The means over all questions, over those that have an answer, and of exact match over
        those that have none; a mean over no question is left out.
    """
    found = []
    for answer, some in zip(answers, golds, strict=True):
        # As in the official script, a gold answer of articles and punctuation alone is none.
        kept = [gold for gold in some if normalized(gold)] or [""]
        found.append([max(score(answer, gold) for gold in kept) for score in (f1, exact)])
    values, has_answer = np.asarray(found), np.asarray([bool(some) for some in golds])
    scores = {"f1": values[:, 0].mean(), "exact": values[:, 1].mean()}
    if has_answer.any():
        scores["answered_f1"] = values[has_answer, 0].mean()
        scores["answered_exact"] = values[has_answer, 1].mean()
    if not has_answer.all():
        scores["unanswerable_exact"] = values[~has_answer, 1].mean()
    return {name: float(value) for name, value in scores.items()}
