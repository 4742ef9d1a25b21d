# Development targets. `make setup` makes the environment that every other target uses; POWERSAMPLE_PYTHON names an
# interpreter to use instead, as it is.
PYTHON ?= $(or $(POWERSAMPLE_PYTHON),.venv/bin/python)
.PHONY: setup check format test test-slow test-gpu test-interop bench demo constraints constraints-interop

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

test-slow: setup  # pytest's code 5 says that there are none: not a failure
	@$(PYTHON) -m pytest -m "slow and not gpu" --timeout 1800; code=$$?; [ $$code -eq 5 ] || exit $$code

test-gpu:  # on a machine with a CUDA device
	$(PYTHON) -m pytest -m gpu --timeout 600

test-interop: setup  # with lm-eval and inspect-ai, in an environment of their own
	bash launch/interop.sh
	$(PYTHON) -m pytest -m interop

bench: setup
	$(PYTHON) benchmarks/sampler.py

demo:
	bash speedrun_powersample.sh

constraints: setup  # install the newest versions that the ranges admit, and pin them
	bash launch/constraints.sh --upgrade

constraints-interop: setup
	bash launch/interop.sh --upgrade
