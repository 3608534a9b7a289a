"""GLUE's files and scores."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from _language import write_glue, write_model

from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._language import _batches
from moe_benchmarks._language._batches import Batch
from moe_benchmarks._language._glue import GlueTask, SentenceRows
from moe_benchmarks._language._glue_files import Layout, Sentences
from moe_benchmarks._language._glue_tasks import GLUE
from moe_benchmarks._language._library import load_tokenizer

TASKS = {task.name: task for task in GLUE}
HEADERS = {
    "MRPC": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\tHe said "no.\tHe said no.'),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\tIt rains.\tIt is wet.\tentailment"),
    "WNLI": ("index\tsentence1\tsentence2\tlabel", "0\tIt rains.\tIt is wet.\t1"),
    "QNLI": ("index\tquestion\tsentence\tlabel", "0\tWhy?\tBecause.\tnot_entailment"),
    "QQP": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\tHow?\t0"),
    "STS-B": ("index\tsentence1\tsentence2\tscore", "0\tIt rains.\tIt is wet.\t3.800"),
    "MNLI": ("index\tsentence1\tsentence2\tgold_label", "0\tIt rains.\tIt is dry.\tcontradiction"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_each_task_is_read(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "glue" / name
    folder.mkdir(parents=True)
    task = TASKS[name]
    for file in ("train.tsv", task.layout.dev_file):
        (folder / file).write_text("\n".join(HEADERS[name]) + "\r\n", encoding="utf-8")
    train, dev = task.read(tmp_path)
    labels = {"QNLI": 1.0, "QQP": 0.0, "STS-B": 3.8, "RTE": 0.0, "MNLI": 2.0}
    assert train.labels == dev.labels == [labels.get(name, 1.0)]
    assert len(train) == 1
    assert train.second is not None
    if name == "MRPC":
        assert train.first == ['He said "no.'], "quotation marks are part of a sentence"


def test_a_single_sentence_without_header(tmp_path: Path) -> None:
    train, dev = TASKS["CoLA"].read(write_glue(tmp_path, num_train=120, num_dev=30))
    assert (len(train), len(dev)) == (120, 30)
    assert train.second is None
    assert set(train.labels) == {0.0, 1.0}
    assert train.take([3, 1]).first == [train.first[3], train.first[1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\tsentiment\nfine\t1\n", r"has no column \['label'\] in its header"),
        ("sentence\tlabel\nfine\t1\nbad\n", "row 2: 1 columns, 2 are needed"),
        ("sentence\tlabel\nfine\t1\nbad\t2\n", r"row 2: the label must be one of \['0', '1'\]"),
        ("sentence\tlabel\n", "has no rows"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    write_glue(tmp_path)
    path = tmp_path / "glue" / "SST-2" / "train.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        TASKS["SST-2"].read(tmp_path)
    assert str(path) in str(raised.value)
    path.write_bytes(b"sentence\tlabel\n\xff\t1\n")
    with pytest.raises(DataError, match="cannot be read"):
        TASKS["SST-2"].read(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"MOE_BENCH_DATA name the folder that holds glue/SST-2"):
        TASKS["SST-2"].read(tmp_path)


def test_scores_are_the_official_ones() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    labels = [0.0, 1.0, 0.0, 1.0]
    assert TASKS["CoLA"].score(logits, labels) == {"matthews": 0.0}
    found = TASKS["MRPC"].score(logits, [0.0, 1.0, 0.0, 0.0])
    assert found == {"accuracy": 0.75, "f1": pytest.approx(2 / 3)}
    numbers = np.array([[1.0], [2.0], [4.0]])
    correlations = TASKS["STS-B"].score(numbers, [1.0, 3.0, 2.0])
    assert correlations["spearman"] == pytest.approx(0.5)
    assert correlations["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 2])[0, 1])
    assert TASKS["STS-B"].score(np.ones((3, 1)), [1.0, 3.0, 2.0])["pearson"] == 0.0


def num_rows(batch: Batch) -> int:
    return len(batch["input_ids"])


def _labels(batches: Iterable[Batch]) -> list[int]:
    return [label for batch in batches for label in batch["labels"].tolist()]


def test_batches_hold_every_row_once_in_parts_of_like_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_batches, "PART_TOKENS", 10)
    tokenizer = load_tokenizer(str(write_model(tmp_path)))
    sentences = Sentences(["the film", "a", "so so so good"] * 7, None, [0.0, 1.0, 2.0] * 7)
    three = GlueTask(Layout("three", (0,), 1, ("0", "1", "2")), {})
    rows = SentenceRows(three, tokenizer, sentences, max_length=5)
    assert rows.lengths.tolist() == [4, 3, 5] * 7, "with the two special tokens, at most 5"
    batches = list(rows.shuffled(8, seed=1, epoch=0))
    assert [sum(map(num_rows, parts)) for parts in batches] == [8, 8, 5]
    parts = [part for batch in batches for part in batch]
    assert sorted(_labels(parts)) == sorted(rows.targets["labels"].tolist())
    for part in parts:
        lengths = part["attention_mask"].sum(1)
        assert int(lengths.max()) == part["input_ids"].shape[1]
        assert part["input_ids"].numel() <= 10
        assert torch.equal(part["attention_mask"] == 0, part["input_ids"] == 0)
    for batch in batches:
        longest = [part["input_ids"].shape[1] for part in batch]
        assert longest == sorted(longest, reverse=True)
        assert len(batch) <= 4
    again, other = (rows.shuffled(8, seed=1, epoch=epoch) for epoch in (0, 1))
    assert _labels(parts) == _labels(part for batch in again for part in batch)
    assert _labels(parts) != _labels(part for batch in other for part in batch)
    assert _labels(rows.in_order(4)) == rows.targets["labels"].tolist()
    assert sum(rows.token_counts.values()) == int(rows.lengths.sum())
