"""Ask a server for answers over REST and over gRPC, as a user of the V2 protocol would."""

import http.client
import json
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from _server import Address
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

Arrays = dict[str, NDArray[Any]]
TIMEOUT_SECONDS = 60


class Client(ABC):
    """One connection, for one thread."""

    protocol: str

    @abstractmethod
    def ask(self, feeds: Arrays) -> Arrays:
        """Send a request for all outputs."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Ask what goes in and comes out."""


class Grpc(Client):
    """Binary tensors over gRPC."""

    protocol = "gRPC"

    def __init__(self, address: Address, name: str) -> None:
        self.name = name
        self.client = tritonclient.grpc.InferenceServerClient(address.grpc)

    def ask(self, feeds: Arrays) -> Arrays:
        """Send arrays as they are in memory."""
        inputs = []
        for name, array in feeds.items():
            datatype = np_to_triton_dtype(array.dtype)
            inputs.append(tritonclient.grpc.InferInput(name, list(array.shape), datatype))
            inputs[-1].set_data_from_numpy(array)
        result = self.client.infer(self.name, inputs, client_timeout=TIMEOUT_SECONDS)
        return {each.name: result.as_numpy(each.name) for each in result.get_response().outputs}

    def metadata(self) -> dict[str, Any]:
        """Return the same form as REST does."""
        return dict(self.client.get_model_metadata(self.name, as_json=True))


class Rest(Client):
    """JSON over HTTP; MLServer (1.7.1) has no binary tensors there."""

    protocol = "REST"

    def __init__(self, address: Address, name: str) -> None:
        self.name = name
        self.client = tritonclient.http.InferenceServerClient(
            address.rest, network_timeout=TIMEOUT_SECONDS
        )

    def ask(self, feeds: Arrays) -> Arrays:
        """Send arrays as lists of numbers."""
        inputs = []
        for name, array in feeds.items():
            datatype = np_to_triton_dtype(array.dtype)
            inputs.append(tritonclient.http.InferInput(name, list(array.shape), datatype))
            inputs[-1].set_data_from_numpy(array, binary_data=False)
        names = [each["name"] for each in self.metadata()["outputs"]]
        outputs = [
            tritonclient.http.InferRequestedOutput(each, binary_data=False) for each in names
        ]
        result = self.client.infer(self.name, inputs, outputs=outputs)
        return {name: result.as_numpy(name) for name in names}

    def metadata(self) -> dict[str, Any]:
        """Ask once."""
        if not hasattr(self, "_metadata"):
            self._metadata = dict(self.client.get_model_metadata(self.name))
        return self._metadata


def post(address: Address, name: str, body: bytes) -> tuple[int, str]:
    """Post what no client would send; return the status and the error."""
    host, port = address.rest.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_SECONDS)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"/v2/models/{name}/infer", body, headers)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    return response.status, text


def as_json(feeds: Arrays) -> dict[str, Any]:
    """Write a request as JSON, by hand."""
    return {
        "inputs": [
            {
                "name": name,
                "datatype": np_to_triton_dtype(array.dtype),
                "shape": list(array.shape),
                "data": array.ravel().tolist(),
            }
            for name, array in feeds.items()
        ]
    }


def ask_json(address: Address, name: str, feeds: Arrays) -> Arrays:
    """Send JSON written by hand: tritonclient (2.73) sends float16 in binary form only."""
    status, text = post(address, name, json.dumps(as_json(feeds)).encode())
    if status != http.HTTPStatus.OK:
        msg = f"status {status}: {text}"
        raise RuntimeError(msg)
    dtypes = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "INT32": "int32"}
    return {
        each["name"]: np.array(each["data"], dtypes[each["datatype"]]).reshape(each["shape"])
        for each in json.loads(text)["outputs"]
    }
