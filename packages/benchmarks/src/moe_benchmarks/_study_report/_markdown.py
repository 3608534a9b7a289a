"""The report in Markdown, without its figures."""

import re
from collections.abc import Sequence

from moe_benchmarks._study_report._document import Cell, Line, Section, Table


def to_markdown(
    title: str,
    findings: Sequence[tuple[str, str, str]],
    sections: Sequence[Section],
    made_with: Sequence[tuple[str, str]],
) -> str:
    """Write headings, sentences, tables and lists; a line of trials can be linked to."""
    parts = [f"# {escape(title)}"]
    parts += [f"**{escape(study)}.** {escape(text)}" for study, _, text in findings]
    for section in sections:
        if section.figures and not (section.paragraphs or section.table):
            continue
        parts.append(f"{'#' * section.level} {escape(section.title)}")
        # What a study found stands above.
        parts += [escape(text) for text in section.paragraphs if section.level > 2]
        if section.table is not None:
            parts.append(_table(section.table))
        if section.note:
            parts.append(escape(section.note))
        if section.items:
            parts.append("\n".join(f"- {escape(item)}" for item in section.items))
    parts.append("## What the trials were made with")
    parts.append("\n".join(f'- <a id="{anchor}"></a>{escape(text)}' for anchor, text in made_with))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Keep Markdown and HTML in a text from being read as such, and the text on one line."""
    text = re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(table: Table) -> str:
    rule = ["---", *("---:" for _ in table.header[1:])]
    lines = [[escape(name) for name in table.header], rule, *map(_line, table.lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(line: Line) -> list[str]:
    """Write a line; its first link alone, as one on every number would hide the numbers."""
    linked = next((cell for cell in line.cells if cell.anchor), None)
    first, *rest = (_cell(cell, is_linked=cell is linked) for cell in line.cells)
    return [f'<a id="{line.anchor}"></a>{first}' if line.anchor else first, *rest]


def _cell(cell: Cell, *, is_linked: bool) -> str:
    text = escape(cell.text)
    text = f"**{text}**" if cell.is_bold else text
    return f"[{text}](#{cell.anchor})" if is_linked else text
