# Everything a newcomer needs: `make demo` shows bridge at work, `make test` proves it.
PYTHON ?= python3
BIN := .venv/bin
# One more than there are processors: many tests wait for processes of their own.
TESTERS = $(shell $(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)')
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint types bench screenshots tables lock clean

help:  ## show these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/run  ## signed webhooks into four platforms, all on this machine
	@$(BIN)/python -m bridge demo $(ARGS)

test: .venv/dev  ## run every test
	@$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal $(ARGS)

check: format-check lint types test  ## all that CI runs

format: .venv/dev  ## rewrite the code in the one format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: format-check
format-check: .venv/dev
	@$(BIN)/ruff format --check .

lint: .venv/dev
	@$(BIN)/ruff check .

types: .venv/dev
	@$(BIN)/mypy

bench: .venv/dev  ## measure, and print ratios
	@$(BIN)/python -m bench $(ARGS)

screenshots: .venv/dev  ## take the pictures in docs/images from the demo (needs Chromium)
	@PYTHONPATH=. $(BIN)/python docs/screenshots.py

# The locks name no index host, so that they work behind any mirror.
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-header --no-annotate --upgrade
tables: .venv/dev  ## write the tables of the docs that follow from what sources declare
	@PYTHONPATH=. $(BIN)/python docs/tables.py
	@$(BIN)/python -m bridge.config.schema > docs/bridge.schema.json

lock: .venv/dev  ## pin the newest versions of what requirements*.in name
	@$(UV_COMPILE) requirements.in --output-file requirements.txt
	@$(UV_COMPILE) requirements-dev.in --output-file requirements-dev.txt

clean:  ## remove the virtual environment and caches
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bridge needs Python 3.11 or newer; try: make PYTHON=python3.12 …")'
	@$(PYTHON) -m venv .venv

.venv/run: requirements.txt | .venv/bin/python
	@echo "installing what bridge runs on into .venv (once)"
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/run
	@echo "installing what the tests need into .venv (once)"
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@
