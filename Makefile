# make search: the main job.  make test: the whole test suite.  make lint: ruff and mypy.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: search test lint clean

search: .venv/.installed
	$(BIN)/nas search --space=mobile --strategy=evolution

test: .venv/.installed-dev
	$(BIN)/pytest -n 2 --dist loadgroup

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@ .venv/.installed

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
