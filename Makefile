# make demo and make test need Python 3.11 or newer, git and make; they create their own environment.
PYTHON ?= python3
PIP := .venv/bin/pip --disable-pip-version-check

.PHONY: help demo test test-unit test-lowest test-full-scale test-compat test-llamacpp test-clients check format build clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# constraints.txt pins the tested versions; without it pip may fetch gigabytes of CUDA packages.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python %d.%d is too old, 3.11 or newer is needed. \
	Name one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[onnx,gguf]' \
		pytest pytest-xdist hypothesis ruff ty import-linter
	touch $@

demo: .venv/installed  ## the whole path in minutes: rows, training, evaluation, release
	.venv/bin/st-llm-embed run demo --output-dir runs/demo

test: .venv/installed-dev  ## all tests but those of test-full-scale
	.venv/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-unit: .venv/installed-dev  ## the tests that take seconds
	.venv/bin/pytest --numprocesses 2 --dist loadfile -m "not integration"

test-full-scale: .venv/installed-dev  ## each reproduction script's first step with a 7B model's shapes (minutes)
	.venv/bin/pytest -m full_scale

check: .venv/installed-dev  ## lint, format, types, import order
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/ty check --python .venv st_llm_embed
	.venv/bin/lint-imports

format: .venv/installed-dev  ## format, and apply automatic fixes
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

test-lowest:  ## the unit tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip --disable-pip-version-check install --quiet --constraint constraints-lowest.txt --editable '.[onnx,gguf]' \
		pytest hypothesis
	.venv-lowest/bin/pytest -m "not integration" -W default

test-compat: .venv/installed-dev  ## our saved models in sentence-transformers 5.1.2 and transformers 4.57.6
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/pip --disable-pip-version-check install --quiet \
		torch==2.13.0 sentence-transformers==5.1.2 transformers==4.57.6
	.venv/bin/pytest -m compat

# If it cannot be built, the tests are skipped with the reason.
test-llamacpp: .venv/installed-dev  ## our GGUF files in llama.cpp, built from source (about 20 minutes)
	$(PYTHON) -m venv .venv-llamacpp
	-CMAKE_ARGS="-DLLAVA_BUILD=OFF" .venv-llamacpp/bin/pip --disable-pip-version-check install --quiet \
		--no-binary llama-cpp-python llama-cpp-python==0.3.36
	.venv/bin/pytest -m llamacpp

test-clients: .venv/installed-dev  ## the cards' code for LangChain and LlamaIndex
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip --disable-pip-version-check install --quiet torch==2.13.0 sentence-transformers==6.2.0 \
		langchain-huggingface==1.2.3 llama-index-embeddings-huggingface==0.8.0
	.venv/bin/pytest -m clients

build: .venv/installed-dev  ## wheel and source distribution
	$(PIP) install --quiet build
	.venv/bin/python -m build

clean:  ## remove everything that the targets created, except runs/
	rm -rf .venv .venv-lowest .venv-compat .venv-llamacpp .venv-clients dist build .pytest_cache .ruff_cache
