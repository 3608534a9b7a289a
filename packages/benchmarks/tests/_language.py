"""A miniature BERT with a tokenizer, and a task in GLUE's layout that it can learn."""

import json
from pathlib import Path
from random import Random

import pytest

WORDS = ["good", "bad", "fine", "poor", "nice", "awful", "the", "film", "was", "a", "plot", "so"]
GOOD = {"good", "fine", "nice"}


def require_transformers() -> None:
    """Skip where the extra is not installed."""
    reason = "needs the extra: pip install 'moe-benchmarks[nlp]'"
    pytest.importorskip("transformers", reason=reason)


def write_model(folder: Path) -> Path:
    """Write a BERT of two layers, as a user's own folder has it."""
    require_transformers()
    import transformers  # noqa: PLC0415 - an extra

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    write_tokenizer(folder, vocabulary)
    return folder


def write_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    """Write a tokenizer of whole words, with BERT's special tokens."""
    import tokenizers  # noqa: PLC0415 - comes with transformers
    import transformers  # noqa: PLC0415 - an extra

    ids = {word: place for place, word in enumerate(vocabulary)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))  # noqa: S106
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def write_glue(data: Path, *, num_train: int = 120, num_dev: int = 30) -> Path:
    """Write CoLA and SST-2: a sentence is right where most of its judging words are good."""
    random = Random(0)  # noqa: S311 - the same data each time
    for name, count in (("train", num_train), ("dev", num_dev)):
        rows = []
        for _ in range(count):
            words = [random.choice(WORDS[:6]), *random.choices(WORDS[6:], k=random.randint(1, 6))]
            random.shuffle(words)
            rows.append((" ".join(words), int(bool(GOOD & set(words)))))
        for task in ("CoLA", "SST-2"):
            (data / "glue" / task).mkdir(parents=True, exist_ok=True)
        cola = "".join(f"gj04\t{label}\t\t{text}\n" for text, label in rows)
        (data / "glue" / "CoLA" / f"{name}.tsv").write_text(cola, encoding="utf-8")
        sst = "sentence\tlabel\n" + "".join(f"{text} \t{label}\n" for text, label in rows)
        (data / "glue" / "SST-2" / f"{name}.tsv").write_text(sst, encoding="utf-8")
    return data


def write_squad(data: Path, *, num_train: int = 20, num_dev: int = 10) -> Path:
    """Write SQuAD: the answer is the good word of a text; some texts have none."""
    random = Random(0)  # noqa: S311 - the same data each time
    folder = data / "squad"
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train-v2.0", num_train), ("dev-v2.0", num_dev)):
        paragraphs = []
        for number in range(count):
            words = random.choices([each for each in WORDS if each not in GOOD], k=8)
            answers = []
            if number % 3:
                words[random.randrange(8)] = good = random.choice(sorted(GOOD))
                answers = [{"text": good, "answer_start": " ".join(words).index(good)}]
            asked = {
                "question": " the film",
                "id": f"{name}-{number}",
                "answers": answers,
                "is_impossible": not answers,
            }
            paragraphs.append({"context": " ".join(words), "qas": [asked]})
        content = {"version": "v2.0", "data": [{"title": "Films", "paragraphs": paragraphs}]}
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return data
