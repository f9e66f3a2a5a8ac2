# Everything runs in .venv, which is made here. PYTHON chooses its interpreter (3.11 or newer); if
# .venv has another version, it is made anew. Without PYTHON an existing .venv stays.
VENV ?= .venv
BIN := $(VENV)/bin
ifeq ($(origin PYTHON),undefined)
  PYTHON := $(or $(wildcard $(BIN)/python),python3)
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# The tested version of every package; `CONSTRAINTS=` takes the newest that requirements.txt allows.
CONSTRAINTS ?= $(wildcard .ci/constraints-$(VERSION).txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
RUFF = $(BIN)/python -m ruff

.DELETE_ON_ERROR:
.PHONY: setup quickstart test check soak verify-weights lint report aot-tpu aot-gpu setup-aot setup-test plan clean

setup: $(VENV)/.installed
	@echo 'installed into $(VENV): after `. $(BIN)/activate`, `python -m launch.NAME` and `deepseek-moe NAME` work in any folder'

%/.python-$(VERSION):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv --clear $*
	@touch $@

$(VENV)/.installed: $(VENV)/.python-$(VERSION) requirements.txt setup.cfg pyproject.toml $(CONSTRAINTS)
	@echo 'installing what requirements.txt lists into $(VENV) (about a minute)'
	@$(PIP) install $(addprefix -c ,$(CONSTRAINTS)) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed setup.cfg pyproject.toml
	@$(PIP) install $(addprefix -c ,$(CONSTRAINTS)) -e '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed
	@$(BIN)/python -m launch.quickstart --config=experiments/quickstart.py --workdir=runs/quickstart

# Every table and figure of the studies, from experiments/results/STUDY/runs.jsonl.
report: $(VENV)/.installed
	@$(BIN)/python -m launch.report --results=experiments/results/earlier
	@$(BIN)/python -m launch.report --verdicts=README.md,docs/routing.md

# The whole suite.
test: lint setup-test
	$(BIN)/python -m pytest $(WORKERS)

# What most changes can break, in under 2 minutes. From the ops' tables it runs each
# implementation's first row only.
check: lint
	$(BIN)/python -m pytest $(WORKERS) -m 'not more' $(CHECKED)

# Each worker takes one file at a time, longest files first (tests/conftest.py).
WORKERS = -n auto --dist loadfile --no-loadscope-reorder
CHECKED = tests/test_oracles.py tests/test_import_direction.py \
  $(addprefix tests/moe/,ops layers losses routers) $(wildcard tests/moe/test_*config*.py)

# Installs the Debian packages that tests need, on Debian with root. Elsewhere it says which tests
# will be skipped.
setup-test: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.debian

# Kills one of two processes (kill -9) 20 times at random steps; about 10 minutes on 2 idle cores.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -s tests/soak/soak_faults.py

# Converts checkpoints of every kind in and out, and has llama.cpp continue text with them:
# the table of docs/weights.md.
verify-weights: $(VENV)/.installed-dev
	$(BIN)/python -m tests.moe.convert.verify

# Compiles every kernel for machines that are not here. Each compiler has an environment of its own.
aot-tpu: .venv-tpu/.installed
	JAX_PLATFORMS=cpu .venv-tpu/bin/python -m launch.aot --targets=v5e,v5p,v6e --out=experiments/results/aot_tpu.jsonl

aot-gpu: .venv-gpu/.installed
	JAX_PLATFORMS=cpu .venv-gpu/bin/python -m launch.aot --targets=h100,a100-40 --out=experiments/results/aot_gpu.jsonl

# Will it fit, and how fast is it? Compiles the published models' training steps, and decoding, for
# machines that are not here. Each plan is CONFIG@MACHINE[,DTYPE].
PLANS = $(shell $(PYTHON) -m experiments.plans)
DECODE_PLANS = $(shell $(PYTHON) -m experiments.plans decode)
# Splits $$each, one CONFIG@MACHINE[,DTYPE], into launch.plan's flags, and picks the interpreter
# that has the machine's compiler.
PLANNED = config=$${each%@*} machine=$${each\#*@} dtype=; python=.venv-tpu/bin/python share=; \
	  case $$machine in *,*) dtype=--dtype=$${machine\#*,} machine=$${machine%,*};; esac; \
	  case $$machine in h100:*|a100*) python=.venv-gpu/bin/python share=--memory_fraction=0.97;; esac; \
	  of="--config=experiments/$${config%:*}.py:$${config\#*:} --topology=$$machine"
plan: .venv-tpu/.installed .venv-gpu/.installed
	@set -e; for each in $(PLANS); do $(PLANNED); \
	  JAX_PLATFORMS=cpu $$python -m launch.plan --record=experiments/results/plans.jsonl $$of; \
	done
	@set -e; for each in $(DECODE_PLANS); do $(PLANNED); \
	  JAX_PLATFORMS=cpu $$python -m launch.plan --program=decode --batch=1,8,64 --context=4096 $$share $$dtype \
	    --record=experiments/results/decode_plans.jsonl $$of; \
	done

# With these installed, `make test` compiles a few kernels for TPU and GPU. Without them it skips
# those tests and says so.
setup-aot: .venv-tpu/.installed .venv-gpu/.installed

.venv-tpu/.installed: EXTRA = tpu
.venv-gpu/.installed: EXTRA = aot-gpu
.venv-tpu/.installed .venv-gpu/.installed: %/.installed: %/.python-$(VERSION) setup.cfg requirements.txt pyproject.toml
	@echo 'installing the extra $(EXTRA) into $(@D) (a few minutes)'
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install -e '.[$(EXTRA)]'
	@touch $@

lint: $(VENV)/.installed-dev
	$(RUFF) check .
	$(RUFF) format --check .

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .hypothesis
