"""Requests that no model can take are refused with their reason, and harm nobody else."""

import copy
import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import numpy as np
from _clients import Arrays, Grpc, as_json, post
from _server import Address
from tritonclient.utils import InferenceServerException


def check_bad_requests(address: Address, name: str, feeds: Arrays) -> list[str]:
    """Send each over REST, and one over gRPC; a good one must be answered after each."""
    problems = []
    good = json.dumps(as_json(feeds)).encode()
    for what, body in _bodies(as_json(feeds)):
        status, text = post(address, name, body)
        print(f"refused, {what}: {status} {text[:200]}")
        if not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            problems.append(f"{what}: status {status}: {text[:500]}")
        status, text = post(address, name, good)
        if status != HTTPStatus.OK:
            problems.append(f"after {what}: status {status}: {text[:500]}")
    try:
        Grpc(address, name).ask({key: array[..., None] for key, array in feeds.items()})
    except InferenceServerException as error:
        print(f"refused, gRPC, wrong shape: {error.status()} {error.message()}")
        if error.status() != "StatusCode.INVALID_ARGUMENT":
            problems.append(f"gRPC, wrong shape: {error}")
    else:
        problems.append("gRPC, wrong shape: was answered")
    return problems


def _bodies(good: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    def changed(index: int, **fields: object) -> bytes:
        request = copy.deepcopy(good)
        request["inputs"][index].update(fields)
        return json.dumps(request).encode()

    x, ids = (each["data"] for each in good["inputs"])
    largest = int(np.iinfo(np.int64).max)
    yield "no JSON", b'{"inputs": ['
    yield "no inputs", b"{}"
    yield "an input too few", json.dumps({"inputs": good["inputs"][:1]}).encode()
    yield "an input twice", json.dumps({"inputs": good["inputs"][:1] * 2}).encode()
    yield "an unknown name", changed(0, name="z")
    yield "an unknown output", json.dumps({**good, "outputs": [{"name": "z"}]}).encode()
    yield "another type", changed(0, datatype="FP64")
    yield "a type that is none", changed(0, datatype="FLOAT")
    yield "one axis", changed(0, shape=[len(x)])
    yield "a column too few", changed(0, shape=[2, 15], data=x[:30])
    yield "a negative size", changed(0, shape=[-2, 16])
    yield "more rows than ids", changed(1, shape=[1], data=ids[:1])
    yield "fewer values than its shape says", changed(0, data=x[:-1])
    yield "rows of several lengths", changed(0, data=[x[:3], x[3:]])
    yield "words", changed(0, data=["1.0"] * len(x))
    yield "null", changed(0, data=[None] * len(x))
    yield "a number beyond float32", changed(0, data=[1e300] * len(x))
    yield "half an id", changed(1, data=[0.5] * len(ids))
    yield "an id that no table has", changed(1, data=[largest] * len(ids))
    yield "an id beyond int64", changed(1, data=[largest + 1] * len(ids))
