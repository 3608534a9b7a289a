"""MLServer in a process of its own, on free ports of this machine's loopback."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
START_SECONDS, STOP_SECONDS = 60, 30


class Address(NamedTuple):
    """Where a server listens."""

    rest: str
    grpc: str


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running_server(folder: Path, log: Path) -> Iterator[Address]:
    """Serve a folder with a model of its name; at the end, see that the server stops by itself."""
    rest, grpc, metrics = free_ports(3)
    ports = {"HTTP_PORT": rest, "GRPC_PORT": grpc, "METRICS_PORT": metrics}
    settings = {f"MLSERVER_{name}": str(port) for name, port in ports.items()}
    command = [str(Path(sys.executable).with_name("mlserver")), "start", str(folder)]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **settings, "MLSERVER_HOST": HOST},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(process, rest, folder.name, log)
            yield Address(f"{HOST}:{rest}", f"{HOST}:{grpc}")
            _stop(process, log)
        finally:
            # Only where it did not stop, or something was raised.
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, name: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            # The server is ready before it has looked for models (MLServer 1.7.1).
            connection.request("GET", f"/v2/models/{name}/ready")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        time.sleep(0.2)
    msg = f"the server was not ready after {START_SECONDS} s at most:\n{log.read_text()[-4000:]}"
    raise RuntimeError(msg)


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    process.send_signal(signal.SIGTERM)
    status = process.wait(STOP_SECONDS)
    if status != 0:
        msg = f"the server ended with status {status}:\n{log.read_text()[-4000:]}"
        raise RuntimeError(msg)
