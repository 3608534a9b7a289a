import numpy as np
import torch

from moe_benchmarks._two_digits import NUM_IDS, NUM_PIXELS, load_two_digits, split_base


def test_no_base_picture_is_in_two_splits() -> None:
    splits = split_base(1797, np.random.default_rng(0))
    assert [len(split) for split in splits] == [1078, 360, 359]
    assert sorted(np.concatenate(splits)) == list(range(1797))


def test_sizes_ranges_and_labels() -> None:
    data = load_two_digits(num_train=300, num_validation=200, num_test=100, seed=0)
    for split, count in ((data.train, 300), (data.validation, 200), (data.test, 100)):
        assert split.pixels.shape == (count, NUM_PIXELS)
        assert split.pixels.dtype == torch.float32
        assert split.labels.shape == (count, 2)
        assert set(split.labels.flatten().tolist()) == set(range(10))
        assert 0 <= int(split.ids.min()) <= int(split.ids.max()) < NUM_IDS


def test_pixels_are_shares_of_full_ink() -> None:
    data = load_two_digits(num_train=300, num_validation=200, num_test=100, seed=0)
    assert float(data.train.pixels.min()) == 0
    assert float(data.train.pixels.max()) == 1


def test_each_digit_lies_in_its_corner() -> None:
    pixels = load_two_digits(num_train=300, num_validation=200, num_test=100, seed=0).train.pixels
    canvas = pixels.view(-1, 10, 10)
    # Only the one digit reaches the first rows, only the other the last ones.
    assert float(canvas[:, :2, 8:].max()) == 0
    assert float(canvas[:, 8:, :2].max()) == 0
    assert float(canvas[:, :2, :8].max()) > 0
    assert float(canvas[:, 8:, 2:].max()) > 0


def test_equal_pictures_have_equal_ids() -> None:
    data = load_two_digits(num_train=20_000, num_validation=100, num_test=100, seed=0)
    pictures, which = torch.unique(data.train.pixels, dim=0, return_inverse=True)
    assert len(pictures) < 20_000, "the test needs a picture that occurs twice"
    first = torch.full((len(pictures),), -1)
    first[which] = data.train.ids
    assert torch.equal(first[which], data.train.ids)


def test_the_seed_determines_the_data() -> None:
    sizes = {"num_train": 100, "num_validation": 100, "num_test": 100}
    again = [load_two_digits(**sizes, seed=seed).test for seed in (3, 3, 4)]
    assert torch.equal(again[0].pixels, again[1].pixels)
    assert torch.equal(again[0].labels, again[1].labels)
    assert not torch.equal(again[0].labels, again[2].labels)
