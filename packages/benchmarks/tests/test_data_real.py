"""The published files themselves, where they are: their licences do not allow to ship them."""

import os
from pathlib import Path

import pytest
import torch

from moe_benchmarks._data._catalog import DATA_VARIABLE, DATASETS, load
from moe_benchmarks._data._dataset import ITEM, USER, Dataset, Split

ROOT = Path(__file__).parents[3]
BESIDE = ROOT.parent / "shared" / "data"
FOLDER = Path(os.environ.get(DATA_VARIABLE) or BESIDE)


def real(name: str) -> Dataset:
    """Load a data set, or skip where one of its files is not there."""
    missing = [file.path for file in DATASETS[name].files if not (FOLDER / file.path).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is not in {DATA_VARIABLE} or beside the repository")
    return load(name, FOLDER)


def splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


def lengths(dataset: Dataset) -> list[int]:
    return [len(split) for split in splits(dataset)]


def seen(dataset: Dataset) -> list[int]:
    return [int(split.targets[0].sum()) for split in splits(dataset)]


def test_movielens_1m_has_the_papers_rows() -> None:
    data, paper = real("movielens-1m"), real("movielens-1m-comet-split")
    assert lengths(data) == lengths(paper) == [1_574_602, 224_944, 199_950]
    assert seen(data) == seen(paper)
    assert sum(seen(data)) == 1_000_209
    assert dict(data.num_ids) == {USER: 6040, ITEM: 3706}
    assert dict(paper.num_ids) == {USER: 6040, ITEM: 3952}
    codes = torch.cat([s.inputs[USER] * 10_000 + s.inputs[ITEM] for s in splits(data)])
    assert len(torch.unique(codes)) == len(codes)


def test_movielens_100k_is_whole() -> None:
    data = real("movielens-100k")
    assert sum(seen(data)) == 100_000
    assert lengths(data) == [157_500, 22_500, 20_000]
    assert dict(data.num_ids) == {USER: 943, ITEM: 1682}


def test_the_first_part_of_jester_is_whole() -> None:
    data = real("jester-1")
    assert sum(seen(data)) == 1_810_455
    assert dict(data.num_ids) == {USER: 24_983, ITEM: 100}


@pytest.mark.parametrize("name", ["multi-mnist", "multi-fashion-mnist"])
def test_pictures_of_all_classes_are_composed(name: str) -> None:
    missing = [file.path for file in DATASETS[name].files if not (FOLDER / file.path).exists()]
    if missing:
        pytest.skip(f"{missing[0]} is not in {DATA_VARIABLE} or beside the repository")
    data = load(name, FOLDER, share=0.05)
    assert lengths(data) == [5000, 1000, 1000]
    for split in splits(data):
        assert all(set(target.tolist()) == set(range(10)) for target in split.targets)
