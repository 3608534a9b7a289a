"""Storage of a study that several machines share: a database, or Optuna's gRPC proxy of one."""

import warnings
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from moe_benchmarks._tune._errors import StudyError

GRPC, GRPC_PORT = "grpc", 13000  # Optuna's own
SECONDS_TO_ANSWER = 10


def open_url(url: str) -> BaseStorage:
    """Open a database, or a proxy at ``grpc://host:port``.

    Raises
    ------
    StudyError
        If the URL is none that Optuna understands, or nothing answers there.
    ImportError
        If a package for that kind of storage is not installed.
    """
    try:
        if urlsplit(url).scheme != GRPC:
            return RDBStorage(url)
        return _proxy(url)
    except (ConnectionError, SQLAlchemyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        msg = f"`--storage` {url!r} cannot be opened: {reason}"
        raise StudyError(msg) from error


def _proxy(url: str) -> BaseStorage:
    place = urlsplit(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.GrpcStorageProxy(
            host=place.hostname or "localhost", port=place.port or GRPC_PORT
        )
    storage.wait_server_ready(timeout=SECONDS_TO_ANSWER)
    return storage
