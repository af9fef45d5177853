"""Settings of the model: which one, its format, and its devices."""

from __future__ import annotations

from typing import Literal

from plugserve.core.settings.setting_groups import MODEL, PARALLEL
from plugserve.core.settings.setting_types import (
    COUNT_ACCEPTS,
    Count,
    DeclaredSettings,
    Dtype,
    ExecutorBackend,
    GenerationConfig,
    JsonTable,
    OptionalSeed,
    Texts,
    setting,
)


class ModelSettings(DeclaredSettings):
    """The model and its data."""

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
    tokenizer_mode: Literal["auto", "hf", "slow", "mistral", "custom"] = setting(
        "auto",
        MODEL,
        "Which form of the tokenizer is used: auto and hf take the fast one of the model's files.",
        "auto, hf or slow",
        metavar="MODE",
        no_effect="every tokenizer is the fast one, which gives the ids that the slow one gives",
        no_effect_values=("slow",),
        refused="mistral-common's tekken.json and tokenizers in Python are not read; leave it at auto, which takes "
        "tokenizer.json, or name a folder that has one with --tokenizer",
        refused_values=("mistral", "custom"),
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
    seed: OptionalSeed = setting(
        None,
        MODEL,
        "Makes draws repeatable: requests without a seed get one from a sequence of this seed, in order of arrival, "
        "and dummy weights are filled from it.",
        "a whole number of 64 bits",
        metavar="N",
        shown_default="random",
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
        "auto, safetensors, sharded_state, gguf, pt, dtensor, dummy, or a format that an active plugin provides",
        metavar="FORMAT",
    )
    generation_config: GenerationConfig = setting(
        "auto",
        MODEL,
        "Where sampling defaults come from: auto is the model's generation_config.json, none (vllm) no file, else a "
        "folder with such a file.",
        "auto, none, vllm or a folder with generation_config.json",
        metavar="auto|none|FOLDER",
    )
    override_generation_config: JsonTable = setting(
        {},
        MODEL,
        "Sampling defaults as a JSON object, over those of --generation-config; max_new_tokens limits every answer.",
        'a JSON object such as {"temperature": 0.7}',
        metavar="JSON",
        shown_default="none",
    )
    hf_overrides: JsonTable = setting(
        {},
        MODEL,
        "Values that replace those of the model's config.json, as a JSON object.",
        'a JSON object such as {"max_position_embeddings": 8192}',
        metavar="JSON",
        shown_default="none",
    )
    chat_template: str | None = setting(
        None,
        MODEL,
        "Jinja chat template: a file, or the template itself.",
        "a file or a jinja template",
        metavar="FILE",
        shown_default="the model's",
    )
    chat_template_content_format: Literal["auto", "string", "openai"] = setting(
        "auto",
        MODEL,
        "How the template gets a message's content: string is one text, openai a list of parts; auto is what the "
        "template goes by.",
        "auto, string or openai",
        metavar="FORMAT",
    )
    default_chat_template_kwargs: JsonTable = setting(
        {},
        MODEL,
        "Variables of the chat template as a JSON object; a request's own chat_template_kwargs win.",
        'a JSON object such as {"enable_thinking": false}',
        metavar="JSON",
        shown_default="none",
    )


class ParallelSettings(DeclaredSettings):
    """Devices that share one model."""

    tensor_parallel_size: Count = setting(
        1,
        PARALLEL,
        "Devices (on a CPU: processes) that share each layer.",
        COUNT_ACCEPTS,
        metavar="N",
    )
    pipeline_parallel_size: Count = setting(
        1,
        PARALLEL,
        "Stages that hold some of the layers each, of --tensor-parallel-size devices.",
        COUNT_ACCEPTS,
        metavar="N",
    )
    data_parallel_size: Count = setting(
        1,
        PARALLEL,
        "Engines that hold each model whole; a request runs in one of them.",
        COUNT_ACCEPTS,
        metavar="N",
    )
    distributed_executor_backend: ExecutorBackend = setting(
        None,
        PARALLEL,
        "What starts the processes that share a model: mp on this machine, ray on those of a Ray cluster, or the "
        "executor NAME of a plugin.",
        "mp, ray or an executor's name",
        metavar="NAME",
        shown_default="mp",
        refused="ranks are started by mp, by ray or by an executor of a plugin",
        refused_values=("external_launcher",),
    )
    worker_use_ray: bool = setting(
        False,
        PARALLEL,
        "Old name of --distributed-executor-backend ray.",
        "true or false",
    )
