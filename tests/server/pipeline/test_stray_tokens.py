"""A tokenizer with more tokens than the model has rows: a stray token is the client's 400, never the engine's error."""

from __future__ import annotations

import pytest


@pytest.fixture
async def small(serve):
    async with serve(vocab_size=100) as server:
        yield server


async def test_a_prompt_with_a_stray_token_is_400_and_names_it(small):
    response = await small.complete("h\u00e9llo")
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "of the tokenizer, but the model has tokens from 0 to 99 only" in message
    assert response.json()["error"]["param"] == "prompt"
    assert not small.engine.calls


async def test_a_message_with_a_stray_token_is_400(small):
    response = await small.chat("h\u00e9llo")
    assert response.status_code == 400
    assert "of the tokenizer" in response.json()["error"]["message"]


async def test_a_bad_word_with_a_stray_token_is_left_out(small):
    response = await small.complete([1, 2], bad_words=["h\u00e9"], max_tokens=1)
    assert response.status_code == 200
    (call,) = small.engine.calls
    assert call.params.bad_words == ()


@pytest.mark.parametrize(
    "fields", [{"stop_token_ids": [100]}, {"logit_bias": {"100": 1}}, {"allowed_token_ids": [100]}, {"prompt": [100]}]
)
async def test_stray_ids_in_fields_are_400(small, fields):
    response = await small.complete(**({"prompt": [1]} | fields))
    assert response.status_code == 400
    assert "token ids must be from 0 to 99, got 100" in response.json()["error"]["message"]
