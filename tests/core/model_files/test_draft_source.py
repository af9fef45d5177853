"""Whether a draft model can draft for a served one is checked before anything starts."""

from __future__ import annotations

import json

import pytest

from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files.draft_source import check_draft, find_draft
from plugserve.core.model_files.model_source import load_text_model, read_config, resolve

ANY = {"download_dir": None, "load_format": "dummy"}


@pytest.fixture
def folder(tmp_path, smollm2_gguf, cache_home):
    """Makes a model folder like SmolLM2's, without weights, with changes to its config and tokenizer."""
    target = resolve(str(smollm2_gguf))
    tokenizer = json.loads(load_text_model(target).tokenizer.to_str())

    def make(change=None, *, has_tokenizer=True, **config):
        path = tmp_path / "draft"
        path.mkdir()
        (path / "config.json").write_text(json.dumps(read_config(target) | config))
        if change:
            change(tokenizer)
        if has_tokenizer:
            (path / "tokenizer.json").write_text(json.dumps(tokenizer))
        return find_draft(str(path), **ANY), target

    return make


def test_a_draft_with_the_same_tokens_is_accepted(folder):
    check_draft(*folder())


def test_a_draft_with_another_vocabulary_is_refused_in_one_line(folder):
    def swap(tokenizer):
        vocab = tokenizer["model"]["vocab"]
        first, second = (text for text, id in vocab.items() if id in (1000, 1001))
        vocab[first], vocab[second] = vocab[second], vocab[first]

    with pytest.raises(
        ConfigError, match=r"has another vocabulary than .*49152 and 49152 tokens, id 1000 is '.*' there"
    ):
        check_draft(*folder(swap))


def test_shared_embeddings_need_no_tokenizer_but_the_same_sizes(folder):
    check_draft(*folder(has_tokenizer=False, share_embeddings="target"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"share_embeddings": "target", "hidden_size": 64}, "has hidden_size 64; .* has 576: it was made for another"),
        ({"share_embeddings": "target", "vocab_size": 64}, "has vocab_size 64; .* has 49152: it was made for another"),
        ({"share_embeddings": "yes"}, "share_embeddings in its config must be \"target\", got 'yes'"),
    ],
)
def test_shared_embeddings_that_do_not_fit_are_refused(config, message, folder):
    with pytest.raises(ConfigError, match=message):
        check_draft(*folder(has_tokenizer=False, **config))


def test_another_servers_way_to_ask_for_ngrams_is_explained():
    with pytest.raises(ConfigError, match="use --plugin ngram instead"):
        find_draft("[ngram]", **ANY)


def test_a_draft_that_is_not_there_is_named_with_its_flag(tmp_path):
    with pytest.raises(ModelError, match=r"^--speculative-model: model './nowhere' not found"):
        find_draft("./nowhere", **ANY)
