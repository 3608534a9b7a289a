"""Tables of plain text."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_runtime.onnx import Verification


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> str:
    """Align columns: the first `left` of them to the left, the others, numbers, to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        aligned = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def format_errors(errors: dict[str, float]) -> str:
    """List the error of each output."""
    return format_table(("output", "error"), [(name, f"{e:.2g}") for name, e in errors.items()])


def format_verification(verification: "Verification") -> str:
    """List the errors that were found when a model was written."""
    errors = dict(verification.output_errors)
    errors |= {f"mixture {i} alone": e for i, e in enumerate(verification.mixture_errors)}
    sizes = ", ".join(map(str, verification.batch_sizes))
    lines = [
        format_errors(errors),
        f"errors are against PyTorch, in batches of {sizes} rows",
        f"rows left out, since rounding alone changes their experts: {verification.num_undecided}",
    ]
    # What the model loses by hard routing is no error of the export.
    if verification.hardening:
        moved = verification.hardening.items()
        shares = ", ".join(f"{name} {change.relative:.2%}" for name, change in moved)
        lines.append(f"hard routing itself moves the outputs, root mean square: {shares}")
    return "\n".join(lines)
