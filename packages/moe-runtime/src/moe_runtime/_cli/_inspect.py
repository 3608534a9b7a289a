"""Show what is in an exported model: its mixtures, graph, weights, and how it was verified.

FOLDER is an export; of a FILE alone, any .onnx, only the graph and the weights are known. Nothing
is run, and large weights are not read.
"""

import argparse
import json
from typing import Any

from moe_runtime._cli._table import format_errors, format_table

NAME = "inspect"
HELP = "show what is in an exported model"
EPILOG = "example: moe-runtime inspect exported --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("path", metavar="FOLDER|FILE", help="an export, or an .onnx file")
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")


def run(given: argparse.Namespace) -> int:
    """Print the facts."""
    # See `_lower`.
    from moe_runtime._cli._facts import INFO_FILE, ModelError, read_facts  # noqa: PLC0415

    facts = read_facts(given.path)
    if given.json:
        print(json.dumps(facts, indent=2))
        return 0
    try:
        text = "\n\n".join(_sections(facts))
    except (AttributeError, KeyError, TypeError) as error:
        msg = f"{given.path}: {INFO_FILE} is not what an export writes: {error!r}."
        raise ModelError(msg) from error
    print(text)
    return 0


def _sections(facts: dict[str, Any]) -> list[str]:
    """Write each part as a table with a title."""
    sections = [_heading(facts)]
    if facts.get("mixtures"):
        sections.append(_mixtures(facts["mixtures"]))
    sections += [_values(facts, "inputs"), _values(facts, "outputs"), _weights(facts)]
    sections.append(format_table(("operator", "nodes"), facts["operators"].items()))
    if "verification" in facts:
        sections.append(_verification(facts))
    if "versions" in facts:
        sections.append(format_table(("written by", "version"), facts["versions"].items(), left=2))
    return sections


def _heading(facts: dict[str, Any]) -> str:
    lines = [facts["path"]]
    lines.append("opset " + ", ".join(f"{name} {v}" for name, v in facts["opset"].items()))
    if "hard" in facts:
        lines.append(f"{'hard' if facts['hard'] else 'soft'} routing")
    if "target" in facts:
        lines.append(f"target {facts['target']}")
    return "\n".join(lines)


def _mixtures(mixtures: list[dict[str, Any]]) -> str:
    header = ["mixture", "gates", "experts", "k"]
    rows: list[list[object]] = [
        [
            each["name"] or "(the model)",
            _listed(each["gates"]),
            each["num_experts"],
            _listed(each["k"]),
        ]
        for each in mixtures
    ]
    # Earlier exports do not say.
    if all("dtype" in each and "layer_sizes" in each for each in mixtures):
        header += ["dtype", "layers (in x out)"]
        for row, each in zip(rows, mixtures, strict=True):
            sizes = [" x ".join(map(str, layer)) for layer in each["layer_sizes"]]
            row += [each["dtype"], _listed(sizes)]
    return format_table(header, rows, left=2)


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _values(facts: dict[str, Any], which: str) -> str:
    rows = [(each["name"], each["dtype"], _shape(each["shape"])) for each in facts[which]]
    return format_table((which.removesuffix("s"), "dtype", "shape"), rows, left=3)


def _shape(shape: list[int | str] | None) -> str:
    return "?" if shape is None else f"({_listed(shape)})"


def _weights(facts: dict[str, Any]) -> str:
    rows: list[tuple[object, ...]] = [
        (each["dtype"], each["tensors"], each["numbers"], f"{each['mb']:.3f}")
        for each in facts["weights"]
    ]
    rows += [(name, "", "", f"{size:.3f}") for name, size in facts["files_mb"].items()]
    return format_table(("weights, files", "tensors", "numbers", "MB"), rows)


def _verification(facts: dict[str, Any]) -> str:
    verification = facts["verification"]
    alone = [f"{error:.2g}" for error in verification["mixture_errors"]]
    lines = [format_errors(verification["output_errors"])]
    if alone:
        lines.append(f"each mixture alone: {', '.join(alone)}")
    return "\n".join([*lines, f"tolerance {facts['tolerance']:g}"])
