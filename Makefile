# Everything that a fresh machine needs beyond Python 3.11+, make and git is brought by `make setup`, into this folder.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-kafka test lint bench chaos clean

PYTEST_ARGS ?=
WORKERS ?= 2
MINUTES ?= 20
ARGS ?=
# Folders may have spaces in their names: recipes run in the repository, and all paths are relative to it.
VENV := .venv
PYTHON := $(VENV)/bin/python

help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.ready ## Make .venv with everything for demo and tests

$(VENV)/.ready: pyproject.toml uv.lock sandbox/setup.sh
	@sh sandbox/setup.sh
	@touch $(VENV)/.ready

demo: setup ## Web-shop orders through Airflow, Spark and PostgreSQL; ARGS=--exit ends instead of waiting
	@$(PYTHON) -m sandbox.demo $(ARGS)

demo-kafka: setup ## The same through a real Kafka broker
	@$(PYTHON) -m sandbox.demo --kafka $(ARGS)

lint: setup ## ruff, mypy, the import rules, and whether pytest can collect every test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/lint-imports
	@# Two processes of pytest-xdist say what they could not collect only at their end: 45 minutes later.
	$(PYTHON) -m pytest --collect-only -qqq

test: lint ## lint, then all suites on real servers, by WORKERS (2) processes; PYTEST_ARGS=...
	@$(PYTHON) -m sandbox.class_archive
	$(PYTHON) -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(PYTEST_ARGS)

bench: setup ## This sink beside Spark's JDBC writer and psql's \copy; ARGS=--help
	@sh sandbox/setup.sh --group bench
	@$(PYTHON) tests/benchmarks/bench.py $(ARGS)

chaos: setup ## Random kills for MINUTES (20) on a real cluster, then a comparison; ARGS=--seed N
	@$(PYTHON) -m tests.chaos --minutes $(MINUTES) $(ARGS)

clean: ## Remove what setup, demo and tests made, the downloads in .cache excepted
	rm -rf $(VENV) .sandbox build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf spark-warehouse metastore_db derby.log
