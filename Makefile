# Everything runs in .venv, made here; PYTHON chooses the interpreter it is made from (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUFF = $(BIN)/python -m ruff
# One setting from the [lint] section of setup.cfg, since ruff itself does not read that file.
lint_option = $(shell $(PYTHON) -c "import configparser as c; p = c.ConfigParser(); p.read('setup.cfg'); print(p['lint']['$(1)'])")

.DELETE_ON_ERROR:
.PHONY: setup quickstart test lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@echo 'installing what requirements.txt lists into $(VENV) (about a minute)'
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed setup.cfg pyproject.toml
	@$(PIP) install -e '.[dev]'
	@touch $@

quickstart: setup
	@$(BIN)/python -m launch.quickstart --config=experiments/quickstart.py --workdir=runs/quickstart

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(RUFF) check $(call lint_option,common) $(call lint_option,check) .
	$(RUFF) format --check $(call lint_option,common) $(call lint_option,format) .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
