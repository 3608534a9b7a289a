"""Read SQuAD 2.0 in the layout in which it is published."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moe_benchmarks._data._dataset import DataError

FOLDER, TRAIN, DEV = "squad", "train-v2.0.json", "dev-v2.0.json"


class Question(NamedTuple):
    """A question about a text, and the answers that people marked there; none if it has none."""

    text: str
    context: str
    answers: tuple[str, ...]
    start: int  # of the first answer, in characters; -1 if there is none


class Questions(tuple[Question, ...]):
    """Questions of a file."""

    __slots__ = ()

    def take(self, rows: list[int]) -> "Questions":
        """Return some of the questions."""
        return Questions(self[row] for row in rows)


def read_squad(data_dir: Path) -> tuple[Questions, Questions]:
    """Read the training and the development questions, compressed by gzip or not.

    Raises
    ------
    DataError
        If a file is missing or is not SQuAD's; it is named, with the question.
    """
    train, dev = (_read(data_dir / FOLDER, name) for name in (TRAIN, DEV))
    return train, dev


def _read(folder: Path, name: str) -> Questions:
    path = folder / name
    if not path.exists():
        path = folder / f"{name}.gz"
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError:
        msg = (
            f"SQuAD needs {folder / name}, which is not there: the files are those of "
            "https://rajpurkar.github.io/SQuAD-explorer; --data-dir or MOE_BENCH_DATA name the "
            f"folder that holds {FOLDER}."
        )
        raise DataError(msg) from None
    except (OSError, EOFError, ValueError) as error:
        msg = f"{path} cannot be read: {error}."
        raise DataError(msg) from error
    try:
        questions = Questions(_questions(content, path))
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is not laid out as SQuAD 2.0 is: {error!r}."
        raise DataError(msg) from error
    if not questions:
        msg = f"{path} has no questions."
        raise DataError(msg)
    return questions


def _questions(content: dict[str, Any], path: Path) -> Iterator[Question]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for asked in paragraph["qas"]:
                answers = [] if asked["is_impossible"] else asked["answers"]
                start = answers[0]["answer_start"] if answers else -1
                texts = tuple(answer["text"] for answer in answers)
                if texts and not context.startswith(texts[0], start):
                    msg = f"{path}, question {asked['id']}: the answer is not where it should be."
                    raise DataError(msg)
                # Blanks at either end, which some questions have, are tokens to some tokenizers.
                yield Question(asked["question"].strip(), context, texts, start)
