"""The library that models of language come from."""

import hashlib
from pathlib import Path
from typing import Any


def transformers() -> Any:  # noqa: ANN401 - a module without types
    """Import transformers, or say which extra brings it."""
    try:
        import transformers as imported  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        msg = 'models of language need the extra: pip install "moe-benchmarks[nlp]"'
        raise ModuleNotFoundError(msg, name=error.name) from None
    # What is said of every model that is loaded hides what is said here.
    imported.logging.set_verbosity_error()
    imported.logging.disable_progress_bar()
    return imported


def identity(model: str) -> str:
    """Return what tells a pretrained model from others: a digest of its files, or its revision."""
    folder = Path(model)
    if not folder.is_dir():
        revision = transformers().AutoConfig.from_pretrained(model)._commit_hash  # noqa: SLF001
        return f"{model}@{revision}"
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    digest = hashlib.sha256()
    for path in (folder / "config.json", *weights):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def load_tokenizer(model: str) -> Any:  # noqa: ANN401 - of transformers
    """Load the tokenizer of a local folder or of a name on the hub."""
    return transformers().AutoTokenizer.from_pretrained(model)
