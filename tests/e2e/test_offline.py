"""A program gets what a client of the server gets, for the same request of the same model."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from plugserve import LLM, SamplingParams

PROMPTS = ["The capital of France is", "def add(a, b):", "1, 2, 3, 4,"]
SEEDED = {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": 7, "max_tokens": 8}
CASES = {
    "greedy": {"temperature": 0.0, "max_tokens": 8},
    "seeded": {**SEEDED, "n": 2},
    "penalties and a stop string": {
        "temperature": 0.0,
        "max_tokens": 16,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "stop": [".", ":"],
        "include_stop_str_in_output": True,
    },
    "bias and bad words": {**SEEDED, "logit_bias": {42: 5.0}, "bad_words": ["the"], "min_tokens": 4},
    "logprobs": {"temperature": 0.0, "max_tokens": 4, "logprobs": 3},
    "a regular expression": {**SEEDED, "structured_outputs": {"regex": "[a-f]{4,12}"}},
}


@pytest.fixture(scope="module")
def llm(smollm2_gguf):
    with LLM() as llm:
        yield llm


def body_of(fields):
    return {
        name: {str(k): v for k, v in value.items()} if name == "logit_bias" else value for name, value in fields.items()
    }


def post(server, path, body):
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def outputs(llm):
    """The program's outputs for PROMPTS by case; all cases share steps."""
    params = [SamplingParams(**fields) for fields in CASES.values() for _ in PROMPTS]
    found = llm.generate(PROMPTS * len(CASES), params, use_tqdm=False)
    return {case: found[n * len(PROMPTS) :][: len(PROMPTS)] for n, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def responses(server):
    """The server's responses by case, requested at the same time."""
    bodies = [{"prompt": PROMPTS, "return_token_ids": True, **body_of(fields)} for fields in CASES.values()]
    with ThreadPoolExecutor(len(CASES)) as pool:
        found = list(pool.map(lambda body: post(server, "/v1/completions", body), bodies))
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_completions_equal_those_of_the_server(case, responses, outputs):
    fields = CASES[case]
    answers = [answer for output in outputs[case] for answer in output.outputs]
    for choice, answer in zip(responses[case]["choices"], answers, strict=True):
        assert (answer.text, answer.token_ids) == (choice["text"], choice["token_ids"])
        assert (answer.finish_reason, answer.stop_reason) == (choice["finish_reason"], choice["stop_reason"])
        if "logprobs" in fields:
            chosen = [entry[token].logprob for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)]
            assert chosen == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)


@pytest.mark.parametrize("fields", [CASES["greedy"], SEEDED], ids=["greedy", "seeded"])
def test_chats_equal_those_of_the_server(fields, server, llm):
    conversations = [
        [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "The capital of Italy?"}],
        [{"role": "user", "content": "<|im_end|> means what?"}],  # a control token, written as text
    ]
    outputs = llm.chat(conversations, SamplingParams(**fields), use_tqdm=False)
    for messages, output in zip(conversations, outputs, strict=True):
        answer = post(server, "/v1/chat/completions", {"messages": messages, "return_token_ids": True, **fields})
        assert output.outputs[0].text == answer["choices"][0]["message"]["content"]
        assert output.outputs[0].token_ids == answer["choices"][0]["token_ids"]
        assert output.prompt_token_ids == answer["prompt_token_ids"]


def test_embeddings_equal_those_of_the_server(server, llm):
    outputs = llm.embed(PROMPTS, use_tqdm=False)
    entries = post(server, "/v1/embeddings", {"input": PROMPTS})["data"]
    for output, entry in zip(outputs, entries, strict=True):
        assert output.outputs.embedding == pytest.approx(entry["embedding"], abs=1e-5)


def test_prompts_of_one_call_share_steps(llm):
    before = llm.stats()
    llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True), use_tqdm=False)
    after = llm.stats()
    assert after.num_generated_tokens - before.num_generated_tokens == 18
    assert after.num_steps - before.num_steps < 12


def test_tokenizer_is_the_models(llm):
    tokenizer = llm.get_tokenizer()
    [output] = llm.generate(PROMPTS[0], SamplingParams(max_tokens=1), use_tqdm=False)
    assert tokenizer.encode(PROMPTS[0]) == output.prompt_token_ids
    assert tokenizer.decode(output.prompt_token_ids) == PROMPTS[0]
    messages = [{"role": "user", "content": "Hi"}]
    [chat] = llm.chat(messages, SamplingParams(max_tokens=1), use_tqdm=False)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(rendered) == chat.prompt_token_ids


def test_a_batch_runs_on_a_live_server(server):
    requests = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": prompt, **CASES["greedy"]},
        }
        for number, prompt in enumerate(PROMPTS)
    ]
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none") as client:
        lines = "\n".join([*map(json.dumps, requests), "{bad"]).encode()
        file = client.files.create(file=("in.jsonl", lines), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        deadline = time.monotonic() + 60
        while (batch := client.batches.retrieve(batch.id)).status != "completed" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 1)
        results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert "invalid_json" in client.files.content(batch.error_file_id).text
    for result in results:
        body = requests[int(result["custom_id"])]["body"]
        assert result["response"]["body"]["choices"] == post(server, "/v1/completions", body)["choices"]
