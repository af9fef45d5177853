"""A tokenizers.Tokenizer from a GGUF file's vocabulary.

A GGUF file names its algorithm in tokenizer.ggml.model ("gpt2": byte-level BPE, "llama": SentencePiece BPE) and, for
BPE, the way text is cut up first in tokenizer.ggml.pre. The names and the rules behind them are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from plugserve.core.errors import ModelError
from plugserve.core.model_files.gguf_file import GgufFile


class TokenType(IntEnum):
    """The kinds of tokens of SentencePiece, which GGUF took over."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_SPECIAL_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_ENDING_IDS = ("bos", "eos", "eot", "eom")

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class BpeRules:
    """The rules by which one family of byte-level vocabularies cuts text before merging.

    splits are applied one after another, each isolating its matches. ignores_merges: a piece that is a token is not
    split. adds_bos is the family's default if the file has no value.
    """

    splits: tuple[str, ...]
    ignores_merges: bool = False
    adds_bos: bool = False
    normalizes_nfc: bool = False


_GPT2_RULES = BpeRules((_GPT2,))
_DIGITS_RULES = BpeRules((r"\p{N}", _GPT2))
_DEFAULT_RULES = BpeRules((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_LLAMA3_RULES = BpeRules((_LLAMA3,), ignores_merges=True, adds_bos=True)
_QWEN2_RULES = BpeRules((_QWEN2,), normalizes_nfc=True)
_TEKKEN_RULES = BpeRules((_TEKKEN,), ignores_merges=True, adds_bos=True)
_GPT4O_RULES = BpeRules((_GPT4O,))

BPE_RULES: dict[str, BpeRules] = {
    "default": _DEFAULT_RULES,
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de"), _GPT2_RULES),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_RULES),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"), _LLAMA3_RULES),
    **dict.fromkeys(("dbrx", "smaug-bpe"), BpeRules((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo"), _QWEN2_RULES),
    "stablelm2": BpeRules((_QWEN2,)),
    "tekken": _TEKKEN_RULES,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O_RULES),
}


def build_gguf_tokenizer(gguf: GgufFile) -> Tokenizer:
    """The tokenizer that a GGUF file describes. Raises ModelError where the description is missing or inconsistent."""
    embedded = gguf.metadata.get("tokenizer.huggingface.json")
    try:
        return Tokenizer.from_str(embedded) if isinstance(embedded, str) else _build(gguf)
    except (ModelError, KeyboardInterrupt):
        raise
    except Exception as error:  # tokenizers raises bare Exception for a vocabulary or merges that contradict each other
        raise ModelError(f"{gguf.path}: the GGUF vocabulary is not usable: {error}") from None


def special_token_ids(gguf: GgufFile) -> dict[str, int]:
    """bos_token, eos_token, unk_token and pad_token as ids; those that the file doesn't name are left out."""
    ids = {name: gguf.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL_IDS.items()}
    return {name: token_id for name, token_id in ids.items() if isinstance(token_id, int)}


def _build(gguf: GgufFile) -> Tokenizer:
    kind = gguf.metadata.get("tokenizer.ggml.model")
    tokens = gguf.array("tokenizer.ggml.tokens")
    if kind is None or not tokens:
        raise ModelError(f"{gguf.path} holds no tokenizer; name one with --tokenizer")
    types = gguf.array("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ModelError(f"{gguf.path}: {len(tokens)} tokens but {len(types)} token types in the GGUF vocabulary")
    if kind == "gpt2":
        rules = _bpe_rules(gguf)
        tokenizer = byte_level_bpe(tokens, _merge_pairs(gguf.array("tokenizer.ggml.merges")), rules)
        adds_bos = rules.adds_bos
    elif kind == "llama":
        tokenizer = _sentencepiece(gguf, tokens, types)
        adds_bos = True
    else:
        raise ModelError(
            f"{gguf.path}: tokenizer model {kind!r} is not supported (supported: gpt2, llama); "
            "name another tokenizer with --tokenizer"
        )
    _add_special_tokens(tokenizer, tokens, types, _ids(gguf, _ENDING_IDS), kind)
    adds_bos = bool(gguf.metadata.get("tokenizer.ggml.add_bos_token", adds_bos))
    adds_eos = bool(gguf.metadata.get("tokenizer.ggml.add_eos_token", False))
    add_sequence_ends(tokenizer, _token(gguf, tokens, "bos", adds_bos), _token(gguf, tokens, "eos", adds_eos))
    return tokenizer


def _bpe_rules(gguf: GgufFile) -> BpeRules:
    name = gguf.metadata.get("tokenizer.ggml.pre", "default")
    rules = BPE_RULES.get(name)
    if rules is None:
        raise ModelError(
            f"{gguf.path}: pre-tokenizer {name!r} is not known (known: {', '.join(sorted(BPE_RULES))}); "
            "name a tokenizer.json or folder with --tokenizer"
        )
    return rules


def _merge_pairs(merges: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for merge in merges:
        space = merge.find(" ", 1)
        pairs.append((merge[:space], merge[space + 1 :]))
    return pairs


def byte_level_bpe(tokens: list[str], merges: list[tuple[str, str]], rules: BpeRules) -> Tokenizer:
    """Byte-level BPE as GPT-2's: text is cut by rules, its bytes are spelled as letters, and pairs merge by rank."""
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=rules.ignores_merges))
    if rules.normalizes_nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in rules.splits]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(gguf: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    scores = gguf.array("tokenizer.ggml.scores")
    merges = _merge_pairs(gguf.array("tokenizer.ggml.merges"))
    if not merges and len(scores) != len(tokens):
        raise ModelError(f"{gguf.path}: {len(tokens)} tokens but {len(scores)} scores in the GGUF vocabulary")
    unknown_id = gguf.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown_id, int) or unknown_id >= len(tokens):
        raise ModelError(f"{gguf.path}: unknown_token_id {unknown_id} is not in the vocabulary")
    return sentencepiece_bpe(
        tokens,
        merges or list(merges_from_scores(tokens, scores, types)),
        unknown_token=tokens[unknown_id],
        adds_space_prefix=bool(gguf.metadata.get("tokenizer.ggml.add_space_prefix", True)),
    )


def sentencepiece_bpe(
    tokens: list[str], merges: list[tuple[str, str]], *, unknown_token: str, adds_space_prefix: bool
) -> Tokenizer:
    """SentencePiece's BPE: spaces become U+2581, unknown characters fall back to byte tokens."""
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unknown_token, fuse_unk=True, byte_fallback=True)
    )
    set_sentencepiece_spaces(tokenizer, adds_space_prefix)
    return tokenizer


def set_sentencepiece_spaces(tokenizer: Tokenizer, adds_space_prefix: bool) -> None:
    """Spell spaces as U+2581 on the way in and back on the way out; a prefix space is added and removed alike."""
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if adds_space_prefix else replace
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_space_prefix else steps)


def merges_from_scores(tokens: list[str], scores: list[float], types: list[int]) -> Iterator[tuple[str, str]]:
    """The pairs that SentencePiece would merge, best first: every split of a token into two tokens, by its score."""
    vocab = {token: index for index, token in enumerate(tokens)}
    mergeable = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    ranked = []
    for token, score, token_type in zip(tokens, scores, types, strict=True):
        if token_type not in mergeable:
            continue
        for cut in range(1, len(token)):
            left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-score, left, right))
    ranked.sort()
    for _, left, right in ranked:
        yield tokens[left], tokens[right]


def _add_special_tokens(
    tokenizer: Tokenizer, tokens: list[str], types: list[int], ending_ids: set[int], kind: str
) -> None:
    special, plain = [], []
    for index, (token, token_type) in enumerate(zip(tokens, types, strict=True)):
        is_unknown = token_type == TokenType.UNKNOWN and kind == "llama"
        if token_type == TokenType.CONTROL or index in ending_ids or is_unknown:
            special.append(AddedToken(token, normalized=False, special=True))
        elif token_type == TokenType.USER_DEFINED and token:
            plain.append(AddedToken(token, normalized="▁" in token and kind == "llama", special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _ids(gguf: GgufFile, names: tuple[str, ...]) -> set[int]:
    return {i for name in names if isinstance(i := gguf.metadata.get(f"tokenizer.ggml.{name}_token_id"), int)}


def _token(gguf: GgufFile, tokens: list[str], name: str, is_wanted: bool) -> tuple[str, int] | None:
    """(text, id) of the bos or eos token if it is wanted and there is one."""
    token_id = gguf.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if not is_wanted or not isinstance(token_id, int):
        return None
    if token_id >= len(tokens):
        raise ModelError(f"{gguf.path}: {name}_token_id {token_id} is not in the vocabulary of {len(tokens)}")
    return tokens[token_id], token_id


def add_sequence_ends(tokenizer: Tokenizer, bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> None:
    """Put bos before and eos after what is encoded with special tokens; None leaves that end as it is."""
    if bos is None and eos is None:
        return
    before = [bos[0]] if bos else []
    after = [eos[0]] if eos else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B:1", *after],
        special_tokens=list(dict.fromkeys(end for end in (bos, eos) if end)),
    )
