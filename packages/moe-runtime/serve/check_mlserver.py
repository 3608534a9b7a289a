"""Serve exported models with MLServer, and compare every answer with ONNX Runtime in process.

    python check_mlserver.py FOLDER [--seconds N]

FOLDER is what export_examples.py has written. Server and reference are the same build of
ONNX Runtime on the same rows, and JSON and binary tensors both keep every bit of a float32,
so answers must be equal, not near. Leaves with status 1 where one differs or fails.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from _bad_requests import check_bad_requests
from _clients import Arrays, Client, Grpc, Rest, ask_json
from _load import Question, difference, report, run_clients
from _server import Address, running_server

BATCH_SIZES = (0, 1, 2, 7, 64, 300)
NUM_CLIENTS, NUM_VARIANTS = 8, 8
WARM_UP_SECONDS = 1


def main() -> int:
    """Check all models, and one of them under load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=30, help="how long the load lasts")
    options = parser.parse_args()
    problems: list[str] = []
    for name in ("served", "types"):
        folder, log = options.folder / "mlserver" / name, options.folder / f"{name}.log"
        with running_server(folder, log) as address:
            print(f"\n{name}: serving {folder.name} at {address.rest} and {address.grpc}")
            problems += check_metadata(address, options.folder, name)
            problems += check_sizes(address, options.folder, name)
            if name == "served":
                feeds = draw_questions(options.folder, name, (2,), 1)[0].feeds
                problems += check_bad_requests(address, name, feeds)
                problems += check_load(address, options.folder, name, options.seconds)
                problems += check_sizes(address, options.folder, name)
        print(f"{name}: the server stopped when told to")
    for problem in problems:
        print("PROBLEM", problem)
    print("\nfailed" if problems else "\nall answers equal ONNX Runtime's to the bit")
    return bool(problems)


def draw_questions(
    folder: Path, name: str, sizes: tuple[int, ...], variants: int
) -> list[Question]:
    """Draw requests from the example rows, and answer them here."""
    options = ort.SessionOptions()
    settings = json.loads((folder / "mlserver" / name / "model-settings.json").read_text())
    options.intra_op_num_threads = settings["parameters"]["extra"]["num_threads"]
    model = str(folder / "exported" / name / "model.onnx")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    with np.load(folder / f"{name}.npz") as arrays:
        rows = dict(arrays)
    generator = np.random.default_rng(0)
    questions = []
    for size in sizes:
        for _ in range(variants):
            chosen = generator.integers(len(next(iter(rows.values()))), size=size)
            feeds: Arrays = {key: array[chosen] for key, array in rows.items()}
            answer = dict(zip(names, session.run(names, feeds), strict=True))
            questions.append(Question(feeds, answer))
    return questions


def check_metadata(address: Address, folder: Path, name: str) -> list[str]:
    """Compare what the server says of the model with what the export said."""
    info = json.loads((folder / "exported" / name / "model_info.json").read_text())
    problems = []
    for open_client in (Rest, Grpc):
        told = open_client(address, name).metadata()
        for field in ("inputs", "outputs"):
            wanted = {each["name"]: len(each["shape"]) for each in info[field]}
            got = {each["name"]: len(each.get("shape", ())) for each in told[field]}
            if got != wanted:
                problems.append(f"{open_client.protocol} metadata: {got}, wanted {wanted}")
    return problems


def check_sizes(address: Address, folder: Path, name: str) -> list[str]:
    """Ask once for each number of rows, over each protocol."""
    problems = []
    rest = partial(ask_json, address, name) if name == "types" else Rest(address, name).ask
    for protocol, ask in (("REST", rest), ("gRPC", Grpc(address, name).ask)):
        for question, size in zip(
            draw_questions(folder, name, BATCH_SIZES, 1), BATCH_SIZES, strict=True
        ):
            try:
                apart = difference(ask(question.feeds), question.answer)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                problems.append(f"{name}, {protocol}, {size} rows: {error}")
                continue
            print(f"{name}, {protocol}, {size} rows: largest difference {apart:g}")
            if apart != 0:
                problems.append(f"{name}, {protocol}, {size} rows: difference {apart:g}")
    return problems


def check_load(address: Address, folder: Path, name: str, seconds: float) -> list[str]:
    """Let clients of both protocols ask for all sizes at the same time."""
    questions = draw_questions(folder, name, BATCH_SIZES[1:], NUM_VARIANTS)
    kinds: tuple[type[Client], ...] = (Rest, Grpc)
    clients = [partial(kinds[index % 2], address, name) for index in range(NUM_CLIENTS)]
    run_clients(clients, questions, seconds=WARM_UP_SECONDS)
    tallies = run_clients(clients, questions, seconds=seconds)
    print(f"load, all: {report(tallies, seconds=seconds)}")
    for kind in kinds:
        some = [each for each in tallies if each.protocol == kind.protocol]
        print(f"load, {kind.protocol}: {report(some, seconds=seconds)}")
    wrong = sum(each.wrong for each in tallies)
    failures = [failure for each in tallies for failure in each.failures]
    problems = [f"load: {wrong} answers differ"] if wrong else []
    return problems + [f"load: {len(failures)} requests failed: {failures[:3]}"] * bool(failures)


if __name__ == "__main__":
    sys.exit(main())
