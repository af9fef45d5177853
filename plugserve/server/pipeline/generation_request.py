"""The request that every API's body is converted to, for answers or vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plugserve.server.pipeline.sampling_fields import NO_SAMPLING, SamplingFields
from plugserve.server.text.grammars import GrammarSource
from plugserve.server.text.tool_plan import ToolPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages, from which the model's chat template makes one prompt. chat_template: the client's own template.

    add_generation_prompt None: the prompt opens an answer unless continue_final_message.
    """

    messages: list[dict[str, Any]]
    tools: Any = None
    tool_choice: Any = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template: str | None = None
    template_kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts as texts or as token ids. add_special_tokens: texts get those that the tokenizer puts around a text."""

    prompts: list[str] | list[list[int]]
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TextPairs:
    """Pairs of texts to score: firsts[i] with seconds[i], or the one of firsts with each of seconds. longest_second: a
    second text that has more tokens is cut."""

    firsts: list[str]
    seconds: list[str]
    longest_second: int | None = None

    @property
    def texts(self) -> Texts:
        """Each text once, for models that give each a vector."""
        return Texts([*self.firsts, *self.seconds])


@dataclass(frozen=True, slots=True)
class FieldNames:
    """The API's names of fields, for error messages."""

    prompt: str
    max_tokens: str = "max_tokens"
    logprobs: str = "logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One client's request, of any API. The API makes it; the server sets user, adapter and timeout_s.

    prompts: messages, texts or token ids. sampling: the client's sampling fields. Each prompt gets num_choices answers
    of at most max_new_tokens tokens; None means default_new_tokens, and if that is None, too, the room that the context
    leaves. grammar: what the answer must match, after its thinking. shows_reasoning: thinking is part of the answer.
    needs_thinking: the request is refused if the model doesn't think. pooling asks for one vector a prompt instead of
    answers, "model" for one as the model's files say; dimensions and prompt_name are for encoders. keep_alive_s: how
    long the model stays loaded afterwards, negative for ever. metadata: the client's own, for plugins. names_token_ids,
    shows_cached_tokens: see AnswerSettings. adapter: the LoRA adapter's cache key, "" for none.
    """

    prompts: Conversation | Texts | TextPairs
    names: FieldNames
    model: str | None = None
    request_id: str | None = None
    sampling: SamplingFields = NO_SAMPLING
    num_choices: int = 1
    max_new_tokens: int | None = None
    default_new_tokens: int | None = None
    stop: Sequence[str] = ()
    includes_stop: bool = False
    grammar: GrammarSource | None = None
    tools: ToolPlan | None = None
    shows_reasoning: bool = True
    needs_thinking: bool = False
    pooling: str = ""
    dimensions: int | None = None
    prompt_name: str | None = None
    truncate_prompt_tokens: int | None = None
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    echo: bool = False
    skip_special_tokens: bool = True
    returns_token_ids: bool = False
    names_token_ids: bool | None = None
    shows_cached_tokens: bool | None = None
    stream: bool = False
    usage_in_stream: bool = False
    usage_in_every_chunk: bool = False
    priority: int = 0
    user: str = ""
    cache_salt: str = ""
    adapter: str = ""
    timeout_s: float | None = None
    keep_alive_s: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
