"""`moe-bench export`: models of a study, served by ONNX Runtime."""

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from _language import require_transformers, write_glue, write_model, write_squad
from _tiny import Run

from moe_benchmarks._language._exports import export_seed
from moe_benchmarks._language._settings import LanguageSettings
from moe_benchmarks._language._study import Cell, LanguageStudy
from moe_runtime import hard_routing
from moe_runtime.convert import from_pretrained

OPTIONS = (
    "--epochs=4", "--learning-rate=0.005", "--distil-epochs=1", "--batch-size=8", "--seeds=1",
    "--max-length=24", "--routers=top-k,comet",
)  # fmt: skip
VARIANTS = ["dense", "top-k", "comet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_transformers()
    folder = tmp_path_factory.mktemp("data")
    write_model(folder / "model")
    write_glue(folder)
    write_squad(folder, num_train=60, num_dev=20)
    return folder


@pytest.fixture(scope="module")
def study(data: Path, moe_bench: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    given = (f"--model={data / 'model'}", f"--data-dir={data}", f"--out={out}")
    done = moe_bench("distil", "CoLA", *given, *OPTIONS)
    assert done.returncode == 0, done.stderr
    done = moe_bench("export", str(out), f"--data-dir={data}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_each_model_is_scored_by_its_exported_answers(study: Path) -> None:
    rows = rows_of(study)
    assert [row["variant"] for row in rows] == VARIANTS
    for row in rows:
        assert list(row["exports"]) == ["float32", "int8"]
        plain, small = row["exports"]["float32"], row["exports"]["int8"]
        assert plain["scores"] == pytest.approx(row["scores"]["hard"])
        assert plain["error"] < 1e-5 < small["error"] < 0.1
        for found in (plain, small):
            assert list(found["milliseconds"]) == ["1 x 24", "32 x 24"]
            assert all(value > 0 for value in found["milliseconds"].values())
            assert (study / found["path"]).stat().st_size <= found["bytes"]
    markdown = (study / "report.md").read_text(encoding="utf-8")
    section = markdown.split("### Exported to ONNX")[1].split("### ")[0].splitlines()
    lines = [line.split(" | ")[:2] for line in section if line.startswith("| ")][2:]
    names = ("dense", "Top-k", "COMET")
    assert lines == [[f"| {name}", kind] for kind in ("float32", "int8") for name in names]


def test_a_kept_model_is_what_was_exported(study: Path) -> None:
    model = from_pretrained(study / "seed-0" / "comet")
    session = ort.InferenceSession(study / rows_of(study)[2]["exports"]["float32"]["path"])
    for rows, length in ((1, 5), (2, 3), (7, 24)):
        ids = torch.randint(4, 12, (rows, length))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found = session.run(None, {name: each.numpy() for name, each in batch.items()})[0]
        with torch.no_grad(), hard_routing(model):
            wanted = model(**batch).logits
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def test_what_is_exported_is_not_exported_again(
    study: Path, data: Path, moe_bench: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (study / "rows.jsonl").read_bytes()
    monkeypatch.setattr("moe_benchmarks._cli._export.export_seed", None)
    done = moe_bench("export", str(study), f"--data-dir={data}")
    assert done.returncode == 0, done.stderr
    assert (study / "rows.jsonl").read_bytes() == before


def test_answers_to_questions_are_exported(data: Path, moe_bench: Run, tmp_path: Path) -> None:
    given = (f"--model={data / 'model'}", f"--data-dir={data}", f"--out={tmp_path}")
    done = moe_bench("distil", "SQuAD2.0", *given, *OPTIONS, "--routers=hash")
    assert done.returncode == 0, done.stderr
    settings = LanguageSettings(**rows_of(tmp_path)[0]["settings"])
    opened = LanguageStudy(settings, str(data / "model"), tmp_path, data)
    told: list[str] = []
    found = export_seed(opened, [Cell(0, "dense"), Cell(0, "hash")], "float32", told.append)
    assert told == list(found) == ["dense", "hash"]
    for row in rows_of(tmp_path):
        assert found[row["variant"]]["scores"] == pytest.approx(row["scores"]["hard"])


def test_what_is_missing_is_named(study: Path, data: Path, moe_bench: Run, tmp_path: Path) -> None:
    given = f"--data-dir={data}"
    for arguments, message in (
        ((str(study), "--formats=int4"), "`--formats` must be among ['float32', 'int8']"),
        ((str(tmp_path),), "holds no study of `moe-bench distil`: it lacks settings.json"),
        ((str(study), "--seeds=2"), "seed 1 has no dense model yet to compare with"),
    ):
        done = moe_bench("export", *arguments, given)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    copied = tmp_path / "copied"
    shutil.copytree(study, copied, ignore=shutil.ignore_patterns("comet"))
    rows = [{**row, "exports": {}} for row in rows_of(copied)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (copied / "rows.jsonl").write_text(text, encoding="utf-8")
    done = moe_bench("export", str(copied), given)
    assert done.returncode == 2
    assert "seed-0/comet is not there: only its row was kept" in done.stderr
    shutil.rmtree(copied / "seed-0" / "dense")
    done = moe_bench("export", str(copied), given)
    assert "only the rows of this study were kept" in done.stderr
