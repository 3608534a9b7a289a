"""A dense BERT made sparse: seconds and memory of the conversion, and both served by ONNX Runtime.

Weights are random: what experts compute does not depend on them, only on which are selected.
Each conversion and each export is in a process of its own, whose largest resident set is read
before and after. Writes JSON.

Axes: B sequences, S tokens, D features, H hidden units.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _harness import parse_options, take_turns, write
from numpy.typing import NDArray
from onnx_export import peak_bytes
from torch import Tensor, nn

from moe_runtime import CometRouter
from moe_runtime.convert import ImportanceSplit, convert, find_feed_forwards
from moe_runtime.onnx import export

EXPERTS, VOCABULARY = 4, 30522
BATCHES, LENGTH = (1, 32), 128


class Size(NamedTuple):
    """Sizes of a BERT."""

    name: str
    layers: int
    dim: int
    heads: int
    hidden: int


SIZES = (Size("MiniLM-L6", 6, 384, 12, 1536), Size("BERT-base", 12, 768, 12, 3072))
QUICK_SIZES = (Size("miniature", 2, 32, 2, 64),)


class Encoder(nn.Module):
    """Hidden states of the last layer, from tensors alone."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode tokens (B, S): (B, S, D)."""
        states: Tensor = self.bert(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return states


def build(size: Size) -> nn.Module:
    """Build a dense BERT with random weights."""
    import transformers  # noqa: PLC0415 - among the peers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.dim,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.hidden,
    )
    model: nn.Module = transformers.BertModel(config, add_pooling_layer=False).eval()
    return model


def tokens(num_rows: int, length: int = LENGTH) -> dict[str, Tensor]:
    """Draw ids; a tenth of each row is padding, as where rows are of about one length."""
    ids = torch.randint(5, VOCABULARY, (num_rows, length))
    mask = torch.ones_like(ids)
    mask[:, length - length // 10 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def make_sparse(model: nn.Module, size: Size) -> None:
    """Convert to experts of a quarter of the width, two thirds of it shared."""
    batch = tokens(4)
    found = find_feed_forwards(model, batch)
    importance = {each.name: torch.rand(size.hidden) for each in found}
    split = ImportanceSplit(importance, size.hidden // 4, size.hidden // 6)
    convert(model, batch, router=lambda dim: CometRouter(dim, EXPERTS, k=1), split=split)


def convert_one(size: Size) -> dict[str, Any]:
    """Convert a model, in this process."""
    build(QUICK_SIZES[0])(**tokens(1))
    libraries = peak_bytes()  # with transformers, and what its first model brings
    model = build(size)
    weights = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    begin = time.perf_counter()
    make_sparse(model, size)
    return {
        "seconds": time.perf_counter() - begin,
        "weight_bytes": weights,
        "peak_over_weights": (peak_bytes() - libraries) / weights,
    }


def export_all(size: Size, folder: Path) -> dict[str, Any]:
    """Export the dense model by the usual route and the sparse one by ours, in this process."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 - the extra

    model, batch = build(size), tokens(8, 32)
    names: dict[str, Any] = {"input_names": list(batch), "output_names": ["states"]}
    axes = {name: {1: "sequence"} for name in batch}
    sizes = torch.export.Dim("batch"), torch.export.Dim("sequence")
    torch.onnx.export(
        Encoder(model).eval(),
        tuple(batch.values()),
        str(folder / "dense.onnx"),
        dynamo=True,
        dynamic_shapes=[dict(enumerate(sizes))] * 2,
        external_data=False,
        verbose=False,
        **names,
    )
    make_sparse(model, size)
    errors = {}
    for target in ("unrolled", "int8"):
        home = folder / target
        verification = export(
            Encoder(model), tuple(batch.values()), home, hard=True, target=target,
            dynamic_axes=axes, **names,
        )  # fmt: skip
        errors[target] = verification.largest_error
    sources = {"dense int8": folder / "dense.onnx", "sparse int8": folder / "int8" / "model.onnx"}
    for name, source in sources.items():
        # The products of attention, and of the dense layers, as ONNX Runtime recommends it for
        # processors of any kind: 8 bits overflow without VNNI.
        options = {"weight_type": QuantType.QInt8, "reduce_range": True}
        quantize_dynamic(source, folder / f"{name}.onnx", **options)
    return {"verification": errors}


def serve(size: Size, options: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - of the harness
    """Time all four models in turns."""
    import onnxruntime as ort  # noqa: PLC0415 - the extra

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        exported = _alone("export", size, folder)
        paths = {
            "dense": folder / "dense.onnx",
            "sparse": folder / "unrolled" / "model.onnx",
            "dense int8": folder / "dense int8.onnx",
            "sparse int8": folder / "sparse int8.onnx",
        }
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3
        sessions = {
            name: ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
            for name, path in paths.items()
        }
        rows = []
        for batch_size in (2,) if options.quick else BATCHES:
            given = {name: value.numpy() for name, value in tokens(batch_size).items()}
            calls: dict[Any, Any] = {
                name: partial(session.run, None, given) for name, session in sessions.items()
            }
            times = take_turns(calls, seconds=8 * options.seconds)
            medians = {name: float(np.median(values)) for name, values in times.items()}
            ratios = {
                kind: float(np.median(np.divide(times[f"dense{kind}"], times[f"sparse{kind}"])))
                for kind in ("", " int8")
            }
            states = {name: session.run(None, given)[0] for name, session in sessions.items()}
            rows.append(
                {
                    **size._asdict(),
                    "batch_size": batch_size,
                    "length": LENGTH,
                    "milliseconds": medians,
                    "faster": ratios,
                    "operations_ratio": operations(size, size.hidden)
                    / operations(size, size.hidden // 4),
                    "int8_error": {
                        kind: relative_error(states[f"{kind} int8"], states[kind])
                        for kind in ("dense", "sparse")
                    },
                    **exported,
                }
            )
            print(f"{size.name}, {batch_size} x {LENGTH}: {medians}, faster {ratios}")
    return rows


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Return the norm of the difference over the norm of what is wanted."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def operations(size: Size, hidden: int) -> float:
    """Return multiplications of a token: projections, attention over the length, feed-forward."""
    attention = 4 * size.dim**2 + 2 * LENGTH * size.dim
    return size.layers * (attention + 2 * size.dim * hidden)


def _alone(what: str, size: Size, folder: Path | None = None) -> dict[str, Any]:
    """Run a part in a process of its own."""
    command = [sys.executable, __file__, "--alone", what, size.name, str(folder or "")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this file
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Convert, export and time all sizes, and write the results."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--alone", nargs=3)
    alone = parser.parse_known_args()[0].alone
    if alone is not None:
        logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
        what, name, folder = alone
        size = next(each for each in (*SIZES, *QUICK_SIZES) if each.name == name)
        print(
            json.dumps(convert_one(size) if what == "convert" else export_all(size, Path(folder)))
        )
        return
    options = parse_options(__doc__)
    rows = []
    for size in QUICK_SIZES if options.quick else SIZES:
        converted = _alone("convert", size)
        print(f"{size.name}: {converted}")
        rows += [{**row, "conversion": converted} for row in serve(size, options)]
    write("encoder", options, rows)


if __name__ == "__main__":
    main()
