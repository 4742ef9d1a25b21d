# Development targets. `make setup` makes the environment that every other target uses; POWERSAMPLE_PYTHON names an
# interpreter to use instead, as it is.
PYTHON ?= $(or $(POWERSAMPLE_PYTHON),.venv/bin/python)
# Tests run on all cores, but for those that nothing may run beside (marked serial). Pytest's code 5, no such test, is no
# failure.
PARALLEL = -n auto --maxprocesses 8 --dist worksteal
.PHONY: setup check format lines test test-slow test-gpu test-transformers test-antlr benchmark demo constraints

setup:
	@bash launch/setup.sh dev

check: setup
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pyright

format: setup
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lines:  # of the package and the tests, by wing
	$(PYTHON) benchmarks/lines.py

test: setup
	$(PYTHON) -m pytest $(PARALLEL) -m "not slow and not gpu and not serial"
	$(PYTHON) -m pytest -m "serial and not slow and not gpu"

test-slow: setup
	@$(PYTHON) -m pytest $(PARALLEL) -m "slow and not gpu and not serial" --timeout 1800; code=$$?; [ $$code -eq 5 ] || exit $$code
	@$(PYTHON) -m pytest -m "slow and serial and not gpu" --timeout 1800; code=$$?; [ $$code -eq 5 ] || exit $$code

test-gpu:  # on a machine with a CUDA device
	$(PYTHON) -m pytest -m gpu --timeout 600

# The tokenizer's tests with the oldest and the newest library that pyproject.toml admits, each in a folder of its own.
test-transformers: setup
	for end in lowest-direct highest; do \
	  $(PYTHON) -m uv pip install --quiet --python $(PYTHON) --target .transformers/$$end --resolution $$end \
	    "$$(grep -o 'transformers>=[^"]*' pyproject.toml)" && \
	  PYTHONPATH=.transformers/$$end $(PYTHON) -m pytest tests/evals/engine/test_tokenizer.py || exit 1; \
	done

# The graders' tests with each version of antlr that math-verify takes, each in a folder of its own.
test-antlr: setup
	for version in 4.11.0 4.13.2; do \
	  $(PYTHON) -m uv pip install --quiet --python $(PYTHON) --target .antlr/$$version "antlr4-python3-runtime==$$version" && \
	  PYTHONPATH=.antlr/$$version $(PYTHON) -m pytest tests/evals/grading || exit 1; \
	done

benchmark: setup
	$(PYTHON) benchmarks/sampler.py

demo:
	bash speedrun_powersample.sh

constraints: setup  # install the newest versions that the ranges admit, and pin them
	bash launch/constraints.sh --upgrade
