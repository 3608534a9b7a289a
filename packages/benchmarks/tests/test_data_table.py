from pathlib import Path

import numpy as np
import pytest
import torch

from moe_benchmarks._data._csv_table import read_table
from moe_benchmarks._data._dataset import ITEM, USER, DataError, Dataset, Split


def read(path: Path, seed: int = 0) -> Dataset:
    return read_table(path, user="who", item="what", targets=["clicked", "minutes"], seed=seed)


def write(path: Path, rows: list[str], header: str = "who,what,clicked,minutes,unused") -> Path:
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return path


def table(count: int = 100) -> list[str]:
    return [
        f'u{row % 7},"i,{row % 5}",{row % 2},{row / 4 if row % 2 else ""},x' for row in range(count)
    ]


def splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


def test_every_row_is_in_one_split_with_its_own_values(tmp_path: Path) -> None:
    data = read(write(tmp_path / "clicks.csv", table()))
    assert data.name == "clicks"
    assert [len(split) for split in splits(data)] == [80, 10, 10]
    assert dict(data.num_ids) == {USER: 7, ITEM: 5}
    rows: list[int] = []
    for split in splits(data):
        clicked, minutes = split.targets
        everywhere, where_given = split.present
        assert everywhere is None
        assert where_given is not None
        assert torch.equal(where_given, clicked == 1)
        row = (minutes[clicked == 1] * 4).long()
        rows += row.tolist()
        assert torch.equal(split.inputs[USER][clicked == 1], row % 7)
        assert torch.equal(split.inputs[ITEM][clicked == 1], row % 5)
    assert sorted(rows) == list(range(1, 100, 2))


def test_columns_of_zeros_and_ones_are_binary_and_others_regression(tmp_path: Path) -> None:
    data = read(write(tmp_path / "clicks.csv", table()))
    assert [(task.name, task.kind) for task in data.tasks] == [
        ("clicked", "binary"),
        ("minutes", "regression"),
    ]


def test_the_seed_determines_the_split(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.csv", table())
    one, again, other = (read(path, seed=seed).test for seed in (1, 1, 2))
    assert torch.equal(one.targets[1], again.targets[1])
    assert not torch.equal(one.targets[1], other.targets[1])


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.csv", table(), header="\ufeffwho,what,clicked,minutes,unused")
    assert read(path).num_ids[USER] == 7


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("u1,i1,yes,3,x", ["'clicked'", "line 52", "'yes'"]),
        ("u1,i1,1,inf,x", ["'minutes'", "line 52", "'inf'"]),
        ("u1,i1,1,nan,x", ["'minutes'", "line 52", "'nan'"]),
        ("u1,i1,1,-1e39,x", ["'minutes'", "line 52", "float32", "'-1e39'"]),
        (" ,i1,1,3,x", ["'who'", "line 52"]),
        ("u1,,1,3,x", ["'what'", "line 52"]),
        ("u1,i1,1", ["line 52", "as many cells"]),
        ("u1,i1,1,3,x,y", ["line 52", "as many cells"]),
        ('u1,"i1"x,1,3,x', ["cannot be read"]),
    ],
)
def test_a_wrong_cell_is_named(tmp_path: Path, row: str, words: list[str]) -> None:
    rows = table()
    rows.insert(50, row)
    path = write(tmp_path / "clicks.csv", rows)
    with pytest.raises(DataError) as caught:
        read(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_column_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.csv", table())
    with pytest.raises(DataError, match=r"no column 'seen'.*'clicked', 'minutes', 'unused'"):
        read_table(path, user="who", item="what", targets=["clicked", "seen"])


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "clicks.csv", table(), header="who,what,clicked,minutes,clicked")
    with pytest.raises(DataError, match=r"clicks\.csv must have one column 'clicked', got several"):
        read(path)
    unused = write(tmp_path / "clicks.csv", table(), header="who,what,clicked,minutes,")
    assert len(read(unused).tasks) == 2


def test_files_without_rows_or_values_are_refused(tmp_path: Path) -> None:
    cases = {
        "empty": ("", "no column 'who'"),
        "short": ("who,what,clicked,minutes\n" + "a,b,1,2\n" * 9, "at least 10 rows, got 9"),
        "void": ("who,what,clicked,minutes\n" + "a,b,1,\n" * 20, "'minutes' must have a value"),
    }
    for name, (text, words) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=words):
            read(tmp_path / name)
    (tmp_path / "binary").write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    for name in ("binary", "absent"):
        with pytest.raises(DataError, match=f"{name}.*cannot be read"):
            read(tmp_path / name)


def test_a_column_without_a_value_in_a_split_is_refused(tmp_path: Path) -> None:
    rows = [f"u{row % 7},i{row % 5},{row % 2},{3 if row == 4 else ''},x" for row in range(100)]
    path = write(tmp_path / "clicks.csv", rows)
    with pytest.raises(DataError, match=r"clicks\.csv must have a value of 'minutes' in the"):
        read(path)


@pytest.mark.parametrize("targets", [[], ["clicked", "clicked"], ["who"]])
def test_targets_must_be_different_columns(tmp_path: Path, targets: list[str]) -> None:
    with pytest.raises(ValueError, match="different columns"):
        read_table(tmp_path / "absent", user="who", item="what", targets=targets)
