"""A folder that is passed on appears whole, whatever earlier calls and others have left there."""

import os
from pathlib import Path

import pytest
from _passed_on import files, write_exported

from moe_runtime.onnx import write_mlserver_folder
from moe_runtime.onnx._whole_folder import whole_folder


def write(folder: Path, text: str) -> None:
    with whole_folder(folder) as beside:
        (beside / "file").write_text(text)


def test_what_a_killed_process_of_the_same_number_has_left_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    # Process numbers repeat, in containers above all.
    (tmp_path / f".new.{os.getpid()}.tmp").mkdir()
    write(tmp_path / "new", "text")
    assert files(tmp_path / "new") == {"file": b"text"}


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    exported = write_exported(tmp_path / "exported")
    write_mlserver_folder(exported, tmp_path / "v1", name="moe")
    (tmp_path / "current").symlink_to("v1")
    write_mlserver_folder(exported, tmp_path / "current", name="other", overwrite=True)
    assert (tmp_path / "current").readlink() == Path("v1")
    assert b"other" in files(tmp_path / "v1")["model-settings.json"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["current", "exported", "v1"]


def test_others_may_read_it(tmp_path: Path) -> None:
    write(tmp_path / "new", "text")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_leaves_no_new_parents(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "a" / "b" / "c"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("may_return", [True, False])
def test_what_was_there_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, may_return: bool
) -> None:
    write(tmp_path / "new", "old text")
    rename, refused = Path.rename, {"new"} if may_return else {"new", "old"}

    def fail(path: Path, target: Path) -> Path:
        if path.parent != tmp_path and path.name in refused:
            raise PermissionError
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        write(tmp_path / "new", "text")
    (left,) = files(tmp_path).items()
    assert left[1] == b"old text"
    assert (left[0] == "new/file") is may_return
