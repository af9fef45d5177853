"""Loads a model's text side: tokenizer, chat template, sampling defaults, grammars and parsers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
from plugserve.server.worker.served_models import TextSide


async def load_text_side(source: ModelSource, settings: Settings, host: PluginHost) -> TextSide:
    """Reads files in a thread and starts the template's child process. Raises UserError."""
    if source.task != GENERATE:
        return await asyncio.to_thread(_encoder_side, source)
    text = await asyncio.to_thread(load_text_model, source, settings.chat_template)
    vocabulary = await asyncio.to_thread(Vocabulary, text.tokenizer)
    template = ChatTemplate(
        text.chat_template,
        text.special_tokens,
        default_kwargs=settings.default_chat_template_kwargs,
        content_format=settings.chat_template_content_format,
    )
    await template.start()
    defaults = generation_defaults(source, settings.generation_config, settings.override_generation_config)
    tokenizer_json = text.tokenizer.to_str()
    encode_text = await asyncio.to_thread(_encoder, text, tokenizer_json, settings)
    grammars = GrammarCompiler(tokenizer_json)
    parsers = choose_parsers(settings, host, text.chat_template or "")
    return TextSide(
        encode_text, vocabulary, template, defaults.sampling, grammars, parsers, max_new_tokens=defaults.max_new_tokens
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
