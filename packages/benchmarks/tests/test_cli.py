import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from _tiny import Run

from moe_benchmarks._cli import app

README = Path(__file__).parents[1] / "README.md"
# In the repository; no package has them.
DOCS = Path(__file__).parents[1] / ".." / ".." / "docs"


def test_the_readme_names_commands_and_options_that_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (README, *DOCS.glob("*.md")))
    lines = re.findall(r"^moe-bench ([^#\n]+)", text, re.MULTILINE)
    assert len(lines) >= 8
    group = typer.main.get_command(app)
    commands = vars(group)["commands"]
    for line in lines:
        name, *words = shlex.split(line)
        options = {each for parameter in commands[name].params for each in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_list_names_what_the_others_take(moe_bench: Run) -> None:
    output = moe_bench("list").stdout
    for name in ("movielens-1m", "digits", "comet", "dselect-k", "exact-shared", "ids"):
        assert name in output


def test_a_table_of_one_s_own_is_trained_on_and_continued(tmp_path: Path, moe_bench: Run) -> None:
    table = tmp_path / "films.csv"
    rows = [f"{n % 7},{n % 5},{(n % 7 + n % 5) % 2},{n % 4 or ''}" for n in range(300)]
    table.write_text("\n".join(["who,film,liked,stars", *rows]))
    options = ("train", f"--csv={table}", "--user=who", "--item=film", "--targets=liked,stars",
               f"--out={tmp_path / 'out'}")  # fmt: skip
    done = moe_bench(*options, "--epochs=2")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out" / "row.json").read_text())
    assert row["experiment"] == "films"
    assert set(row["metrics"]["test"]["hard"]["tasks"]) == {"liked", "stars"}
    with (tmp_path / "out" / "epochs.csv").open() as file:
        epochs = list(csv.DictReader(file))
    assert [epoch["step"] for epoch in epochs] == ["1", "2"]
    for written, kept in zip(epochs, row["history"], strict=True):
        assert float(written["validation_loss"]) == kept["validation_loss"]
        assert float(written["stars/largest_load"]) == kept["largest_load"][1]
    again = moe_bench(*options, "--epochs=2")
    assert json.loads((tmp_path / "out" / "row.json").read_text())["metrics"] == row["metrics"]
    assert "epoch 2" in again.stdout, "what the checkpoint holds is shown"
    lines = (tmp_path / "out" / "epochs.csv").read_text().splitlines()
    assert len(lines) == 3, "what is written again takes the place of what was there"
    other = moe_bench(*options, "--epochs=3")
    assert other.returncode == 2
    assert "other settings" in other.stderr


def test_a_run_of_a_table_is_not_continued_on_other_data(tmp_path: Path, moe_bench: Run) -> None:
    table, out = tmp_path / "films.csv", tmp_path / "out"
    rows = [f"{n % 7},{n % 5},{n % 3},{n % 4}" for n in range(100)]
    table.write_text("\n".join(["user,item,rating,stars", *rows]))
    options = ("train", f"--csv={table}", f"--out={out}", "--epochs=1")
    done = moe_bench(*options)
    assert done.returncode == 0, done.stderr
    other = moe_bench(*options, "--user=item", "--item=user", "--targets=stars")
    assert "other settings (user, item, targets)" in other.stderr
    table.write_text("\n".join(["user,item,rating,stars", *rows, rows[0]]))
    assert "other settings (csv)" in moe_bench(*options).stderr
    settings = out / "settings.json"
    settings.write_text("{")
    assert f"{settings} is damaged" in moe_bench(*options).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "imagenet", "--out=x"), "the experiment must be one of"),
        (("train", "digits", "--out=x", "--gate=best"), "`gate` must be one of"),
        (("train", "digits", "--out=x", "--csv=x.csv"), "with users and items, got digits"),
        (("train", "movielens-1m", "--out=x", "--data-dir=nowhere"), "moe-bench data movielens-1m"),
        (("tune", "digits", "--out=x", "--gates=comet", "--searches=ids"), "`searches` must be"),
        (("tune", "digits", "--out=x", "--share=2"), "`share` must be in (0, 1], got 2.0"),
        (("speed", "imagenet"), "the experiment must be one of"),
        (("speed", "digits", "--gates=best"), "`--gates` must be among"),
        (("speed", "digits", "--gates=,"), "got none"),
    ],
)
def test_wrong_input_is_named(arguments: tuple[str, ...], message: str, moe_bench: Run) -> None:
    done = moe_bench(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not Path("x").exists()
