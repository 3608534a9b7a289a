"""The tasks of GLUE: where their files have what, and how they are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Task:
    """A task of GLUE.

    Attributes
    ----------
    name : str
        As the GLUE benchmark writes it; also the name of the folder of its files.
    columns : tuple of str or int
        Where the sentences are: one or two columns, by name, or by place where the file has no
        header.
    label : str or int
        Where the label is.
    labels : tuple of str
        What the file may have there, in the order of the classes; none where it is a number.
    scores : mapping of str to function
        Official scores, dimensionless, each at most 1, larger is better; the first is the one that
        differences are reported in.
    dev_file : str
        The development rows.
    """

    name: str
    columns: tuple[str | int, ...]
    label: str | int
    labels: tuple[str, ...]
    scores: Mapping[str, Score]
    dev_file: str = "dev.tsv"

    @property
    def num_labels(self) -> int:
        """Outputs of a classifier: the classes, or 1 for a number."""
        return len(self.labels) or 1

    @property
    def main_score(self) -> str:
        """Name of the score that differences are reported in."""
        return next(iter(self.scores))

    def score(self, logits: Numbers, labels: Sequence[float]) -> dict[str, float]:
        """Return the scores of logits (T, C) of a model."""
        answers = logits.argmax(-1).astype(np.float64) if self.labels else logits[:, 0]
        wanted = np.asarray(labels, dtype=np.float64)
        return {name: score(answers, wanted) for name, score in self.scores.items()}


BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")

TASKS = {
    task.name: task
    for task in (
        Task("CoLA", (3,), 1, BINARY, {"matthews": MATTHEWS}),
        Task("SST-2", ("sentence",), "label", BINARY, {"accuracy": ACCURACY}),
        Task(
            "MRPC",
            ("#1 String", "#2 String"),
            "Quality",
            BINARY,
            {"accuracy": ACCURACY, "f1": F1},
        ),
        Task("STS-B", PAIR, "score", (), {"pearson": PEARSON, "spearman": SPEARMAN}),
        Task(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            BINARY,
            {"accuracy": ACCURACY, "f1": F1},
        ),
        Task(
            "MNLI",
            PAIR,
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            {"accuracy": ACCURACY},
            dev_file="dev_matched.tsv",
        ),
        Task("QNLI", ("question", "sentence"), "label", ENTAILMENT, {"accuracy": ACCURACY}),
        Task("RTE", PAIR, "label", ENTAILMENT, {"accuracy": ACCURACY}),
        Task("WNLI", PAIR, "label", BINARY, {"accuracy": ACCURACY}),
    )
}
