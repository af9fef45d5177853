"""Models from the Hugging Face hub: what is downloaded, the embedded model's id, and one line for each fault."""

import logging
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from plugserve.core.errors import ModelError
from plugserve.core.model_files import model_source
from plugserve.core.model_files.model_source import DEFAULT_MODEL, resolve
from tests.core.model_files.test_model_source import make_folder, make_tokenizer, tiny_gguf

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123456\n"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """hub(names) -> what was asked of a hub whose repository has files of these names."""

    def make(*names, error=None):
        asked = {}

        def model_info(self, repository, **options):
            asked.update(repository=repository, revision=options["revision"])
            if error is not None:
                raise error
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

        def download(repository, **options):
            asked.setdefault("downloads", {})[repository] = options
            asked.update(options)
            folder = tmp_path / "snapshots" / repository
            make_folder(folder, weights=any(name.endswith(".safetensors") for name in names))
            make_tokenizer().save(str(folder / "tokenizer.json"))
            for name in names:
                if name.endswith(".gguf"):
                    tiny_gguf(folder / name)
                elif name.endswith(".bin"):
                    (folder / name).write_bytes(b"PK")
            return str(folder)

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return asked

    return make


def fault(reference="org/name", **options):
    with pytest.raises(ModelError) as caught:
        resolve(reference, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the embedded model


@pytest.mark.parametrize("reference", [DEFAULT_MODEL, DEFAULT_MODEL.lower(), "smollm2-135m-INSTRUCT"])
@pytest.mark.parametrize("revision", [None, "main"])
def test_the_embedded_models_id_is_found_without_a_network(offline, smollm2_gguf, caplog, reference, revision):
    caplog.set_level(logging.INFO)
    source = resolve(reference, revision=revision)
    assert (source.name, source.path) == (reference, smollm2_gguf)
    assert f"{reference} is the embedded model, whose copy {smollm2_gguf.name} is used" in caplog.text


def test_it_may_get_another_name(offline, smollm2_gguf):
    source = resolve(f"small={DEFAULT_MODEL}")
    assert (source.name, source.path) == ("small", smollm2_gguf)


@pytest.mark.parametrize("reference", [None, DEFAULT_MODEL])
def test_another_revision_is_not_claimed(offline, smollm2_gguf, reference):
    assert "HF_HUB_OFFLINE" in fault(reference, revision="v2")


def test_other_formats_and_tokenizers_of_other_models_are_not_claimed(offline, smollm2_gguf):
    assert "HF_HUB_OFFLINE" in fault(DEFAULT_MODEL, load_format="safetensors")
    assert "HF_HUB_OFFLINE" in fault("HuggingFaceTB/SmolLM2-360M-Instruct")
    assert resolve(None, tokenizer=DEFAULT_MODEL).tokenizer_path == smollm2_gguf


def test_the_hubs_own_files_come_first(hub):
    hub("config.json", "model.safetensors")
    assert resolve(DEFAULT_MODEL).kind == "folder"


# ---- downloads


def test_revision_and_folder_hold_for_the_tokenizer_too(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = hub("config.json", "model.safetensors")
    resolve("org/name", tokenizer="org/words", revision="v2", download_dir="~/shared")
    assert set(asked["downloads"]) == {"org/name", "org/words"}
    for options in asked["downloads"].values():
        assert (options["revision"], options["cache_dir"]) == ("v2", str(tmp_path / "shared"))


@pytest.mark.parametrize(
    ("names", "load_format", "pattern", "others"),
    [
        (["model.safetensors", "pytorch_model.bin"], "auto", "*.safetensors", ["*.bin", "*.gguf"]),
        (["pytorch_model.bin"], "auto", "*.bin", ["*.safetensors"]),
        (["model.gguf"], "auto", "*.gguf", ["*.bin"]),
        (["model.safetensors", "pytorch_model.bin"], "pt", "*.bin", ["*.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], "dummy", "*.json", ["*.safetensors", "*.bin"]),
    ],
)
def test_weights_are_downloaded_in_the_form_that_is_there_and_asked_for(hub, names, load_format, pattern, others):
    asked = hub("config.json", *names)
    resolve("org/name", load_format=load_format)
    assert pattern in asked["allow_patterns"]
    assert not set(others) & set(asked["allow_patterns"])


def test_of_several_gguf_files_one_has_to_be_named(hub):
    hub("a.Q4.gguf", "a.Q8.gguf")
    assert "has 2 .gguf files (a.Q4.gguf, a.Q8.gguf, ...): download one of them" in fault()


# ---- faults


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.test/x"))


def test_a_missing_or_private_repository_names_the_token(hub):
    hub(error=RepositoryNotFoundError("401", response=response(401)))
    assert "has no such repository (a private one needs HF_TOKEN): check the name" in fault()


def test_an_unknown_revision_is_named(hub):
    hub(error=RevisionNotFoundError("404", response=response(404)))
    assert "has no revision 'v9': check --revision" in fault(revision="v9")


def test_without_a_network_the_line_says_where_downloads_are_looked_for(hub, tmp_path):
    hub(error=OSError("no route"))
    line = fault(download_dir=str(tmp_path / "shared"))
    assert "could not be reached (OSError: no route): check the network, or name a local folder" in line
    assert line.endswith(f"downloads are kept in {tmp_path / 'shared'}")


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, cache_home, name):
    folder = make_folder(tmp_path / "m")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / name).write_text(POINTER)
    reference = folder / name if name.endswith(".gguf") else folder
    with pytest.raises(ModelError, match=f"{name} is only a pointer of git-lfs, .* run `git lfs pull`"):
        model_source.load_text_model(resolve(str(reference)))
