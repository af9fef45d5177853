"""Every setting, declared once: flags, config-file keys, environment variables, help and docs are made from here.

Knows nothing of where values come from (config_reader) and of plugins beyond their names.
`python -m plugserve.core.settings.settings` prints the table of docs/configuration.md; `--write FILE` puts it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from plugserve.core.settings.setting_types import (
    SIZE_ACCEPTS,
    Address,
    BlockSize,
    Count,
    CountFromZero,
    Device,
    Dtype,
    JsonTexts,
    LogLevel,
    LoraModules,
    ModelLength,
    Number,
    OptionalCount,
    OptionalCountFromZero,
    OptionalNumber,
    OptionalPositive,
    OptionalSize,
    Port,
    Secrets,
    SettingFacts,
    Share,
    Size,
    Texts,
    setting,
)

MODEL = "Model, data"
PARALLEL = "Parallel"
PERFORMANCE = "Performance, memory"
FEATURES = "Features"
PLUGINS = "Plugins"
SERVER = "Server"
FILE = "Config file"
GROUPS = (MODEL, PARALLEL, PERFORMANCE, FEATURES, PLUGINS, SERVER, FILE)

COUNT = "a whole number of at least 1 (16k means 16384)"

DEFAULT_PLUGINS = ("request-log", "torch", "tool-parsers", "reasoning-parsers")
"""Active without being named, beside the defaults of the required slots. torch also reads models for other runners."""

RETIRED_PLUGINS: Mapping[str, str] = {"decoders": "torch", "weight-formats": "torch"}
"""Names of plugins that have become part of another one; --no-plugin takes them with a warning."""

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class OldName:
    """Another server's name for a setting. inverted: its boolean says the opposite."""

    new: str
    inverted: bool = False


OLD_NAMES: Mapping[str, OldName] = {
    "kv_cache_memory_bytes": OldName("kv_cache_memory"),
    "otlp_endpoint": OldName("otlp_traces_endpoint"),
    "enable_log_requests": OldName("disable_log_requests", inverted=True),
    "api_server_count": OldName("api_workers"),
    "attention_backend": OldName("attention"),
    "scheduling_policy": OldName("scheduler"),
    "device_memory_utilization": OldName("gpu_memory_utilization"),
    "uvicorn_log_level": OldName("log_level"),
    "spec_model": OldName("speculative_model"),
    "spec_tokens": OldName("num_speculative_tokens"),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which plugins the user wants: what the plugin host needs to know of the settings.

    plugin holds names and paths of one-file plugins, in the order of activation.
    """

    plugin: tuple[str, ...] = ()
    no_plugin: tuple[str, ...] = ()
    scheduler: str = "fcfs"
    attention: str = "auto"
    runner: str = "torch"


class Settings(BaseSettings):
    """All settings, validated and read-only.

    Made by config_reader.read_settings. Constructing it or loading it from JSON (model_validate_json, in child
    processes) reads the given values alone: never the environment, the command line or a file.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=False)

    # ------------------------------------------------ model, data
    model: Texts = setting(
        [],
        MODEL,
        "Hugging Face id, local folder or .gguf file, also NAME=PATH; repeat it to serve several.",
        "a Hugging Face id, a folder or a .gguf file",
        metavar="MODEL",
        shown_default="embedded SmolLM2-135M-Instruct",
    )
    served_model_name: Texts = setting(
        [],
        MODEL,
        "Name that requests use for the model. Repeated: further names of one model, or one for each of several.",
        metavar="NAME",
        shown_default="the model's",
    )
    tokenizer: str | None = setting(
        None, MODEL, "Tokenizer from another id or folder.", metavar="MODEL", shown_default="the model's"
    )
    tokenizer_mode: Literal["auto"] = setting(
        "auto", MODEL, "Which tokenizer is used: the fast one of the model.", "auto", metavar="auto"
    )
    dtype: Dtype = setting(
        "auto",
        MODEL,
        "Number format of weights and KV cache; half = float16, float = float32.",
        "one of auto, half, float16, bfloat16, float, float32",
        metavar="DTYPE",
    )
    trust_remote_code: bool = setting(
        False,
        MODEL,
        "Run model code from the model's repository.",
        "true or false",
        no_effect="this version never runs code from a model repository; it has its own model code",
    )
    revision: str | None = setting(
        None, MODEL, "Branch, tag or commit of the model.", metavar="REV", shown_default="main"
    )
    download_dir: str | None = setting(
        None,
        MODEL,
        "Folder that holds downloaded models.",
        "a folder",
        metavar="FOLDER",
        shown_default="the Hugging Face cache",
    )
    load_format: str = setting(
        "auto",
        MODEL,
        "Format of the weights; dummy fills them at random.",
        "auto, safetensors, gguf, pt, dummy, or a format that an active plugin provides",
        metavar="FORMAT",
        refused="this version has no reader for it; convert the weights, or leave it at auto",
        refused_values=("dtensor", "sharded_state"),
    )
    generation_config: Literal["auto", "none"] = setting(
        "auto",
        MODEL,
        "auto takes sampling defaults from the model's generation_config.json, none doesn't.",
        "auto or none",
        metavar="auto|none",
    )
    chat_template: str | None = setting(
        None,
        MODEL,
        "Jinja chat template: a file, or the template itself.",
        "a file or a jinja template",
        metavar="FILE",
        shown_default="the model's",
    )

    # ------------------------------------------------ parallel
    tensor_parallel_size: Count = setting(
        1,
        PARALLEL,
        "Devices that share each layer.",
        COUNT,
        metavar="N",
        refused="this version runs each model on one device; leave it at 1",
    )
    pipeline_parallel_size: Count = setting(
        1,
        PARALLEL,
        "Devices that share the layers in turn.",
        COUNT,
        metavar="N",
        refused="this version runs each model on one device; leave it at 1",
    )
    distributed_executor_backend: Literal["auto", "mp", "ray"] | None = setting(
        None,
        PARALLEL,
        "How processes of one model are started.",
        "one of auto, mp",
        metavar="mp",
        shown_default="auto",
        refused="this version starts its processes by itself, without Ray; leave it at auto",
        refused_values=("ray",),
    )
    worker_use_ray: bool = setting(
        False,
        PARALLEL,
        "Start processes with Ray.",
        "true or false",
        refused="this version starts its processes by itself, without Ray",
    )

    # ------------------------------------------------ performance, memory
    device: Device = setting(
        "auto",
        PERFORMANCE,
        "Where the model runs: auto takes a GPU if there is one.",
        "one of auto, cpu, cuda, cuda:N",
        metavar="DEVICE",
    )
    threads: OptionalCount = setting(
        None, PERFORMANCE, "CPU threads of an engine.", COUNT, metavar="N", shown_default="all cores"
    )
    max_model_len: ModelLength = setting(
        None,
        PERFORMANCE,
        "Longest context in tokens, also 16k; auto takes the largest that fits in memory.",
        f"{COUNT} or auto",
        metavar="N|auto",
        shown_default="the model's",
    )
    gpu_memory_utilization: Share = setting(
        0.90,
        PERFORMANCE,
        "Share of the GPU's memory for weights and KV cache.",
        "a number above 0 and at most 1",
        metavar="SHARE",
    )
    kv_cache_memory: OptionalSize = setting(
        None,
        PERFORMANCE,
        "Size of the KV cache, such as 1GiB, on any device.",
        SIZE_ACCEPTS,
        metavar="SIZE",
        shown_default="GPU: what is left; CPU: at most 1 GiB",
    )
    block_size: BlockSize = setting(
        16, PERFORMANCE, "Tokens in one block of the KV cache.", "a power of two from 16 to 256", metavar="N"
    )
    num_gpu_blocks_override: OptionalCount = setting(
        None,
        PERFORMANCE,
        "Number of KV blocks, whatever the memory (any device).",
        COUNT,
        metavar="N",
        shown_default="from memory",
    )
    max_num_seqs: Count = setting(256, PERFORMANCE, "Sequences that run at once.", COUNT, metavar="N")
    max_num_batched_tokens: OptionalCount = setting(
        None,
        PERFORMANCE,
        "Tokens that one step computes.",
        f"{COUNT} or auto",
        metavar="N",
        shown_default="auto: 256 on a CPU, 8192 on a GPU",
    )
    scheduler_delay_factor: Number = setting(
        0.0,
        PERFORMANCE,
        "Wait this many times the last prompt's latency before the next prompt.",
        "a number of at least 0",
        metavar="X",
    )
    max_itl_ms: OptionalPositive = setting(
        None,
        PERFORMANCE,
        "Target for the time between two tokens, in ms: prompts are computed in chunks that keep steps shorter.",
        "a number above 0",
        metavar="MS",
        shown_default="no target",
    )
    swap_space: OptionalNumber = setting(
        None,
        PERFORMANCE,
        "GiB of host memory for what the prefix cache has to drop from the device; taken as it is needed.",
        "a number of at least 0, or auto",
        metavar="GIB",
        shown_default="auto: 4 on a GPU (at most half of the free memory), 0 on a CPU",
    )
    cpu_offload_gb: Number = setting(
        0.0,
        PERFORMANCE,
        "GiB of the weights that stay in host memory.",
        "a number of at least 0",
        metavar="GIB",
        refused="this version keeps all weights on the device; leave it at 0",
    )
    enforce_eager: bool = setting(False, PERFORMANCE, "Don't capture CUDA graphs.", "true or false")

    # ------------------------------------------------ features
    enable_prefix_caching: bool = setting(
        False,
        FEATURES,
        "Reuse the KV cache of equal prompt beginnings; the same as --plugin prefix-cache.",
        "true or false",
    )
    enable_lora: bool = setting(False, FEATURES, "Serve LoRA adapters; the same as --plugin lora.", "true or false")
    max_loras: Count = setting(
        8, FEATURES, "LoRA adapters in one step; further ones wait for a slot.", COUNT, metavar="N"
    )
    max_lora_rank: Count = setting(16, FEATURES, "Largest rank of a LoRA adapter.", COUNT, metavar="N")
    lora_modules: LoraModules = setting(
        [],
        FEATURES,
        "LoRA adapters to load at the start, NAME=FOLDER each.",
        'NAME=FOLDER, or {"name": ..., "path": ..., "base_model_name": ...}',
        metavar="NAME=FOLDER [NAME=FOLDER ...]",
        takes_many=True,
    )
    lora_dir: str | None = setting(
        None,
        FEATURES,
        "Folder below which /v1/load_lora_adapter may load adapters; none may be loaded so without it.",
        "a folder",
        metavar="FOLDER",
    )
    max_lora_size: int | str | None = setting(
        None, FEATURES, "Accepted for old configurations.", "a number", metavar="N", no_effect="nothing reads it"
    )
    enable_auto_tool_choice: bool = setting(
        False,
        FEATURES,
        "Let the model choose tools.",
        "true or false",
    )
    close_bound_answers: bool = setting(
        True,
        FEATURES,
        "Let an answer bound to a grammar take the shortest way to its end when its max_tokens would cut it off.",
        "true or false",
    )
    tool_call_parser: str | None = setting(
        None,
        FEATURES,
        "How the model writes tool calls: hermes, llama3-json, mistral, pythonic, generic-json, or a plugin's.",
        "a tool parser's name",
        metavar="NAME",
        shown_default="from the chat template",
    )
    reasoning_parser: str | None = setting(
        None,
        FEATURES,
        "How the model marks its thinking: think-tags, deepseek-r1, or a plugin's; none tells thinking as content.",
        "a reasoning parser's name",
        metavar="NAME",
        shown_default="from the chat template",
    )
    speculative_model: str | None = setting(
        None,
        FEATURES,
        "Draft model for speculative decoding; activates the plugin draft-model.",
        "a Hugging Face id, a folder or a .gguf file",
        metavar="MODEL",
        shown_default="none",
    )
    num_speculative_tokens: Count = setting(
        5, FEATURES, "Most draft tokens of a sequence in a step, with a draft model or ngram.", COUNT, metavar="N"
    )
    adaptive_speculation: bool = setting(
        True, FEATURES, "Draft as much as measurably pays; off: always the most.", "true or false"
    )

    # ------------------------------------------------ plugins
    plugin: Texts = setting(
        [],
        PLUGINS,
        "Activate an installed plugin, or a one-file plugin (./file.py); repeat it.",
        "a plugin's name or a .py file",
        metavar="NAME",
    )
    no_plugin: Texts = setting([], PLUGINS, "Turn a plugin off; repeat it.", "a plugin's name", metavar="NAME")
    scheduler: str = setting("fcfs", PLUGINS, "Scheduler: NAME, or PLUGIN/NAME.", "a scheduler's name", metavar="NAME")
    attention: str = setting(
        "auto",
        PLUGINS,
        "Attention backend: NAME, PLUGIN/NAME, or auto.",
        "an attention backend's name, or auto",
        metavar="NAME",
    )
    runner: str = setting("torch", PLUGINS, "Model runner: NAME, or PLUGIN/NAME.", "a runner's name", metavar="NAME")

    # ------------------------------------------------ server
    host: Address = setting("0.0.0.0", SERVER, "Address to listen on.", "an address", metavar="ADDRESS")
    port: Port = setting(
        8000, SERVER, "Port to listen on; 0 takes any free one.", "a port from 0 to 65535", metavar="PORT"
    )
    ssl_keyfile: str | None = setting(None, SERVER, "Private key for HTTPS (PEM).", "a file", metavar="FILE")
    ssl_certfile: str | None = setting(None, SERVER, "Certificate for HTTPS (PEM).", "a file", metavar="FILE")
    api_workers: Count = setting(1, SERVER, "Processes that serve HTTP.", COUNT, metavar="N")
    shutdown_timeout: Number = setting(
        0.0, SERVER, "Seconds that running requests get at SIGTERM.", "a number of at least 0", metavar="S"
    )
    disable_log_requests: bool = setting(False, SERVER, "Don't log a line for each request.", "true or false")
    otlp_traces_endpoint: str | None = setting(
        None, SERVER, "OpenTelemetry collector that gets a span per request.", "an URL", metavar="URL"
    )
    record_trace: str | None = setting(
        None,
        SERVER,
        "Append sizes and times of requests and steps to a file, for plugserve simulate; no prompts, no keys.",
        "a file",
        metavar="FILE",
    )
    max_logprobs: CountFromZero = setting(
        20, SERVER, "Most logprobs that a request may ask for.", "a whole number of at least 0", metavar="N"
    )
    log_level: LogLevel = setting(
        "info",
        SERVER,
        "Least severe lines that are logged.",
        "one of critical, error, warning, info, debug",
        metavar="LEVEL",
    )

    api_key: Secrets = setting(
        [],
        SERVER,
        "Key that requests must carry; repeat it for several. Better as PLUGSERVE_API_KEY than as a flag.",
        "a text that is not empty",
        metavar="KEY",
        is_secret=True,
    )
    metrics_no_auth: bool = setting(False, SERVER, "Serve /metrics without a key.", "true or false")
    allowed_origins: JsonTexts = setting(
        [],
        SERVER,
        "Web origin whose pages may call this server (CORS), * for any; repeat it.",
        "an origin such as https://example.com",
        metavar="ORIGIN",
    )
    allowed_methods: JsonTexts = setting(
        ["*"],
        SERVER,
        "Method that such pages may use; repeat it.",
        "an HTTP method or *",
        metavar="METHOD",
        shown_default="any",
    )
    allowed_headers: JsonTexts = setting(
        ["*"],
        SERVER,
        "Header that such pages may send; repeat it.",
        "a header's name or *",
        metavar="HEADER",
        shown_default="any",
    )
    allow_credentials: bool = setting(False, SERVER, "Let such pages send cookies and the like.", "true or false")
    max_num_queued_requests: OptionalCountFromZero = setting(
        None,
        SERVER,
        "Sequences that may wait in one engine; further requests are answered with 503.",
        "a whole number of at least 0",
        metavar="N",
        shown_default="no limit",
    )
    request_timeout: OptionalPositive = setting(
        None,
        SERVER,
        "Seconds that a request may wait and run; then it ends with 504.",
        "a number above 0",
        metavar="S",
        shown_default="no limit",
    )
    max_body_size: Size = setting(
        32 * 2**20, SERVER, "Largest request body.", SIZE_ACCEPTS, metavar="SIZE", shown_default="32MiB"
    )
    max_prompt_tokens: OptionalCount = setting(
        None,
        SERVER,
        "Longest prompt that a request may have.",
        COUNT,
        metavar="N",
        shown_default="what the context holds",
    )
    require_model: bool = setting(
        False, SERVER, "Refuse requests that name no model, instead of serving the first one.", "true or false"
    )
    trust_request_chat_template: bool = setting(
        False, SERVER, "Accept chat_template in a request's body.", "true or false"
    )

    # ------------------------------------------------ config file
    config: str | None = setting(
        None, FILE, "YAML or TOML file with any of these settings.", "a .yaml, .yml or .toml file", metavar="FILE"
    )

    # ------------------------------------------------ filled from plugins' own options; not settings themselves
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict)
    secret_options: list[str] = Field(default_factory=list)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Given values alone; config_reader puts the other sources in."""
        return (init_settings,)

    def selection(self) -> Selection:
        """What the plugin host needs; equal in every process."""
        return Selection(
            plugin=selected_plugins(self.plugin, self.enable_prefix_caching, self.enable_lora, self._drafts_by_model()),
            no_plugin=tuple(self.no_plugin),
            scheduler=self.scheduler,
            attention=self.attention,
            runner=self.runner,
        )

    def _drafts_by_model(self) -> bool:
        """--speculative-model is used by the plugin draft-model, unless that is turned off in favour of another one."""
        return self.speculative_model is not None and "draft-model" not in self.no_plugin

    def changed(self) -> dict[str, Any]:
        """Settings that differ from their defaults, plugin options as NAME.option; secrets read "***"."""
        changes = {name: getattr(self, name) for name in setting_facts() if getattr(self, name) != default_of(name)}
        changes |= {name: "***" for name in changes if setting_facts()[name].is_secret}
        for plugin, options in self.plugins.items():
            for option, value in options.items():
                key = f"{plugin}.{option}"
                changes[key] = "***" if key in self.secret_options else value
        return changes

    def plugin_options(self, plugin: str, model: type[Options]) -> Options:
        """The validated options of one plugin, for hooks that get the settings alone (plugserve_configure)."""
        return model.model_validate(self.plugins.get(plugin, {}))


def is_plugin_file(plugin: str) -> bool:
    """True for what --plugin takes as a one-file plugin rather than as an installed plugin's name."""
    return plugin.endswith(".py")


def selected_plugins(
    named: list[str], enable_prefix_caching: bool, enable_lora: bool, has_draft_model: bool
) -> tuple[str, ...]:
    """What --plugin, --enable-prefix-caching, --enable-lora and --speculative-model name, each once, in order."""
    names = [*named, *["prefix-cache"] * enable_prefix_caching, *["lora"] * enable_lora]
    names += ["draft-model"] * has_draft_model
    return tuple(dict.fromkeys(names))


def setting_facts() -> dict[str, SettingFacts]:
    """The declaration's facts by setting, in order of declaration."""
    return {name: _facts(field) for name, field in Settings.model_fields.items() if field.json_schema_extra}


def _facts(field: FieldInfo) -> SettingFacts:
    return cast(Any, field.json_schema_extra)["facts"]  # type: ignore[no-any-return]


def default_of(name: str) -> Any:
    """A setting's default value."""
    return Settings.model_fields[name].get_default(call_default_factory=True, validated_data={})


if __name__ == "__main__":
    import sys
    from pathlib import Path

    from plugserve.core.settings.settings_docs import settings_table, write_table

    if sys.argv[1:2] == ["--write"]:
        write_table(Path(sys.argv[2]))
    else:
        print(settings_table(), end="")
