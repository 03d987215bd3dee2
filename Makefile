# `make demo`, `make webcam` and `make test` work on a fresh machine: they make their own environment in .venv.
# PYTHON=python3.12 chooses another Python, TESTS=tests/test_gram_matrix.py fewer tests.

PYTHON ?= python3
TESTS ?= tests
OUT ?= output/gpu-check
WORKERS ?= 2
CASES ?= 10000
SEED ?= 0
SANITIZER ?= address
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
NATIVE := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f)
CXX_FILES := $(shell find csrc benchmarks tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.NOTPARALLEL:
.PHONY: help demo webcam serve test fuzz huge sanitize bench docs hub-kernel build gpu-check lint format clean

help:
	@echo "make demo    install into .venv, then paint a photo in the bundled styles"
	@echo "make webcam  install into .venv, then paint the camera live; ARGS='--camera pattern' for options"
	@echo "make serve   install into .venv, then open a page that paints the camera, photos and videos"
	@echo "make test    install into .venv, then run the tests"
	@echo "make fuzz    random cases of every op; CASES=1000 SEED=1 for fewer and other ones"
	@echo "make huge    norms and Gram matrices of more than 2^31 elements; 14 GB of memory"
	@echo "make sanitize  the ops' tests under sanitizers; SANITIZER=thread for ThreadSanitizer"
	@echo "make bench   a few cases of each benchmark but live, into output/bench"
	@echo "make docs    the documentation as pages, into output/docs; a warning is an error"
	@echo "make hub-kernel  the kernel for Hugging Face kernels, into output/hub-kernel"
	@echo "make build   install into .venv: again after a change under csrc/"
	@echo "make gpu-check OUT=folder  what only a GPU can check, with PYTHON's own PyTorch; no .venv"
	@echo "make format  format the code;  make lint  check it"
	@echo "make clean   remove what was built, and .venv"

demo: .venv/built
	@mkdir -p output
	@$(BIN)/stylekernels demo --output output/demo.png
	@echo "The picture is $(CURDIR)/output/demo.png"

# Every time it looks whether OpenCV has windows: that of the tools has none, and may come later.
webcam: .venv/built
	@$(BIN)/python -c 'import av, pyvirtualcam; import cv2; exit(not cv2.currentUIFramework())' \
	    2>/dev/null || { echo "Installing OpenCV with windows into .venv" && \
	    $(BIN)/python -m pip uninstall --quiet --yes opencv-python-headless && \
	    $(PIP) --requirement requirements-webcam.txt --force-reinstall --no-deps && \
	    $(PIP) --constraint requirements-dev.txt av; }
	@$(BIN)/stylekernels webcam $(ARGS)

serve: .venv/built
	@$(BIN)/stylekernels serve --open

test: .venv/tools .venv/built
	$(BIN)/python -m pytest -n $(WORKERS) -p no:benchmark $(TESTS)

fuzz: .venv/tools .venv/built
	STYLEKERNELS_FUZZ_CASES=$(CASES) $(BIN)/python -m pytest -n $(WORKERS) -p no:benchmark \
	    --hypothesis-seed=$(SEED) $(wildcard tests/test_fuzz_*.py)

huge: .venv/tools .venv/built
	$(BIN)/python -m pytest -p no:benchmark -m huge tests/test_huge_planes.py

sanitize: .venv/tools .venv/built
	$(BIN)/python .ci/sanitize.py $(SANITIZER) $(ARGS)

bench: .venv/tools .venv/built
	@mkdir -p output/bench
	@for suite in ops model networks train; do \
	    $(BIN)/python -m benchmarks $$suite --quick --json output/bench || exit; done

docs: .venv/tools
	@$(PIP) --requirement requirements-docs.txt
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The first page is $(CURDIR)/output/docs/index.html"

hub-kernel:
	@rm -rf output/hub-kernel
	@$(PYTHON) hub/generate.py output/hub-kernel
	@echo "The kernel is in $(CURDIR)/output/hub-kernel"

build: .venv/tools .venv/built

# Installs nothing: it is for machines with a GPU and no network. REHEARSE=1 runs it on the CPU.
gpu-check:
	@$(PYTHON) .ci/gpu_check.py --out $(OUT) $(if $(REHEARSE),--rehearse)

lint: .venv/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: .venv/tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The files `installed`, `built` and `tools` only say when that was last done. The demo needs
# neither Triton nor the tools, which are half of the download: they wait for the tests.
.venv/installed: requirements-dev.txt
	@echo "Installing PyTorch into .venv: a minute or two, once"
	@$(PYTHON) -m venv .venv
	@$(PIP) --constraint requirements-dev.txt torch setuptools cmake ninja pybind11
	@touch $@

# pip hides what the compilers say: setup.py compiles first, and pip finds the result.
.venv/built: .venv/installed $(NATIVE)
	@echo "Building stylekernels: minutes the first time, and again only when csrc/ changes"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@$(PIP) --constraint requirements-dev.txt --no-build-isolation --editable ".[demo,serve]"
	@touch $@

.venv/tools: .venv/installed requirements-networks.txt
	@echo "Installing the tools for tests into .venv: a minute or two, once"
	@$(PIP) --requirement requirements-dev.txt
	@$(PIP) --requirement requirements-networks.txt --no-deps
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
	rm -f stylekernels/*.so stylekernels/*not_built.txt
