import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from _published import idx_bytes, write_mnist
from scipy.io import savemat

from moe_benchmarks._data._catalog import load
from moe_benchmarks._data._dataset import PICTURE_ID, PIXELS, DataError, Dataset, Split
from moe_benchmarks._data._idx import read_idx
from moe_benchmarks._data._multi_mnist import load_digits_overlay, load_multi_mnist
from moe_benchmarks._data._overlay import RowCounts, overlay
from moe_benchmarks._data._picture_ids import NUM_PICTURE_IDS, picture_ids
from moe_benchmarks._data._svhn import read_svhn

COUNTS = RowCounts(300, 100, 80)


def splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gz", "plain"])
def test_idx_files_are_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    array = np.random.default_rng(0).integers(256, size=(5, 4, 3), dtype=np.uint8)
    (tmp_path / "file").write_bytes(pack(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "file", ndim=3), array)


def test_every_cut_of_an_idx_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path, array = tmp_path / "some-idx3-ubyte", np.ones((2, 3, 4), np.uint8)
    whole = idx_bytes(array)
    packed = gzip.compress(whole)
    cut = [whole[:size] for size in range(len(whole))]
    cut += [packed[:size] for size in range(len(packed))]
    flipped = bytearray(packed)
    flipped[-8] ^= 1  # of the checksum
    for content in [*cut, whole + b"x", bytes(flipped), idx_bytes(array[0]), b"<html>" * 9]:
        path.write_bytes(content)
        with pytest.raises(DataError, match="some-idx3-ubyte"):
            read_idx(path, ndim=3)


def test_multi_mnist_has_one_picture_top_left_and_one_bottom_right(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = load_multi_mnist(tmp_path, counts=COUNTS)
    assert [len(split) for split in splits(data)] == list(COUNTS)
    assert [task.name for task in data.tasks] == ["top left", "bottom right"]
    assert [task.num_outputs for task in data.tasks] == [10, 10]
    for split in splits(data):
        pixels = split.inputs[PIXELS]
        assert pixels.shape[1:] == (36, 36)
        assert pixels.dtype == torch.float32
        assert float(pixels.min()) == 0
        assert float(pixels.max()) == 1
        # The two corners that no picture reaches.
        assert float(pixels[:, :8, 28:].max()) == float(pixels[:, 28:, :8].max()) == 0
        assert all(target.dtype == torch.int64 for target in split.targets)


def test_no_base_picture_is_in_two_splits(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = load_multi_mnist(tmp_path, counts=COUNTS)
    # The first pixel of the top left picture says which it is.
    used = [
        set((split.inputs[PIXELS][:, 0, 0] * 255).round().int().tolist()) for split in splits(data)
    ]
    assert len(used[0] | used[1] | used[2]) == sum(map(len, used))
    assert used[2] == set(range(60, 80))
    assert len(used[1]) == 10


def test_targets_are_the_labels_of_the_pictures(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    test = load_multi_mnist(tmp_path, counts=COUNTS).test
    which = (test.inputs[PIXELS][:, 0, 0] * 255).round().long()
    assert torch.equal(test.targets[0], (which - 60) % 10)


def test_the_brighter_pixel_counts() -> None:
    one, other = np.full((1, 2, 2), 9, np.uint8), np.array([[[5, 12], [1, 2]]], np.uint8)
    canvas = overlay(one, other, shift=0)
    np.testing.assert_array_equal(canvas, [[[9, 12], [9, 9]]])


@pytest.mark.parametrize("shape", [(10, 10), (36, 36), (3, 1)])
def test_picture_ids_are_equal_for_equal_pictures_and_spread_over_others(
    shape: tuple[int, ...],
) -> None:
    pictures = np.random.default_rng(0).integers(256, size=(3000, *shape), dtype=np.uint8)
    ids = picture_ids(pictures)
    assert ids.min() >= 0
    assert ids.max() < NUM_PICTURE_IDS
    np.testing.assert_array_equal(ids, picture_ids(pictures.copy()))
    np.testing.assert_array_equal(ids[7:9], picture_ids(pictures[7:9]))
    # Random ids: 4096 (1 - exp(-3000/4096)) = 2127 different ones, standard deviation 20.
    assert abs(len(np.unique(ids)) - 2127) < 5 * 20


def test_a_single_pixel_changes_the_id() -> None:
    pictures = np.zeros((1 + 100 * 255, 10, 10), np.uint8)
    pixel = np.arange(100).repeat(255)
    pictures[1:].reshape(-1, 100)[np.arange(25500), pixel] = np.tile(np.arange(1, 256), 100)
    counts = np.bincount(picture_ids(pictures), minlength=NUM_PICTURE_IDS)
    # 25,501 pictures: 6.2 an id, as at random; no bucket collects them.
    assert counts.max() < 6.2 * 5


def test_the_seed_determines_the_pictures() -> None:
    one, again, other = (load_digits_overlay(counts=COUNTS, seed=seed).train for seed in (1, 1, 2))
    assert torch.equal(one.inputs[PIXELS], again.inputs[PIXELS])
    assert torch.equal(one.inputs[PICTURE_ID], again.inputs[PICTURE_ID])
    assert not torch.equal(one.inputs[PIXELS], other.inputs[PIXELS])


def test_a_share_composes_fewer_pictures() -> None:
    data = load("digits", share=0.01)
    assert [len(split) for split in splits(data)] == [200, 30, 30]


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path, "fashion-mnist")
    path = tmp_path / "fashion-mnist" / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[:-9], gzip.compress(idx_bytes(np.zeros(59, np.uint8))),
                    gzip.compress(idx_bytes(np.full(60, 10, np.uint8)))):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(DataError, match="train-labels-idx1-ubyte"):
            load("multi-fashion-mnist", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="moe-bench data multi-fashion-mnist"):
        load("multi-fashion-mnist", tmp_path)


def write_svhn(folder: Path, num_train: int = 36, num_test: int = 12) -> None:
    (folder / "svhn").mkdir()
    for part, count in (("train", num_train), ("test", num_test)):
        colours = np.random.default_rng(count).integers(256, size=(32, 32, 3, count))
        digits = 1 + np.arange(count)[:, None] % 10
        savemat(
            folder / "svhn" / f"{part}_32x32.mat",
            {"X": colours.astype(np.uint8), "y": digits.astype(np.uint8)},
            do_compression=True,
        )


def test_mnist_and_svhn_are_mixed(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_svhn(tmp_path)
    data = load("mnist-svhn", tmp_path)
    assert [len(split) for split in splits(data)] == [50 + 30, 10 + 6, 20 + 12]
    assert data.train.inputs[PIXELS].shape[1:] == (32, 32)
    # A black border tells the written ones.
    written = (data.test.inputs[PIXELS][:, 0] == 0).all(dim=1)
    assert int(written.sum()) == 20
    assert data.test.targets[0][written].sort().values.tolist() == sorted(list(range(10)) * 2)
    assert len(load("mnist-svhn", tmp_path, share=0.5).train) == 40


def test_svhn_has_zeros_for_its_tens_and_keeps_the_order(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    base = read_svhn(tmp_path / "svhn" / "test_32x32.mat")
    assert base.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    colours = np.random.default_rng(12).integers(256, size=(32, 32, 3, 12))
    np.testing.assert_array_equal(base.pictures[5], colours[:, :, :, 5].sum(axis=2) // 3)


def test_damaged_svhn_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_svhn(tmp_path)
    path = tmp_path / "svhn" / "train_32x32.mat"
    whole = path.read_bytes()
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [10]], np.uint8)})
    kind = bytearray(path.read_bytes())
    kind[144] = 255  # of the first array
    cut = [whole[:size] for size in (0, 50, 127, 200, len(whole) // 2)]
    for content in (*cut, b"x" * 500, bytes(kind)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train_32x32\.mat"):
            load("mnist-svhn", tmp_path)
    for fields in ({"X": np.zeros(3)}, {"X": np.zeros((32, 32, 3, 2)), "y": [1, 2]},
                   {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([0, 11])}):  # fmt: skip
        savemat(path, fields)
        with pytest.raises(DataError, match=r"train_32x32\.mat"):
            load("mnist-svhn", tmp_path)
