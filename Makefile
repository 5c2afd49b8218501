# selfkd: `make demo` to see it work, `make test` to check it.
#
# PYTHON=python3.12   the interpreter to build .venv with (default: the first good one found)
# PIP_ARGS="..."      more options for pip, as in PIP_ARGS="--extra-index-url URL"

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup model demo test long adapters testbed bench bench-kernel lint clean
export PYTHON PIP_ARGS

PY := .venv/bin/python
SELFKD := $(PY) -m selfkd
MODEL := SmolLM2-135M-Instruct
# .venv is good for one content of these files; another content is another stamp.
READY := .venv/.ready-$(shell cat pyproject.toml constraints.txt .ci/setup | cksum | tr ' ' '-')

help:  ## this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## everything needed, in .venv; instant where it is up to date

$(READY):
	@.ci/setup
	@touch $@

model: setup  ## the demo's model, in the cache
	@$(SELFKD) model pull $(MODEL)

demo: model  ## a small model teaches itself to add (10 minutes on 2 cores)
	@$(SELFKD) run loops/rest_em.yaml

test: model  ## lint, types (tests/test_lint.py) and every test, real models included
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

long: model  ## what takes too long for make test: random kills, vLLM's server, all at once
	$(PY) -m tests.chaos --kills 30 --seed 1
	SELFKD_LONG=1 $(PY) -m pytest -q tests/e2e/test_served_vllm.py tests/e2e/test_all_at_once.py

adapters: setup  ## judges from verifiers and inspect_ai, with the real packages
	@$(PY) -m tests.adapters

testbed: setup  ## the loops on a tiny character model, three seeds
	SELFKD_TESTBED_SEEDS=0,1,2 $(PY) -m pytest -q -m testbed

bench: model  ## wall-clock of selfkd against a plain script, same settings
	@$(PY) benchmarks/bench.py

bench-kernel: setup  ## the fused divergence against TRL, Liger and the bare products
	@$(PY) benchmarks/kernel.py

lint: setup  ## ruff and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

clean:  ## remove .venv and what tools leave behind; runs and the model cache stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
