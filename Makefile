# Each target sets up what it needs in .venv; nothing else is touched.
PYTHON ?= python3
PORT ?= 8000
# Where torch comes from, if not from pip's own configuration, e.g. an index of CPU or CUDA builds:
#   make demo TORCH_INDEX=URL
TORCH_INDEX ?=
DATA ?= ../shared/data

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo serve test lint train-default bench-first bench-ready bench-banking clean

demo: .venv/embedded
	$(BIN)/quickstudy demo

serve: .venv/embedded
	exec $(BIN)/quickstudy serve --port $(PORT) --tied $$PPID

test: .venv/dev
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The default initialization again, from the same data and recipe (see its README).
train-default: .venv/embedded
	$(BIN)/metatrain train metatrain/recipes/default.yaml --data $(DATA) --out runs/default

bench-first: .venv/embedded
	$(BIN)/python -m benchmarks.first --data $(DATA)

bench-ready: .venv/embedded
	$(BIN)/python -m benchmarks.ready

bench-banking: .venv/embedded
	$(BIN)/python -m benchmarks.banking --data $(DATA)

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first and alone, so that TORCH_INDEX holds for it and for nothing else (what it needs comes with the next step).
.venv/torch: constraints.txt | .venv/bin/python
	$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	@touch $@

.venv/embedded: pyproject.toml constraints.txt .venv/torch
	$(PIP) --editable '.[embedded]'
	@touch $@

.venv/dev: pyproject.toml constraints.txt .venv/torch
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/embedded

clean:
	rm -rf .venv runs build *.egg-info
