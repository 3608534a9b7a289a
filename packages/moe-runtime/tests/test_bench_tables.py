import importlib.util
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("table", PACKAGE / "bench" / "table.py")
assert _spec is not None
assert _spec.loader is not None
table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(table)


def timing(*, theirs: float) -> dict[str, Any]:
    return {
        "milliseconds": {"moe-runtime": 2.0, "tutel": 2.0 * theirs, "transformers eager": 7.0},
        "ratios": {"moe-runtime": 1.0, "tutel": theirs, "transformers eager": 3.5},
        "floor_milliseconds": 1.5,
    }


def row(num_rows: int) -> dict[str, Any]:
    size = {"gated": True, "num_experts": 8, "dim": 768, "hidden": 384, "rows": num_rows}
    return {**size, "inference": timing(theirs=1.25), "training": timing(theirs=2.0)}


def test_a_table_of_libraries_has_ratios_shares_and_dashes_for_what_was_left_out() -> None:
    assert table.peers([row(64)]).splitlines()[-1] == (
        "| 8 | 768/384, gated | 64 | 75% / 75% | 3.50x / 3.50x | 1.25x / 2.00x | - / - | - / - |"
    )


def test_the_short_table_has_the_fewest_and_the_most_rows() -> None:
    short = table.peers_in_short([row(1), row(64), row(1024)])
    assert short == table.peers([row(1), row(1024)])


def test_tables_replace_what_is_between_their_markers_and_nothing_else() -> None:
    text = "a\n<!-- table: x -->\nold\n<!-- end of table -->\nb\n<!-- table: y -->\nkept\n"
    written = table.write_between_markers(text, {"x": "| new |"})
    assert written == text.replace("old", "| new |")
    assert table.write_between_markers(written, {"x": "| new |"}) == written


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    assert table.write_between_markers(text, table.read_tables(PACKAGE / "bench/results")) == text
