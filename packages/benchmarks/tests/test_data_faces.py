"""CelebA, in miniatures of its files as they are published."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moe_benchmarks._data._catalog import load
from moe_benchmarks._data._dataset import PICTURE_ID, PIXELS, DataError
from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._row import run_trial
from moe_benchmarks._experiments._settings import TrialSettings

PARTS = [0] * 20 + [1] * 6 + [2] * 10
ATTRIBUTES = [f"Attribute_{index}" for index in range(12)]


def face(brightness: int) -> bytes:
    """Make a portrait format with a bright square in the middle, and red above and below it."""
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[:20, :, 0] = pixels[-20:, :, 0] = 255
    pixels[20:-20] = brightness
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_celeba(folder: Path) -> Path:
    """Write pictures whose brightness tells them apart; attribute 0 is all's, 1 is nobody's."""
    (folder / "celeba").mkdir()
    names = [f"{number:06}.jpg" for number in range(1, len(PARTS) + 1)]
    generator = np.random.default_rng(0)
    present = generator.random((len(PARTS), len(ATTRIBUTES))) < 0.5
    present[:, 0], present[:, 1] = True, False
    lines = [str(len(PARTS)), " ".join(ATTRIBUTES)]
    for name, values in zip(names, present, strict=True):
        lines.append(f"{name} " + " ".join(" 1" if value else "-1" for value in values))
    (folder / "celeba" / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    parts = [f"{name} {part}\n" for name, part in zip(names, PARTS, strict=True)]
    (folder / "celeba" / "list_eval_partition.txt").write_text("".join(parts))
    with zipfile.ZipFile(folder / "celeba" / "img_align_celeba.zip", "w") as archive:
        archive.writestr("img_align_celeba/", "")
        for number, name in enumerate(names):
            archive.writestr(f"img_align_celeba/{name}", face(5 * number + 20))
    return folder


def test_faces_are_read_in_the_published_parts(tmp_path: Path) -> None:
    data = load("celeba", write_celeba(tmp_path))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 6, 10]
    pixels = data.test.inputs[PIXELS].numpy()
    assert pixels.shape == (10, 32, 32)
    # The red is outside of the middle, and the order is that of the files.
    expected = (5 * np.arange(26, 36) + 20)[:, None, None] / 255
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=0.02)
    assert len(set(data.test.inputs[PICTURE_ID].tolist())) == 10


def test_tasks_are_the_attributes_that_are_most_even_in_training(tmp_path: Path) -> None:
    whole = load("celeba", write_celeba(tmp_path))
    assert [task.name for task in whole.tasks] == ATTRIBUTES[2:]
    lines = (tmp_path / "celeba" / "list_attr_celeba.txt").read_text().splitlines()[2:]
    values = np.array([line.split()[1:] for line in lines], int) == 1
    for task, target in enumerate(whole.validation.targets):
        assert target.tolist() == values[20:26, task + 2].tolist()
    assert load("celeba", tmp_path, share=0.2).tasks == whole.tasks


def test_a_share_of_each_part_is_decoded(tmp_path: Path) -> None:
    write_celeba(tmp_path)
    half, again, other = (load("celeba", tmp_path, share=0.5, seed=seed) for seed in (1, 1, 2))
    assert [len(split) for split in (half.train, half.validation, half.test)] == [10, 3, 5]
    assert half.notes[-1] == "Only 0.5 of the rows are used (seed 1)."
    assert half.train.inputs[PIXELS].equal(again.train.inputs[PIXELS])
    assert not half.train.inputs[PIXELS].equal(other.train.inputs[PIXELS])


def test_ten_tasks_are_learned(tmp_path: Path) -> None:
    experiment = EXPERIMENTS["celeba"]
    settings = TrialSettings.for_experiment(
        experiment, gate="comet", search="exact", seed=0, learning_rate=1e-3, gamma=1.0,
        entropy_weight=0.01, search_epochs=1, epochs=2,
    )  # fmt: skip
    row, _ = run_trial(experiment, settings, load("celeba", write_celeba(tmp_path)), share=1.0)
    assert len(row["metrics"]["test"]["hard"]["tasks"]) == 10
    assert row["metrics"]["test"]["hard"]["most_experts"] <= 2


def test_a_table_of_too_few_attributes_is_not_celeba(tmp_path: Path) -> None:
    path = write_celeba(tmp_path) / "celeba" / "list_attr_celeba.txt"
    count, header, *lines = path.read_text().splitlines()
    rows = [" ".join(line.split()[:10]) for line in lines]
    path.write_text("\n".join([count, " ".join(header.split()[:9]), *rows]))
    with pytest.raises(DataError, match="10 attributes or more are expected, got 9"):
        load("celeba", tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("list_attr_celeba.txt", b"36\n", b"37\n"),
        ("list_attr_celeba.txt", b" Attribute_5", b""),
        ("list_attr_celeba.txt", b"-1", b"-2"),
        ("list_attr_celeba.txt", b" 1", b" one"),
        ("list_attr_celeba.txt", b" 1", b" 300"),
        ("list_attr_celeba.txt", b"A", b"\xff"),
        ("list_eval_partition.txt", b"000003.jpg", b"000004.jpg"),
        ("list_eval_partition.txt", b" 2", b" 3"),
        ("list_eval_partition.txt", b" 2", b""),
        ("img_align_celeba.zip", b"000003.jpg", b"000003.png"),
        ("img_align_celeba.zip", b"PK", b"KP"),
        ("img_align_celeba.zip", b"JFIF", b"GIF8"),
        ("img_align_celeba.zip", b"\xff\xd8\xff", b"\xff\xff\xff"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, old: bytes, new: bytes) -> None:
    path = write_celeba(tmp_path) / "celeba" / file
    content = path.read_bytes()
    path.write_bytes(content.replace(old, new))
    with pytest.raises(DataError, match=file.replace(".", r"\.")):
        load("celeba", tmp_path)
    for size in (0, 1, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=file.replace(".", r"\.")):
            load("celeba", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="moe-bench data celeba"):
        load("celeba", tmp_path)
