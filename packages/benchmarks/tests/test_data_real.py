"""The published files themselves, where they are: their licences do not allow to ship them."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from moe_benchmarks._data._catalog import DATA_VARIABLE, DATASETS, load
from moe_benchmarks._data._dataset import ITEM, USER, Dataset, Split
from moe_benchmarks._language._squad_files import read_squad
from moe_benchmarks._language._squad_scores import score_answers

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


def test_squad_has_its_questions_and_answers(tmp_path: Path) -> None:
    path = FOLDER / "squad-v2-dev.json.gz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {DATA_VARIABLE} or beside the repository")
    (tmp_path / "squad").mkdir()
    for name in ("train", "dev"):
        shutil.copy(path, tmp_path / "squad" / f"{name}-v2.0.json.gz")
    _, questions = read_squad(tmp_path)
    golds = [question.answers for question in questions]
    assert (len(golds), golds.count(())) == (11_873, 5_945)
    none = score_answers([""] * len(golds), golds)
    assert none["exact"] == none["f1"] == pytest.approx(5_945 / 11_873, abs=1e-3)
    longest = score_answers([max(some, key=len, default="") for some in golds], golds)
    assert set(longest.values()) == {1.0}
