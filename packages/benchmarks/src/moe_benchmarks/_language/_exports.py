"""Models of a study as they are served: exported, scored by ONNX Runtime's answers, and timed.

Axes: B sequences, S tokens.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from moe_benchmarks._language._batches import Batch, EncodedRows
from moe_benchmarks._language._students import DENSE
from moe_benchmarks._language._study import Cell, LanguageStudy
from moe_benchmarks._language._task import Task
from moe_benchmarks._language._training import EVALUATION_ROWS
from moe_benchmarks.timing import interleaved_medians
from moe_runtime import hard_routing
from moe_runtime.convert import from_pretrained
from moe_runtime.onnx import export

# How experts run in each; whatever else multiplies is quantised by ONNX Runtime's own tool.
TARGETS = {"float32": "unrolled", "int8": "int8"}
EXAMPLE_ROWS = 16
BATCH_SIZES, LENGTH = (1, 32), 128
MODEL, QUANTISED = "model.onnx", "quantised.onnx"


class Answers(nn.Module):
    """A model of transformers that takes tensors in a fixed order and returns its logits."""

    def __init__(self, model: Any, input_names: Sequence[str], output_names: Sequence[str]) -> None:  # noqa: ANN401 - of transformers
        super().__init__()
        self.model, self.input_names, self.output_names = model, input_names, output_names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Answer a batch."""
        output = self.model(**dict(zip(self.input_names, inputs, strict=True)))
        return tuple(output[name] for name in self.output_names)


def export_seed(
    study: LanguageStudy, cells: Sequence[Cell], kind: str, on_model: Callable[[str], None]
) -> dict[str, Any]:
    """Export trained models of one seed, score what they answer, and time them in turns.

    Returns
    -------
    dict
        For each variant ``scores``, of ONNX Runtime's answers to the rows that the study scores;
        ``error``, the largest relative difference from PyTorch's; ``bytes``, of its files;
        ``path``, relative to the study's folder; ``milliseconds``, medians by the size of a
        batch, as "rows x tokens"; and ``threads``.

    Raises
    ------
    FileNotFoundError
        If a model was not kept.
    """
    for cell in cells:
        if not study.model_folder(cell).exists():
            msg = f"{study.model_folder(cell)} is not there: only its row was kept."
            raise FileNotFoundError(msg)
    found = {}
    for cell in cells:
        on_model(cell.variant)
        found[cell.variant] = _export_cell(study, cell, kind)
    times = _times(study, {name: study.folder / each["path"] for name, each in found.items()})
    for name, each in found.items():
        each |= {"milliseconds": times[name], "threads": torch.get_num_threads()}
    return found


def _export_cell(study: LanguageStudy, cell: Cell, kind: str) -> dict[str, Any]:
    home = study.model_folder(cell)
    folder = home / f"onnx-{kind}"
    batch = study.dev_rows.batch(list(range(min(len(study.dev_rows), EXAMPLE_ROWS))))
    inputs = study.dev_rows.inputs(batch)
    model = study.task.load(home) if cell.variant == DENSE else from_pretrained(home)
    answers = Answers(model.eval(), list(inputs), study.task.output_names)
    write = _write_dense if cell.variant == DENSE else _write_sparse
    with _quiet():
        write(answers, inputs, folder, kind)
    path = folder / MODEL
    if kind == "int8":
        path = folder / QUANTISED
        with _quiet():
            # 7 bits: 8 overflow on processors without VNNI, and unsigned ones are slow elsewhere.
            quantize_dynamic(folder / MODEL, path, weight_type=QuantType.QInt8, reduce_range=True)
    session = open_session(path)
    return {
        "scores": scores_of_session(session, study.task, study.dev_rows),
        "error": _error(session, answers, inputs),
        "bytes": sum(each.stat().st_size for each in folder.glob(f"{path.name}*")),
        "path": str(path.relative_to(study.folder)),
    }


def _error(session: ort.InferenceSession, answers: Answers, inputs: Batch) -> float:
    """Return the largest relative difference of an output from PyTorch's, with hard routing."""
    with torch.no_grad(), hard_routing(answers):
        wanted = answers(*inputs.values())
    found = session.run(None, {name: each.numpy() for name, each in inputs.items()})
    differences = [torch.from_numpy(a) - b for a, b in zip(found, wanted, strict=True)]
    return max(float(each.norm() / b.norm()) for each, b in zip(differences, wanted, strict=True))


def _times(study: LanguageStudy, paths: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    sessions = {name: open_session(path) for name, path in paths.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in paths}
    length = min(study.settings.max_length, LENGTH)
    longest = study.dev_rows.lengths.argsort(descending=True)
    for size in BATCH_SIZES:
        rows = longest[torch.arange(size) % len(longest)].tolist()
        inputs = study.dev_rows.inputs(study.dev_rows.batch(rows))
        feeds = {name: _to_length(each, length).numpy() for name, each in inputs.items()}
        calls = {name: partial(each.run, None, feeds) for name, each in sessions.items()}
        for name, median in interleaved_medians(calls).items():
            found[name][f"{size} x {length}"] = median
    return found


def scores_of_session(
    session: ort.InferenceSession, task: Task, rows: EncodedRows
) -> dict[str, float]:
    """Return the task's official scores of an exported model."""
    outputs = []
    for batch in rows.in_order(EVALUATION_ROWS):
        feeds = {name: each.numpy() for name, each in rows.inputs(batch).items()}
        answers = map(torch.from_numpy, session.run(None, feeds))
        outputs.append(SimpleNamespace(**dict(zip(task.output_names, answers, strict=True))))
    return rows.score(outputs)


def open_session(path: Path) -> ort.InferenceSession:
    """Open a model with as many threads as PyTorch has."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # what it says of every quantised model
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _to_length(values_BS: Tensor, length: int) -> Tensor:
    """Repeat or cut rows of tokens, so that all tasks are timed at one length."""
    repeats = -(-length // values_BS.shape[1])
    return values_BS.repeat(1, repeats)[:, :length].contiguous()


def _write_sparse(answers: Answers, inputs: Batch, folder: Path, kind: str) -> None:
    export(
        answers,
        tuple(inputs.values()),
        folder,
        hard=True,
        target=TARGETS[kind],
        input_names=answers.input_names,
        output_names=answers.output_names,
        dynamic_axes={name: {1: "sequence"} for name in inputs},
    )


def _write_dense(answers: Answers, inputs: Batch, folder: Path, _kind: str) -> None:
    """Export by the usual route."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    torch.onnx.export(
        answers,
        tuple(inputs.values()),
        folder / MODEL,
        input_names=answers.input_names,
        output_names=answers.output_names,
        dynamic_shapes=((sizes,) * len(inputs),),
        dynamo=True,
        verbose=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters and quantisers say of every model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
