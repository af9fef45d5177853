from tests.server.fakes import FakeEngine, byte_level_tokenizer, served


def test_a_tokenizer_with_more_tokens_than_the_model_is_reported():
    """As --tokenizer of another model family gives it."""
    tokenizer = byte_level_tokenizer()
    num_tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    engine = FakeEngine(lambda call: [])
    model = served(engine, tokenizer)
    for size, is_larger in ((num_tokens - 1, True), (num_tokens, False), (num_tokens + 64, False)):
        engine.vocab_size = size
        assert (f"has {num_tokens} tokens, the model {size}" in model.vocabulary_fault) == is_larger
        assert bool(model.vocabulary_fault) == is_larger
