"""Turn the dense feed-forward layers of a trained model into mixtures of experts."""

from moe_runtime.convert._convert import convert
from moe_runtime.convert._describe import FeedForward
from moe_runtime.convert._distil import hidden_state_loss, symmetric_divergence
from moe_runtime.convert._find import find_feed_forwards
from moe_runtime.convert._importance import hidden_unit_importance
from moe_runtime.convert._layer import SparseFeedForward, converted_layers, penalty
from moe_runtime.convert._report import ConversionReport, LayerDifference
from moe_runtime.convert._settings import conversion_settings, convert_like
from moe_runtime.convert._split import (
    CopySplit,
    DenseLayer,
    ImportanceSplit,
    KMeansSplit,
    RandomSplit,
    Split,
)
from moe_runtime.convert._transformers import from_pretrained

__all__ = [
    "ConversionReport",
    "CopySplit",
    "DenseLayer",
    "FeedForward",
    "ImportanceSplit",
    "KMeansSplit",
    "LayerDifference",
    "RandomSplit",
    "SparseFeedForward",
    "Split",
    "conversion_settings",
    "convert",
    "convert_like",
    "converted_layers",
    "find_feed_forwards",
    "from_pretrained",
    "hidden_state_loss",
    "hidden_unit_importance",
    "penalty",
    "symmetric_divergence",
]
