"""The searches that experiments compare, and what each is."""

from collections.abc import Mapping

SEARCHES: Mapping[str, str] = {
    "identity": "no search",
    "random": "a random fixed permutation for each tree or selector of each task",
    "soft-mix": "experts are mixed softly in the first epochs, and not relabelled after",
    "relaxed": "the paper's search: mixed softly in the first epochs, then the nearest permutation",
    "exact-shared": "exact local search, one permutation for all tasks",
    "exact": "exact local search, a permutation for each tree or selector of each task",
    "ids": "Hash only: the expert of each id is assigned anew, for each task",
}
