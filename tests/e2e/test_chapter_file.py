"""The chapter's config file starts a server unchanged, but for the model."""

from __future__ import annotations

import pytest

from tests.chapter_settings import CHAPTER
from tests.e2e.live_server import LiveServer


@pytest.fixture(scope="module")
def server(smollm2_gguf, tmp_path_factory):
    file = tmp_path_factory.mktemp("chapter") / "vllm_config.yaml"
    file.write_text(CHAPTER.replace("Qwen/Qwen2.5-7B-Instruct", str(smollm2_gguf)))
    with LiveServer("--config", str(file)) as live:
        yield live


def test_server_answers_and_its_settings_have_their_effects(server):
    prompt = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " * 4
    answers = [server.post("/v1/completions", prompt=prompt, max_tokens=2, temperature=0) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].json()["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16  # enable_prefix_caching
    assert server.get("/v1/models").json()["data"][0]["max_model_len"] == 16384
    assert "finished id=" not in server.log  # disable_log_requests
    assert "max_num_seqs=128" in server.log
    assert "--max-model-len 16384 is above the model's own 8192" in server.log
    assert "slot prefix cache: prefix-cache" in server.log


def test_keys_without_effect_are_said_and_no_other(server):
    warned = [line.partition("plugserve.commands.serve: ")[2] for line in server.lines if "has no effect" in line]
    assert {line.split()[0] for line in warned} - {"trust_remote_code"} == {"max_lora_size"}
