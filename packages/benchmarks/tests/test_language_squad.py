"""SQuAD's files, windows, answers and scores."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _language import write_model, write_squad
from _tiny import Run

from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._language import _squad
from moe_benchmarks._language._library import load_tokenizer
from moe_benchmarks._language._squad import SQUAD, QuestionRows, best_span
from moe_benchmarks._language._squad_files import Question, Questions, read_squad
from moe_benchmarks._language._squad_scores import exact, f1, normalized, score_answers

CONTEXT = "the film was a plot so good the film was a plot so bad the film was nice"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(str(write_model(tmp_path_factory.mktemp("model"))))


def certain(rows: QuestionRows) -> list[Any]:
    """Return outputs that are sure of what is to be learned."""
    outputs = []
    for batch in rows.in_order(2):
        shape = batch["input_ids"].shape
        logits = [
            torch.zeros(shape).scatter(1, batch[name][:, None], 9.0)
            for name in ("start_positions", "end_positions")
        ]
        outputs.append(SimpleNamespace(start_logits=logits[0], end_logits=logits[1]))
    return outputs


def test_files_are_read(tmp_path: Path) -> None:
    write_squad(tmp_path, num_train=5, num_dev=4)
    train, dev = read_squad(tmp_path)
    assert (len(train), len(dev)) == (5, 4)
    assert {bool(question.answers) for question in train} == {True, False}
    for question in train:
        if question.answers:
            assert question.context[question.start :].startswith(question.answers[0])
    assert train.take([3, 1]) == (train[3], train[1])
    path = tmp_path / "squad" / "dev-v2.0.json"
    (tmp_path / "squad" / "dev-v2.0.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert read_squad(tmp_path)[1] == dev


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read: "),
        ("[]", "is not laid out as SQuAD 2.0 is"),
        (
            '{"data": [{"paragraphs": [{"qas": []}]}]}',
            r"is not laid out as .*: KeyError\('context'",
        ),
        ('{"data": []}', "has no questions"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    write_squad(tmp_path)
    path = tmp_path / "squad" / "train-v2.0.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as raised:
        read_squad(tmp_path)
    assert str(path) in str(raised.value)
    path.unlink()
    with pytest.raises(DataError, match="MOE_BENCH_DATA name the folder that holds squad"):
        read_squad(tmp_path)


def test_an_answer_that_is_elsewhere_is_refused(tmp_path: Path) -> None:
    write_squad(tmp_path)
    path = tmp_path / "squad" / "train-v2.0.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    asked = [
        each for each in content["data"][0]["paragraphs"] if not each["qas"][0]["is_impossible"]
    ]
    asked[0]["qas"][0]["answers"][0]["answer_start"] += 1
    path.write_text(json.dumps(content), encoding="utf-8")
    name = asked[0]["qas"][0]["id"]
    with pytest.raises(DataError, match=f"question {name}: the answer is not where it should be"):
        read_squad(tmp_path)


@pytest.mark.parametrize("max_length", [8, 12, 40])
def test_certain_answers_are_found_in_any_windows(
    max_length: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = Questions(
        [
            Question("good", CONTEXT, ("good",), CONTEXT.index("good")),
            Question("bad", CONTEXT, ("so bad",), CONTEXT.index("so bad")),
            Question("nice", CONTEXT, ("nice",), CONTEXT.index("nice")),
            Question("poor", CONTEXT, (), -1),
        ]
    )
    monkeypatch.setattr(_squad, "AT_A_TIME", 3)
    rows = QuestionRows(tokenizer, questions, max_length)
    assert max(rows.lengths) <= max_length
    assert (len(rows) > 4) == (max_length < 20)
    assert rows.answers(certain(rows)) == ["good", "so bad", "nice", ""]
    assert rows.score(certain(rows)) == {
        "f1": 1, "exact": 1, "answered_f1": 1, "answered_exact": 1, "unanswerable_exact": 1,
    }  # fmt: skip
    # Each token of a text is in some window, with its characters.
    for number in range(len(questions)):
        windows = [window for window in rows.windows if window.question == number]
        seen = {tuple(each) for window in windows for each in window.offsets_S2.tolist()}
        assert [CONTEXT[slice(*each)] for each in sorted(seen)] == CONTEXT.split()


def test_a_window_without_all_of_an_answer_has_none(tokenizer: Any) -> None:
    begin = CONTEXT.index("so good")
    questions = Questions([Question("good", CONTEXT, ("so good the film",), begin)])
    rows = QuestionRows(tokenizer, questions, 8)
    assert all(start == 0 for start in rows.targets["start_positions"]), "windows of 4 share 2"
    assert rows.answers(certain(rows)) == [""]


def test_a_question_that_leaves_no_room_is_refused(tokenizer: Any) -> None:
    questions = Questions([Question("so " * 9, CONTEXT, (), -1)])
    with pytest.raises(ValueError, match=r"a question of 9 tokens and 5 .*, 18 in all, got 17"):
        QuestionRows(tokenizer, questions, 17)
    assert len(QuestionRows(tokenizer, questions, 40)) == 1


def test_the_best_span_is_that_of_a_search_of_all() -> None:
    for length in (0, 1, 5, 70):
        start, end = torch.randn(2, length)
        spans = [
            (float(start[i] + end[j]), i, j)
            for i in range(length)
            for j in range(i, min(i + 30, length))
        ]
        assert best_span(start, end) == max(spans, default=(-torch.inf, 0, 0))


def test_no_answer_is_given_where_a_window_says_so_less_than_the_best_span(tokenizer: Any) -> None:
    rows = QuestionRows(tokenizer, Questions([Question("good", "so good", ("good",), 3)]), 12)
    logits = torch.tensor([[2.0, 0, 0, 0, 3.0, 0]])  # [CLS] good [SEP] so good [SEP]
    for none, wanted in ((2.0, "good"), (4.0, "")):
        logits[0, 0] = none
        output = SimpleNamespace(start_logits=logits, end_logits=logits)
        assert rows.answers([output]) == [wanted]


def test_scores_are_the_official_ones() -> None:
    assert normalized(" The  U.S.  of a Man-made thing!") == "us of manmade thing"
    assert exact("the cat.", "Cat") == 1.0
    assert f1("the big black cat", "a black cat sat") == pytest.approx(2 * 2 / (3 + 3))
    assert f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert f1("", "") == 1.0
    assert f1("", "cat") == f1("the", "cat") == 0.0
    scores = score_answers(
        ["cat", "big dog", "", "fish", ""], [["Dog", "the cat"], ["dog"], [], [], ["bird"]]
    )
    assert scores == {
        "f1": pytest.approx((1 + 2 / 3 + 1 + 0 + 0) / 5),
        "exact": pytest.approx(2 / 5),
        "answered_f1": pytest.approx((1 + 2 / 3 + 0) / 3),
        "answered_exact": pytest.approx(1 / 3),
        "unanswerable_exact": pytest.approx(1 / 2),
    }
    assert "unanswerable_exact" not in score_answers(["cat"], [["cat"]])


def test_distance_leaves_padding_out() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    one, two = (
        SimpleNamespace(start_logits=torch.randn(2, 3), end_logits=torch.randn(2, 3))
        for _ in range(2)
    )
    first = SQUAD.distance(one, two, {"attention_mask": mask})
    one.start_logits[1, 2], two.end_logits[1, 2] = 50.0, -50.0
    torch.testing.assert_close(SQUAD.distance(one, two, {"attention_mask": mask}), first)
    assert first > 0
    assert SQUAD.distance(one, one, {"attention_mask": mask}) == 0


def test_a_study_learns_where_answers_are(tmp_path: Path, moe_bench: Run) -> None:
    write_squad(tmp_path, num_train=200, num_dev=40)
    model = write_model(tmp_path / "model")
    options = (
        "--epochs=20", "--learning-rate=0.005", "--distil-epochs=4", "--batch-size=8", "--seeds=1",
        "--max-length=24", "--routers=hash,comet+", f"--data-dir={tmp_path}",
    )  # fmt: skip
    out = tmp_path / "out"
    done = moe_bench("distil", "SQuAD2.0", f"--model={model}", f"--out={out}", *options)
    assert done.returncode == 0, done.stderr
    lines = (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["variant"] for row in rows] == ["dense", "hash", "comet+"]
    for row in rows:
        assert row["rows"] == 40
        assert row["scores"]["hard"]["f1"] > 0.7, row["variant"]
    assert "F1" in (out / "report.md").read_text(encoding="utf-8")
