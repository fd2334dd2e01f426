# make demo and make test need Python 3.11 or newer, git and make; each makes its own environment.
PYTHON ?= python3
PIP := .venv/bin/pip --disable-pip-version-check

.PHONY: help demo test test-unit test-lowest test-compat test-llamacpp test-clients check format build clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# constraints.txt pins the tested versions; without it pip may fetch gigabytes of CUDA packages.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[onnx,openvino,gguf,search]' \
		pytest pytest-xdist hypothesis ruff ty import-linter
	touch $@

demo: .venv/installed  ## the whole path in minutes: rows, training, evaluation, a folder that SentenceTransformer loads
	.venv/bin/st-llm-embed run demo --output-dir runs/demo

test: .venv/installed-dev  ## all tests
	.venv/bin/pytest --numprocesses 2 --dist loadfile

test-unit: .venv/installed-dev  ## the tests that take seconds
	.venv/bin/pytest --numprocesses 2 --dist loadfile -m "not integration"

check: .venv/installed-dev  ## lint, format, types and the order of imports
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/ty check --python .venv st_llm_embed
	.venv/bin/lint-imports

format: .venv/installed-dev  ## mend what can be mended by a program
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

test-lowest:  ## the unit tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip --disable-pip-version-check install --quiet --constraint constraints-lowest.txt --editable '.[onnx,openvino,gguf]' \
		pytest hypothesis
	.venv-lowest/bin/pytest -m "not integration" -W default

test-compat: .venv/installed-dev  ## what we save, read by sentence-transformers 5.1.2 and transformers 4.57.6
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/pip --disable-pip-version-check install --quiet \
		torch==2.13.0 sentence-transformers==5.1.2 transformers==4.57.6
	.venv/bin/pytest -m compat

# Where it cannot be built, the tests say so and are skipped.
test-llamacpp: .venv/installed-dev  ## our GGUF files, read by llama.cpp, built from source (about 20 minutes)
	$(PYTHON) -m venv .venv-llamacpp
	-CMAKE_ARGS="-DLLAVA_BUILD=OFF" .venv-llamacpp/bin/pip --disable-pip-version-check install --quiet \
		--no-binary llama-cpp-python llama-cpp-python==0.3.36
	.venv/bin/pytest -m llamacpp

test-clients: .venv/installed-dev  ## the code on cards for LangChain and LlamaIndex
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip --disable-pip-version-check install --quiet torch==2.13.0 sentence-transformers==6.2.0 \
		langchain-huggingface==1.2.3 llama-index-embeddings-huggingface==0.8.0
	.venv/bin/pytest -m clients

build: .venv/installed-dev  ## wheel and source distribution
	$(PIP) install --quiet build
	.venv/bin/python -m build

clean:  ## remove what the targets made, runs/ excepted
	rm -rf .venv .venv-lowest .venv-compat .venv-llamacpp .venv-clients dist build .pytest_cache .ruff_cache
