"""The model table: from --model, `models:` and --model-dir."""

import json

import pytest

from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.settings.settings import Settings
from plugserve.server.supervisor.model_table import make_table, models_in


@pytest.fixture
def folder(tmp_path):
    """A folder of models, none of which can be read."""
    root = tmp_path / "models"
    for name in ("plain", "org/nested"):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps({"architectures": ["None"]}))
    for file in ("single.gguf", "one/file.gguf", "two/a.gguf", "two/b.gguf", "two/mmproj-a.gguf", ".hidden.gguf"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(b"GGUF")
    (root / "parts").mkdir()
    for part in (1, 2):
        (root / "parts" / f"big-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    (root / "notes.txt").write_text("no model")
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text("{}")
    return root


def test_each_checkpoint_of_a_folder_is_a_model_by_its_name(folder):
    assert {name: path.relative_to(folder).as_posix() for name, path in models_in(folder)} == {
        "one": "one/file.gguf",
        "org/nested": "org/nested",
        "parts/big-00001-of-00002": "parts/big-00001-of-00002.gguf",
        "plain": "plain",
        "single": "single.gguf",
        "two/a": "two/a.gguf",
        "two/b": "two/b.gguf",
    }


def test_nothing_of_a_folder_is_read_or_loaded_at_the_start(folder):
    table = make_table(Settings(model_dir=[str(folder)], models={"single": {"ttl": 9}, "far/away": {}}))
    assert not table.sources
    assert not any(entry.is_preloaded for entry in table.entries)
    by_name = {entry.name: entry for entry in table.entries}
    assert by_name["single"].ttl_s == 9
    assert by_name["single"].reference == str(folder / "single.gguf")
    assert by_name["far/away"].reference == "far/away"


def test_given_models_come_first_are_loaded_at_the_start_and_stay(smollm2_gguf, folder):
    settings = Settings(
        model=[f"a={smollm2_gguf}", f"b={smollm2_gguf}"],
        models={"b": {"pinned": False, "max_model_len": 128}},
        model_dir=[str(folder)],
    )
    table = make_table(settings)
    assert [entry.name for entry in table.entries][:2] == ["a", "b"]
    assert [(entry.is_pinned, entry.is_preloaded) for entry in table.entries[:2]] == [(True, True), (False, True)]
    assert [source.name for source in table.preloaded] == ["a", "b"]


def test_without_any_model_the_embedded_one_is_served(smollm2_gguf):
    (entry,) = make_table(Settings()).entries
    assert entry.reference is None
    assert entry.is_pinned


def test_a_pinned_model_is_found_at_the_start(tmp_path):
    with pytest.raises(ModelError, match="not found"):
        make_table(Settings(models={"a": {"model": "not an id", "pinned": True}}))


def test_a_server_without_any_model_does_not_start(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no model to serve: --model-dir .* holds none"):
        make_table(Settings(model_dir=[str(tmp_path)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": {"a": {"model": "./no-such.gguf"}}}, "models: a: there is no folder or file .*no-such.gguf"),
        ({"model_dir": ["/no/such/folder"]}, "--model-dir /no/such/folder: No such file or directory"),
    ],
)
def test_a_path_without_anything_is_reported_at_the_start(settings, message):
    with pytest.raises((ConfigError, ModelError), match=message):
        make_table(Settings(**settings))


def test_a_name_belongs_to_one_model(smollm2_gguf):
    given = {"model": [f"x={smollm2_gguf}"], "served_model_name": ["shown"], "models": {"shown": {"model": "o/n"}}}
    with pytest.raises(ConfigError, match="'shown' names both 'x' and 'shown'"):
        make_table(Settings(**given))
