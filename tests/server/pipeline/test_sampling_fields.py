"""A sampling field is declared once, and every API that generates takes it; what some of them ask the engine for."""

import pytest

from plugserve.core.contracts.sampling import SamplingParams
from plugserve.server.api.anthropic.body import MessagesBody
from plugserve.server.api.chat.body import ChatBody
from plugserve.server.api.completions.body import CompletionBody
from plugserve.server.api.openapi.document import openapi_document
from plugserve.server.api.responses.body import ResponsesBody
from plugserve.server.pipeline.sampling_fields import PARAMETERS

BODIES = [ChatBody, CompletionBody, ResponsesBody, MessagesBody]


def test_every_sampling_field_is_a_parameter_of_the_engine():
    assert PARAMETERS.keys() <= set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize("body", BODIES)
def test_every_api_that_generates_takes_and_documents_every_sampling_field(body):
    assert PARAMETERS.keys() <= body.model_fields.keys()
    assert PARAMETERS.keys() <= openapi_document("1")["components"]["schemas"][body.__name__]["properties"].keys()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}),
    ],
)
async def test_sampling_fields_mean_the_same_at_every_api(server, path, body):
    fields = {
        "min_p": 0.25,
        "logit_bias": {"40": 2.5},
        "allowed_token_ids": [40, 41],
        "frequency_penalty": 1,
        "seed": 5,
    }
    response = await server.client.post(path, json=body | fields)
    assert response.status_code == 200, response.text
    assert "x-plugserve-ignored-fields" not in response.headers
    params = server.engine.calls[0].params
    assert (params.min_p, params.logit_bias, params.allowed_token_ids) == (0.25, {40: 2.5}, (40, 41))
    assert (params.frequency_penalty, params.seed) == (1.0, 5)
    refused = await server.client.post(path, json=body | {"min_p": 2})
    assert (refused.status_code, "min_p: " in refused.text) == (400, True)


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
