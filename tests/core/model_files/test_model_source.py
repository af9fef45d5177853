import json
import os
import subprocess
import sys
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.model_files import model_source, text_model
from plugserve.core.model_files.model_source import (
    context_length,
    eos_token_ids,
    load_text_model,
    read_config,
    resolve,
    sampling_defaults,
)
from tests.core.model_files.gguf_samples import add_byte_vocabulary, add_llama_shape, add_llama_tensors, write_gguf

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "eos_token_id": 2}


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """No network and an empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def make_folder(folder, config=CONFIG, *, weights=True, **files):
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if weights:
        (folder / "model.safetensors").write_bytes(NO_TENSORS)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def tiny_gguf(path, extra=lambda writer: None, **shape):
    def fill(writer):
        add_llama_shape(writer, **shape)
        add_llama_tensors(writer)
        add_byte_vocabulary(writer)
        extra(writer)

    return write_gguf(path, fill)


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "hello": 2, "world": 3, "<unk>": 4}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


# ---------------------------------------------------------------- resolve


def test_no_reference_is_the_embedded_default(smollm2_gguf):
    source = resolve(None)
    assert source.name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert source.aliases == ("SmolLM2-135M-Instruct",)
    assert (source.kind, source.path) == ("gguf", smollm2_gguf)


def test_without_its_package_the_default_comes_from_the_hub(monkeypatch, no_hub):
    monkeypatch.setattr(model_source, "_DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="HuggingFaceTB/SmolLM2-135M-Instruct"):
        resolve(None)


def test_file_and_folder_references(tmp_path, monkeypatch):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    folder = make_folder(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    by_file = resolve("./tiny.gguf")
    assert (by_file.name, by_file.aliases, by_file.kind, by_file.path) == ("./tiny.gguf", ("tiny",), "gguf", path)
    by_folder = resolve(str(folder))
    assert (by_folder.name, by_folder.aliases, by_folder.kind) == (str(folder), ("folder",), "folder")
    assert resolve("folder").aliases == ()
    assert resolve("folder/").path == folder


def test_a_named_reference_has_that_name_alone(tmp_path):
    source = resolve(f"mine={tiny_gguf(tmp_path / 'a=b.gguf')}")
    assert (source.name, source.aliases, source.path.name) == ("mine", (), "a=b.gguf")
    assert resolve(str(tmp_path / "a=b.gguf")).name == str(tmp_path / "a=b.gguf")


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    assert resolve(str(tmp_path)).path == path
    assert resolve(str(tmp_path)).kind == "gguf"
    tiny_gguf(tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"2 \.gguf files \(other.gguf, tiny.gguf\); name one of them"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "weights", "files", "message"),
    [
        (None, True, {}, "has no config.json"),
        (CONFIG, False, {}, "no weights"),
        (CONFIG, False, {"tf_model__h5": "x"}, r"no weights \(\*\.safetensors, \*\.bin, \*\.pt, \*\.pth, \*\.distcp\)"),
    ],
)
def test_a_folder_that_is_no_model_says_why(tmp_path, config, weights, files, message):
    make_folder(tmp_path / "m", config, weights=weights, **files)
    with pytest.raises(ModelError, match=message):
        resolve(str(tmp_path / "m"))


def test_dummy_weights_need_no_weight_files(tmp_path):
    folder = make_folder(tmp_path / "m", weights=False)
    assert resolve(str(folder), load_format="dummy").kind == "folder"


@pytest.mark.parametrize("reference", ["./absent", "/absent/model", "absent.gguf", "org/absent.gguf", "~/absent-model"])
def test_a_path_that_is_missing_never_goes_to_the_hub(reference, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_source, "hub_snapshot", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="not found: there is no folder or file /") as caught:
        resolve(reference)
    assert repr(reference) in str(caught.value)


def test_an_unknown_id_is_one_line_saying_where_it_was_looked_for(no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        resolve("foo/bar")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"model 'foo/bar' not found: no folder or .gguf file of that name here ({tmp_path}), and")
    assert "HF_HUB_OFFLINE" in message


def test_an_unreachable_hub_is_said_with_the_reason(no_hub, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(ModelError, match=r"hub could not be reached \(ConnectionError: Name or service not known\)"):
        resolve("foo/bar")


@pytest.mark.parametrize("reference", ["a b c", "a/b/c", "what?", "../x y", "..\\x"])
def test_what_can_be_no_id_is_not_asked_for(reference, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_source, "hub_snapshot", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ModelError, match="not found"):
        resolve(reference)


@pytest.mark.parametrize("reference", ["", "  ", "=x", "name=", " = "])
def test_empty_names_are_refused(reference):
    with pytest.raises(ModelError, match=r"empty|NAME=PATH"):
        resolve(reference)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_text("hello")
    with pytest.raises(ModelError, match=r"model\.bin is not a GGUF file"):
        resolve(str(tmp_path / "model.bin"))


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_cached_repository_works_without_the_hub(no_hub, tmp_path, revision):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "downloads" / "models--org--name"
    make_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / (revision or "main")).write_text(commit)
    source = resolve("org/name", revision=revision, download_dir=str(tmp_path / "downloads"))
    assert (source.name, source.aliases, source.kind) == ("org/name", ("name",), "folder")
    assert source.path == repository / "snapshots" / commit
    with pytest.raises(ModelError, match="'org/name' not found"):
        resolve("org/name", revision="other", download_dir=str(tmp_path / "downloads"))


def test_only_what_is_needed_is_downloaded(monkeypatch, tmp_path):
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(make_folder(tmp_path / "snapshot"))

    def model_info(*_, **options):
        asked.update(options)
        return SimpleNamespace(siblings=None)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    resolve("org/name", revision="v2", download_dir="/shared")
    assert (asked["repository"], asked["revision"], asked["cache_dir"]) == ("org/name", "v2", "/shared")
    assert asked["timeout"] < 10
    assert "*.safetensors" in asked["allow_patterns"]
    assert "*.bin" not in asked["allow_patterns"]


def test_a_missing_tokenizer_says_which_flag(tmp_path):
    model = str(tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(ModelError, match=r"^--tokenizer: tokenizer './absent' not found"):
        resolve(model, tokenizer="./absent")


# ---------------------------------------------------------------- config


def test_gguf_metadata_reads_as_a_config(tmp_path):
    config = read_config(resolve(str(tiny_gguf(tmp_path / "tiny.gguf"))))
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "vocab_size": 32,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": 256,
    }
    assert config == expected


def test_default_models_config_is_hugging_faces(smollm2_gguf):
    config = read_config(resolve(None))
    known = {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "vocab_size": 49152},
        **{"max_position_embeddings": 8192, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2},
    }
    assert {key: config[key] for key in known} == known
    assert eos_token_ids(resolve(None)) == (2,)
    assert context_length(config) == 8192


def test_gguf_rope_output_and_biases_show_in_the_config(tmp_path):
    def extra(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(256)
        writer.add_tensor("rope_freqs.weight", np.array([1, 1, 2, 4, 8, 8, 8, 8], np.float32))
        writer.add_tensor("output.weight", np.zeros((32, 64), np.float32))
        writer.add_tensor("blk.0.attn_q.bias", np.zeros(64, np.float32))
        writer.add_key_length(24)

    config = read_config(resolve(str(tiny_gguf(tmp_path / "tiny.gguf", extra))))
    assert config["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert config["rope_freq_factors"] == [1, 1, 2, 4, 8, 8, 8, 8]
    assert (config["tie_word_embeddings"], config["attention_bias"], config["head_dim"]) == (False, True, 24)
    assert context_length(config) == 1024


def test_gguf_of_another_kind_is_refused_by_name(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", lambda writer: None, arch="mamba")
    with pytest.raises(ModelError, match="architecture 'mamba' is not supported"):
        read_config(resolve(str(path)))


def test_gguf_that_lacks_metadata_says_which(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", lambda writer: writer.add_context_length(5))
    with pytest.raises(ModelError, match=r"lacks llama.embedding_length"):
        read_config(resolve(str(path)))


def test_nested_text_config_wins_over_the_outer_keys(tmp_path):
    nested = {"hidden_size": 8, "vocab_size": None, "eos_token_id": [7, 5]}
    config = {**CONFIG, "vocab_size": 9, "text_config": nested}
    source = resolve(str(make_folder(tmp_path / "m", config)))
    merged = read_config(source)
    assert (merged["hidden_size"], merged["vocab_size"], merged["architectures"]) == (8, 9, CONFIG["architectures"])
    assert eos_token_ids(source) == (2, 5, 7)


def test_eos_is_the_union_of_all_that_is_said(tmp_path):
    folder = make_folder(tmp_path / "m", generation_config__json={"eos_token_id": [9, 3, True, None]})
    assert eos_token_ids(resolve(str(folder))) == (2, 3, 9)
    assert eos_token_ids(resolve(str(make_folder(tmp_path / "n", {"eos_token_id": None})))) == ()


def test_gguf_eos_eot_and_eom_all_end_a_text(tmp_path):
    def extra(writer):
        writer.add_eot_token_id(7)
        writer.add_eom_token_id(5)

    assert eos_token_ids(resolve(str(tiny_gguf(tmp_path / "tiny.gguf", extra)))) == (5, 7, 256)


def test_sampling_defaults_come_from_the_generation_config(tmp_path):
    settings = {"temperature": 0.6, "top_p": 0.9, "top_k": None, "do_sample": True, "repetition_penalty": 1.1}
    folder = make_folder(tmp_path / "m", generation_config__json=settings)
    assert sampling_defaults(resolve(str(folder))) == {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    assert sampling_defaults(resolve(str(make_folder(tmp_path / "n")))) == {}


@pytest.mark.parametrize("content", ["{", "[1]", "\ufffe"])
@pytest.mark.parametrize("name", ["config__json", "generation_config__json"])
def test_broken_json_names_its_file(tmp_path, name, content):
    folder = make_folder(tmp_path / "m", **{name: content})
    with pytest.raises(ModelError, match=name.replace("__", ".")):
        eos_token_ids(resolve(str(folder)))


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"n_positions": 50}, 50),
        ({"max_position_embeddings": 100, "rope_scaling": None}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 2.0}}, 200),
        ({"max_position_embeddings": 100, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 100),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "dynamic", "factor": 3}}, 300),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "model_type": "gemma3_text",
                "max_position_embeddings": 100,
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {}},
            },
            100,
        ),
        ({}, 2048),
    ],
)
def test_context_length_counts_what_rope_scaling_extends(config, length):
    assert context_length(config) == length


# ---------------------------------------------------------------- text model


def test_default_model_has_its_text_side(cache_home, smollm2_gguf):
    text = load_text_model(resolve(None))
    assert text.encode("Hello 12") == text.tokenizer.encode("Hello 12").ids
    assert text.vocab_size == 49152
    assert (text.special_tokens["bos_token"], text.special_tokens["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>system" in text.chat_template


def test_a_built_tokenizer_is_kept_and_read_the_next_time(cache_home, tmp_path, monkeypatch):
    source = resolve(str(tiny_gguf(tmp_path / "tiny.gguf")))
    first = load_text_model(source)
    assert len(list(cache_home.rglob("*.json"))) == 1
    monkeypatch.setattr(text_model, "build_gguf_tokenizer", lambda gguf: pytest.fail("built again"))
    assert load_text_model(source).encode("ab 1") == first.encode("ab 1")


def test_a_changed_model_is_not_answered_from_the_cache(cache_home, tmp_path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    assert load_text_model(resolve(str(path))).vocab_size == 257
    changed = tiny_gguf(tmp_path / "new.gguf", lambda writer: writer.add_uint32("more", 1), hidden=64)
    os.replace(changed, path)
    os.utime(path, ns=(1, 1))
    load_text_model(resolve(str(path)))
    assert len(list(cache_home.rglob("*.json"))) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}"])
def test_a_broken_cache_is_replaced(cache_home, tmp_path, content, caplog):
    source = resolve(str(tiny_gguf(tmp_path / "tiny.gguf")))
    expected = load_text_model(source).encode("ab")
    (cached,) = cache_home.rglob("*.json")
    whole = cached.read_bytes()
    cached.write_bytes(content)
    assert load_text_model(source).encode("ab") == expected
    assert "cache ignored" in caplog.text
    assert cached.read_bytes() == whole


def test_an_unwritable_cache_costs_only_a_log_line(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_text_model(resolve(str(tiny_gguf(tmp_path / "tiny.gguf")))).vocab_size == 257
    assert "cache not written" in caplog.text


def test_folder_tokenizer_and_its_config(tmp_path):
    folder = make_folder(
        tmp_path / "m",
        tokenizer_config__json={
            "bos_token": {"content": "<s>", "special": True},
            "eos_token": "</s>",
            "pad_token": None,
            "chat_template": "config {{ messages }}",
        },
    )
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=10)
    tokenizer.save(str(folder / "tokenizer.json"))
    text = load_text_model(resolve(str(folder)))
    assert text.encode("hello world") == [0, 2, 3]
    assert text.encode("hello world", add_special_tokens=False) == [2, 3]
    assert text.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (text.chat_template, text.vocab_size) == ("config {{ messages }}", 5)
    (folder / "chat_template.jinja").write_text("file")
    assert load_text_model(resolve(str(folder))).chat_template == "file"


def test_of_named_templates_the_default_one_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = make_folder(tmp_path / "m", tokenizer_config__json={"chat_template": named})
    make_tokenizer().save(str(folder / "tokenizer.json"))
    assert load_text_model(resolve(str(folder))).chat_template == "D"


def test_special_tokens_map_fills_in(tmp_path):
    folder = make_folder(tmp_path / "m", special_tokens_map__json={"bos_token": "<s>", "eos_token": {"content": "X"}})
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    text = load_text_model(resolve(str(folder)))
    assert text.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert text.chat_template is None


def test_given_chat_template_wins_as_file_or_inline(tmp_path, cache_home):
    source = resolve(str(tiny_gguf(tmp_path / "tiny.gguf")))
    (tmp_path / "t.jinja").write_text("from {{ 'file' }}")
    assert load_text_model(source, "{{ messages }}").chat_template == "{{ messages }}"
    assert load_text_model(source, str(tmp_path / "t.jinja")).chat_template == "from {{ 'file' }}"
    with pytest.raises(ConfigError, match=r"--chat-template 'absent\.jinja' is neither Jinja"):
        load_text_model(source, "absent.jinja")


@pytest.mark.parametrize("kind", ["folder", "file", "gguf"])
def test_tokenizer_flag_takes_folder_file_and_gguf(tmp_path, cache_home, kind):
    folder = make_folder(tmp_path / "tok", config=None, weights=False, tokenizer_config__json={"bos_token": "<s>"})
    make_tokenizer().save(str(folder / "tokenizer.json"))
    model = tiny_gguf(tmp_path / "m.gguf", lambda writer: writer.add_chat_template("{{ own }}"))
    named = {"folder": folder, "file": folder / "tokenizer.json", "gguf": tiny_gguf(tmp_path / "other.gguf")}[kind]
    text = load_text_model(resolve(str(model), tokenizer=str(named)))
    assert text.vocab_size == (257 if kind == "gguf" else 5)
    assert text.chat_template == "{{ own }}"


def test_two_file_tokenizers_are_converted(tmp_path):
    vocab = {"a": 0, "b": 1, "ab": 2, "Ġ": 3}
    added = {"4": {"content": "<|end|>", "special": True}}
    folder = make_folder(tmp_path / "m", tokenizer_config__json={"added_tokens_decoder": added})
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    text = load_text_model(resolve(str(folder)))
    assert text.encode("ab a<|end|>") == [2, 3, 0, 4]
    (folder / "merges.txt").write_text("x y\n")
    with pytest.raises(ModelError, match="contradict each other"):
        load_text_model(resolve(str(folder)))


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "Mars"}}'])
def test_a_broken_tokenizer_json_is_named(tmp_path, content):
    folder = make_folder(tmp_path / "m", tokenizer__json=content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a readable tokenizer\.json"):
        load_text_model(resolve(str(folder)))


def test_a_folder_without_tokenizer_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"has no tokenizer\.json.*--tokenizer"):
        load_text_model(resolve(str(make_folder(tmp_path / "m"))))


def test_nothing_here_imports_torch(smollm2_gguf, cache_home):
    code = (
        "import sys; import plugserve.core.model_files.model_source as m; s = m.resolve(sys.argv[1]); m.read_config(s);"
        "m.load_text_model(s); m.eos_token_ids(s); import plugserve.server.text.chat_template;"
        "sys.exit(' '.join({'torch', 'transformers', 'gguf'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code, smollm2_gguf], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- broken models are told before anything starts


def test_torn_shard_is_told_at_once(tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(NO_TENSORS[:-1])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a readable safetensors file"):
        resolve(str(folder))


def test_missing_shard_is_told_at_once(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    folder = make_folder(tmp_path / "m", model__safetensors__index__json=index)
    with pytest.raises(ModelError, match=r"model-00001-of-00001\.safetensors is missing"):
        resolve(str(folder))


def test_quantised_checkpoint_that_is_not_read_is_told_at_once(tmp_path):
    folder = make_folder(tmp_path / "m", CONFIG | {"quantization_config": {"quant_method": "exl2"}})
    with pytest.raises(ModelError, match="quant_method 'exl2' are not supported; supported are awq"):
        resolve(str(folder))


def test_dummy_weights_need_no_files(tmp_path):
    assert resolve(str(make_folder(tmp_path / "m", weights=False)), load_format="dummy").kind == "folder"


@pytest.mark.parametrize("value", ["64", 0, -1, 64.0, True])
def test_config_with_a_size_that_is_none_names_the_key(tmp_path, value):
    folder = make_folder(tmp_path / "m", CONFIG | {"hidden_size": value})
    with pytest.raises(ModelError, match=rf"hidden_size should be a whole number above 0, got {value!r}"):
        resolve(str(folder))


def test_cut_off_gguf_file_is_told_at_once(tmp_path):
    path = tmp_path / "m.gguf"
    tiny_gguf(path)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ModelError, match=r"is cut off: tensor"):
        resolve(str(path))


def test_gguf_of_another_architecture_is_told_at_once(tmp_path):
    path = tmp_path / "m.gguf"
    tiny_gguf(path)
    header = b"general.architecture" + b"\x08\0\0\0\x05\0\0\0\0\0\0\0"  # a string of 5 bytes
    path.write_bytes(path.read_bytes().replace(header + b"llama", header + b"bloom"))
    with pytest.raises(ModelError, match=r"GGUF architecture 'bloom' is not supported"):
        resolve(str(path))


def test_checking_a_model_imports_no_torch(tmp_path):
    folder = make_folder(tmp_path / "m")
    program = (
        f"import sys; from plugserve.core.model_files.model_source import resolve; resolve({str(folder)!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_download_holds_the_folders_of_sentence_transformers():
    """And no others: onnx/, openvino/ and original/ repeat the weights."""
    from huggingface_hub.utils import filter_repo_objects

    from plugserve.core.model_files import hub

    wanted = ["config.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    others = ["onnx/model.safetensors", "onnx/config.json", "1_Pooling/x/config.json", "pytorch_model.bin", "a.onnx"]
    kept = filter_repo_objects(
        [*wanted, *others], allow_patterns=list(hub.MODEL_FILES), ignore_patterns=list(hub._IGNORED)
    )
    assert list(kept) == wanted
