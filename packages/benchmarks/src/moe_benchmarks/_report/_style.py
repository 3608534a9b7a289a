"""The style of every figure, and figures as SVG elements that share one page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart.
GREY, BLUE, ORANGE, GREEN = "#999999", "#0072B2", "#E69F00", "#009E73"
RED, PINK, SKY, BLACK = "#D55E00", "#CC79A7", "#56B4E9", "#000000"
SIZE = (5.2, 3.4)  # inches; about the width of half a desktop page, or of a phone
STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
}


@contextmanager
def figure_named(name: str, size: tuple[float, float] = SIZE) -> Iterator[Figure]:
    """Make a figure in the report's style; the name keeps its SVG ids its own."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        yield Figure(figsize=size)


def to_svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element that scales with the page."""
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    # The style sheets and ids of several figures share one page.
    element = re.sub(r'(id="|"#|url\(#)(?=[A-Za-z])', rf"\g<1>{name}-", element)
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", element, count=1)
