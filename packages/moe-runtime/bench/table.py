"""Markdown tables from the JSON files of the other benchmarks, for the README and the log.

``--write README.md`` puts each table between its markers, ``<!-- table: NAME -->`` and
``<!-- end of table -->``, so that no number is copied by hand.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
# The best of each group is what a user of that library gets.
LIBRARIES = {
    "transformers": ("transformers eager", "transformers batched_mm", "transformers grouped_mm"),
    "Tutel": ("tutel",),
    "DeepSpeed": ("deepspeed",),
    "lucidrains": ("mixture-of-experts", "st-moe-pytorch"),
}
PARTS = ("inference", "training")
BYTES_PER_MIB = 2**20


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def peers(rows: Sequence[Row]) -> str:
    """Compare with libraries: their time over ours, inference / training; share of the floor."""
    header = ["experts", "widths", "rows", "share of the floor", *LIBRARIES]
    lines = []
    for row in rows:
        kind = ", gated" if row["gated"] else ""
        shares = (share(row[part], "moe-runtime") for part in PARTS)
        line = [
            str(row["num_experts"]),
            f"{row['dim']}/{row['hidden']}{kind}",
            str(row["rows"]),
            " / ".join(f"{each:.0%}" for each in shares),
        ]
        for names in LIBRARIES.values():
            ratios = (best([row[part]["ratios"].get(name) for name in names]) for part in PARTS)
            line.append(" / ".join(ratios))
        lines.append(line)
    return markdown(header, lines)


def peers_in_short(rows: Sequence[Row]) -> str:
    """Compare with libraries at one row and at most rows, for each kind and size of experts."""
    shown = {min(row["rows"] for row in rows), max(row["rows"] for row in rows)}
    return peers([row for row in rows if row["rows"] in shown])


def share(timing: Row, name: str) -> float:
    """Return how much of a variant's time the selected products would take alone."""
    return float(timing["floor_milliseconds"] / timing["milliseconds"][name])


def best(ratios: Iterable[float | None]) -> str:
    """Format the smallest ratio, or a dash where nothing was measured."""
    measured = [ratio for ratio in ratios if ratio is not None]
    return f"{min(measured):.2f}x" if measured else "-"


def published(rows: Sequence[Row]) -> str:
    """Compare with the published formulation: how many times faster."""
    cases = {(row["num_experts"], tuple(row["widths"]), row["rows"]): {} for row in rows}
    for row in rows:
        for part in PARTS:
            case = cases[row["num_experts"], tuple(row["widths"]), row["rows"]]
            case["hard" if row["hard"] else "soft", part] = row[part]["ratios"]["published"]
    columns = (("hard", "inference"), ("hard", "training"), ("soft", "training"))
    header = ["experts", "widths", "rows", *(", ".join(column[::-1]) for column in columns)]
    lines = (
        [str(num_experts), "/".join(map(str, widths)), str(num_rows)]
        + [f"{case[column]:.1f}x" for column in columns]
        for (num_experts, widths, num_rows), case in cases.items()
    )
    return markdown(header, lines)


def nonzeros(rows: Sequence[Row]) -> str:
    """Show training time against the mean non-zeros of a row, and the line through it."""
    header = ["experts", "widths", "rows", "kernel", "from", "to", "R^2", "of the dense cost"]
    lines = []
    for row in rows:
        points = list(zip(row["mean_nonzeros"], row["training_milliseconds"], strict=True))
        ends = [f"{count:.1f} a row: {time:.0f} ms" for count, time in (points[0], points[-1])]
        size = [str(row["num_experts"]), f"{row['dim']}/{row['hidden']}", str(row["rows"])]
        fit = [f"{row['r_squared']:.3f}", f"{row['slope_over_dense_per_expert']:.2f}"]
        lines.append([*size, row["kernel"], *ends, *fit])
    return markdown(header, lines)


def memory(rows: Sequence[Row]) -> str:
    """Show peak memory, in training above the parameters' gradients."""
    header = ["kernel", "experts", "rows", "pairs", "inference", "training", "a (T, E, H) tensor"]
    lines = []
    for row in rows:
        training = row["training_bytes"] - row["parameter_gradient_bytes"]
        sizes = (row["inference_bytes"], training, row["all_pairs_hidden_bytes"])
        line = [row["kernel"], *(str(row[name]) for name in ("num_experts", "rows", "pairs"))]
        lines.append(line + [f"{size / BYTES_PER_MIB:.0f} MiB" for size in sizes])
    return markdown(header, lines)


def sparse_layers(rows: Sequence[Row]) -> str:
    """Compare with all experts one by one: how many times faster, inference / training."""
    row_counts = sorted({row["rows"] for row in rows})
    header = ["experts", "ideal", *(f"{count} rows" for count in row_counts)]
    sizes = dict.fromkeys((row["num_experts"], row["dim"], row["hidden"]) for row in rows)
    lines = []
    for size in sizes:
        same = [row for row in rows if (row["num_experts"], row["dim"], row["hidden"]) == size]
        ideal = same[0]["num_experts"] / same[0]["k"]
        cells = {
            row["rows"]: " / ".join(f"{1 / row[part]['ratios']['auto']:.1f}x" for part in PARTS)
            for row in same
        }
        name = "{} x {}/{}".format(*size)
        lines.append([name, f"{ideal:.0f}x", *(cells[count] for count in row_counts)])
    return markdown(header, lines)


def onnx_speed(rows: Sequence[Row]) -> str:
    """Show the default target, and how many times as long every other variant takes."""
    variants = [name for name in rows[0]["over_unrolled"] if name != "unrolled"]
    header = ["experts", "widths", "rows", "k", "unrolled", "over the floor", *variants]
    lines = []
    for row in rows:
        size = [str(row["num_experts"]), f"{row['dim']}/{row['hidden']}", str(row["rows"])]
        time = f"{row['milliseconds']['unrolled']:.3g} ms"
        found = (row["over_unrolled"].get(name) for name in variants)
        ratios = ["-" if ratio is None else f"{ratio:.2f}x" for ratio in found]
        lines.append([*size, str(row["k"]), time, f"{row['over_floor']:.2f}x", *ratios])
    return markdown(header, lines)


def onnx_int8(rows: Sequence[Row]) -> str:
    """Compare a trained model with its 8-bit export."""
    header = ["gate", "experts", "test accuracy", "in 8 bits", "relative error", "size"]
    lines = []
    for row in rows:
        accuracies = [f"{row[f'{target}_accuracy']:.2%}" for target in ("unrolled", "int8")]
        sizes = [f"{row[f'{target}_bytes'] / 1e6:.0f}" for target in ("unrolled", "int8")]
        experts = f"{row['num_experts']} x {row['dim']}/{row['hidden']}"
        error = f"{row['relative_error']:.2%}"
        lines.append([row["gate"], experts, *accuracies, error, f"{' to '.join(sizes)} MB"])
    return markdown(header, lines)


def onnx_export(rows: Sequence[Row]) -> str:
    """Show what exports of whole stacks take; the last row is about repeats."""
    header = ["stack", "target", "weights", "seconds", "peak memory", "error", "of a mixture alone"]
    lines = []
    for row in rows:
        if "layers" in row:
            stack = "{layers} layers x {num_experts} experts x {dim}/{hidden}".format(**row)
            size = [f"{row['weight_bytes'] / 1e9:.2f} GB", f"{row['seconds']:.0f}"]
            errors = [f"{row[name]:.1e}" for name in ("output_error", "mixture_error")]
            lines.append([stack, row["target"], *size, f"{row['peak_over_weights']:.2f}x", *errors])
    repeats = rows[-1]
    return (
        f"{markdown(header, lines)}\n\n{repeats['repeats']} runs of one mixture on "
        f"{repeats['rows']} rows with {repeats['threads']} threads: {repeats['wrong']} differed "
        f"from PyTorch by more than 2e-6, the largest by {repeats['largest_error']:.1e}."
    )


def encoder(rows: Sequence[Row]) -> str:
    """Compare a converted encoder with the dense one, both served by ONNX Runtime."""
    header = ["encoder", "batch", "dense", "sparse", "in 8 bits, dense", "sparse", "operations"]
    lines = []
    for row in rows:
        times = row["milliseconds"]
        cells = [f"{row['name']}", f"{row['batch_size']} x {row['length']}"]
        for kind in ("", " int8"):
            faster = f"{times[f'sparse{kind}']:.0f} ms, {row['faster'][kind]:.2f}x"
            cells += [f"{times[f'dense{kind}']:.0f} ms", faster]
        lines.append([*cells, f"{row['operations_ratio']:.2f}x"])
    return markdown(header, lines)


# The results file of each table.
TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "encoder": ("encoder", encoder),
    "memory": ("memory", memory),
    "nonzeros": ("nonzeros", nonzeros),
    "onnx_export": ("onnx_export", onnx_export),
    "onnx_int8": ("onnx_int8", onnx_int8),
    "onnx_speed": ("onnx_speed", onnx_speed),
    "peers": ("peers", peers),
    "peers_in_short": ("peers", peers_in_short),
    "published": ("published", published),
    "sparse_layers": ("sparse_layers", sparse_layers),
}


def read_tables(folder: Path) -> dict[str, str]:
    """Make every table for which there is a file."""
    tables = {}
    for name, (source, table) in TABLES.items():
        path = folder / f"{source}_cpu.json"
        if path.exists():
            tables[name] = table(json.loads(path.read_text(encoding="utf-8"))["rows"])
    return tables


def write_between_markers(text: str, tables: Mapping[str, str]) -> str:
    """Replace what stands between the markers of each table that the text has."""
    for name, table in tables.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)"
        text = re.sub(pattern, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
    return text


def main() -> None:
    """Print every table, and write the tables where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="read the files of a quick run")
    parser.add_argument("--results", type=Path, help="folder of the JSON files")
    parser.add_argument("--write", type=Path, help="file with markers to put the tables into")
    given = parser.parse_known_args()[0]
    tables = read_tables(given.results or (RESULTS / "quick" if given.quick else RESULTS))
    for name, table in tables.items():
        print(f"{name}: {TABLES[name][1].__doc__}\n\n{table}\n")
    if given.write is not None:
        text = given.write.read_text(encoding="utf-8")
        given.write.write_text(write_between_markers(text, tables), encoding="utf-8")


if __name__ == "__main__":
    main()
