"""A tokenizer in a process of its own gives the same ids and texts as one in this process."""

import asyncio
import json
from dataclasses import asdict

import psutil
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from plugserve.core.errors import EngineUnavailableError, ModelError
from plugserve.core.model_files.gguf_tokenizer import sentencepiece_bpe
from plugserve.core.model_files.model_source import ModelSource, load_text_model
from plugserve.server.text.detokenizer import Vocabulary
from plugserve.server.text.prompt_encoder import PromptEncoder
from plugserve.server.text.remote_tokenizer import RemoteTokenizer
from plugserve.server.text.rendered_text import RenderedText
from plugserve.server.text.token_pieces import TokenPieces, pieces_of
from plugserve.server.text.tokenizer_process import TokenizerTask
from tests.server.fakes import byte_level_tokenizer

TEXTS = ("hello world", "", "naïve 日本 🙂 text", "a <|user|> b", "x" * 5000)


def sentencepiece():
    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab"]
    tokenizer = sentencepiece_bpe(tokens, [("▁", "a"), ("a", "b")], unknown_token="<unk>", adds_space_prefix=True)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return tokenizer


def without_decoder():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "gap": 7}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, ".": 3}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece, without_decoder, wordpiece])
def test_pieces_decode_as_the_tokenizer(make):
    tokenizer = make()
    pieces = TokenPieces(*pieces_of(tokenizer))
    count = max(tokenizer.get_vocab().values()) + 3
    assert [pieces.id_to_token(n) for n in range(count)] == [tokenizer.id_to_token(n) for n in range(count)]
    assert pieces.id_to_token(-1) is None
    assert pieces.get_vocab_size() == tokenizer.get_vocab_size()
    lists = [[n] for n in range(count)] + [list(range(start, min(start + 7, count))) for start in range(0, count, 5)]
    for ids in [*lists, [count + 9, 1], []]:
        for skips in (False, True):
            assert pieces.decode(ids, skips) == tokenizer.decode(ids, skip_special_tokens=skips), ids
    ours, theirs = Vocabulary(pieces), Vocabulary(tokenizer)
    assert ours.special_ids == theirs.special_ids
    assert [ours.token_bytes(n) for n in range(count)] == [theirs.token_bytes(n) for n in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer().save(str(root / "tokenizer.json"))
    (root / "tokenizer_config.json").write_text(json.dumps({"chat_template": "<|user|>{{ messages[0].content }}"}))
    return root


def task_of(folder):
    source = json.loads(json.dumps(asdict(ModelSource("m", (), "folder", folder)), default=str))
    return TokenizerTask(source, None, True, False, str(folder / "written.json"))


async def test_a_remote_tokenizer_encodes_as_one_in_this_process(folder):
    text = load_text_model(ModelSource("m", (), "folder", folder))
    local = PromptEncoder(text.tokenizer, text.tokenizer.to_str(), text.chat_template, text.encode)
    remote = await RemoteTokenizer.start(task_of(folder))
    try:
        assert remote.facts.chat_template == text.chat_template
        assert json.loads(remote.json_file.read_text()) == json.loads(text.tokenizer.to_str())
        written = RenderedText("<|user|>a <|user|> b", (8, 20))
        asked = [*TEXTS, written]
        ids = await asyncio.gather(*(asyncio.to_thread(remote.encode, one) for one in asked))
        assert ids == [local.encode(one) for one in asked]
        assert remote.encode("hi", add_special_tokens=False) == local.encode("hi", add_special_tokens=False)
        assert remote.encode(written) != remote.encode(str.__str__(written)), "a client's control token is text"
    finally:
        await remote.close()
    assert not remote.json_file.exists()
    with pytest.raises(EngineUnavailableError):
        remote.encode("a")


async def test_a_killed_process_is_started_again(folder):
    remote = await RemoteTokenizer.start(task_of(folder))
    try:
        before = remote.encode("hello")
        psutil.Process(remote._process.pid).kill()
        remote._process.wait()
        assert await asyncio.to_thread(remote.encode, "hello") == before
    finally:
        await remote.close()


async def test_unreadable_files_are_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"is not a readable tokenizer\.json"):
        await RemoteTokenizer.start(task_of(tmp_path))
