"""The official scores of GLUE's tasks."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Numbers = NDArray[np.float64]
Score = Callable[[Numbers, Numbers], float]


def _correlation(correlate: Callable[..., Any]) -> Score:
    def score(answers: Numbers, labels: Numbers) -> float:
        if np.ptp(answers) == 0:
            return 0.0  # of a constant there is none
        return float(correlate(answers, labels).statistic)

    return score


def _of_labels(score: Callable[..., Any]) -> Score:
    return lambda answers, labels: float(score(labels, answers))


ACCURACY, F1 = _of_labels(accuracy_score), _of_labels(f1_score)
MATTHEWS = _of_labels(matthews_corrcoef)
PEARSON, SPEARMAN = _correlation(stats.pearsonr), _correlation(stats.spearmanr)
