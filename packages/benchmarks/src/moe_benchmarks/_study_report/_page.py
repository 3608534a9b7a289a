"""Put the sections into the page and into Markdown."""

from collections.abc import Sequence
from typing import Any

from moe_benchmarks._report._template import environment as templates
from moe_benchmarks._study_report._made_with import environments_of, made_with_items
from moe_benchmarks._study_report._markdown import to_markdown
from moe_benchmarks._study_report._sections import study_sections
from moe_benchmarks._study_report._study import studies


def render_study(rows: Sequence[dict[str, Any]], *, title: str) -> tuple[str, str]:
    """Render the report of one or several experiments from their rows alone.

    Parameters
    ----------
    rows : sequence of dict
        Trials as `rows.jsonl` holds them, of any experiments, at least one.
    title : str
        Heading of the report.

    Returns
    -------
    html, markdown : str
        One page without outside parts, and the same without figures.

    Raises
    ------
    ValueError
        If there is no row, or a trial appears twice.
    """
    if not rows:
        msg = "`rows` must hold at least one trial, got none."
        raise ValueError(msg)
    environments = environments_of(rows)
    grouped = studies(rows)
    parts = [study_sections(study, environments) for study in grouped]
    findings = [
        (study.title, study.slug, sections[0].paragraphs[0])
        for study, sections in zip(grouped, parts, strict=True)
    ]
    sections = [section for study in parts for section in study]
    made_with = made_with_items(environments)
    page = templates("moe_benchmarks._study_report").get_template("study.html.j2")
    html = page.render(title=title, findings=findings, sections=sections, made_with=made_with)
    return html, to_markdown(title, findings, sections, made_with)
