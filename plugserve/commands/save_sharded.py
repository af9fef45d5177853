"""`plugserve save-sharded`: write a model's weights as sharded_state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plugserve.commands.active_formats import active_formats
from plugserve.commands.reading import read_all
from plugserve.core.errors import ConfigError, ModelError
from plugserve.core.plugin_system.plugin_host import PluginHost
from plugserve.core.settings.command_flags import split_flags
from plugserve.core.settings.log_setup import set_up_logging
from plugserve.core.settings.setting_types import parse_size
from plugserve.core.settings.settings import Settings
from plugserve.core.settings.settings_reader import read_selection

HELP: Final = """\
usage: plugserve save-sharded [MODEL] --output FOLDER [--tensor-parallel-size N] [--max-file-size SIZE] [SETTING ...]

Writes a model's weights as --load-format sharded_state reads them: the files model-rank-R-part-P.safetensors, with
config and tokenizer beside them. Weights are written as they are stored (quantised ones as float32), or as --dtype.

  --output FOLDER             a folder that doesn't exist or is empty
  --tensor-parallel-size N    ranks to cut the weights for (1); folders for any N are also read as a whole
  --max-file-size SIZE        largest file, such as 5GiB, the default

Other settings are those of serve that choose a model: --model, --revision, --download-dir, --load-format, --dtype.
"""
_SHORT: Final = {"-tp": "--tensor-parallel-size", "--tp": "--tensor-parallel-size"}
_DTYPES: Final = {"half": "float16", "float": "float32"}


@dataclass(frozen=True, slots=True)
class _Asked:
    output: Path
    num_ranks: int
    max_file_bytes: int


def run(words: list[str], environ: Mapping[str, str]) -> int:
    asked, words = _split(words)
    host = PluginHost.load(read_selection(words, environ))
    settings = read_all(words, environ, host).settings
    set_up_logging(settings.log_level, settings.log_format)
    host.configure(settings)
    _save(asked, settings, host)
    return 0


def _split(words: list[str]) -> tuple[_Asked, list[str]]:
    """This command's own flags, and the words that are settings. Raises ConfigError."""
    values = {"--output": "", "--tensor-parallel-size": "1", "--max-file-size": "5GiB"}
    flags = split_flags(words, values, other_names=_SHORT)
    values |= flags.values
    if not values["--output"]:
        raise ConfigError("plugserve save-sharded needs --output FOLDER")
    ranks = values["--tensor-parallel-size"]
    if not (ranks.isdecimal() and 1 <= int(ranks) <= 1024):
        raise ConfigError(f"--tensor-parallel-size must be a whole number from 1 to 1024, got {ranks!r}")
    try:
        size = parse_size(values["--max-file-size"])
    except ValueError:
        size = 0
    if size < 1:
        raise ConfigError(f"--max-file-size must be a size such as 5GiB, got {values['--max-file-size']!r}")
    return _Asked(Path(values["--output"]).expanduser(), int(ranks), size), flags.words


def _save(asked: _Asked, settings: Settings, host: PluginHost) -> None:
    import torch  # heavy

    from plugserve.backends.torch.models.make_model import make_model
    from plugserve.backends.torch.weights.formats import open_weights
    from plugserve.backends.torch.weights.save_sharded import save_sharded
    from plugserve.core.contracts.weights import WeightSource
    from plugserve.core.model_files.encoder_files import GENERATE
    from plugserve.core.model_files.model_source import read_config, resolve
    from plugserve.core.model_files.text_files import write_text_files

    if len(settings.model) > 1:
        raise ConfigError(f"plugserve save-sharded saves one model, got {len(settings.model)}")
    source = resolve(
        next(iter(settings.model), None),
        revision=settings.revision,
        download_dir=settings.download_dir,
        load_format=settings.load_format,
    )
    if source.task != GENERATE:
        raise ModelError(f"{source.name} is an encoder; plugserve save-sharded saves models that generate text")
    config = read_config(source)
    architectures = {name: host.factory("architectures", name)[0] for name in host.names("architectures")}
    model = make_model(config, architectures)
    shapes = {name: one.shape for name, one in model.parameters().items()}
    _make_empty(asked.output)
    formats = {name: one for name, (one, _) in active_formats(host, settings).items()}
    weights = open_weights(WeightSource(source.path, config, lambda: shapes), settings.load_format, formats)
    if settings.dtype != "auto":
        dtype = getattr(torch, _DTYPES.get(settings.dtype, settings.dtype))
        weights = ((name, tensor.to(dtype)) for name, tensor in weights)
    write_text_files(source, asked.output)
    saved = save_sharded(asked.output, weights, model, num_ranks=asked.num_ranks, max_file_bytes=asked.max_file_bytes)
    print(
        f"saved {source.name} to {asked.output}: {saved.num_files} files for {asked.num_ranks} ranks, "
        f"{saved.num_bytes / 2**20:.1f} MiB; serve it with: plugserve {asked.output} --load-format sharded_state"
    )


def _make_empty(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"--output {folder} can't be made: {error.strerror}") from None
    if not is_empty:
        raise ModelError(f"--output {folder} is not empty; name a folder that doesn't exist")
