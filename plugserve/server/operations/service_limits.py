"""The server's limits for one request; models and engines have further ones."""

from __future__ import annotations

from dataclasses import dataclass

from plugserve.core.settings.settings import Settings


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """max_body_values bounds the values of a JSON body, a tenth of it the keys.

    timeout_s: for waiting and generating together; None for both counts is no limit. load_timeout_s: for waiting until
    the model is loaded. downloads_models: a request may name any Hugging Face id.
    trusts_templates: a body may bring its own chat template. shares_prefixes: requests of different tenants may start
    from the same cached prefix.
    """

    max_body_bytes: int = 16 * 2**20
    max_body_values: int = 200_000
    max_prompt_tokens: int | None = None
    timeout_s: float | None = None
    load_timeout_s: float | None = None
    downloads_models: bool = False
    trusts_templates: bool = False
    shares_prefixes: bool = False

    def cache_salt(self, owner: str, given: str) -> str:
        """The salt of a request's block hashes: its tenant and the client's cache_salt. Requests with different salts
        share no cached prefixes."""
        return given if self.shares_prefixes or not owner else f"{owner}\n{given}"


def service_limits(settings: Settings) -> ServiceLimits:
    return ServiceLimits(
        max_body_bytes=settings.max_body_size,
        max_body_values=settings.max_body_values,
        max_prompt_tokens=settings.max_prompt_tokens,
        timeout_s=settings.request_timeout,
        load_timeout_s=settings.model_load_timeout,
        downloads_models=settings.allow_model_download,
        trusts_templates=settings.trust_request_chat_template,
        shares_prefixes=settings.share_prefix_cache,
    )
