"""Published files in the data folder, and what to say where one is missing or damaged."""

import zipfile
import zlib
from pathlib import Path

from moe_benchmarks._data._dataset import DataError

# What damaged archives raise: a flipped bit can look like encryption or another version, or be
# in a name.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    UnicodeDecodeError,
)


def find_file(data_dir: Path, file: str, /, *, dataset: str) -> Path:
    """Return where a file of a data set lies, or say how to get it."""
    path = data_dir / file
    if not path.is_file():
        msg = (
            f"{dataset} needs the file {file}, which is not in {data_dir}. "
            f"`moe-bench data {dataset}` downloads what its publisher offers; "
            "--data-dir or MOE_BENCH_DATA name another folder."
        )
        raise DataError(msg)
    return path


def damaged(path: Path, reason: object, /) -> DataError:
    """Return the error that names a file that cannot be read."""
    return DataError(f"{path} is damaged or not what it should be ({reason}); download it again.")


def read_member(path: Path, /, *endings: str) -> tuple[str, bytes]:
    """Read the one file of a zip archive whose name ends in one of these ways, and its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(endings)]
            if len(names) == 1:
                return names[0], archive.read(names[0])
            found = archive.namelist()[:10]
    except ZIP_ERRORS as error:
        raise damaged(path, error) from error
    raise damaged(path, f"one file {' or '.join(endings)} is expected in it, it holds {found}")
