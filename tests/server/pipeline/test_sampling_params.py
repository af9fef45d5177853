"""What each further sampling parameter asks the engine for."""

import pytest


async def test_bad_words_become_token_sequences_with_and_without_a_space(server, tokenizer):
    def ids(text):
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    assert (await server.complete(bad_words=["world", " or"])).status_code == 200
    found = server.engine.calls[0].params.bad_words
    assert set(found) == {ids("world"), ids(" world"), ids(" or"), ids("or")}
    assert len(ids("world")) > 1
    assert len(ids(" world")) == 1


async def test_allowed_token_ids_reach_the_engine_once_each(server):
    await server.chat(allowed_token_ids=[7, 5, 7])
    assert server.engine.calls[0].params.allowed_token_ids == (7, 5)


async def test_bad_words_that_leave_no_allowed_token_are_refused(server, tokenizer):
    (token,) = tokenizer.encode(" world", add_special_tokens=False).ids
    response = await server.complete(bad_words=["world"], allowed_token_ids=[token])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "allowed_token_ids"


@pytest.mark.parametrize("prompt", [list(range(3, 43)), ["hello " * 20]])
@pytest.mark.parametrize("count", [1, 4, 128])
async def test_prompt_is_cut_to_its_last_tokens(server, prompt, count):
    assert (await server.complete(prompt)).status_code == 200
    response = await server.complete(prompt, truncate_prompt_tokens=count, echo=True)
    whole, cut = (call.prompt for call in server.engine.calls)
    assert cut == whole[-count:]
    assert response.json()["usage"]["prompt_tokens"] == len(cut)


async def test_minus_one_cuts_to_what_the_context_leaves_room_for(server):
    prompt = [3 + index % 200 for index in range(500)]
    assert (await server.complete(prompt, max_tokens=28)).status_code == 400
    response = await server.complete(prompt, max_tokens=28, truncate_prompt_tokens=-1)
    assert response.status_code == 200
    assert server.engine.calls[0].prompt == prompt[-100:]
    assert (await server.chat("hello " * 300, truncate_prompt_tokens=-1)).status_code == 200
    assert len(server.engine.calls[1].prompt) == 127


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 1), (20, 20)])
async def test_logprobs_of_completions_hold_the_chosen_token_and_as_many_as_asked(server, asked, given):
    response = await server.complete(logprobs=asked)
    logprobs = response.json()["choices"][0]["logprobs"]
    assert all(given <= len(tops) <= given + 1 for tops in logprobs["top_logprobs"])
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["text_offset"])


async def test_logprobs_of_chat_without_top_logprobs_hold_the_chosen_token_alone(server):
    for fields in ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}):
        content = (await server.chat(**fields)).json()["choices"][0]["logprobs"]["content"]
        assert content
        assert all(entry["top_logprobs"] == [] for entry in content)
    assert (await server.chat(logprobs=False)).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("fields", [{"logprobs": -1}, {"logprobs": 21}, {"logprobs": True}, {"logprobs": 1.5}])
async def test_logprobs_beyond_the_limit_are_refused(server, fields):
    response = await server.complete(**fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logprobs"
