"""Whether the words of a picture can be read."""

from itertools import combinations
from typing import Any

import pytest


def words_of(figure: Any) -> list[tuple[str, Any]]:
    """Every text that is drawn in a figure, and the box that it fills."""
    text = pytest.importorskip("matplotlib.text").Text
    drawn: list[Any] = []
    draw = text.draw

    def noted(self: Any, renderer: Any) -> None:
        if self.get_visible() and self.get_text():
            drawn.append(self)
        draw(self, renderer)

    figure.draw_without_rendering()  # lays out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "draw", noted)
        figure.draw_without_rendering()
    return [(each.get_text(), each.get_window_extent()) for each in drawn]


def check_readable(figure: Any) -> None:
    """Refuse words that overlap, or that the edge of the figure cuts."""
    words = words_of(figure)
    edges = figure.bbox.padded(0.5)  # pixels, rounding
    for word, box in words:
        assert edges.x0 <= box.x0 < box.x1 <= edges.x1, word
        assert edges.y0 <= box.y0 < box.y1 <= edges.y1, word
    for (first, one), (second, other) in combinations(words, 2):
        assert not one.overlaps(other), (first, second)
