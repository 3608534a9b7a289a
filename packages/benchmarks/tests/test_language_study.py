"""`moe-bench distil`: a dense model, sparse ones made from it, and a report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from _language import require_transformers, write_glue, write_model
from _tiny import Run
from safetensors.torch import load_file, save_file

from moe_benchmarks._language import _batches, _dense, _study, _trainer
from moe_benchmarks._language._batches import EncodedRows
from moe_benchmarks._language._dense import fine_tuned, pretrained
from moe_benchmarks._language._distil import distil
from moe_benchmarks._language._processes import next_cell
from moe_benchmarks._language._report import finding, render_language
from moe_benchmarks._language._settings import LanguageSettings, Precision
from moe_benchmarks._language._students import STUDENTS
from moe_benchmarks._language._study import Cell, LanguageStudy
from moe_benchmarks._language._summary import estimate, kept_share, paired_difference
from moe_benchmarks._language._trainer import fine_tuned_by_trainer
from moe_benchmarks._language._training import scores_of, token_batches

OPTIONS = (
    "--epochs=8", "--learning-rate=0.005", "--distil-epochs=2", "--batch-size=8", "--seeds=2",
)  # fmt: skip


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return arguments that name a miniature model and data."""
    require_transformers()
    folder = tmp_path_factory.mktemp("language")
    write_glue(folder)
    return f"--model={write_model(folder / 'model')}", f"--data-dir={folder}"


@pytest.fixture(scope="session")
def finished(
    given: tuple[str, str], tmp_path_factory: pytest.TempPathFactory, moe_bench: Run
) -> Path:
    out = tmp_path_factory.mktemp("glue") / "out"
    done = moe_bench("distil", "CoLA", *given, f"--out={out}", *OPTIONS)
    assert done.returncode == 0, done.stderr
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def numbers(rows: list[dict[str, Any]]) -> list[Any]:
    kept = ("seed", "variant", "scores", "losses", "searches", "routing")
    return [{name: row.get(name) for name in kept} for row in rows]


def test_every_router_has_a_row_for_each_seed(finished: Path) -> None:
    rows = rows_of(finished)
    expected = [(seed, variant) for seed in (0, 1) for variant in ("dense", *STUDENTS)]
    assert [(row["seed"], row["variant"]) for row in rows] == expected
    for row in rows:
        assert row["rows"] == 30
        assert row["train_rows"] == 120
        assert "transformers" in row["versions"]
        assert -1 <= row["scores"]["hard"]["matthews"] <= 1
        if row["variant"] == "dense":
            assert row["scores"]["hard"]["matthews"] > 0.5, "the task can be learned"
            continue
        assert [layer["expert_units"] for layer in row["layers"]] == [12, 12]
        assert row["routing"]["hard"]["experts_per_token"] == pytest.approx([1.0, 1.0])
        assert len(row["losses"]) == 2
        searched = row["variant"] == "comet+"
        assert [each["epoch"] for each in row["searches"]] == ([0, 0, 1, 1] if searched else [])
        for each in row["searches"]:
            assert each["gain"] == pytest.approx(each["cost_before"] - each["cost_after"])
    hashed = [row["routing"]["hard"]["load"] for row in rows if row["variant"] == "hash"]
    assert hashed[0] != hashed[1], "each seed has its table"
    assert hashed[0][0] != hashed[0][1], "and each layer"


def test_a_second_call_trains_nothing(
    finished: Path, given: tuple[str, str], moe_bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "rows.jsonl").read_bytes()
    monkeypatch.setattr(_study, "distil", None)
    monkeypatch.setattr(_study, "fine_tuned", None)
    done = moe_bench("distil", "CoLA", *given, f"--out={finished}", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert (finished / "rows.jsonl").read_bytes() == before


def test_interrupted_runs_end_with_the_same_numbers(
    finished: Path, given: tuple[str, str], moe_bench: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arguments = ("distil", "CoLA", *given, f"--out={tmp_path / 'out'}", *OPTIONS, "--seeds=1")
    calls: list[Any] = []

    def interrupted(function: Any, stops: set[int]) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            calls.append(function)
            if calls.count(function) in stops:
                raise KeyboardInterrupt
            return function(*given, **options)

        return call

    monkeypatch.setattr(_study, "fine_tuned", interrupted(fine_tuned, {1}))
    monkeypatch.setattr(_study, "distil", interrupted(distil, {2, 5}))
    # What had all of its epochs only has to be scored.
    monkeypatch.setattr(_study, "scores_of", interrupted(scores_of, {1, 3}))
    ends = []
    while (done := moe_bench(*arguments)).returncode == 130:
        ends.append(done.stdout)
    assert len(ends) == 5
    assert "The same command continues it." in ends[0]
    assert numbers(rows_of(tmp_path / "out")) == numbers(rows_of(finished)[: 1 + len(STUDENTS)])


@pytest.mark.parametrize("variant", ["dense", "comet+"])
def test_a_model_that_is_interrupted_goes_on_from_its_last_epoch(
    variant: str, finished: Path, given: tuple[str, str], tmp_path: Path
) -> None:
    model, data = (argument.split("=", 1)[1] for argument in given)
    settings = LanguageSettings(**rows_of(finished)[0]["settings"])
    study = LanguageStudy(settings, model, tmp_path, Path(data))
    if variant != "dense":
        study.train(Cell(0, "dense"), lambda *_: None)
    seen: list[tuple[int, int]] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage != "importance":
            seen.append((done, total))
            if done == total - 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.train(Cell(0, variant), interrupt)
    total, num_epochs = seen[0][1], 8 if variant == "dense" else 2
    seen.clear()
    row = study.train(Cell(0, variant), lambda _, done, total: seen.append((done, total)))
    assert seen[0] == (total - total // num_epochs + 1, total)
    wanted = next(row for row in rows_of(finished) if row["variant"] == variant)
    assert numbers([json.loads(json.dumps(row))]) == numbers([wanted])
    study.add(row)
    assert not list(tmp_path.rglob(f"{variant}.safetensors"))


def test_trainer_has_rows_of_its_own(
    given: tuple[str, str], moe_bench: Run, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'moe-benchmarks[nlp]'")
    options = (f"--out={tmp_path}", *OPTIONS, "--trainer", "--routers=hash")
    done = moe_bench("distil", "CoLA", *given, *options)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path)
    assert [row["variant"] for row in rows] == ["dense", "dense-trainer", "hash"] * 2
    assert rows[1]["scores"]["hard"]["matthews"] > 0.5
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| dense, by Trainer | " in markdown
    assert "fine-tuned by transformers' Trainer: " in markdown


def test_two_processes_end_with_the_same_numbers(
    finished: Path, given: tuple[str, str], moe_bench: Run, tmp_path: Path
) -> None:
    some = "--routers=hash,comet+"
    done = moe_bench("distil", "CoLA", *given, f"--out={tmp_path}", *OPTIONS, some, "--workers=2")
    assert done.returncode == 0, done.stderr
    wanted = [row for row in rows_of(finished) if row["variant"] in ("dense", "hash", "comet+")]
    assert numbers(rows_of(tmp_path)) == numbers(wanted)


def test_what_a_worker_raises_is_said(
    given: tuple[str, str], moe_bench: Run, tmp_path: Path
) -> None:
    options = (f"--out={tmp_path}", *OPTIONS, "--learning-rate=1e30", "--workers=2")
    done = moe_bench("distil", "CoLA", *given, *options)
    assert done.returncode == 2
    assert "the training loss of epoch 1 is nan" in done.stderr


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_trainer_and_these_steps_make_the_same_model(
    given: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """With the same batches and without dropout."""
    pytest.importorskip("accelerate", reason="needs the extra: pip install 'moe-benchmarks[nlp]'")
    import transformers  # noqa: PLC0415 - an extra

    model, data = (argument.split("=", 1)[1] for argument in given)
    settings = LanguageSettings("CoLA", epochs=3, batch_size=8, train_rows=100, precision=precision)
    study = LanguageStudy(settings, model, tmp_path, Path(data))

    def without_dropout(*given: Any, **options: Any) -> Any:
        dense = pretrained(*given, **options)
        for module in dense.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return dense

    def in_order(rows: EncodedRows, batch_size: int, **_: int) -> Any:
        return map(rows.parts, torch.split(torch.arange(len(rows)), batch_size))

    monkeypatch.setattr(_dense, "pretrained", without_dropout)
    monkeypatch.setattr(_trainer, "pretrained", without_dropout)
    monkeypatch.setattr(EncodedRows, "shuffled", in_order)
    monkeypatch.setattr(_batches, "PART_TOKENS", 20)
    monkeypatch.setattr(
        transformers.Trainer,
        "_get_train_sampler",
        lambda self, *_: torch.utils.data.SequentialSampler(self.train_dataset),
    )
    steps: list[tuple[int, int]] = []
    ours = fine_tuned(model, study.train_rows, settings, tmp_path, seed=0)
    theirs = fine_tuned_by_trainer(
        model, study.train_rows, settings, tmp_path, seed=0,
        on_step=lambda *step: steps.append(step),
    )  # fmt: skip
    assert steps == [(done + 1, 39) for done in range(39)]
    first, found, wanted = (
        torch.nn.utils.parameters_to_vector(each.parameters())
        for each in (without_dropout(model, settings, seed=0), ours, theirs)
    )
    batch = study.train_rows.batch(list(range(8)))
    with torch.no_grad():
        states = theirs.eval()(**batch, output_hidden_states=True).hidden_states
    assert all(state.dtype is torch.float32 for state in states), "it is scored like ours"
    # Parts are rounded otherwise; of bfloat16 against float32 this is 0.03.
    bound = {"float32": 1e-3, "bfloat16": 1e-2}[precision]
    assert (found - wanted).norm() < bound * (wanted - first).norm()


def test_dense_models_are_begun_first_and_others_after_their_own() -> None:
    cells = [Cell(seed, variant) for seed in (0, 1) for variant in ("dense", "hash")]
    assert next_cell(cells[1:], [cells[0]]) == cells[2]
    assert next_cell([cells[1], cells[3]], [cells[0], cells[2]]) is None
    assert next_cell([cells[1], cells[3]], [cells[0]]) == cells[3]
    assert next_cell([cells[1], cells[3]], []) == cells[1]


def test_another_study_in_the_folder_is_refused(
    finished: Path, given: tuple[str, str], moe_bench: Run
) -> None:
    done = moe_bench("distil", "CoLA", *given, f"--out={finished}", *OPTIONS, "--gamma=3")
    assert done.returncode == 2
    assert "holds a study with other settings" in done.stderr


def test_another_pretrained_model_is_refused_and_a_copy_is_not(
    finished: Path, given: tuple[str, str], moe_bench: Run, tmp_path: Path
) -> None:
    model, data = given
    copied = shutil.copytree(model.split("=", 1)[1], tmp_path / "copy")
    arguments = ("distil", "CoLA", f"--model={copied}", data, f"--out={finished}", *OPTIONS)
    assert moe_bench(*arguments).returncode == 0
    weights = load_file(copied / "model.safetensors")
    next(iter(weights.values())).add_(1.0)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    done = moe_bench(*arguments)
    assert done.returncode == 2
    assert "holds a study with other settings" in done.stderr


def test_a_dense_model_that_is_gone_is_trained_before_those_that_begin_with_it(
    finished: Path, given: tuple[str, str], tmp_path: Path
) -> None:
    model, data = (argument.split("=", 1)[1] for argument in given)
    for name in ("settings.json", "rows.jsonl"):
        shutil.copy(finished / name, tmp_path)
    settings = LanguageSettings(**rows_of(finished)[0]["settings"])
    study = LanguageStudy(settings, model, tmp_path, Path(data))
    done, new = Cell(0, "hash"), Cell(1, "dense-trainer")
    assert study.missing([done, new]) == [new], "it begins with no other"
    rows = rows_of(finished)[:-1]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    last = Cell(rows_of(finished)[-1]["seed"], rows_of(finished)[-1]["variant"])
    assert study.missing([done, last]) == [Cell(1, "dense"), last]


def test_the_tokens_that_confirm_a_search_are_like_those_that_are_searched(
    given: tuple[str, str], tmp_path: Path
) -> None:
    model, data = (argument.split("=", 1)[1] for argument in given)
    study = LanguageStudy(LanguageSettings("CoLA"), model, tmp_path, Path(data))
    batches = list(token_batches(study.train_rows, 10_000, seed=0, epoch=0))
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).double()
    assert sorted(lengths.tolist()) == sorted(study.train_rows.lengths.tolist())
    place = torch.arange(len(lengths)).double()
    assert abs(torch.corrcoef(torch.stack([lengths, place]))[0, 1]) < 0.2


def test_held_out_rows_are_training_rows_that_are_not_trained_on(
    given: tuple[str, str], tmp_path: Path
) -> None:
    model, data = (argument.split("=", 1)[1] for argument in given)
    settings = LanguageSettings("SST-2", evaluate_on="held-out", train_rows=40)
    study = LanguageStudy(settings, model, tmp_path, Path(data))
    assert (len(study.train_rows), len(study.dev_rows)) == (40, 12)


def test_the_report_shows_what_is_in_the_rows(finished: Path) -> None:
    html = (finished / "report.html").read_text(encoding="utf-8")
    markdown = (finished / "report.md").read_text(encoding="utf-8")
    for text in (html, markdown):
        for word in ("COMET+", "Hash, balanced", "Matthews correlation", "30 development rows"):
            assert word in text
    assert html.count("<svg") == 1
    assert 'src="http' not in html


def test_rows_alone_make_the_same_report(finished: Path, moe_bench: Run, tmp_path: Path) -> None:
    done = moe_bench("report", str(finished), f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.md").read_bytes() == (finished / "report.md").read_bytes()
    trial = '{"gate": "comet", "search": "exact", "trial": 0, "state": "failed"}'
    (tmp_path / "other.jsonl").write_text(f"{trial}\n", encoding="utf-8")
    done = moe_bench("report", str(finished), str(tmp_path / "other.jsonl"), f"--out={tmp_path}")
    assert done.returncode == 2
    assert "name those of one kind" in done.stderr


def row(variant: str, seed: int, score: float) -> dict[str, Any]:
    layers = [{"expert_units": 12, "hidden_units": 48}]
    scores = {routing: {"accuracy": score} for routing in ("trained", "hard")}
    about = {"task": "SST-2", "rows": 10, "train_rows": 20, "settings": {"evaluate_on": "dev"}}
    place = {"versions": {"torch": "2"}, "device": "none", "commit": None, "seconds": 60.0}
    layers = [] if variant == "dense" else layers
    return {**about, **place, "variant": variant, "seed": seed, "scores": scores, "layers": layers}


def test_the_finding_says_who_is_ahead_and_who_is_not_told_apart() -> None:
    rows = [row("dense", seed, 0.9) for seed in range(3)]
    rows += [row("hash", seed, 0.7 + 0.001 * seed) for seed in range(3)]
    rows += [row("top-k", seed, 0.8 + 0.1 * (seed - 1)) for seed in range(3)]
    rows += [row("comet+", seed, 0.8) for seed in range(3)]
    text = finding(rows)
    assert "COMET+ is ahead of Hash by +9.9 [+9.7, +10.1] points." in text
    assert "COMET+ and Top-k are not told apart by 3 seeds: +0.0 [-24.8, +24.8] points." in text
    assert "with 25% of its feed-forward width a token: 88.9% (3 seeds)." in text
    # COMET+ alone has the seed that went best.
    assert "88.9% (3 seeds)." in finding([*rows, row("dense", 3, 0.1), row("comet+", 3, 0.8)])
    assert finding(rows[:3]) == "Only the dense model was trained yet."
    apart = [*rows[:3], row("hash", 0, 0.7), row("comet+", 1, 0.8)]
    assert finding(apart) == "The sparse models have no seed in common yet."
    html, _ = render_language([*rows, *(each | {"task": "RTE"} for each in rows)])
    assert html.count("<svg") == 2


def test_a_second_score_has_a_column_and_each_model_a_line() -> None:
    rows = [
        {**row(name, seed, 0.8), "task": "MRPC", "scores": dict.fromkeys(("hard", "trained"), both)}
        for name in ("dense", "comet+")
        for seed, both in enumerate([{"accuracy": 0.8, "f1": 0.7}, {"accuracy": 0.9, "f1": 0.75}])
    ]
    _, page = render_language(rows)
    assert "|  | accuracy | F1 | of the dense |" in page
    assert "[85.0 \\[21.5, 148.5\\]](#row-mrpc-dense-0) | 72.5 \\[40.7, 104.3\\] |" in page
    assert '| <a id="row-mrpc-comet-plus-1"></a>COMET+ | 1 | 90.0 | 75.0 | 1.0 |' in page
    assert "Settings of all models: evaluate on dev." in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "dense of SST-2 with seed 0 appears 2 times"),
        ({"settings": {"evaluate_on": "held-out"}, "seed": 1}, "with other settings"),
        ({"pretrained": "b", "seed": 1}, "with other pretrained models"),
    ],
)
def test_rows_of_several_studies_are_not_mixed(change: dict[str, Any], message: str) -> None:
    first = row("dense", 0, 0.9) | {"pretrained": "a"}
    with pytest.raises(ValueError, match=message):
        render_language([first, first | change])
    render_language([first, first | {"task": "RTE"}, row("dense", 1, 0.8)])


def test_estimates() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.high - found.value == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert estimate([0.5]).text() == "50.0"
    assert estimate([-1e-5]).text(signed=True) == "+0.0"
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert kept_share({0: 0.4, 1: 9.0}, {0: 0.8}) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--routers=comet,best",), "`--routers` must be among"),
        (("--batch-size=0",), "`batch_size` must be >= 1, got 0"),
        (("--last-gamma=0",), "`last_gamma` must be a finite number > 0, got 0.0"),
        (("--train-rows=3",), "`train_rows` must be >= 20, got 3"),
        (("--width=40", "--shared=2"), "must be such that 4 experts find"),
        (("--shared=0",), "--shared 0 needs --width"),
        (("--data-dir=/nowhere",), "CoLA needs /nowhere/glue/CoLA/train.tsv"),
    ],
)
def test_bad_options_are_named(
    options: tuple[str, ...], message: str, given: tuple[str, str], moe_bench: Run, tmp_path: Path
) -> None:
    done = moe_bench("distil", "CoLA", *given, f"--out={tmp_path}", "--seeds=1", *options)
    assert done.returncode == 2
    assert message in done.stderr


def test_help_names_the_extra(moe_bench: Run) -> None:
    assert 'pip install "moe-benchmarks[nlp]"' in moe_bench("distil", "--help").stdout


def test_an_unknown_task_is_named(given: tuple[str, str], moe_bench: Run, tmp_path: Path) -> None:
    done = moe_bench("distil", "AX", *given, f"--out={tmp_path}")
    assert done.returncode == 2
    assert "`task` must be one of ['CoLA'," in done.stderr


def test_a_small_dense_layer_is_learned_by_its_copies(
    given: tuple[str, str], tmp_path: Path
) -> None:
    """With experts as wide as the layer, the sparse model begins as the dense one."""
    model, data = (argument.split("=", 1)[1] for argument in given)
    settings = LanguageSettings(
        "SST-2", width=48, num_shared=48, distil_epochs=1, epochs=1, distil_learning_rate=1e-9
    )
    study = LanguageStudy(settings, model, tmp_path, Path(data))
    rows = [study.train(Cell(0, each), lambda *_: None) for each in ("dense", "hash", "comet")]
    assert rows[1]["scores"]["hard"] == rows[0]["scores"]["hard"] == rows[2]["scores"]["hard"]
    assert torch.tensor([each["error"] for each in rows[1]["layers"]]).max() < 1e-6
