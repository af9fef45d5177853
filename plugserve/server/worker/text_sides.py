"""Loads a model's text side: tokenizer, chat template, sampling defaults, grammars and parsers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from plugserve.core.model_files.encoder_files import GENERATE, encoder_facts
from plugserve.core.model_files.generation_defaults import generation_defaults
from plugserve.core.model_files.model_source import ModelSource, load_text_model, read_config
from plugserve.core.model_files.text_model import TextModel
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.settings import Settings
from plugserve.server.text.chat_template import ChatTemplate
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.encoder_text import EncoderText
from plugserve.server.text.grammars import GrammarCompiler
from plugserve.server.text.parser_choice import choose_parsers
from plugserve.server.text.prompt_encoder import PromptEncoder
from plugserve.server.text.remote_tokenizer import RemoteTokenizer
from plugserve.server.text.tokenizer_process import TokenizerTask
from plugserve.server.worker.served_models import TextSide


async def load_text_side(source: ModelSource, settings: Settings, host: PluginHost) -> TextSide:
    """Reads files in a thread and starts the template's child process. Raises UserError."""
    if source.task != GENERATE:
        return await asyncio.to_thread(_encoder_side, source)
    text = await asyncio.to_thread(load_text_model, source, settings.chat_template)
    vocabulary = await asyncio.to_thread(Vocabulary, text.tokenizer)
    tokenizer_json = await asyncio.to_thread(text.tokenizer.to_str)
    encode_text = await asyncio.to_thread(_encoder, text, tokenizer_json, settings)
    side = TextSide(encode_text, vocabulary, None, {}, GrammarCompiler(tokenizer_json))
    return await _completed(side, source, settings, host, text.chat_template, text.special_tokens)


async def load_text_side_apart(source: ModelSource, settings: Settings, host: PluginHost, json_file: Path) -> TextSide:
    """As load_text_side, for a worker that serves requests of other models: the tokenizer is read and used in a process
    of its own, because reading it stops all threads of its process, for a second where the vocabulary is large. That
    process writes json_file. Raises UserError."""
    if source.task != GENERATE:
        return await load_text_side(source, settings, host)
    task = TokenizerTask(
        source=json.loads(json.dumps(asdict(source), default=str)),
        chat_template=settings.chat_template,
        guards_text=not settings.allow_special_tokens_in_text,
        guards_always=settings.trust_request_chat_template,
        json_file=str(json_file),
    )
    remote = await RemoteTokenizer.start(task)
    facts, grammars = remote.facts, GrammarCompiler(remote.json_file)
    side = TextSide(remote.encode, Vocabulary(remote.pieces), None, {}, grammars, remote=remote)
    try:
        return await _completed(side, source, settings, host, facts.chat_template, facts.special_tokens)
    except BaseException:
        await remote.close()
        raise


async def _completed(
    side: TextSide,
    source: ModelSource,
    settings: Settings,
    host: PluginHost,
    chat_template: str | None,
    special_tokens: dict[str, str],
) -> TextSide:
    """side with what doesn't depend on where the tokenizer is."""
    template = ChatTemplate(
        chat_template,
        special_tokens,
        default_kwargs=settings.default_chat_template_kwargs,
        content_format=settings.chat_template_content_format,
    )
    await template.start()
    defaults = await asyncio.to_thread(
        generation_defaults, source, settings.generation_config, settings.override_generation_config
    )
    return replace(
        side,
        template=template,
        sampling_defaults=defaults.sampling,
        parsers=choose_parsers(settings, host, chat_template or ""),
        max_new_tokens=defaults.max_new_tokens,
    )


def _encoder_side(source: ModelSource) -> TextSide:
    """The text side of an encoder: no template, no sampling, no grammars."""
    text = load_text_model(source)
    encoder = EncoderText(text.tokenizer, encoder_facts(source.path, read_config(source)))
    return TextSide(encoder.encode, Vocabulary(text.tokenizer), None, {}, encoder=encoder)


def _encoder(text: TextModel, tokenizer_json: str, settings: Settings) -> Callable[..., list[int]]:
    """The function that encodes prompts; it keeps clients' text free of control tokens unless the settings allow
    them."""
    has_template = text.chat_template is not None or settings.trust_request_chat_template
    if not has_template or settings.allow_special_tokens_in_text:
        return text.encode
    return PromptEncoder(text.tokenizer, tokenizer_json, text.chat_template or "", text.encode).encode
