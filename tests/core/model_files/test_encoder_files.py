import json

import pytest

from plugserve.core.errors import ModelError
from plugserve.core.model_files.encoder_files import EMBED, GENERATE, SCORE, encoder_facts, task_of

BERT = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (BERT, EMBED),
        ({"model_type": "bert"}, EMBED),
        ({"model_type": "mpnet", "architectures": ["MPNetForMaskedLM"]}, EMBED),
        ({"model_type": "modernbert", "architectures": ["ModernBertForSequenceClassification"]}, SCORE),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, GENERATE),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, GENERATE),
        ({"model_type": "bert", "is_decoder": True, "architectures": ["BertLMHeadModel"]}, GENERATE),
    ],
)
def test_the_kind_is_found_from_the_config(config, task):
    assert task_of(config) == task


def test_an_encoder_with_another_head_is_refused():
    with pytest.raises(ModelError, match="BertForTokenClassification is not supported; encoders are served as"):
        task_of({"model_type": "bert", "architectures": ["BertForTokenClassification"]})


def facts(folder, config=BERT, **files):
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return encoder_facts(folder, config)


@pytest.mark.parametrize(
    ("config", "files", "length"),
    [
        ({}, {}, 512),
        ({}, {"sentence_bert_config": {"max_seq_length": 128}}, 128),
        ({}, {"sentence_roberta_config": {"max_seq_length": 1000}}, 512),
        ({}, {"tokenizer_config": {"model_max_length": 300}}, 300),
        ({}, {"tokenizer_config": {"model_max_length": 1e30}}, 512),
        ({}, {"sentence_bert_config": {"max_seq_length": None}, "tokenizer_config": {"model_max_length": 99}}, 99),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, {}, 512),
    ],
)
def test_lengths(tmp_path, config, files, length):
    assert facts(tmp_path, BERT | config, **files).max_length == length


def listed(*kinds):
    return [{"type": f"sentence_transformers.models.{kind}", "path": f"{n}_{kind}"} for n, kind in enumerate(kinds)]


POOLING = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def test_modules_are_read(tmp_path):
    found = facts(
        tmp_path,
        modules=[*listed("Transformer", "Pooling", "Dense", "Normalize")],
        **{"1_Pooling__config": POOLING, "2_Dense__config": {"in_features": 4, "out_features": 2}},
    )
    assert (found.poolings, found.normalizes) == (("cls",), True)
    (dense,) = found.dense
    assert (dense.folder, dense.in_features, dense.out_features, dense.activation) == ("2_Dense", 4, 2, "tanh")


def test_without_modules_the_mean_is_taken_and_nothing_is_said_of_length_one(tmp_path):
    found = facts(tmp_path)
    assert (found.poolings, found.normalizes, found.dense) == (("mean",), None, ())


def test_newer_files_name_the_pooling(tmp_path):
    modules = listed("Transformer", "Pooling")
    assert facts(tmp_path, modules=modules, **{"1_Pooling__config": {"pooling_mode": "lasttoken"}}).poolings == (
        "last",
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules": "{"}, "modules.json should hold a JSON list of modules"),
        ({"modules": [{"type": "x.Transformer", "path": "../elsewhere"}]}, "'../elsewhere' is not a folder beside it"),
        ({"modules": listed("Transformer", "LSTM")}, "module LSTM is not supported"),
        ({"modules": listed("Transformer", "Pooling")}, r"1_Pooling/config\.json is missing"),
        ({"modules": listed("Transformer", "Pooling"), "1_Pooling__config": {}}, "chooses no pooling"),
        ({"modules": listed("Transformer", "Pooling"), "1_Pooling__config": {"pooling_mode": "attn"}}, "'attn' is not"),
        (
            {"modules": listed("Normalize", "Pooling"), "1_Pooling__config": POOLING},
            "a module Pooling behind the others is not supported",
        ),
        (
            {"modules": listed("Dense"), "0_Dense__config": {"in_features": 2, "out_features": 2,
                                                             "activation_function": "os.system"}},
            "activation 'os.system' is not supported",
        ),
        ({"sentence_bert_config": {"max_seq_length": "long"}}, "max_seq_length should be a whole number above 0"),
        ({"config_sentence_transformers": {"default_prompt_name": "query"}}, "default_prompt_name 'query' is not"),
        ({"config_sentence_transformers": {"prompts": {"query": 3}}}, "prompts should be texts by name"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named(tmp_path, files, message):
    with pytest.raises(ModelError, match=message):
        facts(tmp_path, **files)


@pytest.mark.parametrize(
    ("config", "dimensions", "any_dimension"),
    [
        ({}, (), False),
        ({"is_matryoshka": True}, (), True),
        ({"matryoshka_dimensions": [256, 64], "is_matryoshka": True}, (64, 256), False),
    ],
)
def test_dimensions_are_those_of_a_matryoshka_model(tmp_path, config, dimensions, any_dimension):
    found = facts(tmp_path, BERT | config)
    assert (found.dimensions, found.any_dimension) == (dimensions, any_dimension)


def test_prompts_are_read(tmp_path):
    config = {"prompts": {"query": "search: ", "document": ""}, "default_prompt_name": "query"}
    found = facts(tmp_path, config_sentence_transformers=config)
    assert (found.prompts, found.default_prompt) == (config["prompts"], "search: ")


@pytest.mark.parametrize(
    ("config", "num_labels", "activation"),
    [
        ({"id2label": {"0": "LABEL_0"}}, 1, "sigmoid"),
        ({"num_labels": 1}, 1, "sigmoid"),
        ({}, 2, "identity"),
        (
            {"id2label": {"0": "a"}, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            1,
            "identity",
        ),
    ],
)
def test_heads(tmp_path, config, num_labels, activation):
    found = facts(tmp_path, BERT | config | {"architectures": ["BertForSequenceClassification"]})
    assert (found.num_labels, found.activation) == (num_labels, activation)
