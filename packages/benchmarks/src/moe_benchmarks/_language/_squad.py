"""SQuAD 2.0: find the answer to a question in a text, or say that there is none.

A text that is longer than a row becomes several windows, which overlap by a third of a row.

Axes: T windows, L tokens of a window, S tokens of its part of the text.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_benchmarks._language._batches import COLUMNS, Batch, EncodedRows
from moe_benchmarks._language._library import transformers
from moe_benchmarks._language._squad_files import Question, Questions, read_squad
from moe_benchmarks._language._squad_scores import SCORES, score_answers
from moe_benchmarks._language._task import Task
from moe_runtime.convert import symmetric_divergence

LONGEST_ANSWER = 30  # tokens
# Questions that the tokenizer is given together: what it says of them takes far more room.
AT_A_TIME = 1000
# Of what is padding: such a logit takes no part in a softmax.
SMALLEST_LOGIT = -1e4


class Squad(Task):
    """Extractive question answering with questions that have no answer."""

    max_length = 384
    output_names = ("start_logits", "end_logits")

    @property
    def name(self) -> str:
        """The name, as its publishers write it."""
        return "SQuAD2.0"

    @property
    def score_names(self) -> tuple[str, ...]:
        """Official scores, at most 1 each, larger is better; differences are of the first."""
        return SCORES

    def read(self, data_dir: Path) -> tuple[Questions, Questions]:
        """Read the training and the development questions; those of the test are not published."""
        return read_squad(data_dir)

    def encode(self, tokenizer: Any, examples: Questions, max_length: int) -> "QuestionRows":  # noqa: ANN401 - of transformers
        """Make windows of questions and texts."""
        return QuestionRows(tokenizer, examples, max_length)

    def load(self, model: str | Path) -> Any:  # noqa: ANN401 - of transformers
        """Load a model with a head for the first and the last token of an answer."""
        return transformers().AutoModelForQuestionAnswering.from_pretrained(model)

    def distance(self, output: Any, teacher: Any, batch: Batch) -> Tensor:  # noqa: ANN401 - of transformers
        """Return the symmetric divergence over the tokens, the mean of both ends' of an answer."""
        padding = batch["attention_mask"] == 0
        pairs = (
            (output.start_logits, teacher.start_logits),
            (output.end_logits, teacher.end_logits),
        )
        divergences = [
            symmetric_divergence(*(each.masked_fill(padding, SMALLEST_LOGIT) for each in pair))
            for pair in pairs
        ]
        return torch.stack(divergences).mean()


SQUAD = Squad()


class Window(NamedTuple):
    """A part of a question's text in a row."""

    question: int
    none: int  # token of the row that stands for all of it: where an answer is that is none
    first: int  # token of the row where the part of the text begins
    offsets_S2: NDArray[np.int32]  # its tokens' first characters in the text, and those after them


class QuestionRows(EncodedRows):
    """Questions, each with a window of its text, as tokens."""

    def __init__(self, tokenizer: Any, questions: Questions, max_length: int) -> None:  # noqa: ANN401 - of transformers
        self._questions = questions
        self.windows: list[Window] = []
        columns: dict[str, list[list[int]]] = {}
        for encoded, begin in _encode(tokenizer, questions, max_length):
            for row, question in enumerate(encoded["overflow_to_sample_mapping"]):
                self.windows.append(_window(encoded, row, begin + question, tokenizer))
            for name in COLUMNS:
                if name in encoded:
                    columns.setdefault(name, []).extend(encoded[name])
        ends = [_answer_tokens(window, questions[window.question]) for window in self.windows]
        starts, lasts = torch.tensor(ends).unbind(1)
        super().__init__(tokenizer, columns, {"start_positions": starts, "end_positions": lasts})

    def score(self, outputs: Sequence[Any]) -> dict[str, float]:
        """Return the official scores of a model's outputs for the batches of `in_order`."""
        golds = [question.answers for question in self._questions]
        return score_answers(self.answers(outputs), golds)

    def answers(self, outputs: Sequence[Any]) -> list[str]:
        """Return the best answer to each question, "" where none is better.

        The best one over a question's windows, if it has more than the least that they say
        for there being none: a threshold of 0, which is nothing to choose on the rows scored.
        """
        best = [(-torch.inf, "")] * len(self._questions)
        none = [torch.inf] * len(self._questions)
        row = 0
        for output in outputs:
            both = output.start_logits.cpu(), output.end_logits.cpu()
            for start_L, end_L in zip(*both, strict=True):
                window = self.windows[row]
                question = window.question
                no_answer = float(start_L[window.none] + end_L[window.none])
                none[question] = min(none[question], no_answer)
                part = slice(window.first, window.first + len(window.offsets_S2))
                value, start, last = best_span(start_L[part], end_L[part])
                if value > best[question][0]:
                    characters = slice(window.offsets_S2[start, 0], window.offsets_S2[last, 1])
                    best[question] = value, self._questions[question].context[characters]
                row += 1
        return [
            text if value > least else "" for (value, text), least in zip(best, none, strict=True)
        ]


def best_span(start_S: Tensor, end_S: Tensor) -> tuple[float, int, int]:
    """Return the largest sum of both ends' logits, and where they are; -inf without a token."""
    if not len(start_S):
        return -torch.inf, 0, 0
    sums_SS = start_S[:, None] + end_S
    allowed_SS = torch.ones_like(sums_SS, dtype=torch.bool).triu().tril(LONGEST_ANSWER - 1)
    sums_SS = sums_SS.masked_fill(~allowed_SS, -torch.inf)
    place = int(sums_SS.argmax())
    start, last = divmod(place, len(start_S))
    return float(sums_SS[start, last]), start, last


def _encode(
    tokenizer: Any,  # noqa: ANN401 - of transformers
    questions: Questions,
    max_length: int,
) -> Iterator[tuple[Any, int]]:
    """Yield what the tokenizer makes of some questions at a time, and the number of the first."""
    if not tokenizer.is_fast:
        msg = "SQuAD needs a tokenizer that says which characters a token has (a fast one)."
        raise ValueError(msg)
    texts = [question.text for question in questions]
    overlap = max_length // 3
    longest = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    least = longest + tokenizer.num_special_tokens_to_add(pair=True) + overlap + 1
    if max_length < least:
        msg = (
            f"`max_length` must leave room for a question of {longest} tokens and {overlap} "
            f"that windows share, {least} in all, got {max_length}."
        )
        raise ValueError(msg)
    for begin in range(0, len(questions), AT_A_TIME):
        some = slice(begin, begin + AT_A_TIME)
        encoded = tokenizer(
            texts[some],
            [question.context for question in questions[some]],
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        yield encoded, begin


def _window(encoded: Any, row: int, question: int, tokenizer: Any) -> Window:  # noqa: ANN401 - of transformers
    ids, parts = encoded["input_ids"][row], encoded.sequence_ids(row)
    none = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
    if 1 not in parts:
        return Window(question, none, 0, np.empty((0, 2), np.int32))
    first, count = parts.index(1), parts.count(1)
    offsets = encoded["offset_mapping"][row][first : first + count]
    return Window(question, none, first, np.asarray(offsets, np.int32))


def _answer_tokens(window: Window, question: Question) -> tuple[int, int]:
    """Return the first and the last token of the answer, if the window has all of it."""
    nothing = window.none, window.none
    if not question.answers or not len(window.offsets_S2):
        return nothing
    begin, end = question.start, question.start + len(question.answers[0])
    lefts_S, rights_S = window.offsets_S2.T
    if lefts_S[0] > begin or rights_S[-1] < end:
        return nothing
    start, last = int((lefts_S <= begin).sum()) - 1, int((rights_S < end).sum())
    return window.first + start, window.first + last
