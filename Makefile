# Development targets. `make setup` makes the environment that every other target uses.
PYTHON ?= .venv/bin/python
.PHONY: setup check format test test-slow test-gpu bench demo constraints

setup:
	@bash launch/setup.sh dev

check: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright

format: setup
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

test: setup
	$(PYTHON) -m pytest

test-slow: setup
	$(PYTHON) -m pytest -m "slow and not gpu" --timeout 1800

test-gpu:  # needs a CUDA device; PYTHON may name another interpreter
	$(PYTHON) -m pytest -m gpu --timeout 600

bench: setup
	$(PYTHON) benchmarks/sampler.py --help

demo:
	bash speedrun_powersample.sh

constraints: # resolve the newest versions that the ranges admit and pin them
	@bash launch/constraints.sh
