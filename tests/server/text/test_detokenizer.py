"""The pieces of a text join to one decode of all ids, and never hold half a character."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from plugserve.server.text.detokenizer import Vocabulary
from tests.server.fakes import byte_level_tokenizer, sentencepiece_tokenizer


def pieces_of(detokenizer, ids):
    return [*(detokenizer.push(id) for id in ids), detokenizer.flush()]


@pytest.fixture(scope="module")
def byte_level():
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def sentencepiece():
    return sentencepiece_tokenizer()


@pytest.mark.parametrize("text", ["hello world", "naïve café", "日本語 👩‍👩‍👧 ok", "a\n\tb", "<|user|>hello"])
def test_byte_level_stream_equals_one_decode(byte_level, text):
    ids = byte_level.encode(text).ids
    for skip in (True, False):
        streamed = "".join(pieces_of(Vocabulary(byte_level).detokenizer(skip_special_tokens=skip), ids))
        assert streamed == byte_level.decode(ids, skip_special_tokens=skip)


def test_byte_level_random_ids_equal_one_decode(byte_level):
    vocabulary = Vocabulary(byte_level)
    hello = byte_level.token_to_id("hello")
    for seed in range(200):
        ids = random.Random(seed).choices(range(byte_level.get_vocab_size()), k=30) + [hello]
        assert "".join(pieces_of(vocabulary.detokenizer(), ids)) == byte_level.decode(ids)


def test_half_a_character_is_never_emitted(byte_level):
    ids = byte_level.encode("é日👍").ids
    pieces = pieces_of(Vocabulary(byte_level).detokenizer(), ids)
    assert [piece for piece in pieces if piece] == ["é", "日", "👍"]


def test_incomplete_character_at_the_end_is_dropped(byte_level):
    ids = byte_level.encode("a👍").ids
    assert "".join(pieces_of(Vocabulary(byte_level).detokenizer(), ids[:-1])) == "a"


def test_bytes_that_can_never_complete_become_replacement_characters(byte_level):
    stray = byte_level.encode("é").ids[1]  # a continuation byte without its start
    ids = [stray, *byte_level.encode("a").ids]
    assert "".join(pieces_of(Vocabulary(byte_level).detokenizer(), ids)) == "\ufffda" == byte_level.decode(ids)


def test_unknown_ids_have_no_text(byte_level):
    ids = [*byte_level.encode("he").ids, 100_000, *byte_level.encode("ll").ids]
    assert "".join(pieces_of(Vocabulary(byte_level).detokenizer(), ids)) == "hell"
    assert Vocabulary(byte_level).token_bytes(100_000) == b""


def test_token_bytes_join_to_the_text(byte_level):
    vocabulary = Vocabulary(byte_level)
    ids = byte_level.encode("hello é world").ids
    assert b"".join(map(vocabulary.token_bytes, ids)) == "hello é world".encode()
    assert vocabulary.token_text(byte_level.encode("é").ids[0]) == "\ufffd"


def sp_ids(tokenizer, *pieces):
    return [tokenizer.token_to_id(piece) for piece in pieces]


@pytest.mark.parametrize(
    "pieces",
    [
        ("▁hello", "▁world", "!"),
        ("▁", "▁hello", "s"),
        ("<s>", "▁hello", "</s>", "▁world"),
        ("▁the", "<0xE6>", "<0x97>", "<0xA5>", "▁world"),
        ("<0xF0>", "<0x9F>", "<0x91>", "<0x8D>", "!"),
        ("▁hello", "<0xFF>", "<0xE6>", "▁world", "!"),
        ("<0xE6>", "<0x97>", "▁", "hello"),
        ("é", "s", "▁", "▁", "s"),
    ],
)
def test_sentencepiece_stream_equals_one_decode(sentencepiece, pieces):
    ids = sp_ids(sentencepiece, *pieces)
    assert "".join(pieces_of(Vocabulary(sentencepiece).detokenizer(), ids)) == sentencepiece.decode(ids)


def test_sentencepiece_random_ids_equal_one_decode(sentencepiece):
    vocabulary = Vocabulary(sentencepiece)
    words = sp_ids(sentencepiece, "▁", "▁hello", "▁world", "hello", "s", "!", "é", "<s>", "</s>")
    end = sp_ids(sentencepiece, "!")
    for seed in range(200):
        chooser = random.Random(seed)
        ids = [chooser.choice(words) if chooser.random() < 0.7 else chooser.randrange(3, 259) for _ in range(25)] + end
        assert "".join(pieces_of(vocabulary.detokenizer(), ids)) == sentencepiece.decode(ids)


def test_sentencepiece_incomplete_character_at_the_end_is_dropped(sentencepiece):
    ids = sp_ids(sentencepiece, "▁hello", "<0xE6>", "<0x97>", "<0xA5>", "<0xE6>", "<0x97>")
    assert "".join(pieces_of(Vocabulary(sentencepiece).detokenizer(), ids)) == "hello日"


def test_sentencepiece_byte_pieces_at_the_end_are_decoded_as_a_whole(sentencepiece):
    ids = sp_ids(sentencepiece, "<0x20>", "<0xE6>", "<0x97>", "<0xA5>", "<0x20>", "<0x61>")
    assert "".join(pieces_of(Vocabulary(sentencepiece).detokenizer(), ids)) == sentencepiece.decode(ids) == "日 a"


def test_sentencepiece_continuation_keeps_its_leading_space(sentencepiece):
    context, ids = sp_ids(sentencepiece, "<s>", "▁hello"), sp_ids(sentencepiece, "▁world")
    vocabulary = Vocabulary(sentencepiece)
    assert "".join(pieces_of(vocabulary.detokenizer(context=context), ids)) == " world"
    assert "".join(pieces_of(vocabulary.detokenizer(), ids)) == "world"
    assert vocabulary.token_text(ids[0]) == " world"


def test_wordpiece_stream_equals_one_decode():
    pieces = ["[UNK]", "play", "##ing", "the", "game", ".", "un", "##believable"]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    for seed in range(50):
        ids = random.Random(seed).choices(range(len(pieces)), k=12)
        assert "".join(pieces_of(Vocabulary(tokenizer).detokenizer(), ids)) == tokenizer.decode(ids)


def test_real_tokenizer_stream_equals_one_decode(smollm2_gguf, cache_home):
    from plugserve.core.model_files.text_model import build_text_model

    tokenizer = build_text_model(smollm2_gguf, None, None).tokenizer
    vocabulary = Vocabulary(tokenizer)
    end = tokenizer.encode(" end", add_special_tokens=False).ids
    for seed in range(20):
        ids = random.Random(seed).choices(range(tokenizer.get_vocab_size()), k=60) + end
        assert "".join(pieces_of(vocabulary.detokenizer(), ids)) == tokenizer.decode(ids)
