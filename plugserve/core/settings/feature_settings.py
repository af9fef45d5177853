"""Settings of features, and those that select plugins."""

from __future__ import annotations

from plugserve.core.settings.setting_groups import FEATURES, PLUGINS
from plugserve.core.settings.setting_types import COUNT_ACCEPTS, Count, DeclaredSettings, LoraModules, Texts, setting


class FeatureSettings(DeclaredSettings):
    """Prefix caching, LoRA, tools, thinking, speculation."""

    enable_prefix_caching: bool = setting(
        False,
        FEATURES,
        "Reuse the KV cache of equal prompt beginnings; the same as --plugin prefix-cache.",
        "true or false",
    )
    enable_lora: bool = setting(False, FEATURES, "Serve LoRA adapters; the same as --plugin lora.", "true or false")
    max_loras: Count = setting(
        8, FEATURES, "LoRA adapters in one step; further ones wait for a slot.", COUNT_ACCEPTS, metavar="N"
    )
    max_cpu_loras: Count = setting(
        64,
        FEATURES,
        "LoRA adapters of a model in host memory; others are read again when a request names them.",
        COUNT_ACCEPTS,
        metavar="N",
    )
    max_lora_rank: Count = setting(16, FEATURES, "Largest rank of a LoRA adapter.", COUNT_ACCEPTS, metavar="N")
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
        "Folder below which /v1/load_lora_adapter may load adapters; without it that route loads none.",
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
        "Close an answer with the shortest completion that its grammar allows, if max_tokens would truncate it.",
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
        "How the model marks its thinking: think-tags, deepseek-r1, or a plugin's; none keeps it in the content.",
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
        5,
        FEATURES,
        "Largest number of draft tokens per sequence and step, with a draft model or ngram.",
        COUNT_ACCEPTS,
        metavar="N",
    )
    adaptive_speculation: bool = setting(
        True,
        FEATURES,
        "Draft as many tokens as save time, as measured; off: always the largest number.",
        "true or false",
    )


class PluginSettings(DeclaredSettings):
    """The selection of active plugins, and of those that fill the slots."""

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
    runner: str = setting(
        "auto",
        PLUGINS,
        "Model runner: NAME, or PLUGIN/NAME. auto takes native-cpu on a CPU where it covers model and settings, else "
        "torch.",
        "a runner's name, or auto",
        metavar="NAME",
    )
