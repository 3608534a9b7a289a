import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from _tiny import Run
from rich.console import Console

from moe_benchmarks._data import _download
from moe_benchmarks._data._catalog import DATASETS, data_folder, load
from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._data._download import download, download_file
from moe_benchmarks._data._sources import SourceFile

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Offers `CONTENT` at /file, as it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True
        self.cut: list[int] = []  # bytes after which the next answers end
        self.failures: list[int] = []  # statuses of the next answers
        self.asked: list[str | None] = []  # the Range of each request
        self.url = f"http://127.0.0.1:{self.server_port}/file"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: some tests hang up."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.failures or self.path != "/file":
            self.send_error(server.failures.pop(0) if server.failures else 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


class Fetch:
    """Fetches the server's file."""

    def __init__(self, folder: Path, url: str) -> None:
        self.target = folder / "folder" / "file.bin"
        self.part = folder / "folder" / "file.bin.part"
        self.url = url

    def __call__(self, *urls: str, checksum: str | None = DIGEST, size: int | None = None) -> Path:
        file = SourceFile("folder/file.bin", urls or (self.url,), checksum, size)
        download_file(file, self.target, Console(quiet=True), first_wait=0)
        return self.target

    def begin(self, content: bytes) -> None:
        self.part.parent.mkdir()
        self.part.write_bytes(content)


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Fetch:
    return Fetch(tmp_path, server.url)


def test_a_file_is_fetched_and_nothing_else_is_left(fetch: Fetch, server: Server) -> None:
    assert fetch().read_bytes() == CONTENT
    assert server.asked == [None]
    assert [path.name for path in fetch.target.parent.iterdir()] == ["file.bin"]


def test_what_is_there_is_not_fetched_again(fetch: Fetch, server: Server) -> None:
    fetch.begin(CONTENT[:1000])
    assert fetch().read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_server_that_cannot_continue_starts_again(fetch: Fetch, server: Server) -> None:
    server.ranges = False
    fetch.begin(CONTENT[:1000])
    assert fetch().read_bytes() == CONTENT


def test_a_part_that_is_whole_is_used(fetch: Fetch, server: Server) -> None:
    fetch.begin(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("server_can", ["continue", "only start again"])
def test_a_broken_connection_is_continued(fetch: Fetch, server: Server, server_can: str) -> None:
    server.ranges = server_can == "continue"
    server.cut = [300_000, 200_000]
    assert fetch().read_bytes() == CONTENT
    assert server.asked[0] is None
    assert len(server.asked) == 3


def test_a_connection_that_always_breaks_is_given_up_and_the_part_kept(
    fetch: Fetch, server: Server
) -> None:
    server.cut = [10] * 10
    with pytest.raises(DataError, match=f"after 40 of {len(CONTENT)} bytes"):
        fetch()
    assert fetch.part.read_bytes() == CONTENT[:40]
    assert not fetch.target.exists()


def test_a_server_in_trouble_is_asked_again(fetch: Fetch, server: Server) -> None:
    server.failures = [503, 500]
    assert fetch().read_bytes() == CONTENT


def test_a_file_that_is_not_there_is_asked_for_once(fetch: Fetch, server: Server) -> None:
    url = f"{server.url}-absent"
    with pytest.raises(DataError, match=rf"folder/file\.bin cannot be downloaded \({url}.*404"):
        fetch(url)
    assert len(server.asked) == 1


def test_the_next_address_is_tried(fetch: Fetch, server: Server) -> None:
    assert fetch(f"{server.url}-absent", server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", [CONTENT[:-1], b"x" + CONTENT[1:], b"<html>", CONTENT + b"x"])
def test_another_file_is_refused_and_not_kept(fetch: Fetch, server: Server, wrong: bytes) -> None:
    server.content = wrong
    with pytest.raises(DataError, match="not the published file"):
        fetch()
    assert not fetch.target.exists()
    assert not fetch.part.exists()


def test_a_part_of_another_file_is_replaced(fetch: Fetch, server: Server) -> None:
    fetch.begin(b"x" * 1000)
    assert fetch().read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


def test_a_wrong_size_is_refused_without_a_checksum(fetch: Fetch) -> None:
    with pytest.raises(DataError, match=f"{len(CONTENT)} bytes instead of 5"):
        fetch(checksum=None, size=5)


def test_no_connection_is_an_error_with_the_address(fetch: Fetch) -> None:
    url = "http://127.0.0.1:1/file"
    with pytest.raises(DataError, match=url):
        fetch(url)


def test_a_data_set_shows_its_licence_and_keeps_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "download_file", pytest.fail)
    (tmp_path / "ml-1m.zip").write_bytes(b"mine")
    download("movielens-1m", tmp_path, Console())
    shown = capsys.readouterr().out
    assert shown.startswith("MovieLens is for research")
    assert "ml-1m.zip is there already" in shown
    assert (tmp_path / "ml-1m.zip").read_bytes() == b"mine"


def test_what_is_not_offered_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"not offered for download; put it at {tmp_path}"):
        download("movielens-1m-comet-split", tmp_path, Console(quiet=True))


def test_an_unknown_data_set_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    message = r"one of movielens-1m, .*, got 'imagenet'"
    with pytest.raises(DataError, match=message):
        load("imagenet", tmp_path)
    with pytest.raises(DataError, match=message):
        download("imagenet", tmp_path, Console(quiet=True))


def test_checksums_and_addresses_are_well_formed() -> None:
    lengths = {"md5": 32, "sha256": 64}
    for found in DATASETS.values():
        assert found.what.endswith(".")
        assert found.licence.endswith(".")
        for file in found.files:
            assert all(url.startswith(("https://", "http://")) for url in file.urls)
            assert bool(file.checksum) == bool(file.urls), "nothing is fetched unchecked"
            if file.checksum:
                kind, _, digits = file.checksum.partition(":")
                assert len(digits) == lengths[kind]
                int(digits, 16)


def test_the_data_folder_is_the_option_then_the_variable_then_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MOE_BENCH_DATA", str(tmp_path / "named"))
    assert data_folder(tmp_path / "given") == tmp_path / "given"
    assert data_folder() == tmp_path / "named"
    monkeypatch.delenv("MOE_BENCH_DATA")
    assert data_folder() == tmp_path / ".cache" / "moe-benchmarks"


def test_the_command_lists_the_data_sets(moe_bench: Run) -> None:
    done = moe_bench("data")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(DATASETS)


def test_the_command_says_what_is_wrong_without_a_traceback(moe_bench: Run, tmp_path: Path) -> None:
    done = moe_bench("data", "movielens-1m-comet-split", f"--data-dir={tmp_path}")
    assert done.returncode == 2
    assert done.stdout.startswith("MovieLens is for research")
    assert done.stderr.startswith("error: movielens-1m-comet-split/train.npz is not offered")
