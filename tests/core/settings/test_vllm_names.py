"""vLLM's settings are honoured, translated, accepted with a warning or refused by name; none is unknown."""

import json
from pathlib import Path

import pytest

from plugserve.core.errors import ConfigError
from plugserve.core.settings.old_names import OLD_NAMES
from plugserve.core.settings.setting_names import flag
from plugserve.core.settings.settings import setting_facts
from plugserve.core.settings.settings_reader import read_selection
from plugserve.core.settings.vllm_names.not_supported import NOT_SUPPORTED
from plugserve.core.settings.vllm_names.vllm_settings import SHORT_FLAGS, VLLM_SETTINGS
from plugserve.core.settings.vllm_names.without_effect import WITHOUT_EFFECT
from tests.core.settings.reading import message, read

FLAGS = [
    tuple(part.strip() for part in line.split("|"))
    for line in (Path(__file__).parent / "vllm_flags.txt").read_text().splitlines()
    if not line.startswith("#")
]
"""Names, kind and default of each flag of `vllm serve` 0.33."""

OLDER = [
    "--block-size=16",
    "--calculate-kv-scales",
    "--cuda-graph-sizes=8",
    "--device=cpu",
    "--disable-async-output-proc",
    "--disable-frontend-multiprocessing",
    "--disable-image-processor",
    "--disable-log-requests",
    "--disable-logprobs-during-spec-decoding",
    "--disable-mm-preprocessor-cache",
    "--enable-lora-bias",
    "--enable-multimodal-encoder-data-parallel",
    "--enable-prompt-adapter",
    "--enable-reasoning",
    "--engine-use-ray",
    "--expand-tools-even-if-tool-choice-none",
    "--full-cuda-graph",
    "--guided-decoding-backend=outlines",
    "--guided-decoding-disable-additional-properties",
    "--guided-decoding-disable-any-whitespace",
    "--guided-decoding-disable-fallback",
    "--image-feature-size=1",
    "--image-input-shape=1",
    "--image-input-type=pixel_values",
    "--image-token-id=1",
    "--logits-processor-pattern=x",
    "--long-lora-scaling-factors=2",
    "--lora-extra-vocab-size=256",
    "--max-context-len-to-capture=8192",
    "--max-long-partial-prefills=2",
    "--max-num-partial-prefills=2",
    "--max-prompt-adapter-token=1",
    "--max-prompt-adapters=1",
    "--max-seq-len-to-capture=8192",
    "--model-weights=x",
    "--multi-step-stream-outputs",
    "--ngram-prompt-lookup-max=4",
    "--ngram-prompt-lookup-min=2",
    "--num-lookahead-slots=4",
    "--num-scheduler-steps=8",
    "--num-speculative-tokens=3",
    "--override-neuron-config={}",
    '--override-pooler-config={"a":1}',
    "--preemption-mode=swap",
    "--prompt-adapters=x",
    "--qlora-adapter-name-or-path=x",
    "--quantization-param-path=x",
    "--scheduler-delay-factor=0.1",
    "--spec-decoding-acceptance-method=typical_acceptance_sampler",
    "--speculative-disable-by-batch-size=4",
    "--speculative-disable-mqa-scorer",
    "--speculative-draft-tensor-parallel-size=2",
    "--speculative-max-model-len=2048",
    "--speculative-model=a/b",
    "--speculative-model-quantization=awq",
    "--swap-space=4",
    "--task=generate",
    "--tokenizer-pool-extra-config={}",
    "--tokenizer-pool-size=2",
    "--tokenizer-pool-type=ray",
    "--typical-acceptance-sampler-posterior-alpha=0.3",
    "--typical-acceptance-sampler-posterior-threshold=0.09",
    "--use-v2-block-manager",
    "--worker-use-ray",
]


def is_known(name):
    name = SHORT_FLAGS.get(name) or name.removeprefix("--").replace("-", "_")
    return name in setting_facts() or name in OLD_NAMES or name in VLLM_SETTINGS


def fate(*arguments):
    """What becomes of a command line: an error's line, or the warnings and all that changed."""
    try:
        reading = read(*arguments)
    except ConfigError as error:
        return str(error)
    return [*reading.warnings, *(f"{name}={value}" for name, value in reading.settings.changed().items())]


@pytest.mark.parametrize(("names", "kind", "default"), FLAGS)
def test_every_flag_is_known_with_its_kind(names, kind, default):
    for name in names.split():
        assert is_known(name), name
        setting = VLLM_SETTINGS.get(name.removeprefix("--").replace("-", "_"))
        assert setting is None or setting.kind == kind


@pytest.mark.parametrize(
    ("names", "kind", "default"),
    [row for row in FLAGS if row[0].split()[0][2:].replace("-", "_") in VLLM_SETTINGS and row[2] != "-"],
)
def test_its_default_is_never_refused(names, kind, default):
    for name in names.split():
        if kind == "flag":
            found = fate(
                name if default == "true" else name.replace("--", "--no-") if "--" in name else f"{name}=false"
            )
        else:
            found = fate(name, default)
        assert isinstance(found, list), found


@pytest.mark.parametrize("argument", OLDER)
def test_flags_of_older_versions_are_known(argument):
    found = fate(argument)
    assert found == [] or argument.partition("=")[0][2:].replace("-", "_") in str(found).replace("-", "_")
    assert "unknown" not in str(found)


@pytest.mark.parametrize("reason", WITHOUT_EFFECT, ids=lambda reason: reason.names()[0])
def test_setting_without_effect_is_taken_with_its_reason(reason):
    for name in reason.names():
        off = reason.same.get(name, "").split() if name in reason.flags.split() else []
        if "true" in off:
            assert fate(flag(name)) == []
            continue
        arguments = [flag(name)] if name in reason.flags.split() else [flag(name), "9"]
        assert fate(*arguments) == [f"{' '.join(arguments)} has no effect here: {reason.why}"]


@pytest.mark.parametrize("reason", NOT_SUPPORTED, ids=lambda reason: reason.names()[0])
def test_setting_that_changes_what_the_user_relies_on_is_refused_with_its_reason(reason):
    for name in reason.names():
        arguments = [flag(name)] if name in reason.flags.split() else [flag(name), "9"]
        shown = flag(name) if reason.is_secret else " ".join(arguments)
        assert fate(*arguments) == f"{shown} is not supported: {reason.why}"


def test_names_are_declared_once():
    assert not set(VLLM_SETTINGS) & set(OLD_NAMES)
    names = [name for reason in (*WITHOUT_EFFECT, *NOT_SUPPORTED) for name in reason.names()]
    assert sorted(set(names)) == sorted(names)
    assert not set(VLLM_SETTINGS) & set(setting_facts()), "plugserve has these settings now: remove vLLM's"
    assert all(name in VLLM_SETTINGS for reason in (*WITHOUT_EFFECT, *NOT_SUPPORTED) for name in reason.same)


def test_a_token_is_never_shown():
    assert "secret" not in message("--hf-token", "secret")


# ---------------------------------------------------------------- spellings


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (["-tp", "1"], "-tp is taken as --tensor-parallel-size"),
        (["--tp", "1"], "--tp is taken as --tensor-parallel-size"),
        (["-pp", "1"], "-pp is taken as --pipeline-parallel-size"),
        (["-dp", "1"], "-dp is taken as --data-parallel-size"),
        (["-asc", "1"], "-asc is taken as --api-workers"),
        (["--gpu-mem-util", "0.9"], "--gpu-mem-util is taken as --gpu-memory-utilization"),
        (["--delay-factor", "0"], "--delay-factor is taken as --scheduler-delay-factor"),
        (["-O3"],
         "level 3 of -O: no effect here, plugserve compiles its own kernels; --enforce-eager turns graphs off"),
        (["-ep"], "-ep has no effect here: it matters to devices that share a model, and plugserve decides by itself "
         "how they exchange data"),
    ],
)  # fmt: skip
def test_short_flags_and_other_names_are_taken_with_a_line(arguments, warning):
    assert fate(*arguments) == [warning]


@pytest.mark.parametrize(
    "arguments", [["-dpl", "1"], ["-dpl=1"], ["-n", "1", "-r", "0"], ["-q", "None"], ["-pcp", "1"]]
)
def test_values_that_ask_for_nothing_need_no_line(arguments):
    assert fate(*arguments) == []


@pytest.mark.parametrize("arguments", [["-dpl", "2"], ["-dcp", "2"]])
def test_sizes_above_one_are_refused_under_every_name(arguments):
    assert fate(*arguments).startswith(f"{' '.join(arguments)} is not supported: ")


def test_values_may_follow_flags_of_older_versions():
    assert fate("--enable-chunked-prefill", "True", "some/model") == ["model=['some/model']"]
    assert "--enable-chunked-prefill False has no effect here" in str(fate("--enable-chunked-prefill", "False"))
    assert message("--enable-eplb=maybe") == "--enable-eplb must be true or false, got 'maybe'"


def test_lists_take_several_words_once_the_model_is_named():
    assert read("m", "--served-model-name", "a", "b", "--port", "1").settings.served_model_name == ["a", "b"]
    assert read("--served-model-name", "a", "b", "--model", "m").settings.served_model_name == ["a", "b"]
    assert read("--model", "a", "b", "--api-key", "k", "l").settings.model == ["a", "b"]
    got = read("--plugin", "prefix-cache", "m").settings
    assert (got.plugin, got.model) == (["prefix-cache"], ["m"])
    assert fate("m", "--cudagraph-capture-sizes", "1", "2", "-tp", "1")[0].startswith("-tp is taken")


@pytest.mark.parametrize(
    ("arguments", "setting", "value"),
    [
        (["--max-model-len", "-1"], "max_model_len", "auto"),
        (["--generation-config", "vllm"], "generation_config", "none"),
        (["--distributed-executor-backend", "uni"], "distributed_executor_backend", None),
        (["--uvicorn-log-level", "trace"], "log_level", "debug"),
        (["--runner", "generate"], "runner", "auto"),
        (["--runner", "pooling"], "runner", "auto"),
        (["--kv-offloading-size", "2"], "swap_space", 2.0),
        (["--device-ids", "1"], "device", "cuda:1"),
        (["-O0"], "enforce_eager", True),
        (["-O", '{"cudagraph_mode": "NONE"}'], "enforce_eager", True),
        (["-O.cudagraph_mode=NONE"], "enforce_eager", True),
        (["--compilation-config", '{"cudagraph_mode": "FULL"}'], "enforce_eager", False),
        (["--attention-backend", "TORCH_SDPA"], "attention", "torch-sdpa"),
        (["--attention-backend", "TRITON_ATTN"], "attention", "triton-paged"),
        (["--attention-backend", "FLASH_ATTN"], "attention", "auto"),
        (["--attention-backend", "mine"], "attention", "mine"),
        (["-ac.backend", "TORCH_SDPA"], "attention", "torch-sdpa"),
        (["--max-num-queued-reqs", "5"], "max_num_queued_requests", 5),
        (["--structured-outputs-config", '{"backend": "xgrammar", "reasoning_parser": "deepseek_r1"}'],
         "reasoning_parser", "deepseek_r1"),
    ],
)  # fmt: skip
def test_value_is_translated(arguments, setting, value):
    assert getattr(read(*arguments).settings, setting) == value


def test_values_stand_in_files_and_environment_too(write):
    assert fate("--config", write("data_parallel_rank: 0\ndata-parallel-size-local: null\nmiddleware: []"))[0] == (
        "config=serve.yaml"
    )
    assert message("--config", write("data_parallel_rank: 2")).startswith("data_parallel_rank in serve.yaml 2 is not")
    assert "PLUGSERVE_ENABLE_EPLB has no effect here" in read(environ={"PLUGSERVE_ENABLE_EPLB": "1"}).warnings[0]
    file = write("structured_outputs_config: {reasoning_parser: think-tags}\nenable_chunked_prefill: true")
    assert read("--config", file).settings.reasoning_parser == "think-tags"
    assert read("--config", file).warnings == ()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-q", "bitsandbytes"], "-q bitsandbytes is not supported: checkpoints in awq"),
        (["--task", "classify"], "--task classify is not supported: models generate text and embeddings"),
        (["--device-ids", "0", "1"], "--device-ids 0 1 is not supported: --device cuda:N names one"),
        (["--structured-outputs-config", '{"disable_any_whitespace": true}'],
         "disable_any_whitespace of --structured-outputs-config is not supported: white space"),
        (["--structured-outputs-config", '{"bakend": "auto"}'],
         "--structured-outputs-config has the unknown key 'bakend'. Did you mean 'backend'?"),
        (["--structured-outputs-config", "xgrammar"],
         "--structured-outputs-config must be a JSON object, got 'xgrammar'"),
        (["--guided-decoding-backend", "mine"],
         "--guided-decoding-backend mine is not supported: structured output has"),
        (["-O7"], "-O must be a level from 0 to 3, got '7'"),
        (["--enforce-eager=false", "-O0"], "-O and --enforce-eager give two values for one setting; leave one of them"),
    ],
)  # fmt: skip
def test_value_that_cannot_be_honoured_is_refused_in_one_line(arguments, expected):
    assert message(*arguments).startswith(expected)


def test_rope_settings_are_keys_of_hf_overrides(write):
    scaling = {"rope_type": "linear", "factor": 2.0}
    got = read("--rope-scaling", json.dumps(scaling), "--rope-theta", "1e6", "--hf-overrides", '{"a": 1}').settings
    assert got.hf_overrides == {"rope_scaling": scaling, "rope_theta": 1e6, "a": 1}
    got = read("--rope-scaling.rope_type", "linear", "--rope-scaling.factor=2").settings
    assert got.hf_overrides == {"rope_scaling": {"rope_type": "linear", "factor": 2}}
    assert read("--config", write("rope_theta: 5\nhf_overrides: {rope_theta: 6}")).settings.hf_overrides == {
        "rope_theta": 6
    }
    assert message("--rope-theta", "x") == "--rope-theta must be a number above 0, got 'x'"


# ---------------------------------------------------------------- speculation

NGRAM = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}'


def both_phases(*arguments, **more):
    """The settings; the plugins are the same in both phases."""
    reading = read(*arguments, **more)
    assert reading.settings.selection() == read_selection(arguments, more.get("environ", {}))
    return reading


def test_speculative_config_with_ngram_activates_the_plugin_and_sets_its_options(write):
    from plugserve.plugins.speculative.ngram import NgramOptions

    options = {"ngram": NgramOptions}
    for arguments in (
        ["--speculative-config", NGRAM],
        ["-sc", NGRAM],
        ["-sc.method", "ngram", "-sc.num-speculative-tokens=4", "--speculative-config.prompt_lookup_max", "3"],
        ["--config", write("speculative-config: {method: ngram, num_speculative_tokens: 4, prompt_lookup_max: 3}")],
        ["--plugin", "ngram", "-sc", NGRAM],
    ):
        got = both_phases(*arguments, options=options, active=["ngram"]).settings
        assert (got.plugin, got.num_speculative_tokens, got.speculative_model) == (["ngram"], 4, None)
        assert got.plugins == {"ngram": {"min_n": 3, "max_n": 3}}


def test_speculative_config_in_a_file_keeps_its_plugin_when_the_command_line_names_others(write):
    file = write(f"speculative_config: {NGRAM}\nplugin: other")
    assert both_phases("--config", file).settings.plugin == ["other", "ngram"]
    assert both_phases("--config", file, "--plugin", "mine").settings.plugin == ["mine", "ngram"]
    draft = '{"model": "some/draft", "num_speculative_tokens": 2}'
    got = both_phases("--config", file, "-sc", draft).settings
    assert (got.plugin, got.speculative_model, got.num_speculative_tokens) == (["other"], "some/draft", 2)


def test_speculative_config_with_a_model_is_a_draft_model():
    config = '{"model": "a/b", "num_speculative_tokens": 3, "max_model_len": 2048, "draft_tensor_parallel_size": 1}'
    reading = both_phases("--speculative-config", config)
    assert reading.settings.speculative_model == "a/b"
    assert reading.settings.num_speculative_tokens == 3
    assert reading.warnings == ("max_model_len of --speculative-config: no effect here, drafts are made in one way",)


def test_older_ways_to_ask_for_ngram():
    for arguments in (["--speculative-model", "[ngram]"], ["--spec-method", "ngram"]):
        got = both_phases(*arguments, "--num-speculative-tokens", "4").settings
        assert (got.plugin, got.speculative_model) == (["ngram"], None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"method": "eagle3", "model": "x"}', "method of -sc eagle3 is not supported: drafts come from a draft model"),
        ("{}x", "-sc must be a JSON object, got '{}x'"),
        ('{"num_speculative_tokens": 2}', "-sc needs the key model, the draft model, or the method ngram"),
        ('{"model": "x", "num_speculative_token": 2}',
         "-sc has the unknown key 'num_speculative_token'. Did you mean 'num_speculative_tokens'?"),
        ('{"model": "x", "num_speculative_tokens": 0}',
         "num_speculative_tokens of -sc must be a whole number of at least 1 (16k means 16384), got 0"),
        ('{"model": "x", "rejection_sample_method": "synthetic"}',
         "rejection_sample_method of -sc synthetic is not supported: only standard is; leave the key out"),
        ('{"model": "x", "revision": "main"}', "-sc has the unknown key 'revision'."),
    ],
)  # fmt: skip
def test_wrong_speculative_config_is_one_clear_line(config, expected):
    assert message("-sc", config).startswith(expected)


# ---------------------------------------------------------------- environment


def test_vllm_api_key_is_a_key_unless_another_one_is_given(write):
    environ = {"VLLM_API_KEY": "theirs"}
    reading = read(environ=environ)
    assert reading.settings.api_key == ["theirs"]
    assert reading.warnings == ("VLLM_API_KEY is taken as PLUGSERVE_API_KEY",)
    for more, place in (
        ({"environ": environ | {"PLUGSERVE_API_KEY": "ours"}}, "PLUGSERVE_API_KEY"),
        ({"environ": environ}, "api_key in serve.yaml"),
    ):
        reading = read("--config", write("api_key: ours"), **more)
        assert reading.settings.api_key == ["ours"]
        assert reading.warnings == (f"VLLM_API_KEY has no effect: {place} is given",)


def test_vllm_logging_level_is_a_level():
    assert read(environ={"VLLM_LOGGING_LEVEL": "DEBUG"}).settings.log_level == "debug"
    assert message(environ={"VLLM_LOGGING_LEVEL": "loud"}).startswith("VLLM_LOGGING_LEVEL must be one of")


def test_other_variables_of_vllm_are_named_in_one_warning():
    environ = {f"VLLM_{letter}": "1" for letter in "ABCDEFGHIJ"} | {"VLLM_PORT": "tcp://10.0.0.1:8000"}
    named = ", ".join(f"VLLM_{letter}" for letter in "ABCDEFGH")
    assert read(environ=environ).warnings == (f"{named} and 3 more: vLLM's variables have no effect here",)
