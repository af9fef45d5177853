"""Finds a draft model and checks, before weights are loaded, that it can draft for the served model. Torch-free."""

from __future__ import annotations

from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files.model_source import ModelSource, load_text_model, read_config, resolve

FLAG = "--speculative-model"


def find_draft(reference: str, *, download_dir: str | None, load_format: str) -> ModelSource:
    """The model that --speculative-model names. Raises ModelError with one line when there is none."""
    if reference == "[ngram]":
        raise ConfigError(f"{FLAG} [ngram]: n-grams are drafted by a plugin; use --plugin ngram instead")
    try:
        return resolve(reference, download_dir=download_dir, load_format=load_format)
    except ModelError as error:
        raise ModelError(f"{FLAG}: {error}") from None


def check_draft(draft: ModelSource, target: ModelSource) -> None:
    """Raise ConfigError unless draft has the same vocabulary as target: the same tokens by the same ids."""
    config, wanted = read_config(draft), read_config(target)
    shared = config.get("share_embeddings")
    if shared not in (None, "target"):
        raise ConfigError(f'{FLAG} {draft.name}: share_embeddings in its config must be "target", got {shared!r}')
    if shared == "target":
        for key in ("vocab_size", "hidden_size"):
            if config.get(key) != wanted.get(key):
                raise ConfigError(
                    f"{FLAG} {draft.name} shares the embeddings of its target, which has {key} {config.get(key)}; "
                    f"{target.name} has {wanted.get(key)}: it was made for another model"
                )
        return
    difference = _difference(_vocabulary(draft), _vocabulary(target))
    if difference:
        raise ConfigError(
            f"{FLAG} {draft.name} has another vocabulary than {target.name} ({difference}); take a draft of the same "
            "model family"
        )


def _vocabulary(source: ModelSource) -> dict[str, int]:
    vocabulary: dict[str, int] = load_text_model(source).tokenizer.get_vocab(with_added_tokens=True)
    return vocabulary


def _difference(ours: dict[str, int], theirs: dict[str, int]) -> str:
    """The first id whose token differs between the vocabularies, or that only one has; "" if there is none."""
    if ours == theirs:
        return ""
    text_of, their_text_of = ({id: text for text, id in one.items()} for one in (ours, theirs))
    first = min(id for id in text_of.keys() | their_text_of.keys() if text_of.get(id) != their_text_of.get(id))
    here, there = text_of.get(first, "nothing"), their_text_of.get(first, "nothing")
    return f"{len(ours)} and {len(theirs)} tokens, id {first} is {here!r} there and {there!r} here"
