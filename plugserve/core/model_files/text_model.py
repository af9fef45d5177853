"""The text side of a model: its tokenizer, chat template and special tokens. Torch-free.

A tokenizer that has to be built (from GGUF metadata) is kept as tokenizer.json under the user's cache folder, so that
the next start only reads it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Tokenizer

from plugserve.core.contracts.regular_files import read_regular_file
from plugserve.core.errors import ConfigError, ModelError, one_line
from plugserve.core.model_files.gguf_file import GgufFile, is_gguf, read_gguf
from plugserve.core.model_files.gguf_tokenizer import BPE_RULES, build_gguf_tokenizer, byte_level_bpe, special_token_ids
from plugserve.core.model_files.json_file import read_json_object
from plugserve.core.model_files.lfs_pointer import refuse_pointer

logger = logging.getLogger(__name__)

# The caller's thread encodes: no pool of threads for batches of one, and no warning at each child process.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_MOST_TEMPLATE_BYTES = 16 << 20
_CACHE_FORMAT = 1  # raise when what is built from the same file changes
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(slots=True)
class TextModel:
    """The tokenizer, chat template and special tokens of a model.

    chat_template is Jinja source, None for a model without one; special_tokens (bos_token, eos_token, ...) are
    variables of the template. vocab_size counts the tokenizer's ids, added tokens included (the model may have more).
    """

    tokenizer: Tokenizer
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    vocab_size: int = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of text; add_special_tokens adds the model's special tokens at the ends (BOS).

        A batch of one, because Tokenizer.encode holds the interpreter lock: other threads would wait for a long text.
        """
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


@dataclass(frozen=True, slots=True)
class _TokenizerFiles:
    """The contents of one source: the tokenizer, and possibly a template and special tokens."""

    tokenizer: Tokenizer
    chat_template: str | None
    special_tokens: dict[str, str]


def build_text_model(model_path: Path, tokenizer_path: Path | None, chat_template: str | None) -> TextModel:
    """From a model's folder or .gguf file; tokenizer_path (folder, tokenizer.json or .gguf) comes first where given."""
    files = _read_tokenizer(tokenizer_path or model_path)
    template = files.chat_template
    if tokenizer_path is not None and template is None:
        template = _own_template(model_path)
    if chat_template is not None:
        template = _given_template(chat_template)
    tokenizer = files.tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextModel(tokenizer, template, files.special_tokens, tokenizer.get_vocab_size(with_added_tokens=True))


def _given_template(value: str) -> str:
    """--chat-template: Jinja when it has Jinja's marks, else the name of a file."""
    if "{{" in value or "{%" in value:
        return value
    path = Path(os.path.expanduser(value))
    try:
        return read_regular_file(path, _MOST_TEMPLATE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            f"--chat-template {value!r} is neither Jinja (no {{{{ or {{%) nor a readable file ({reason})"
        ) from None


def _read_tokenizer(path: Path) -> _TokenizerFiles:
    if path.is_dir():
        return _read_folder(path)
    if is_gguf(path):
        return _read_gguf_tokenizer(path)
    return _TokenizerFiles(_load_tokenizer_json(path), None, _special_tokens_beside(path.parent))


def _own_template(model_path: Path) -> str | None:
    if model_path.is_dir():
        return _folder_template(model_path, read_json_object(model_path / "tokenizer_config.json", is_required=False))
    return _gguf_template(read_gguf(model_path))


# ---------------------------------------------------------------- folders


def _read_folder(folder: Path) -> _TokenizerFiles:
    config = read_json_object(folder / "tokenizer_config.json", is_required=False)
    return _TokenizerFiles(
        _folder_tokenizer(folder, config), _folder_template(folder, config), _special_tokens_beside(folder)
    )


def _folder_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return _load_tokenizer_json(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _convert_vocab_and_merges(folder, config)
    gguf_files = sorted(folder.glob("*.gguf"))
    if len(gguf_files) == 1:
        return _read_gguf_tokenizer(gguf_files[0]).tokenizer
    found = "only tokenizer.model, which is not read" if (folder / "tokenizer.model").is_file() else "none"
    raise ModelError(
        f"{folder} has no tokenizer.json (nor vocab.json and merges.txt): found {found}; "
        "name a folder, tokenizer.json or .gguf file with --tokenizer"
    )


def _load_tokenizer_json(path: Path) -> Tokenizer:
    refuse_pointer(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{path} is not a readable tokenizer.json: {error}") from None


def _special_tokens_beside(folder: Path) -> dict[str, str]:
    """bos_token and the like from tokenizer_config.json, else special_tokens_map.json."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = read_json_object(folder / name, is_required=False)
        for key in _SPECIAL_TOKENS:
            text = _token_text(values.get(key))
            if text is not None:
                found[key] = text
    return found


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _folder_template(folder: Path, config: dict[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template.json, else tokenizer_config.json's."""
    try:
        return read_regular_file(folder / "chat_template.jinja", _MOST_TEMPLATE_BYTES).decode("utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{folder / 'chat_template.jinja'} can't be read: {reason}") from None
    separate = read_json_object(folder / "chat_template.json", is_required=False).get("chat_template")
    return _default_template(separate if separate is not None else config.get("chat_template"))


def _default_template(value: Any) -> str | None:
    """Of several named templates the one called "default"."""
    if isinstance(value, list):
        value = next(
            (one.get("template") for one in value if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return value if isinstance(value, str) else None


def _convert_vocab_and_merges(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """The older two-file form of byte-level BPE, as GPT-2's and Qwen2's tokenizers wrote it."""
    vocab = read_json_object(folder / "vocab.json", is_required=False)
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in tokens] != list(range(len(tokens))):
            raise ModelError(f"{folder / 'vocab.json'} doesn't number its tokens 0, 1, 2, ...")
    except (OSError, UnicodeDecodeError, TypeError) as error:
        raise ModelError(f"{folder}: vocab.json and merges.txt can't be read: {error}") from None
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    is_qwen2 = str(config.get("tokenizer_class", "")).startswith("Qwen2")
    rules = BPE_RULES["qwen2" if is_qwen2 else "gpt-2"]
    try:
        tokenizer = byte_level_bpe(tokens, [(left, right) for left, right in pairs], rules)
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{folder}: vocab.json and merges.txt contradict each other: {error}") from None
    try:
        _add_listed_tokens(tokenizer, config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        path = folder / "tokenizer_config.json"
        raise ModelError(f"{path}: added_tokens_decoder can't be read: {one_line(error)}") from None
    return tokenizer


def _add_listed_tokens(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """tokenizer_config.json's added_tokens_decoder, in the order of the ids."""
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        listed = {}
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        token = AddedToken(entry["content"], normalized=False, special=bool(entry.get("special", True)))
        add = tokenizer.add_special_tokens if token.special else tokenizer.add_tokens
        add([token])


# ---------------------------------------------------------------- GGUF


def _read_gguf_tokenizer(path: Path) -> _TokenizerFiles:
    gguf = read_gguf(path)
    tokenizer = _cached_tokenizer(gguf)
    texts = {name: tokenizer.id_to_token(token_id) for name, token_id in special_token_ids(gguf).items()}
    special_tokens = {name: text for name, text in texts.items() if text is not None}
    return _TokenizerFiles(tokenizer, _gguf_template(gguf), special_tokens)


def _gguf_template(gguf: GgufFile) -> str | None:
    template = gguf.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _cached_tokenizer(gguf: GgufFile) -> Tokenizer:
    path = _cache_path(gguf.path)
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except Exception as error:  # a broken file shows as OSError, UnicodeDecodeError or tokenizers' bare Exception
        logger.warning("tokenizer cache ignored: path=%s reason=%s", path, error)
    tokenizer = build_gguf_tokenizer(gguf)
    _write_cache(path, tokenizer)
    return tokenizer


def _cache_path(path: Path) -> Path:
    stat = path.stat()
    identity = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, _CACHE_FORMAT, tokenizers.__version__)
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(root)) / "plugserve" / "tokenizers" / f"{key}.json"


def _write_cache(path: Path, tokenizer: Tokenizer) -> None:
    """Write atomically. Where the folder can't be written, the next start builds the tokenizer again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(tokenizer.to_str())
        os.replace(file.name, path)
    except (OSError, RuntimeError) as error:
        logger.warning("tokenizer cache not written: path=%s reason=%s", path, error)
