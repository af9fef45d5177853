"""Model repositories on the Hugging Face hub: a snapshot from the net, or from the local cache without a network.

The hub's client is imported when it is needed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from plugserve.core.errors import one_line

logger = logging.getLogger(__name__)

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
CONFIG_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_IGNORED = ("[!0-9]*/*", "*/*/*", "consolidated*", "*.bin", "*.pt", "*.pth")
"""Folders, except those that sentence-transformers numbers (1_Pooling); weights in other forms."""
_PROBE_TIMEOUT_S = 4.0
_MARKERS = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class HubError(Exception):
    """No snapshot is available; the message continues "not found here, and ..."."""


def hub_snapshot(
    repository: str, files: tuple[str, ...], *, revision: str | None = None, download_dir: str | None = None
) -> Path:
    """The folder of a repository's snapshot, downloaded when the hub has a newer one. Raises HubError."""
    refusal = _probe(repository, revision)
    if refusal is None:
        return _download(repository, files, revision, download_dir)
    cached = _cached_snapshot(repository, revision, download_dir)
    if cached is None:
        raise HubError(refusal)
    logger.info("model files from the local cache: repository=%s reason=%s", repository, refusal)
    return cached


def _probe(repository: str, revision: str | None) -> str | None:
    """Ask the hub once, with a short timeout. None: the repository is there; else why it can't be had."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        HfApi().model_info(repository, revision=revision, timeout=_PROBE_TIMEOUT_S)
    except GatedRepoError:
        return "access to it on the Hugging Face hub is gated: accept its terms there and set HF_TOKEN"
    except RepositoryNotFoundError:
        return "the Hugging Face hub has no such repository (a private one needs HF_TOKEN)"
    except RevisionNotFoundError:
        return f"that repository on the Hugging Face hub has no revision {revision!r}"
    except HFValidationError:
        return "it is not a Hugging Face id (organisation/name)"
    except OfflineModeIsEnabled:
        return "it is not in the local Hugging Face cache (HF_HUB_OFFLINE is set, so the hub was not asked)"
    except HfHubHTTPError as error:
        return f"the Hugging Face hub answered with an error ({one_line(error)[:200]})"
    except Exception as error:  # which HTTP library's errors come through depends on the client's version
        return f"the Hugging Face hub could not be reached ({one_line(error)[:200]})"
    return None


def _download(repository: str, files: tuple[str, ...], revision: str | None, download_dir: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            cache_dir=download_dir,
            allow_patterns=list(files),
            ignore_patterns=list(_IGNORED),
        )
    except Exception as error:  # network, disk and hub errors share no base class
        raise HubError(f"its download from the Hugging Face hub failed ({one_line(error)[:200]})") from None
    return Path(folder)


def _cached_snapshot(repository: str, revision: str | None, download_dir: str | None) -> Path | None:
    """The cached snapshot's folder, found without asking the hub; None when there is none."""
    from huggingface_hub import try_to_load_from_cache

    for name in _MARKERS:
        found = try_to_load_from_cache(repository, name, cache_dir=download_dir, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None
