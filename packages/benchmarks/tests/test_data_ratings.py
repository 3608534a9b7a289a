import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _published import (
    NUM_ITEMS,
    NUM_USERS,
    rated_pairs,
    write_books,
    write_comet_split,
    write_jester,
    write_movielens,
    write_zip,
)
from _tiny import Run
from torch import Tensor

from moe_benchmarks._data._books import core
from moe_benchmarks._data._catalog import load
from moe_benchmarks._data._dataset import ITEM, USER, DataError, Dataset, Split
from moe_benchmarks._data._negatives import sample_negatives
from moe_benchmarks._data._ratings import dataset_from_ratings
from moe_benchmarks._data._share import with_rows, with_users
from moe_benchmarks._data._split_rows import split_rows


def splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


def pairs(split: Split, rows: Tensor | slice = slice(None)) -> list[tuple[int, int]]:
    users, items = split.inputs[USER][rows].tolist(), split.inputs[ITEM][rows].tolist()
    return list(zip(users, items, strict=True))


@pytest.fixture
def made() -> Dataset:
    user, item = rated_pairs()
    return dataset_from_ratings("made", user, item, 1 + (user + item) % 5, seen="watched")


def test_negatives_are_never_rated_and_as_many_as_the_rated() -> None:
    user, item = rated_pairs()
    other = sample_negatives(user, item, generator=np.random.default_rng(0))
    rated, sampled = set(zip(user, item, strict=True)), set(zip(*other, strict=True))
    assert len(sampled) == len(other[0])
    assert not rated & sampled
    np.testing.assert_array_equal(np.bincount(other[0]), np.bincount(user))


def test_a_user_with_few_unrated_items_gets_all_of_them() -> None:
    user, item = np.array([0] * 9 + [1] * 10), np.array([*range(9), *range(10)])
    other = sample_negatives(user, item, generator=np.random.default_rng(0))
    assert [list(ids) for ids in other] == [[0], [9]]


def test_negatives_do_not_depend_on_the_order_of_the_ratings() -> None:
    user, item = rated_pairs()
    order = np.random.default_rng(1).permutation(len(user))
    one = sample_negatives(user, item, generator=np.random.default_rng(0))
    other = sample_negatives(user[order], item[order], generator=np.random.default_rng(0))
    np.testing.assert_array_equal(one, other)


def test_every_unrated_item_is_about_as_likely() -> None:
    user, item = np.arange(6000).repeat(3), np.tile([0, 1, 2], 6000)
    user, item = np.append(user, 6000), np.append(item, 11)
    _, sampled = sample_negatives(user, item, generator=np.random.default_rng(0))
    counts = np.bincount(sampled, minlength=12)[3:]
    # 18,000 draws over 9 items: 2,000 each, with a standard deviation below 45.
    assert np.abs(counts - 2000).max() < 5 * 45


def test_rows_are_split_without_overlap_and_with_equal_shares_of_the_first_task() -> None:
    positive = np.arange(1003) % 3 == 0
    rows = split_rows(positive, generator=np.random.default_rng(0))
    assert [len(part) for part in rows] == [789, 113, 101]
    assert sorted(np.concatenate(rows)) == list(range(1003))
    for part in rows:
        assert abs(positive[part].sum() - len(part) * positive.mean()) <= 1


def test_no_pair_is_in_two_splits_and_ids_have_no_gaps(made: Dataset) -> None:
    everything = [pair for split in splits(made) for pair in pairs(split)]
    assert len(set(everything)) == len(everything) == 2 * len(rated_pairs()[0])
    assert dict(made.num_ids) == {USER: NUM_USERS, ITEM: NUM_ITEMS}
    assert {user for user, _ in everything} == set(range(NUM_USERS))
    assert {item for _, item in everything} == set(range(NUM_ITEMS))


def test_only_rated_rows_have_a_rating_and_it_is_theirs(made: Dataset) -> None:
    rated = set(zip(*rated_pairs(), strict=True))
    for split in splits(made):
        watched, rating = split.targets
        everywhere, where_rated = split.present
        assert everywhere is None
        assert where_rated is not None
        assert torch.equal(watched == 1, where_rated)
        assert set(pairs(split, where_rated)) <= rated
        assert not set(pairs(split, ~where_rated)) & rated
        sums = split.inputs[USER] + split.inputs[ITEM]
        assert torch.equal(rating, torch.where(watched == 1, 1 + sums % 5, 0).float())


def test_the_seed_determines_the_rows() -> None:
    user, item = rated_pairs()
    one, again, other = (
        dataset_from_ratings("made", user, item, item, seen="watched", seed=seed)
        for seed in (3, 3, 4)
    )
    assert pairs(one.train) == pairs(again.train)
    assert pairs(one.train) != pairs(other.train)


def test_repeated_pairs_and_empty_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="each pair once, got 1 repeated"):
        dataset_from_ratings(
            "made", np.array([1, 1]), np.array([2, 2]), np.array([3, 3]), seen="watched"
        )
    none = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match="at least one rating"):
        dataset_from_ratings("made", none, none, none, seen="watched")


def test_a_share_of_the_users_keeps_all_their_rows_and_ratings(made: Dataset) -> None:
    part = with_users(made, 0.25, seed=1)
    assert part.num_ids[USER] == NUM_USERS / 4
    assert part.notes == ("Only 10 of 40 users are used (0.25 of them, seed 1).",)

    def rows_of_users(dataset: Dataset) -> set[tuple[tuple[float, ...], ...]]:
        # What is left of a user without its number: items and ratings of each split.
        users = torch.cat([split.inputs[USER] for split in splits(dataset)])
        return {
            tuple(tuple(split.targets[1][split.inputs[USER] == user].tolist())
                  for split in splits(dataset))
            for user in set(users.tolist())
        }  # fmt: skip

    assert rows_of_users(part) <= rows_of_users(made)
    assert len(rows_of_users(part)) == 10
    for split in splits(part):
        assert int(split.inputs[ITEM].min()) >= 0
        assert int(split.inputs[ITEM].max()) < part.num_ids[ITEM]


def test_a_share_that_leaves_a_task_without_a_value_is_refused() -> None:
    user, item = np.arange(40) // 2, np.arange(40)
    data = dataset_from_ratings("made", user, item, 1 + item % 5, seen="watched")
    with pytest.raises(DataError, match=r"0\.05 of the users must have a value of 'rating' in the"):
        with_users(data, 0.05)


def test_a_whole_share_is_the_data_set_itself(made: Dataset) -> None:
    assert with_users(made, 1) is made
    assert with_rows(made, 1.0) is made
    for share in (0, -1, 1.5):
        with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\], got"):
            with_users(made, share)


def test_a_share_of_the_rows_is_a_subset(made: Dataset) -> None:
    part = with_rows(made, 0.5)
    assert len(part.train) == round(len(made.train) / 2)
    assert set(pairs(part.train)) < set(pairs(made.train))
    assert part.num_ids == made.num_ids


@pytest.mark.parametrize("name", ["movielens-1m", "movielens-100k"])
def test_movielens_is_read_as_published(tmp_path: Path, name: str) -> None:
    count = write_movielens(tmp_path)
    data = load(name, tmp_path)
    assert sum(map(len, splits(data))) == 2 * count
    assert [task.name for task in data.tasks] == ["watched", "rating"]
    assert [task.kind for task in data.tasks] == ["binary", "regression"]
    assert dict(data.num_ids) == {USER: NUM_USERS, ITEM: NUM_ITEMS}
    rating = data.train.targets[1][data.train.present[1]]
    assert set(rating.tolist()) == {1, 2, 3, 4, 5}


def test_the_papers_split_is_taken_as_it_is(tmp_path: Path) -> None:
    write_comet_split(tmp_path)
    data = load("movielens-1m-comet-split", tmp_path)
    assert [len(split) for split in splits(data)] == [80, 12, 10]
    with np.load(tmp_path / "movielens-1m-comet-split" / "test.npz") as fields:
        assert data.test.inputs[ITEM].tolist() == fields["movie"].tolist()
        assert data.test.targets[0].tolist() == fields["watched"].tolist()
    assert "sampled again" in data.notes[0]


def test_jester_is_read_with_all_parts_or_the_first(tmp_path: Path) -> None:
    count = write_jester(tmp_path)
    whole, part = load("jester", tmp_path), load("jester-1", tmp_path)
    assert sum(int(split.targets[0].sum()) for split in splits(whole)) == count
    assert whole.num_ids[USER] == 3 * NUM_USERS
    assert part.num_ids[USER] == NUM_USERS
    assert "part 1" in part.notes[0]
    assert [task.name for task in whole.tasks] == ["rated", "rating"]
    ratings = whole.train.targets[1]
    assert float(ratings.min()) < -9
    assert float(ratings.max()) > 9


def test_the_publishers_xls_is_read_where_xlrd_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(tmp_path / "jester-data-1.zip", "jester-data-1.xls", b"a sheet")
    monkeypatch.setitem(sys.modules, "xlrd", None)
    with pytest.raises(ModuleNotFoundError, match=r"moe-benchmarks\[jester\]"):
        load("jester-1", tmp_path)

    # What xlrd 2.0 offers, of a sheet with two users: its own format needs a writer that is
    # no longer maintained.
    rows = [[2.0, 5.0, -9.5, *[99.0] * 98], [1.0, *[99.0] * 99, 0.25]]
    sheet = SimpleNamespace(nrows=2, row_values=rows.__getitem__)
    book = SimpleNamespace(sheet_by_index=lambda _: sheet)
    module = SimpleNamespace(open_workbook=lambda file_contents: book, XLRDError=KeyError)  # noqa: ARG005
    monkeypatch.setitem(sys.modules, "xlrd", module)
    data = load("jester-1", tmp_path)
    ratings = [value for split in splits(data) for value in split.targets[1].tolist() if value]
    assert sorted(ratings) == [-9.5, 0.25, 5.0]


@pytest.mark.parametrize("command", ["tune", "speed"])
def test_the_commands_say_what_reads_the_xls(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moe_bench: Run
) -> None:
    write_zip(tmp_path / "jester-data-1.zip", "jester-data-1.xls", b"a sheet")
    monkeypatch.setitem(sys.modules, "xlrd", None)
    out = tmp_path / "out"
    done = moe_bench(command, "jester-1", f"--out={out}", f"--data-dir={tmp_path}")
    assert done.returncode == 2
    assert "moe-benchmarks[jester]" in done.stderr
    assert not out.exists()


def test_a_damaged_xls_is_named(tmp_path: Path) -> None:
    pytest.importorskip("xlrd")
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # of a spreadsheet, cut behind it
    for content in (b"a sheet", head, head + bytes(2000)):
        write_zip(tmp_path / "jester-data-1.zip", "jester-data-1.xls", content)
        with pytest.raises(DataError, match=r"jester-data-1\.zip is damaged"):
            load("jester-1", tmp_path)


def test_books_drops_implicit_ratings_and_rare_books_and_users(tmp_path: Path) -> None:
    write_books(tmp_path)
    data = load("book-crossing", tmp_path)
    assert data.num_ids[ITEM] == NUM_ITEMS
    assert data.num_ids[USER] <= NUM_USERS
    assert sum(int(split.targets[0].sum()) for split in splits(data)) <= len(rated_pairs()[0])
    assert "fewer than 5" in data.notes[0]


def test_the_core_is_the_largest_set_with_so_many_ratings_each() -> None:
    # User 2 has two ratings, but one is of a book that nobody else has.
    user, item = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 0, 1, 0, 2])
    assert core(user, item, 2).tolist() == [0, 1, 2, 3]
    assert core(user, item, 3).tolist() == []


def test_a_pair_that_is_there_twice_keeps_its_first_rating(tmp_path: Path) -> None:
    lines = [f'"{user}";"book {book}";"7"' for user in range(1, 9) for book in range(8)]
    write_books(tmp_path, [*lines, '"1";"book 0";"2"'])
    data = load("book-crossing", tmp_path)
    assert sum(int(split.targets[0].sum()) for split in splits(data)) == 64


FILES = {
    "movielens-1m": ("ml-1m.zip", "ml-1m/ratings.dat"),
    "movielens-100k": ("ml-100k.zip", "ml-100k/u.data"),
    "jester-1": ("jester-data-1.zip", "jester-data-1.csv"),
    "book-crossing": ("BX-CSV-Dump.zip", "BX-Book-Ratings.csv"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_folder_and_the_command(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    for words in (FILES[name][0], str(tmp_path), f"moe-bench data {name}"):
        assert words in str(caught.value)


def renamed(archive: bytes, member: str) -> bytes:
    """Return a zip archive whose directory says that a name is UTF-8, which it is not."""
    entry = bytearray(archive)
    start = archive.index(b"PK\1\2")
    entry[start + 9] |= 8  # flag 11
    place = archive.index(member.encode(), start)
    entry[place] = 0xFF
    return bytes(entry)


@pytest.mark.parametrize("name", FILES)
def test_damaged_archives_are_named(tmp_path: Path, name: str) -> None:
    file, member = FILES[name]
    path = tmp_path / file
    write_zip(path, member, b"1" * 5000)
    whole = path.read_bytes()
    cases = [b"", b"no archive", whole[:-30], b"PK\3\4" + bytes(40) + whole[44:]]
    cases.append(renamed(whole, member))
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(DataError, match=file):
            load(name, tmp_path)
    write_zip(path, "other.txt", b"")
    with pytest.raises(DataError, match=r"other\.txt"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("movielens-1m", "1::2::3::0\n1::x::3::0\n", "row 1"),
        ("movielens-1m", "1::2::3::0\n1::2\n", "column"),
        ("movielens-1m", "1::2::6::0\n", r"\[1, 5\], got 6"),
        ("movielens-100k", "1\t2\t3\t0\n1\t2\t4\t0\n", "repeated"),
        ("jester-1", "1,2,3\n", "100 ratings"),
        ("jester-1", ",".join(["2", "5", *["99"] * 99]), "count of row 1"),
        ("jester-1", ",".join(["1", "55", *["99"] * 99]), r"\[-10, 10\]"),
        ("jester-1", ",".join(["0", *["99"] * 100]), "at least 1"),
        ("book-crossing", "user;book\n", "User-ID"),
        ("book-crossing", '"User-ID";"ISBN";"Book-Rating"\r1;x;1\r', "new-line"),
        ("book-crossing", '"User-ID";"ISBN";"Book-Rating"\n"1";"x"\n', "line 2"),
        ("book-crossing", '"User-ID";"ISBN";"Book-Rating"\n"1";"x";"11"\n', "got 11 in line 2"),
        ("book-crossing", '"User-ID";"ISBN";"Book-Rating"\n"1";"x";"1"\n', "at least one rating"),
    ],
)
def test_damaged_tables_are_named_with_the_reason(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    file, member = FILES[name]
    write_zip(tmp_path / file, member, text.encode())
    with pytest.raises(DataError, match=f"(?s){file}.*{reason}"):
        load(name, tmp_path)


def test_damaged_splits_are_named(tmp_path: Path) -> None:
    write_comet_split(tmp_path)
    path = tmp_path / "movielens-1m-comet-split" / "val.npz"
    whole = path.read_bytes()
    lacking = io.BytesIO()
    np.savez(lacking, user=[1])
    for content in (b"", b"junk", whole[:300], lacking.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"val\.npz"):
            load("movielens-1m-comet-split", tmp_path)
