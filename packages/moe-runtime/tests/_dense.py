"""Dense models to convert, and transformers' own, from configurations."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

DIM, HIDDEN, VOCABULARY = 8, 24, 50


class Block(nn.Module):
    """A feed-forward layer whose activation is no module."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.wide = nn.Linear(DIM, HIDDEN, bias=bias)
        self.narrow = nn.Linear(HIDDEN, DIM, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.narrow(F.silu(self.wide(x)))
        return output


class GatedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, HIDDEN, bias=False)
        self.up = nn.Linear(DIM, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))
        return output


class SpreadLayer(nn.Module):
    """As BERT has it: the linear maps are in two modules, with dropout and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.intermediate = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(inplace=True))
        self.dropped = nn.Dropout(0.25)
        self.output = nn.ModuleDict({"dense": nn.Linear(HIDDEN, DIM), "norm": nn.LayerNorm(DIM)})

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropped(self.intermediate(x))
        output: Tensor = self.output["norm"](self.output["dense"](hidden) + x)
        return output


class Model(nn.Module):
    """Layers of all kinds, and a head that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        after = nn.Sequential(Block(), nn.Dropout(0.5))
        self.layers = nn.ModuleList([SpreadLayer(), GatedBlock(), after])
        self.head = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        del attention_mask  # which the mixtures look at
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        scores: Tensor = self.head(x)
        return scores


def token_batch(num_rows: int = 3, *, length: int = 9) -> dict[str, Tensor]:
    """Return ids and a mask that leaves out the end of every other row."""
    ids = torch.randint(5, VOCABULARY, (num_rows, length))
    mask = torch.ones_like(ids)
    mask[1::2, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


FAMILIES = ("bert", "gpt2", "llama", "distilbert", "t5")


def transformer(family: str, *, dropout: float = 0.0) -> tuple[Any, dict[str, Tensor]]:
    """Build a miniature model from its configuration, and a batch with labels for it."""
    tf = pytest.importorskip(
        "transformers", reason="needs the extra: pip install 'moe-runtime[hf]'"
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": VOCABULARY}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    old: dict[str, Any] = {"n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
    old |= {
        "n_embd": 16,
        "n_inner": 32,
        "resid_pdrop": dropout,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
    distil: dict[str, Any] = {
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "vocab_size": VOCABULARY,
    }
    distil |= {"dropout": dropout, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    t5: dict[str, Any] = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    t5 |= {"vocab_size": VOCABULARY, "feed_forward_proj": "gated-gelu", "dropout_rate": dropout}
    t5 |= {"decoder_start_token_id": 0, "tie_word_embeddings": False}
    llama = {**sizes, "num_key_value_heads": 1, **tokens}
    builds: dict[str, Any] = {
        "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**sizes, **drops)),
        "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**old, **tokens)),
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**llama)),
        "distilbert": lambda: tf.DistilBertForSequenceClassification(tf.DistilBertConfig(**distil)),
        "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**t5)),
    }
    batch = token_batch()
    classes = torch.tensor([0, 1, 1])
    batch["labels"] = classes if "bert" in family else batch["input_ids"]
    return builds[family](), batch
