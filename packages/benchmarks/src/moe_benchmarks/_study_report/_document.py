"""What both forms of the report hold: sections of paragraphs, tables, figures and lists."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a table; numbers link to the trials behind them."""

    text: str
    anchor: str = ""  # id of a line of an appendix
    hint: str = ""
    is_bold: bool = False
    is_text: bool = False  # wraps


class Line(NamedTuple):
    """A line of a table."""

    cells: list[Cell]
    anchor: str = ""  # its id
    is_marked: bool = False


class Table(NamedTuple):
    """A table."""

    header: list[str]
    lines: list[Line]


class Figure(NamedTuple):
    """An SVG element with its caption."""

    svg: str
    caption: str
    is_wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    anchor: str = ""
    level: int = 3
    paragraphs: list[str] = field(default_factory=list)
    table: Table | None = None
    note: str = ""
    items: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
