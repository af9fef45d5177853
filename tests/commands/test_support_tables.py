"""`plugserve models supported` and docs/models.md list the supported models."""

import re
from pathlib import Path

from plugserve.cli import main
from plugserve.commands.support_tables import as_markdown, support_tables
from plugserve.core.model_files.families import FAMILIES
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.selection import Selection

ROOT = Path(__file__).parents[2]


def test_docs_hold_the_generated_tables():
    tables = as_markdown(support_tables(PluginHost.load(Selection())))
    assert tables in (ROOT / "docs" / "models.md").read_text()
    assert all(f"| {name} |" in tables for name in FAMILIES)


def test_command_prints_the_same_tables(capsys):
    assert main(["models", "supported", "--markdown"]) == 0
    assert capsys.readouterr().out == as_markdown(support_tables(PluginHost.load(Selection())))
    assert main(["models", "supported"]) == 0
    assert re.search(r"^  Qwen3ForCausalLM +Qwen3 \(dense\)", capsys.readouterr().out, re.MULTILINE)


def test_command_includes_active_plugins(capsys):
    plugin = ROOT / "examples" / "one_file" / "seed_oss.py"
    assert main(["models", "supported", "--plugin", str(plugin)]) == 0
    assert re.search(r"^  SeedOssForCausalLM +Seed-OSS: .* seed-oss$", capsys.readouterr().out, re.MULTILINE)


def test_models_needs_a_subcommand(capsys):
    assert main(["models"]) == 2
    assert "plugserve models supported" in capsys.readouterr().err
    assert main(["models", "supported", "--json"]) == 2
    assert "--json" in capsys.readouterr().err
