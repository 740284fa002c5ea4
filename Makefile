.DEFAULT_GOAL := help
python := .venv/bin/python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv ## train plain and residual nets of 20 and 56 layers on digits, then table and figure (3 minutes)
	$(python) -m src.train experiment=digits_depth n=3,9 output_dir=demo/runs
	$(python) -m src.report demo/runs/digits -o demo

test: .venv ## run the tests, offline
	$(python) -m pytest

fault-injection: .venv ## put runs through kills, faults and bad input, and write the table of it (6 minutes)
	$(python) -m pytest -m fault_injection --kills 30 --fault-injection experiments/fault_injection/results.csv
	$(python) -m src.report --readme README.md

lint: .venv ## check the code with ruff
	$(python) -m ruff check .
	$(python) -m ruff format --check .

lock: ## pin the dependencies of pyproject.toml anew
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--python-version 3.11 --group dev pyproject.toml -o requirements.lock

# uv installs the pins: the one on the PATH, or one that pip brings into the environment.
.venv: requirements.lock
	python3 -m venv --clear .venv
	command -v uv >/dev/null || $(python) -m pip install --quiet uv
	PATH="$(CURDIR)/.venv/bin:$$PATH" uv pip install --quiet --python $(python) --compile-bytecode --require-hashes -r requirements.lock
	touch .venv

.PHONY: help demo test fault-injection lint lock
