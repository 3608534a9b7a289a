"""Export a model that `save_pretrained` has saved, verified against PyTorch.

MODEL is the folder of any class derived from PretrainedModule; a class of one's own is found
where --import names the module that defines it. Rows to verify with come from --inputs: best a
few hundred real ones. A mixture alone can do without: then 512 rows are drawn at random.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from moe_runtime._cli._arguments import TARGET_HELP, TARGETS, parse_names, parse_positive
from moe_runtime._cli._table import format_verification

NAME = "export"
HELP = "export a saved model to ONNX"
EPILOG = """\
examples:
  moe-runtime export saved exported
  moe-runtime export saved exported --import my_package.models --inputs rows.npz --outputs y
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("model", metavar="MODEL", help="folder that `save_pretrained` wrote")
    parser.add_argument("folder", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--inputs",
        metavar="FILE",
        type=Path,
        help="example rows: an .npz with an array for each input, by name, or an .npy, the input x",
    )
    parser.add_argument(
        "--outputs",
        metavar="NAMES",
        type=parse_names,
        help="names of the outputs, separated by commas (default: those of the tuple that the "
        "model returns, such as output,penalty,weights, or output_0,...)",
    )
    parser.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="module that defines the model's class, also of this folder; can be repeated",
    )
    parser.add_argument(
        "--soft", action="store_true", help="keep soft routing (default: hard, at most k experts)"
    )
    parser.add_argument("--target", choices=TARGETS, help=TARGET_HELP)
    parser.add_argument(
        "--tolerance", type=parse_positive, help="largest error (default: that of the target)"
    )
    parser.add_argument(
        "--canonical", action="store_true", help="also keep what `moe-runtime lower` reads"
    )


def run(given: argparse.Namespace) -> int:
    """Export, and say how far the model is from PyTorch."""
    # The part that needs PyTorch, which the other commands do without.
    from moe_runtime._cli import _saved_model  # noqa: PLC0415
    from moe_runtime.onnx import export  # noqa: PLC0415

    # A command looks for modules beside itself and not in the user's folder, which comes last,
    # so that a name in it hides no package.
    sys.path.append(str(Path.cwd()))
    for name in given.modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            msg = f"`--import` must name a module that can be imported here, got {name!r}."
            raise ValueError(msg) from error
    model = _saved_model.load(given.model)
    if given.inputs is None:
        inputs = _saved_model.draw_inputs(model)
        print(
            f"--inputs not given: drew {_saved_model.NUM_ROWS} rows at random to verify with; "
            "real rows show more"
        )
    else:
        inputs = _saved_model.read_inputs(model, given.inputs)
    verification = export(
        model,
        tuple(inputs.values()),
        given.folder,
        hard=not given.soft,
        input_names=list(inputs),
        output_names=given.outputs or _saved_model.output_names(model, inputs),
        **_options(given),
    )
    print(f"wrote {given.folder}: a {type(model).__name__}, {'soft' if given.soft else 'hard'}")
    print(format_verification(verification))
    return 0


def _options(given: argparse.Namespace) -> dict[str, Any]:
    """Return what was asked for; everything else is up to `export`."""
    options = {
        "target": given.target,
        "tolerance": given.tolerance,
        "canonical": given.canonical or None,
    }
    return {name: value for name, value in options.items() if value is not None}
