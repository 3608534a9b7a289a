"""The library that models of language come from."""

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


def load_tokenizer(model: str) -> Any:  # noqa: ANN401 - of transformers
    """Load the tokenizer of a local folder or of a name on the hub."""
    return transformers().AutoTokenizer.from_pretrained(model)
