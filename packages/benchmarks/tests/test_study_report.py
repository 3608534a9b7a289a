import itertools
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from _rows import failed, study, trial

from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._study_report import render_study
from moe_benchmarks._study_report._names import variant_name
from moe_benchmarks._study_report._study import studies

Rows = list[dict[str, Any]]
Rendered = tuple[str, str]
ERROR = "RuntimeError: <script>alert(1)</script> | at *epoch* 3\nand [more](http://x.invalid)"
DIGITS = {"top left": "accuracy", "bottom right": "accuracy"}


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Two experiments with different tasks, several searches, failed trials, and a third failed."""
    variants = [
        study(12, mean=0.68, gate="hash"),
        study(12, mean=0.60, seed=1, gate="hash", search="ids"),
        study(12, mean=0.61, seed=2),
        study(11, mean=0.61, seed=3, search="relaxed"),
        [failed(11, ERROR, search="relaxed")],
        study(3, mean=1.2, experiment="multi-mnist", gate="top-k", tasks=DIGITS),
        [failed(number, experiment="books", gate="relu") for number in range(2)],
    ]
    return [row for variant in variants for row in variant]


@pytest.fixture(scope="module")
def rendered(rows: Rows) -> Rendered:
    return render_study(rows, title="Gates & searches")


class Page(HTMLParser):
    """Collects what a page loads, links to and names, and whether its tags close."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "stop", "image", "line", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert value is not None
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "xlink:href", "srcset", "data"}:
                (self.links if value.startswith("#") else self.loads).append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    return page


def test_the_page_is_whole_and_needs_nothing_else(rendered: Rendered) -> None:
    html, _ = rendered
    page = parse(html)
    assert not page.open
    # A colour bar is an image within the page.
    assert all(each.startswith("data:image/png;base64,") for each in page.loads)
    assert "@import" not in html
    assert "script" not in page.tags
    assert "Gates &amp; searches" in html


def test_every_trial_stands_in_the_page_once_and_every_link_resolves(
    rows: Rows, rendered: tuple[str, str]
) -> None:
    page = parse(rendered[0])
    assert len(page.ids) == len(set(page.ids))
    trials = [name for name in page.ids if name.startswith("row-")]
    assert len(trials) == len(rows)
    assert {link[1:] for link in page.links} <= set(page.ids)
    searched = [row for row in rows if row["search"] == "ids"]
    best = min(searched, key=lambda row: row["metrics"]["validation"]["trained"]["loss"])
    assert f"#row-movielens-1m-0-1-hash-ids-{best['trial']}" in page.links


def test_every_trial_stands_in_markdown_once_and_every_link_resolves(
    rows: Rows, rendered: tuple[str, str]
) -> None:
    markdown = rendered[1]
    ids = re.findall(r'<a id="([^"]*)">', markdown)
    assert len(ids) == len(set(ids))
    assert sum(name.startswith("row-") for name in ids) == len(rows)
    links = re.findall(r"\]\(([^)]*)\)", re.sub(r"\\[\[\]]", "", markdown))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_markdown_tables_have_as_many_cells_in_each_line(rendered: Rendered) -> None:
    lines = [line.replace(r"\|", "") for line in rendered[1].splitlines()]
    tables = 0
    for before, line in itertools.pairwise(lines):
        if line.startswith("|"):
            assert line.endswith(" |")
            if before.startswith("|"):
                assert line.count("|") == before.count("|")
            else:
                tables += 1
    # Each experiment lists variants and trials; those with results more.
    assert tables >= 6


def test_texts_of_errors_are_escaped(rendered: Rendered) -> None:
    html, markdown = rendered
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in html + markdown
    assert r"\| at \*epoch\* 3 and \[more\](http" in markdown


def test_the_finding_names_a_winner_only_where_there_is_one() -> None:
    better, worse = study(30, mean=0.5), study(30, mean=0.7, seed=1, gate="hash")
    same = study(30, mean=0.5, seed=2, gate="top-k")
    html, markdown = render_study([*better, *worse], title="apart")
    assert "COMET has the lowest test loss" in html
    assert re.search(r"\| \[COMET\]\(\S+\) \|[^\n]*\*\*0\.", markdown)
    html, markdown = render_study([*better, *same], title="close")
    assert "No winner" in html
    assert "**0." not in markdown


def test_a_search_that_helps_is_said_to_help(rendered: Rendered) -> None:
    html, _ = rendered
    assert "Hash + ids re-assigned lowers the test loss of Hash" in html
    assert "COMET: the search changes the test loss by no more than chance does." in html


def test_few_trials_and_failures_are_said() -> None:
    rows = [*study(3), *study(2, gate="hash"), failed(2, gate="hash")]
    html, _ = render_study(rows, title="few")
    assert "2 to 3 trials a variant can show large differences only" in html
    html, _ = render_study([failed(0), failed(1)], title="failed")
    assert "All 2 trials failed" in html


@pytest.mark.parametrize(
    "some",
    [
        [trial(0, 0.5)],
        [failed(0)],
        [trial(0, 0.5), failed(0, search="exact")],
        [failed(0), trial(0, 0.5, search="exact")],
        [trial(0, 0.5, gate="new", search="newer")],
        [trial(0, 0.0, 0.0), trial(0, 0.0, 0.0, search="exact")],
        [trial(0, 25.0, tasks={"rating": None}, commit=None)],
    ],
    ids=["one", "failed", "failed search", "failed baseline", "unknown", "zero loss", "regression"],
)
def test_a_report_of_hardly_anything_is_whole(some: Rows) -> None:
    html, markdown = render_study(some, title="small")
    page = parse(html)
    assert not page.open
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "nan" not in markdown


def test_the_same_rows_give_the_same_report_in_any_order(
    rows: Rows, rendered: tuple[str, str]
) -> None:
    assert render_study(rows[::-1], title="Gates & searches") == rendered


def test_losses_of_different_weights_or_data_are_not_compared() -> None:
    other = trial(0, 0.4)
    other["settings"]["task_weights"] = [0.9, 0.1]
    grouped = studies([trial(0, 0.5), other, trial(0, 0.3, fraction=1.0)])
    assert [study.title for study in grouped] == [
        "movielens-1m, 10 % of the data, task weights 0.5, 0.5",
        "movielens-1m, 10 % of the data, task weights 0.9, 0.1",
        "movielens-1m, 100 % of the data",
    ]


def test_a_trial_that_appears_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"each trial once, got trial 3 of movielens-1m, comet"):
        render_study([trial(3, 0.5), trial(3, 0.6)], title="twice")


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        render_study([], title="none")


@pytest.mark.parametrize(
    ("gate", "search", "name"),
    [
        ("hash", "identity", "Hash"),
        ("comet", "exact", "COMET + exact search (a task)"),
        ("top-k", "relaxed", "Top-k + the paper's search"),
        ("dselect-k", "exact-shared", "DSelect-k + exact search (shared by the tasks)"),
    ],
)
def test_variants_are_named_in_words(gate: str, search: str, name: str) -> None:
    assert variant_name(gate, search) == name


def test_an_infinite_loss_counts_as_failed() -> None:
    broken = trial(1, 0.5)
    broken["metrics"]["validation"]["trained"]["loss"] = math.inf
    html, _ = render_study([trial(0, 0.6), broken], title="infinite")
    assert html.count("<td>failed</td>") == 1


def step(gain: float, *, accepted: bool) -> dict[str, Any]:
    return {
        "epoch": 1,
        "task": "watched",
        "cost_before": 0.5,
        "cost_after": 0.5 - 2 * gain,
        "gain": gain,
        "standard_error": 0.001,
        "accepted": accepted,
        "num_moved": 4 if accepted else 0,
    }


def test_what_searches_found_is_counted_and_averaged() -> None:
    steps = [step(0.01, accepted=True), step(0.03, accepted=True), step(-0.2, accepted=False)]
    searched = [trial(0, 0.6, search="exact", searches=steps), trial(1, 0.7, search="exact")]
    _, markdown = render_study([*searched, *study(2)], title="Searches")
    assert "Of 3 searches during training, 2 found what rows that were not searched" in markdown
    (line,) = [each for each in markdown.splitlines() if "| 3 | 2 (66.7 %)" in each]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    # Means over the accepted ones; 0.01 and 0.03 differ by one standard error of 0.01 each way.
    assert cells[-4:] == ["0.0400 ± 0.0200", "0.0200 ± 0.0100", "4 %", "4.0"]


def test_without_searches_there_is_no_section_on_them() -> None:
    assert "What each search found" not in render_study(study(3), title="None")[1]


def test_settings_at_an_end_of_what_was_searched_are_marked() -> None:
    low, high = EXPERIMENTS["movielens-1m"].learning_rates
    settings = trial(0, 0.6)["settings"]
    cases = {
        ("comet", 1.05 * low, 10.0): ("5.25e-05 (edge)", "10 (edge)"),
        ("comet", (low * high) ** 0.5, 1.0): ("0.000158", "1"),
        ("hash", 0.99 * high, 10.0): ("0.000495 (edge)", "n/a"),
    }
    for (gate, rate, gamma), texts in cases.items():
        varied = [
            trial(0, 0.6, gate=gate, settings={**settings, "learning_rate": rate, "gamma": gamma}),
            trial(1, 0.7, gate=gate, settings={**settings, "learning_rate": high, "gamma": 0.1}),
        ]
        markdown = render_study(varied, title="Edges")[1]
        best = markdown.split("### Settings of the best trials")[1].splitlines()
        (line,) = [each for each in best if each.startswith("| [") and "| 0 | 4 of 4 |" in each]
        for text in texts:
            assert f"| {text} |" in line


def test_training_that_was_cut_short_is_said() -> None:
    rows = study(3) + study(3, gate="hash")
    for row in rows[:3]:
        row["best_epoch"] = 1
    assert (
        "The best trials of 1 of 2 variants were at their best in the last epoch"
        in (render_study(rows, title="Short")[1])
    )
    for row in rows:
        row["best_epoch"] = 1
    assert "in the last epoch" not in render_study(rows, title="Long")[1]
