PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint format

demo: .venv/ready  ## train a flow on real images, reconstruct them, draw samples
	$(BIN)/python examples/flow/train.py demo

test: lint  ## everything that must hold
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: .venv/ready  ## what takes minutes
	$(BIN)/pytest -m slow

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@
