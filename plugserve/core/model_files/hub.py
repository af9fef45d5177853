"""Model repositories on the Hugging Face hub: a snapshot from the net, or from the local cache without a network.

The hub's client is imported when it is needed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from plugserve.core.errors import one_line

logger = logging.getLogger(__name__)

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
PICKLED_FILES = ("*.json", "*.bin", "*.pt", "*.pth", "*.model", "*.txt", "*.jinja")
GGUF_FILES = ("*.json", "*.gguf", "*.model", "*.txt", "*.jinja")
CONFIG_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_IGNORED = ("[!0-9]*/*", "*/*/*", "consolidated*", "training_args.bin", "optimizer*", "scheduler*", "rng_state*")
"""Folders, except those that sentence-transformers numbers (1_Pooling); what a training left."""
_SUFFIXES = (".safetensors", ".gguf")
_MOST_SHOWN = 5
_PROBE_TIMEOUT_S = 4.0
_MARKERS = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class HubError(Exception):
    """No snapshot is available; the message continues "not found here, and ..."."""


def hub_snapshot(
    repository: str, files: tuple[str, ...], *, revision: str | None = None, download_dir: str | None = None
) -> Path:
    """The folder of a repository's snapshot, downloaded when the hub has a newer one. MODEL_FILES of a repository
    without safetensors are its weights in another form. Raises HubError."""
    download_dir = None if download_dir is None else os.path.expanduser(download_dir)
    found = _probe(repository, revision)
    if not isinstance(found, str):
        return _download(repository, _present(files, found), revision, download_dir)
    cached = _cached_snapshot(repository, revision, download_dir)
    if cached is None:
        raise HubError(f"{found}; downloads are kept in {download_dir or _cache_folder()}")
    logger.info("model files from the local cache: repository=%s reason=%s", repository, found)
    return cached


def _cache_folder() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def files_of(load_format: str) -> tuple[str, ...]:
    """The patterns of the files that a load format reads."""
    by_format = {"dummy": CONFIG_FILES, "pt": PICKLED_FILES, "gguf": GGUF_FILES}
    return by_format.get(load_format, MODEL_FILES)


def _present(files: tuple[str, ...], names: Sequence[str]) -> tuple[str, ...]:
    """The patterns for weights in the form that a repository with these files has. Raises HubError for several GGUF
    files, of which one has to be chosen."""
    weights = [name for name in names if "/" not in name]
    has = {suffix: [name for name in weights if name.endswith(suffix)] for suffix in _SUFFIXES}
    if files == MODEL_FILES and names and not has[".safetensors"]:
        files = GGUF_FILES if has[".gguf"] else PICKLED_FILES
    if files == GGUF_FILES and len(has[".gguf"]) > 1:
        shown = ", ".join(has[".gguf"][:_MOST_SHOWN])
        raise HubError(
            f"that repository on the Hugging Face hub has {len(has['.gguf'])} .gguf files ({shown}, ...): download one "
            "of them and name the file"
        )
    return files


def _probe(repository: str, revision: str | None) -> tuple[str, ...] | str:
    """Ask the hub once, with a short timeout: the names of the repository's files, or why it can't be had."""
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
        info = HfApi().model_info(repository, revision=revision, timeout=_PROBE_TIMEOUT_S)
    except GatedRepoError:
        return "access to it on the Hugging Face hub is gated: accept its terms there and set HF_TOKEN"
    except RepositoryNotFoundError:
        return "the Hugging Face hub has no such repository (a private one needs HF_TOKEN): check the name"
    except RevisionNotFoundError:
        return f"that repository on the Hugging Face hub has no revision {revision!r}: check --revision"
    except HFValidationError:
        return "it is not a Hugging Face id (organisation/name)"
    except OfflineModeIsEnabled:
        return "it was not downloaded before; HF_HUB_OFFLINE is set, so the Hugging Face hub was not asked: unset it"
    except HfHubHTTPError as error:
        return f"the Hugging Face hub answered with an error ({one_line(error)[:200]})"
    except Exception as error:  # which HTTP library's errors come through depends on the client's version
        reason = one_line(error)[:200]
        return f"the Hugging Face hub could not be reached ({reason}): check the network, or name a local folder"
    return tuple(one.rfilename for one in info.siblings or ())


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
