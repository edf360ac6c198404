# Two commands from a fresh clone: `make train` and `make test`. `make help` says more.

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/installed

.PHONY: help install train test lint clean

help:
	@echo 'make train    trains on the speech in sample/ (or ./data), ends with a table of WER and CER and the paths of'
	@echo '              the checkpoint and of the curve; ARGS adds settings: make train ARGS="trainer.max_steps=300"'
	@echo 'make test     style, types and all tests, in two processes; ARGS goes to pytest: make test ARGS="-k features"'
	@echo 'make lint     style and types only'
	@echo 'make install  only what the others do first: the versions in constraints.txt into $(VENV), once'
	@echo 'make clean    removes $(VENV) and caches; keeps logs/ and data/'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter (3.10 or newer), PIP_ARGS="..." goes to pip install.'
	@echo 'Without a GPU, PyTorch'"'"'s CPU build saves gigabytes. Where pip would not find it by itself, before the first run:'
	@echo '  export PIP_EXTRA_INDEX_URL=<address of the CPU wheels, from "Get started" on pytorch.org>'

train: $(INSTALLED)
	$(RUN) main.py +experiment=overfit $(ARGS)

test: lint
	$(RUN) tests/in_two.py $(ARGS)

lint: $(INSTALLED)
	$(RUN) -m ruff check
	$(RUN) -m mypy

install: $(INSTALLED)

# Always from an empty folder: pip takes what a killed installation left half-copied for whole packages, and a folder made
# by another Python cannot be mended (pip keeps its downloads, so nothing is fetched twice).
# The two variables, for pip before and after 25.3, hold also the packages that only building needs to constraints.txt.
$(INSTALLED): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo 'make: $(PYTHON) is not Python 3.10 or newer; install one, or name it: make PYTHON=python3.12 ...' >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'make: $(PYTHON) lacks the module venv; on Debian and Ubuntu, as root: apt install python3-venv' >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
	  $(RUN) -m pip install $(PIP_ARGS) --editable '.[dev]'
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
