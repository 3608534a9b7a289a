"""A checkpoint comes back to the bit, or is refused by name and reason."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_runtime import (
    CheckpointError,
    _checkpoint,
    load_checkpoint,
    load_tensors,
    load_training_tensors,
    save_checkpoint,
)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def mixed_tensors() -> dict[str, Tensor]:
    tensors = {str(dtype): (torch.randn(3, 2) * 9).to(dtype) for dtype in DTYPES}
    shared = torch.randn(4)
    return tensors | {
        "scalar": torch.tensor(0.1),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(3, 5).T,
        "expanded": torch.randn(1, 2).expand(3, 2),
        "shared.a": shared,
        "shared.b": shared,
        "not a number": torch.tensor([torch.nan, torch.inf, -0.0]),
        "parameter": nn.Parameter(torch.randn(2)),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.ckpt"
    tensors = {"weight": torch.randn(3), "flag": torch.tensor([True]), "step": torch.tensor(3)}
    save_checkpoint(path, tensors, settings={"k": 2})
    return path


def test_every_dtype_and_shape_comes_back_to_the_bit(tmp_path: Path) -> None:
    tensors = mixed_tensors()
    settings = {"k": 2, "gamma": 0.1, "names": ["é", None], "nested": {"hard": True}}
    save_checkpoint(tmp_path / "a", tensors, settings=settings)
    loaded = load_checkpoint(str(tmp_path / "a"))
    assert loaded.settings == settings
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        ours = loaded.tensors[name]
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
        as_bytes = [
            each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (ours, tensor)
        ]
        assert torch.equal(*as_bytes), name


def test_nothing_at_all_is_a_checkpoint_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", {})
    assert load_checkpoint(tmp_path / "a") == ({}, {})


def test_every_truncation_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in range(len(whole)):
        saved.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=re.escape(str(saved))):
            load_checkpoint(saved)


def test_every_flipped_byte_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for position in range(len(whole)):
        for mask in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= mask
            saved.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=re.escape(str(saved))):
                load_checkpoint(saved)


@pytest.mark.parametrize("content", [b"", b"epoch,loss\n1,0.5\n" * 20], ids=["empty", "text"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    message = f"checkpoint {path} is damaged or not a safetensors file"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_checkpoint(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"there is no checkpoint {re.escape(str(tmp_path))}"):
        load_checkpoint(tmp_path / "a")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "version"),
    [({"format_version": "2"}, "2"), ({}, "None"), (None, "None")],
    ids=["newer", "none", "foreign"],
)
def test_another_format_version_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None, version: str
) -> None:
    path = tmp_path / "a"
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    message = f"checkpoint {path} has format version {version}, this moe-runtime reads version 1."
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_checkpoint(path)


def test_settings_belong_to_the_digest(saved: Path) -> None:
    content = saved.read_bytes()
    assert content.count(b'\\"k\\": 2') == 1
    saved.write_bytes(content.replace(b'\\"k\\": 2', b'\\"k\\": 3'))
    with pytest.raises(CheckpointError, match="do not match their digest"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, "weight is missing"),
        ({"more": torch.ones(1)}, "more is not part of the model"),
        ({"bias": torch.ones(3)}, "bias has shape (3,), the model needs (2,)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_tensors_that_do_not_fit_are_named_and_change_nothing(
    change: dict[str, Tensor | None], message: str
) -> None:
    model, other = nn.Linear(4, 2), nn.Linear(4, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    offered = {**other.state_dict(), **change}
    tensors = {name: tensor for name, tensor in offered.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_tensors(model, tensors)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(CheckpointError, match=r"weight is missing; bias is missing; more is not"):
        load_tensors(nn.Linear(4, 2), {"more": torch.ones(1)})


def test_a_checkpoint_where_its_tensors_belong_is_refused(saved: Path) -> None:
    whole: Any = load_checkpoint(saved)
    model = nn.Linear(4, 2)
    message = "`tensors` must map names to tensors, got a Checkpoint: pass its `.tensors`."
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match=re.escape(message)):
        load_tensors(model, whole)
    with pytest.raises(TypeError, match=re.escape(message)):
        load_training_tensors(model, optimizer, whole)
    with pytest.raises(TypeError, match=re.escape(message)):
        save_checkpoint(saved, whole)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (nn.Linear(4, 2), "`tensors` must be a mapping of names to tensors, got Linear."),
        (None, "`tensors` must be a mapping of names to tensors, got NoneType."),
        ({"k": 2}, "`tensors['k']` must be a torch.Tensor, got int."),
        ({0: torch.ones(1)}, "`tensors` must be keyed by strings, got int."),
    ],
    ids=["module", "none", "number", "key"],
)
def test_what_is_not_named_tensors_is_refused(saved: Path, tensors: Any, message: str) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError, match=re.escape(message)):
        save_checkpoint(saved, tensors)
    with pytest.raises(TypeError, match=re.escape(message)):
        load_tensors(nn.Linear(4, 2), tensors)
    assert saved.read_bytes() == before


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "a"
    message = f"`path` must be in a folder that exists, got {missing}."
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        save_checkpoint(missing, {})
    for folder in (str(tmp_path), ""):
        message = f"`path` must be a file, got the folder {folder!r}."
        with pytest.raises(IsADirectoryError, match=re.escape(message)):
            save_checkpoint(folder, {})
        with pytest.raises(CheckpointError, match=re.escape(message)):
            load_checkpoint(folder)
    nothing: Any = None
    with pytest.raises(TypeError, match="`path` must be a path, got NoneType"):
        load_checkpoint(nothing)


def test_a_save_that_fails_leaves_the_old_checkpoint_and_nothing_else(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def half(_tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_checkpoint, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, {"weight": torch.zeros(3)})
    assert [each.name for each in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "refusal", "message"),
    [
        ({"dtype": torch.float32}, TypeError, "`settings` must .* not JSON serializable"),
        ({"experts": {1, 2}}, TypeError, "`settings` must .* not JSON serializable"),
        ({"loss": float("nan")}, ValueError, "`settings` must .* not JSON compliant"),
        ([1, 2], TypeError, "`settings` must be a mapping, got list."),
        ([], TypeError, "`settings` must be a mapping, got list."),
    ],
    ids=["dtype", "set", "nan", "list", "empty_list"],
)
def test_settings_that_json_cannot_hold_are_refused_before_anything_is_written(
    saved: Path, settings: Any, refusal: type[Exception], message: str
) -> None:
    before = saved.read_bytes()
    with pytest.raises(refusal, match=message):
        save_checkpoint(saved, {}, settings=settings)
    assert saved.read_bytes() == before


SAVE_FOREVER = """
import sys, torch
from moe_runtime import save_checkpoint
for step in range(10**9):
    tensors = {f"weight.{index}": torch.full((50_000,), float(step)) for index in range(8)}
    save_checkpoint(sys.argv[1], tensors, settings={"step": step})
    if step == 0:
        print("saved", flush=True)
"""


def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a"
    command = [sys.executable, "-c", SAVE_FOREVER, str(path)]
    for milliseconds in (0, 7, 23):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "saved\n"
            # At another moment of a save each time; any is right.
            time.sleep(milliseconds / 1000)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        tensors, settings = load_checkpoint(path)
        assert len(tensors) == 8
        for tensor in tensors.values():
            assert torch.equal(tensor, torch.full((50_000,), float(settings["step"])))


def test_a_checkpoint_has_the_permissions_of_any_new_file(saved: Path) -> None:
    other = saved.with_name("other")
    other.touch()
    assert saved.stat().st_mode == other.stat().st_mode
