"""POST /tokenize and /detokenize."""

import pytest


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_text_is_tokenized_and_comes_back(server, tokenizer, prefix):
    text = "hello world, naïve 日本"
    response = await server.client.post(f"{prefix}/tokenize", json={"prompt": text, "add_special_tokens": False})
    body = response.json()
    assert body["tokens"] == tokenizer.encode(text, add_special_tokens=False).ids
    assert (body["count"], body["max_model_len"], body["token_strs"]) == (len(body["tokens"]), 128, None)
    back = await server.client.post(f"{prefix}/detokenize", json={"tokens": body["tokens"], "model": "model"})
    assert back.json() == {"prompt": text}


async def test_special_tokens_are_added_to_a_prompt_unless_told_otherwise(server):
    assert (await server.client.post("/tokenize", json={"prompt": ""})).json()["tokens"] == [0]
    bare = await server.client.post("/tokenize", json={"prompt": "", "add_special_tokens": False})
    assert bare.json()["tokens"] == []


async def test_token_strs_on_request(server):
    response = await server.client.post("/tokenize", json={"prompt": "hello world", "return_token_strs": True})
    assert response.json()["token_strs"] == ["<|bos|>", "hello", " world"]


async def test_messages_give_the_prompt_of_a_chat(server):
    messages = [{"role": "user", "content": "hello"}]
    asked = {"messages": messages}
    tokens = (await server.client.post("/tokenize", json=asked)).json()["tokens"]
    await server.chat("hello")
    assert tokens == server.engine.calls[0].prompt
    without = await server.client.post("/tokenize", json={**asked, "add_generation_prompt": False})
    assert without.json()["tokens"] == tokens[:-1]
    special = await server.client.post("/tokenize", json={**asked, "add_special_tokens": True})
    assert special.json()["tokens"] == [0, *tokens]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a" * 40_000}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ],
)
async def test_what_is_wrong_is_named(server, path, body, param):
    response = await server.client.post(path, json=body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param


async def test_nothing_is_tokenized_before_the_model_is_there(serve):
    async with serve() as server:
        server.engine.state = "dead"
        assert (await server.client.post("/tokenize", json={"prompt": "a"})).status_code == 503
