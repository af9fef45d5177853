import itertools

import pytest

from plugserve.core.model_files.encoder_files import EncoderFacts
from plugserve.server.text.encoder_text import Cut, EncoderText, longest_first
from tests.backends.torch.encoders.encoder_samples import word_tokenizer


def make(**facts):
    return EncoderText(word_tokenizer(), EncoderFacts("embed", "BertModel", 66, 66, **facts))


def words(count):
    return " ".join(f"w{n + 4}" for n in range(count))


@pytest.mark.parametrize("longest", [2, 3, 4, 5, 8, 12, 13, 40])
def test_pairs_are_cut_as_the_tokenizers_library_cuts_them(longest):
    """Longest first, for every split of up to 9 and 9 tokens."""
    reference = word_tokenizer()
    for first, second in itertools.product(range(10), repeat=2):
        if longest >= 3:
            reference.enable_truncation(longest, strategy="longest_first")
            expected = reference.encode(words(first), words(second))
            ((ids, start),) = make().encode_pairs([(words(first), words(second))], Cut(longest))
            assert ids == expected.ids
            assert start == expected.type_ids.index(1)


@pytest.mark.parametrize(("first", "second", "target"), [(3, 3, 9), (5, 2, 4), (2, 5, 4), (9, 9, 5), (1, 9, 3)])
def test_lengths_of_a_cut_pair_fit(first, second, target):
    lengths = longest_first(first, second, target)
    assert sum(lengths) == min(target, first + second)
    assert lengths[0] <= first
    assert lengths[1] <= second


def test_texts_are_cut_behind_and_keep_their_special_tokens():
    assert make().encode_texts([words(9), words(1)], Cut(4)) == [[2, 4, 5, 3], [2, 4, 3]]
    assert make().encode_texts([words(9)], Cut(4), add_special_tokens=False) == [[4, 5, 6, 7]]
    assert make().encode(words(2)) == [2, 4, 5, 3]


def test_second_texts_have_a_limit_of_their_own():
    ((ids, start),) = make().encode_pairs([(words(2), words(9))], Cut(second=3))
    assert (ids, start) == ([2, 4, 5, 3, 4, 5, 6, 3], 4)


def test_texts_are_lowercased_where_the_files_say_so():
    assert make(lowercases=True).encode("W5") == [2, 5, 3]
    assert make().encode("W5") == [2, 1, 3]
