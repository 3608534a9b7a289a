"""Downloads that continue where they stopped, and are checked before they are used."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from moe_benchmarks._data._catalog import source
from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._data._sources import SourceFile

CHUNK = 1 << 16  # bytes
TIMEOUT = 30.0  # seconds without an answer
ATTEMPTS = 4  # of each address
FIRST_WAIT = 1.0  # seconds before the second attempt; twice as long before each later one
OK, PARTIAL, RANGE_REFUSED, SERVER_ERROR = 200, 206, 416, 500
# What may go away by itself: no connection, one that broke, a server in trouble.
PASSING_ERRORS = (OSError, http.client.HTTPException)


def download(
    name: str, data_dir: Path, console: Console, /, *, first_wait: float = FIRST_WAIT
) -> None:
    """Download the published files of a data set, but those that are there.

    Parameters
    ----------
    name : str
        One of `DATASETS`.
    data_dir : Path
        Folder to write to; it is made if need be. A file appears in it when it is whole and
        checked; what came before an interruption is kept in a `.part` file and continued.
    console : Console
        For the licence, the progress and what was done.
    first_wait : float
        Seconds before the second attempt.

    Raises
    ------
    DataError
        If a file is not offered for download, cannot be fetched, or is not the published one.
    """
    found = source(name)
    console.print(found.licence, soft_wrap=True)
    for file in found.files:
        target = data_dir / file.path
        if target.exists():
            console.print(f"{target} is there already.", soft_wrap=True)
            continue
        download_file(file, target, console, first_wait=first_wait)
        console.print(f"{target} is written.", soft_wrap=True)


def download_file(
    file: SourceFile, target: Path, console: Console, /, *, first_wait: float = FIRST_WAIT
) -> None:
    """Fetch one file from the first of its addresses that has it."""
    if not file.urls:
        msg = f"{file.path} is not offered for download; put it at {target}."
        raise DataError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = []
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=console) as progress:
        for url in file.urls:
            try:
                _fetch_checked(url, part, file, progress, first_wait)
            except (DataError, *PASSING_ERRORS) as error:
                failures.append(f"{url}: {error}")
            else:
                part.replace(target)
                return
    msg = f"{file.path} cannot be downloaded ({'; '.join(failures)})."
    raise DataError(msg)


def _fetch_checked(
    url: str, part: Path, file: SourceFile, progress: Progress, first_wait: float
) -> None:
    is_continued = part.exists()
    _fetch_patiently(url, part, file, progress, first_wait)
    try:
        _check(part, file)
    except DataError:
        if not is_continued:
            raise
        # The beginning may have been another file's.
        _fetch_patiently(url, part, file, progress, first_wait)
        _check(part, file)


def _fetch_patiently(
    url: str, part: Path, file: SourceFile, progress: Progress, first_wait: float
) -> None:
    for attempt in range(ATTEMPTS):
        try:
            _fetch(url, part, file, progress)
        except PASSING_ERRORS as error:
            is_final = isinstance(error, urllib.error.HTTPError) and error.code < SERVER_ERROR
            if is_final or attempt == ATTEMPTS - 1:
                raise
            time.sleep(first_wait * 2**attempt)
        else:
            return


def _fetch(url: str, part: Path, file: SourceFile, progress: Progress) -> None:
    """Append what is missing to the part, or start again where the server cannot continue."""
    have = part.stat().st_size if part.exists() else 0
    # The addresses are the catalog's, http and https.
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == RANGE_REFUSED and have:
            return  # the part is whole, or of another file: the check says which
        raise
    with response:
        if response.status != PARTIAL:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else file.size
        task = progress.add_task(file.path, total=total, completed=have)
        with part.open("ab" if have else "wb") as out:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                progress.update(task, advance=len(chunk))
    if total is not None and part.stat().st_size < total:
        msg = f"the connection ended after {part.stat().st_size} of {total} bytes"
        raise http.client.HTTPException(msg)


def _check(part: Path, file: SourceFile) -> None:
    """Keep a part that is the published file; delete one that is not."""
    size = part.stat().st_size
    if file.size is not None and size != file.size:
        _refuse(part, f"it has {size} bytes instead of {file.size}")
    if file.checksum is not None:
        kind, _, expected = file.checksum.partition(":")
        with part.open("rb") as content:
            digest = hashlib.file_digest(content, kind).hexdigest()
        if digest != expected:
            _refuse(part, f"its {kind} is {digest} instead of {expected}")


def _refuse(part: Path, reason: str) -> NoReturn:
    part.unlink()
    msg = f"what it offers is not the published file: {reason}"
    raise DataError(msg)
