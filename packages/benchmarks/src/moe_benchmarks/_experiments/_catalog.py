"""The experiments that there are, with the paper's sizes and grids."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A data set, the model for it, and what is searched for the best settings.

    Sizes and grids are the supplement's: Ibrahim et al., KDD 2023, arXiv:2306.02824.
    """

    name: str
    dataset: str  # as `moe-bench data` knows it
    about: str
    bottom: Literal["embeddings", "pictures"]
    num_experts: int
    k: int  # experts a row
    batch_size: int
    epochs: int  # at most; training stops early
    patience: int = 25  # epochs without a lower validation loss
    embedding_width: int = 0  # features of an id
    expert_widths: tuple[int, ...]  # features of the dense layers of an expert
    head_widths: tuple[int, ...]  # hidden features of each task's head
    dropout: float = 0.0  # of the mixed features
    task_weights: tuple[float, ...]
    learning_rates: tuple[float, float]  # log-uniform
    gammas: tuple[float, ...]
    entropy_weights: tuple[float, ...]
    search_epochs: tuple[int, int] = (1, 10)  # first epochs, in which permutations are learned


MOVIELENS = Experiment(
    name="movielens-1m",
    dataset="movielens-1m",
    about="who watched which film, and how they rate it",
    bottom="embeddings",
    num_experts=16,
    k=2,
    batch_size=512,
    epochs=100,
    embedding_width=128,
    expert_widths=(256,),
    head_widths=(256,),
    dropout=0.5,
    task_weights=(0.5, 0.5),
    learning_rates=(5e-5, 5e-4),
    gammas=(0.01, 0.1, 1.0, 5.0, 10.0),
    entropy_weights=(0.05, 0.1, 0.5, 1.0, 5.0, 10.0),
)
JESTER = replace(
    MOVIELENS,
    name="jester",
    dataset="jester",
    about="who rated which joke, and how",
    batch_size=2048,
    embedding_width=64,
    expert_widths=(128,),
    gammas=(0.001, 0.02, 0.1, 1.0, 5.0, 10.0),
)
MULTI_MNIST = Experiment(
    name="multi-mnist",
    dataset="multi-mnist",
    about="two handwritten digits in one picture",
    bottom="pictures",
    num_experts=16,
    k=4,
    batch_size=512,
    epochs=200,
    expert_widths=(50, 50),
    head_widths=(50, 50),
    task_weights=(0.5, 0.5),
    learning_rates=(1e-4, 1e-3),
    gammas=(0.001, 0.01, 0.1, 1.0, 5.0, 10.0),
    entropy_weights=(1e-4, 1e-3, 0.01, 0.1, 1.0, 5.0, 10.0),
)
EVERY = (
    MOVIELENS,
    replace(
        MOVIELENS,
        name="movielens-1m-comet-split",
        dataset="movielens-1m-comet-split",
        about=f"{MOVIELENS.about}; the split of the paper, which is built already",
    ),
    replace(MOVIELENS, name="movielens-100k", dataset="movielens-100k"),
    JESTER,
    replace(JESTER, name="jester-1", dataset="jester-1", about=f"{JESTER.about}; part 1 of 3 only"),
    replace(
        JESTER,
        name="books",
        dataset="book-crossing",
        about="who read which book, and how they rate it",
        num_experts=9,
        k=4,
        gammas=(0.1, 0.5, 1.0, 5.0, 10.0),
        entropy_weights=(1.0, 5.0, 10.0, 50.0, 100.0),
    ),
    MULTI_MNIST,
    replace(
        MULTI_MNIST,
        name="multi-fashion-mnist",
        dataset="multi-fashion-mnist",
        about="two pieces of clothing in one picture",
        num_experts=5,
        k=2,
        gammas=(0.001, 0.01, 0.1, 1.0, 5.0),
        entropy_weights=(0.001, 0.01, 0.1, 1.0, 5.0),
    ),
    # The model is that of the other pictures: the paper's for faces is not known.
    replace(
        MULTI_MNIST,
        name="celeba",
        dataset="celeba",
        about="ten attributes of faces",
        num_experts=6,
        k=2,
        epochs=100,
        task_weights=(0.1,) * 10,
        gammas=(0.001, 0.01, 0.1, 1.0, 5.0),
        entropy_weights=(0.001, 0.01, 0.1, 1.0, 5.0),
    ),
    replace(
        MULTI_MNIST,
        name="digits",
        dataset="digits",
        about="two of scikit-learn's small digits in one picture; needs no download",
        epochs=60,
        k=2,
    ),
    replace(
        MULTI_MNIST,
        name="mnist-svhn",
        dataset="mnist-svhn",
        about="digits, handwritten or from house numbers",
        num_experts=8,
        k=2,
        expert_widths=(50,),
        task_weights=(1.0,),
        learning_rates=(1e-5, 5e-4),
        gammas=(0.001, 0.01, 0.1, 1.0),
        entropy_weights=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5),
    ),
)
EXPERIMENTS: Mapping[str, Experiment] = {each.name: each for each in EVERY}
