"""The groups that settings are listed in, in help and docs, in this order."""

from __future__ import annotations

MODEL = "Model, data"
PARALLEL = "Parallel"
PERFORMANCE = "Performance, memory"
FEATURES = "Features"
MANY_MODELS = "Models on demand"
PLUGINS = "Plugins"
SERVER = "Server"
ROUTER = "Router"
FILE = "Config file"
GROUPS = (MODEL, PARALLEL, PERFORMANCE, FEATURES, MANY_MODELS, PLUGINS, SERVER, ROUTER, FILE)
