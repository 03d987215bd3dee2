# `make demo` and `make test` work on a fresh machine: they make their own environment in .venv.
# PYTHON=python3.12 chooses another Python, TESTS=tests/test_gram_matrix.py fewer tests.

PYTHON ?= python3
TESTS ?= tests
WORKERS ?= 2

BIN := .venv/bin
NATIVE := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
CXX_FILES := $(shell find csrc benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: help demo test build lint format clean

help:
	@echo "make demo    install into .venv, then paint a photo in the bundled styles"
	@echo "make test    install into .venv, then run the tests"
	@echo "make build   install into .venv: again after a change under csrc/"
	@echo "make format  format the code;  make lint  check it"
	@echo "make clean   remove what was built, and .venv"

demo: .venv/built
	@mkdir -p output
	@$(BIN)/stylekernels demo --output output/demo.png
	@echo "The picture is $(CURDIR)/output/demo.png"

test: .venv/built
	$(BIN)/python -m pytest -n $(WORKERS) -p no:benchmark $(TESTS)

build: .venv/built

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The files `installed` and `built` only say when that was last done.
.venv/installed: requirements-dev.txt
	@echo "Installing PyTorch and the tools into .venv: a few minutes, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv/built: .venv/installed $(NATIVE)
	@echo "Building stylekernels: a minute or two, and again only when csrc/ changes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --editable .
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
	rm -f stylekernels/*.so stylekernels/not_built.txt
