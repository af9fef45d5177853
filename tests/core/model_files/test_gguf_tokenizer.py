import json
import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from plugserve.core.errors import ModelError
from plugserve.core.model_files.gguf_file import read_gguf
from plugserve.core.model_files.gguf_tokenizer import build_gguf_tokenizer, merges_from_scores
from tests.core.model_files.gguf_samples import BYTE_LETTERS, add_byte_vocabulary, write_gguf

TEXTS = [
    "Hello, world! It's 2024; they'll pay $1,234.56 (or 99%).",
    "def f(x):\n    return x**2  # square\n\n\tif True:\r\n\t\tpass",
    "   leading and trailing   ",
    "\n\n\n  \n \t\t mixed\u00a0white\u2003space\u3000",
    "DON'T shout; I'D rather WE'RE quiet. camelCaseAndHTTPServer",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "Ünïcödé cafe\u0301 Ελληνικά Русский العربية हिन्दी ไทย",
    "🎉👩‍👩‍👧‍👦🇫🇷 ½ ² Ⅷ ١٢٣",
    "a" * 300 + " " * 50 + "1" * 30,
    "path/to/file.py?x=1&y=2#z <tag attr='v'/> {\"k\": [1,2,3]}",
    "",
    " ",
    "x",
    "\u0000\u0001\u200b\ufeff",
]


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    alphabet = "aZé日ß🎉 \n\t\r'1234½.,!?/\\_-<|>{}" + "the quick 's 'll"
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf) -> Tokenizer:
    return build_gguf_tokenizer(read_gguf(smollm2_gguf))


def test_default_model_encodes_as_its_own_tokenizer_json_would(smollm2, smollm2_gguf):
    """The reference is written out here: SmolLM2's digits, then GPT-2's byte-level rules."""
    file = read_gguf(smollm2_gguf)
    vocab = {token: i for i, token in enumerate(file.array("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in file.array("tokenizer.ggml.merges")]
    reference = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    reference.decoder = decoders.ByteLevel()
    for text in [*TEXTS, *random_texts(300)]:
        assert smollm2.encode(text).ids == reference.encode(text).ids, text


def test_default_model_splits_every_digit(smollm2):
    assert smollm2.encode("in 2024: 10.5").tokens == ["in", "Ġ", "2", "0", "2", "4", ":", "Ġ", "1", "0", ".", "5"]


def test_default_model_gives_back_the_text(smollm2):
    for text in [*TEXTS, *random_texts(300, seed=1)]:
        assert smollm2.decode(smollm2.encode(text).ids, skip_special_tokens=False) == text


def test_default_model_keeps_special_tokens_whole_and_adds_none(smollm2):
    encoded = smollm2.encode("<|im_start|>user\nHi<|im_end|>\n")
    assert encoded.tokens == ["<|im_start|>", "user", "Ċ", "Hi", "<|im_end|>", "Ċ"]
    assert encoded.ids[0] == 1
    assert smollm2.decode(encoded.ids) == "user\nHi\n"
    assert smollm2.encode("Hi").tokens == ["Hi"]
    assert smollm2.get_vocab_size() == 49152


def trained_merges(pattern: str) -> list[tuple[str, str]]:
    """Merges learned from the sample texts, so that vocabularies in these tests merge what the pattern leaves whole."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=list(BYTE_LETTERS.values()), show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    seen, merges = set(), []
    for left, right in json.loads(tokenizer.to_str())["model"]["merges"]:
        if left + right not in seen:
            seen.add(left + right)
            merges.append((left, right))
    return merges


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-4o", "gpt-2"])
def test_families_of_byte_level_bpe_encode_as_transformers_does(tmp_path, pre):
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    merges = trained_merges(r".{1,12}|\n")
    path = write_gguf(tmp_path / "m.gguf", lambda writer: add_byte_vocabulary(writer, pre=pre, merges=merges))
    ours = build_gguf_tokenizer(read_gguf(path))
    architecture, described, _ = get_gguf_tokenizer(str(path))
    theirs, _ = convert_gguf_tokenizer(architecture, described)
    ours.post_processor = theirs.post_processor = None  # llama.cpp's rule for BOS differs from transformers'
    # Qwen2's normaliser composes characters; transformers' GGUF conversion leaves that out, Qwen2's own files don't.
    texts = [text for text in [*TEXTS, *random_texts(200)] if pre != "qwen2" or "\u0301" not in text]
    whole_words = pre in ("llama-bpe", "tekken")
    for text in texts:
        if not whole_words:
            assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text).ids, text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
        pieces = [piece for piece, _ in ours.pre_tokenizer.pre_tokenize_str(text)]
        assert pieces == [piece for piece, _ in theirs.pre_tokenizer.pre_tokenize_str(text)]


def test_whole_pieces_are_taken_whole_where_the_family_says_so(tmp_path):
    """Llama 3: a piece that is in the vocabulary needs no merges that lead to it."""

    def vocabulary(pre):
        def fill(writer):
            merges = [("a", "b"), ("ab", "c")]
            add_byte_vocabulary(writer, pre=pre, merges=merges, special=("<|end|>", "xyz"))
            writer.add_bos_token_id(256)

        return build_gguf_tokenizer(read_gguf(write_gguf(tmp_path / f"{pre}.gguf", fill)))

    assert vocabulary("llama-bpe").to_str().count('"ignore_merges":true') == 1
    assert vocabulary("gpt-2").to_str().count('"ignore_merges":false') == 1


def test_user_defined_tokens_are_whole_but_not_special(tmp_path):
    def fill(writer):
        add_byte_vocabulary(writer, special=("<|end|>",), user_defined=("<think>",))

    tokenizer = build_gguf_tokenizer(read_gguf(write_gguf(tmp_path / "m.gguf", fill)))
    encoded = tokenizer.encode("a<think>b<|end|>")
    assert encoded.tokens == ["a", "<think>", "b", "<|end|>"]
    assert tokenizer.decode(encoded.ids) == "a<think>b"


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (True, False), (False, True), (False, False)])
def test_bos_and_eos_are_added_when_the_file_says_so(tmp_path, bos, eos):
    def fill(writer):
        tokens = add_byte_vocabulary(writer, special=("<|end|>", "<|begin|>"))
        writer.add_bos_token_id(tokens.index("<|begin|>"))
        writer.add_add_bos_token(bos)
        writer.add_add_eos_token(eos)

    tokenizer = build_gguf_tokenizer(read_gguf(write_gguf(tmp_path / "m.gguf", fill)))
    assert tokenizer.encode("a").tokens == ["<|begin|>"] * bos + ["a"] + ["<|end|>"] * eos
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]


def test_llama3_files_that_say_nothing_get_a_bos(tmp_path):
    def fill(writer):
        tokens = add_byte_vocabulary(writer, pre="llama-bpe", special=("<|end|>", "<|begin|>"))
        writer.add_bos_token_id(tokens.index("<|begin|>"))

    tokenizer = build_gguf_tokenizer(read_gguf(write_gguf(tmp_path / "m.gguf", fill)))
    assert tokenizer.encode("a").tokens == ["<|begin|>", "a"]


def sentencepiece_vocabulary(words) -> tuple[list[str], list[float], list[int]]:
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,!'"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words) + len(letters))]
    return tokens, scores, types


WORDS = ["▁t", "he", "▁the", "in", "er", "▁a", "on", "▁th", "▁c", "▁ca", "▁cat", "at", "▁s", "▁sat", "▁on", "▁▁"]


def write_sentencepiece(path, *, add_space_prefix=None, words=WORDS):
    def fill(writer):
        tokens, scores, types = sentencepiece_vocabulary(words)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        if add_space_prefix is not None:
            writer.add_add_space_prefix(add_space_prefix)

    return write_gguf(path, fill)


def test_sentencepiece_encodes_as_transformers_does(tmp_path):
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    path = write_sentencepiece(tmp_path / "m.gguf")
    ours = build_gguf_tokenizer(read_gguf(path))
    architecture, described, _ = get_gguf_tokenizer(str(path))
    theirs, _ = convert_gguf_tokenizer(architecture, described)
    for text in ["the cat sat on the catcher", "a", "she's in!", "naïve 日本 🎉", "the  cat   sat", "X1\n\ty"]:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected, text


def test_sentencepiece_prefixes_a_space_takes_it_back_and_falls_back_to_bytes(tmp_path):
    tokenizer = build_gguf_tokenizer(read_gguf(write_sentencepiece(tmp_path / "m.gguf")))
    encoded = tokenizer.encode("the é")
    assert encoded.tokens == ["<s>", "▁the", "▁", "<0xC3>", "<0xA9>"]
    for text in ["the cat", "  two  spaces ", "é日本🎉", "a\nb"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_sentencepiece_without_prefix_space(tmp_path):
    tokenizer = build_gguf_tokenizer(read_gguf(write_sentencepiece(tmp_path / "m.gguf", add_space_prefix=False)))
    assert tokenizer.encode("the").tokens == ["<s>", "t", "he"]
    for text in ["the cat", " the cat"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_merges_come_best_score_first_and_need_both_parts():
    tokens, scores, types = ["a", "b", "ab", "abc", "c", "zz"], [0.0, 0.0, -2.0, -1.0, 0.0, 0.0], [1] * 6
    assert list(merges_from_scores(tokens, scores, types)) == [("ab", "c"), ("a", "b")]


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda w: add_byte_vocabulary(w, pre="of-mars"), "pre-tokenizer 'of-mars' is not known.*--tokenizer"),
        (lambda w: w.add_tokenizer_model("bert"), "holds no tokenizer.*--tokenizer"),
        (lambda w: (w.add_tokenizer_model("bert"), w.add_token_list(["a"])), "'bert' is not supported"),
        (lambda w: w.add_uint32("x", 1), "holds no tokenizer"),
        (
            lambda w: (w.add_tokenizer_model("gpt2"), w.add_token_list(["a"]), w.add_token_types([1, 1])),
            "1 tokens but 2 token types",
        ),
        (
            lambda w: (w.add_tokenizer_model("llama"), w.add_token_list(["a", "b"]), w.add_token_scores([1.0])),
            "2 tokens but 1 scores",
        ),
        (
            lambda w: (w.add_tokenizer_model("gpt2"), w.add_token_list(["a"]), w.add_token_merges(["x y"])),
            "vocabulary is not usable",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(tmp_path, fill, message):
    path = write_gguf(tmp_path / "m.gguf", fill)
    with pytest.raises(ModelError, match=message):
        build_gguf_tokenizer(read_gguf(path))
