.DEFAULT_GOAL := help
python := .venv/bin/python
LOGGER := csv

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv ## train plain and residual nets of 20 and 56 layers on digits, then table and figure (3 minutes); LOGGER=wandb: also in W&B
	$(python) -m src.train experiment=digits_depth n=3,9 output_dir=demo/runs logger=$(LOGGER)
	$(python) -m src.report demo/runs/digits -o demo

test: .venv ## run the fast tests, offline
	$(python) -m pytest -n 2 --dist loadgroup

test-all: .venv ## run all tests but the few that take over a minute each
	$(python) -m pytest -n 2 --dist loadgroup -m "not very_slow and not gpu"

test-lowest: .venv-lowest ## run the fast tests with the lowest versions that pyproject.toml allows; TESTS=tests/FILE: those alone
	.venv-lowest/bin/python -m pytest -n 2 -W ignore::DeprecationWarning -W ignore::FutureWarning $(TESTS)

test-gpu: .venv ## run the tests that need a GPU
	$(python) -m pytest -m gpu

fault-injection: .venv ## put runs through kills, faults and bad input, and write the table of it (10 minutes)
	$(python) -m pytest -m fault_injection --kills=30 --fault-injection=experiments/fault_injection/results.csv
	$(python) -m src.report --readme experiments/README.md

lint: .venv ## check style, types and the dependencies between packages
	$(python) -m ruff check --quiet .
	$(python) -m ruff format --check --quiet .
	$(python) -m mypy
	.venv/bin/lint-imports

lock: ## pin the newest versions that pyproject.toml allows
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--python-version 3.11 --group dev --upgrade pyproject.toml -o requirements.lock

# uv installs the pins: the one on the PATH, or one that pip brings into the environment.
.venv: requirements.lock
	python3 -m venv --clear .venv
	command -v uv >/dev/null || $(python) -m pip install --quiet uv
	PATH="$(CURDIR)/.venv/bin:$$PATH" uv pip install --quiet --python $(python) --compile-bytecode --require-hashes -r requirements.lock
	touch .venv

.venv-lowest: .venv pyproject.toml
	python3 -m venv --clear .venv-lowest
	PATH="$(CURDIR)/.venv/bin:$$PATH" uv pip install --quiet --python .venv-lowest/bin/python \
		--resolution lowest-direct --group dev -r pyproject.toml
	touch .venv-lowest

.PHONY: help demo test test-all test-lowest test-gpu fault-injection lint lock
