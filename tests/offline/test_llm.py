"""LLM: requests of a program, answered in its own process."""

import signal
import subprocess
import sys
import threading
import time

import pydantic
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import plugserve
from plugserve import (
    LLM,
    ConfigError,
    EngineUnavailableError,
    LoRARequest,
    PartialFailureError,
    RequestError,
    SamplingParams,
    StructuredOutputsParams,
)
from tests.core.harness import LocalEngine, randomise
from tests.lora_samples import adapter_tensors, merged, write_adapter
from tests.server.fakes import byte_level_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
QUESTION = "the capital of France"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def texts(outputs):
    return [[one.text for one in output.outputs] for output in outputs]


def test_outputs_come_in_the_order_of_the_prompts(llm):
    prompts = [QUESTION, "anything", QUESTION, "more"]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert texts(outputs) == [["Paris, of course. END It is large."], ["hello world"]] * 2
    assert all(output.finished and output.error is None for output in outputs)
    assert len({output.request_id for output in outputs}) == 4


def test_output_has_tokens_and_the_reason_of_its_end(llm):
    [output] = llm.generate(QUESTION, SamplingParams(max_tokens=3), use_tqdm=False)
    [answer] = output.outputs
    assert (answer.index, len(answer.token_ids), answer.finish_reason, answer.stop_reason) == (0, 3, "length", None)
    assert output.prompt_token_ids
    assert answer.logprobs is None


def test_a_stop_string_ends_the_text_and_is_named(llm):
    [output] = llm.generate(QUESTION, SamplingParams(stop="END", max_tokens=64), use_tqdm=False)
    assert output.outputs[0].text == "Paris, of course. "
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "END")


def test_each_prompt_may_have_its_own_parameters(llm):
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=64, n=2)]
    outputs = llm.generate([QUESTION, "x"], params, use_tqdm=False)
    assert [[one.finish_reason for one in output.outputs] for output in outputs] == [["length"], ["stop", "stop"]]
    assert [one.index for one in outputs[1].outputs] == [0, 1]


@pytest.mark.parametrize("name", ["sampling_params", "priority", "lora_request"])
def test_a_list_of_another_length_is_refused(llm, name):
    value = {"sampling_params": [GREEDY], "priority": [1], "lora_request": ["a"]}[name]
    with pytest.raises(RequestError, match=f"{name}: give one for all 2 requests or a list of 2, got a list of 1"):
        llm.generate(["a", "b"], use_tqdm=False, **{name: value})


def test_token_ids_are_prompts_too(llm):
    ids = llm.get_tokenizer().encode(QUESTION)
    expected = llm.generate(QUESTION, GREEDY, use_tqdm=False)
    for prompt in (ids, [ids], {"prompt_token_ids": ids}, [{"prompt_token_ids": ids}]):
        [output] = llm.generate(prompt, GREEDY, use_tqdm=False)
        assert output.prompt is None
        assert output.prompt_token_ids == expected[0].prompt_token_ids == ids
        assert output.outputs[0].text == expected[0].outputs[0].text
    assert llm.generate({"prompt": QUESTION}, GREEDY, use_tqdm=False)[0].prompt == QUESTION


def test_logprobs_have_the_chosen_token_and_the_likeliest(llm):
    params = SamplingParams(max_tokens=2, logprobs=1, prompt_logprobs=0)
    [output] = llm.generate(QUESTION, params, use_tqdm=False)
    [answer] = output.outputs
    assert [set(entry) >= {token} for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)] == [True] * 2
    assert answer.cumulative_logprob == sum(
        entry[token].logprob for entry, token in zip(answer.logprobs, answer.token_ids, strict=True)
    )
    assert answer.logprobs[0][answer.token_ids[0]].decoded_token == "Paris"
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None


class Colour(pydantic.BaseModel):
    colour: str


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (StructuredOutputsParams(choice=["red", "blue"]), "red"),
        (StructuredOutputsParams(json=Colour), '{"colour": "red"}'),
        ({"regex": "(red|blue)"}, "red"),
    ],
)
def test_structured_outputs_bind_the_answer(llm, asked, text):
    [output] = llm.generate("pick a colour", SamplingParams(max_tokens=64, structured_outputs=asked), use_tqdm=False)
    assert output.outputs[0].text == text


def test_chat_takes_one_conversation_or_several(llm):
    conversation = [{"role": "user", "content": QUESTION}]
    [output] = llm.chat(conversation, GREEDY, use_tqdm=False)
    assert output.outputs[0].text.startswith("Paris")
    assert output.prompt.count("<|im_start|>user\n" + QUESTION) == 1
    both = llm.chat([conversation, [{"role": "user", "content": "x"}]], GREEDY, use_tqdm=False)
    assert texts(both) == [["Paris, of course. END It is large."], ["hello world"]]


def test_chat_separates_tool_calls_from_the_text(llm):
    [output] = llm.chat([{"role": "user", "content": "weather in Rome"}], GREEDY, tools=[TOOL], use_tqdm=False)
    [answer] = output.outputs
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    assert [call["function"] for call in answer.tool_calls] == [{"name": "weather", "arguments": '{"city": "Rome"}'}]


def test_chat_takes_a_template_of_the_caller(llm):
    conversation = [{"role": "user", "content": QUESTION}]
    [output] = llm.chat(conversation, GREEDY, chat_template="{{ messages[0].content }}!", use_tqdm=False)
    assert output.prompt == QUESTION + "!"


def test_more_conversations_than_a_queue_of_renders_holds(llm):
    conversations = [[{"role": "user", "content": f"{QUESTION} {number}"}] for number in range(150)]
    outputs = llm.chat(conversations, SamplingParams(max_tokens=1), use_tqdm=False)
    assert [output.error for output in outputs] == [None] * 150
    assert [f"{QUESTION} {number}<" in output.prompt for number, output in enumerate(outputs)] == [True] * 150


def test_embeddings_are_vectors_of_length_one(llm):
    outputs = llm.embed(["a", "some longer text", "a"], use_tqdm=False)
    vectors = [output.outputs.embedding for output in outputs]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(value * value for value in vectors[1]) == pytest.approx(1.0, abs=1e-5)
    assert outputs[1].outputs.hidden_size == len(vectors[1])
    [longer] = llm.embed("some longer text", normalize=False, pooling="last", use_tqdm=False)
    assert sum(value * value for value in longer.outputs.embedding) != pytest.approx(1.0, abs=1e-2)
    with pytest.raises(RequestError, match="pooling"):
        llm.embed("a", pooling="sum", use_tqdm=False)


def test_one_failed_request_leaves_the_others_their_answers(llm):
    prompts = [QUESTION, "word " * 3000, "x"]
    with pytest.raises(PartialFailureError, match=r"1 of 3 requests failed, the first is number 1: .*context length"):
        llm.generate(prompts, GREEDY, use_tqdm=False)
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False, errors="return")
    assert [output.finished for output in outputs] == [True, False, True]
    assert isinstance(outputs[1].error, RequestError)
    assert outputs[1].outputs == []
    assert outputs[0].outputs[0].text.startswith("Paris")


def test_the_exception_holds_the_outputs_of_the_others(llm):
    with pytest.raises(PartialFailureError) as caught:
        llm.generate(["word " * 3000, "x"], GREEDY, use_tqdm=False)
    assert isinstance(caught.value.__cause__, RequestError)
    assert caught.value.outputs[1].outputs[0].text == "hello world"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(temperature=-1.0), "temperature: .*greater than or equal to 0"),
        (SamplingParams(max_tokens=5000), "maximum context length"),
        (SamplingParams(stop=[""]), "stop: must not hold an empty string"),
        (SamplingParams(logprobs=99), "logprobs: must be at most 20"),
        (SamplingParams(structured_outputs={"json": "{"}), "structured_outputs.json"),
        (SamplingParams(grammar="x"), "grammar: .*structured_outputs"),
    ],
)
def test_a_wrong_parameter_is_one_error_that_names_it(llm, params, message):
    with pytest.raises(RequestError, match=message):
        llm.generate(["a", "b"], params, use_tqdm=False)


@pytest.mark.parametrize("prompts", [None, 7, [None], [["a"]], {"prompt_token_ids": [1, 2.5]}])
def test_what_is_no_prompt_is_refused_by_name(llm, prompts):
    for ask in (llm.generate, llm.embed):
        with pytest.raises(RequestError, match=r"^prompt: "):
            ask(prompts, use_tqdm=False)


@pytest.mark.parametrize("messages", [None, 7, "hello", ["hello"], {"role": "user"}, [[{"role": "user"}], "hello"]])
def test_what_is_no_conversation_is_refused_by_name(llm, messages):
    with pytest.raises(RequestError, match=r"^messages: must be a list of objects such as .*, got "):
        llm.chat(messages, use_tqdm=False)


def test_token_ids_may_be_integers_of_other_libraries(llm):
    [output] = llm.generate([{"prompt_token_ids": torch.tensor([65, 66])}], GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == [65, 66]


def test_max_tokens_none_takes_what_the_context_leaves(llm):
    [output] = llm.generate("count for ever", SamplingParams(max_tokens=None), use_tqdm=False)
    assert len(output.outputs[0].token_ids) > 1000
    [default] = llm.generate("count for ever", use_tqdm=False)
    assert len(default.outputs[0].token_ids) == 16


def test_an_adapter_that_is_not_loaded_is_named(llm):
    with pytest.raises(RequestError, match="'nobody' does not exist"):
        llm.generate("x", GREEDY, lora_request=LoRARequest("nobody"), use_tqdm=False)


def test_progress_counts_prompts_on_standard_error(llm, capsys):
    llm.generate(["a", "b"], GREEDY)
    assert "Processed prompts: 100%" in capsys.readouterr().err
    llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_no_prompts_give_no_outputs(llm):
    assert llm.generate([], GREEDY, use_tqdm=False) == []


def test_an_interrupt_aborts_the_call_and_keeps_the_model(scripted):
    with LLM(**scripted(table={"step_s": 0.01}, max_model_len=2048)) as llm:

        def interrupt():
            while not llm.stats().num_requests_running:
                time.sleep(0.005)
            signal.raise_signal(signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["count for ever"] * 2, SamplingParams(max_tokens=2000), use_tqdm=False)
        while llm.stats().num_requests_running:
            time.sleep(0.005)
        assert llm.stats().num_generated_tokens < 2000
        assert texts(llm.generate("x", GREEDY, use_tqdm=False)) == [["hello world"]]


def test_a_closed_model_refuses_and_closing_twice_is_fine(scripted):
    with LLM(**scripted()) as llm:
        pass
    llm.close()
    with pytest.raises(EngineUnavailableError, match="closed"):
        llm.generate("x", use_tqdm=False)
    assert [thread.name for thread in threading.enumerate() if thread.name == "engine-1"] == []


def test_threads_may_call_at_the_same_time(llm):
    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: texts(llm.generate(f"x{n}", GREEDY, use_tqdm=False))}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [["hello world"]] for n in range(4)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_length": 5}, "unknown setting 'max_model_length' in the call. Did you mean 'max_model_len'"),
        ({"max_num_seqs": 0}, "max_num_seqs must be .*, got 0"),
        ({"model": "/no/such/model"}, "/no/such/model"),
    ],
)
def test_a_wrong_setting_is_one_error_that_names_it(settings, message):
    with pytest.raises(plugserve.UserError, match=message) as caught:
        LLM(**settings)
    assert isinstance(caught.value, (ConfigError, plugserve.ModelError))


def test_environment_does_not_change_a_program(scripted, monkeypatch):
    monkeypatch.setenv("PLUGSERVE_MAX_MODEL_LEN", "7")
    with LLM(**scripted(max_model_len=None)) as llm:
        assert len(llm.generate("count for ever", SamplingParams(max_tokens=32), use_tqdm=False)[0].outputs) == 1


def test_importing_the_package_stays_light():
    heavy = "{'torch', 'sanic', 'zmq', 'transformers', 'plugserve.server', 'plugserve.offline.llm'}"
    program = f"import sys, plugserve; plugserve.SamplingParams(n=2); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_an_adapter_is_loaded_from_its_folder_and_answers_by_its_name(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=272, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = randomise(LlamaForCausalLM(config).float())
    model.save_pretrained(tmp_path / "model")
    byte_level_tokenizer().save(str(tmp_path / "model" / "tokenizer.json"))
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    tensors = adapter_tensors(weights, rank=8, scale=0.5)
    folder = write_adapter(tmp_path / "adapter", tensors, r=8, lora_alpha=8)
    facts = config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    prompt = [5, 80, 31, 44, 99, 12]
    with LocalEngine(facts, merged(weights, tensors, alpha=8.0), max_model_len=128) as local:
        expected = local.generate([prompt], max_tokens=8)[0]
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with LLM(str(tmp_path / "model"), enable_lora=True, device="cpu", dtype="float32") as llm:
        asked = [LoRARequest("mine", 1, str(folder)), "mine"]
        outputs = llm.generate([prompt, prompt], params, lora_request=asked, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == [expected, expected]
        assert llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids != expected
        with pytest.raises(RequestError, match="'other' can't be loaded"):
            llm.generate(prompt, params, lora_request=LoRARequest("other", 2, str(tmp_path / "model")), use_tqdm=False)


def test_an_engine_that_fails_ends_its_requests_with_an_error(scripted, monkeypatch):
    steps = []

    def step(engine):
        steps.append(engine)
        raise RuntimeError("out of order")

    with LLM(**scripted()) as llm:
        monkeypatch.setattr("plugserve.core.engine.engine.Engine.step", step)
        with pytest.raises(EngineUnavailableError, match="The engine stopped while this request was running"):
            llm.generate(["a", "b"], GREEDY, use_tqdm=False)
        assert steps
        with pytest.raises(EngineUnavailableError, match="is down"):
            llm.generate("c", GREEDY, use_tqdm=False)


def test_a_models_seed_repeats_the_draws_of_all_requests(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=272, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    randomise(LlamaForCausalLM(config).float()).save_pretrained(tmp_path)
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    found = []
    for seed in (5, 5, 6):
        with LLM(str(tmp_path), seed=seed, device="cpu") as llm:
            outputs = llm.generate(["same"] * 40, params, use_tqdm=False)
            found.append([tuple(output.outputs[0].token_ids) for output in outputs])
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) > 20


def test_several_engines_are_a_servers_matter():
    with pytest.raises(ConfigError, match="data_parallel_size=2: a program's own process runs one engine a model"):
        LLM(data_parallel_size=2)
