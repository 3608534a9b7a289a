"""SQuAD 2.0: find the answer to a question in a text, or say that there is none.

A text that is longer than a row becomes several windows, which overlap by a third of a row.

Axes: T windows, L tokens of a window, S tokens of its part of the text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_benchmarks._language._batches import Batch, EncodedRows
from moe_benchmarks._language._library import transformers
from moe_benchmarks._language._squad_files import Question, Questions, read_squad
from moe_benchmarks._language._squad_scores import SCORES, score_answers
from moe_benchmarks._language._task import Task
from moe_runtime.convert import symmetric_divergence

LONGEST_ANSWER = 30  # tokens
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
    first: int  # token of the row where the part of the text begins
    offsets: list[tuple[int, int]]  # its tokens' characters in the text


class QuestionRows(EncodedRows):
    """Questions, each with a window of its text, as tokens."""

    def __init__(self, tokenizer: Any, questions: Questions, max_length: int) -> None:  # noqa: ANN401 - of transformers
        self._questions = questions
        overlap = max_length // 3
        encoded = _encode(tokenizer, questions, max_length, overlap)
        self.windows = [
            _window(encoded, row, question)
            for row, question in enumerate(encoded["overflow_to_sample_mapping"])
        ]
        # A question without an answer has it at the token that stands for the whole row.
        self._none = [
            ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
            for ids in encoded["input_ids"]
        ]
        ends = [
            _answer_tokens(window, questions[window.question]) or (none, none)
            for window, none in zip(self.windows, self._none, strict=True)
        ]
        starts, lasts = torch.tensor(ends).unbind(1)
        super().__init__(tokenizer, encoded, {"start_positions": starts, "end_positions": lasts})

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
            for start_L, end_L in zip(output.start_logits, output.end_logits, strict=True):
                window, at = self.windows[row], self._none[row]
                question = window.question
                none[question] = min(none[question], float(start_L[at] + end_L[at]))
                part = slice(window.first, window.first + len(window.offsets))
                value, start, last = best_span(start_L[part], end_L[part])
                if value > best[question][0]:
                    characters = slice(window.offsets[start][0], window.offsets[last][1])
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


def _encode(tokenizer: Any, questions: Questions, max_length: int, overlap: int) -> Any:  # noqa: ANN401 - of transformers
    if not tokenizer.is_fast:
        msg = "SQuAD needs a tokenizer that says which characters a token has (a fast one)."
        raise ValueError(msg)
    texts = [question.text for question in questions]
    longest = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    least = longest + tokenizer.num_special_tokens_to_add(pair=True) + overlap + 1
    if max_length < least:
        msg = (
            f"`max_length` must leave room for a question of {longest} tokens and {overlap} "
            f"that windows share, {least} in all, got {max_length}."
        )
        raise ValueError(msg)
    return tokenizer(
        texts,
        [question.context for question in questions],
        truncation="only_second",
        max_length=max_length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def _window(encoded: Any, row: int, question: int) -> Window:  # noqa: ANN401 - of transformers
    parts = encoded.sequence_ids(row)
    if 1 not in parts:
        return Window(question, 0, [])
    first, count = parts.index(1), parts.count(1)
    return Window(question, first, encoded["offset_mapping"][row][first : first + count])


def _answer_tokens(window: Window, question: Question) -> tuple[int, int] | None:
    """Return the first and the last token of the answer; None unless the window has all of it."""
    if not question.answers or not window.offsets:
        return None
    begin, end = question.start, question.start + len(question.answers[0])
    if window.offsets[0][0] > begin or window.offsets[-1][1] < end:
        return None
    start = max(place for place, (left, _) in enumerate(window.offsets) if left <= begin)
    last = min(place for place, (_, right) in enumerate(window.offsets) if right >= end)
    return window.first + start, window.first + last
