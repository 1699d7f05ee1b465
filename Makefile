# `make build` and `make test` do all the set-up themselves; a second run installs nothing.
TARGET ?= rpi4
MODEL ?= mobilenetv3
REGISTRY ?=
ARGS ?=
PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
SIGNING := $(VENV)/signing
RESOLVE = $(VENV)/bin/uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help setup build publish plan doctor test soak check bench error-rates zoo lock clean clean-artifacts

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: TARGET=$(TARGET) MODEL=$(MODEL) REGISTRY=$(REGISTRY) ARGS='any Hydra override' PYTHON=$(PYTHON)"

setup: $(READY) ## virtual environment with every dependency, by hash

# uv comes first, from its own hash-locked file, because it installs the rest in seconds. Modules are compiled to
# bytecode once here: it halves the import time of torch and its like in every worker process that follows.
$(READY): pyproject.toml requirements/uv.txt requirements/bootstrap.txt requirements/build.txt requirements/signing.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on PATH; install Python 3.11 or say make PYTHON=/path/to/python3.11" >&2; exit 4; }
	@echo "setting up $(VENV) (once; a few minutes on a slow connection)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(VENV)/bin/uv pip install --quiet --python $(RUN) --require-hashes -r requirements/bootstrap.txt
	@$(VENV)/bin/uv pip install --quiet --python $(RUN) --require-hashes --no-build-isolation --compile-bytecode -r requirements/build.txt
	@$(VENV)/bin/uv pip install --quiet --python $(RUN) --no-build-isolation --no-deps --editable .
	@$(VENV)/bin/uv venv --quiet --allow-existing --python $(RUN) $(SIGNING)
	@$(VENV)/bin/uv pip install --quiet --python $(SIGNING)/bin/python --require-hashes --compile-bytecode -r requirements/signing.txt
	@touch $(READY)

build: $(READY) ## the artifact for TARGET and MODEL (default rpi4, mobilenetv3)
	@$(RUN) -m compiler target=$(TARGET) model=$(MODEL) $(ARGS)

publish: $(READY) ## the same, and sends it to REGISTRY (file:PATH or oci://HOST/REPOSITORY; default a folder in artifacts)
	@$(RUN) -m compiler target=$(TARGET) model=$(MODEL) publish=true $(if $(REGISTRY),registry=$(REGISTRY)) $(ARGS)

plan: $(READY) ## what a build would run, and why; runs nothing
	@$(RUN) -m compiler plan target=$(TARGET) model=$(MODEL) $(ARGS)

doctor: $(READY) ## checks this machine
	@$(RUN) -m compiler doctor target=$(TARGET)

# Two files of tests at a time, then what may have nothing beside it; 5 is pytest's word for no test chosen by ARGS.
# Compiled once, because every test starts processes that write no bytecode of their own.
test: $(READY) ## every test but the long ones, real builds among them
	@$(RUN) -m compileall -q compiler
	@$(RUN) -m pytest -m "not soak and not alone" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS) || [ $$? = 5 ]
	@$(RUN) -m pytest -m "alone and not soak" $(ARGS) || [ $$? = 5 ]

soak: $(READY) ## the long tests
	@$(RUN) -m pytest -m soak $(ARGS)

check: $(READY) ## ruff, mypy strict, import rules
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache

bench: $(READY) ## prints figures about the compiler itself
	@$(RUN) benchmarks/overhead.py
	@$(RUN) benchmarks/straight_line.py
	@$(RUN) benchmarks/store.py

error-rates: $(READY) ## how often the measurement is wrong (40 minutes on an idle machine)
	@$(RUN) benchmarks/error_rates.py
	@$(RUN) benchmarks/against_benchmark_app.py

zoo: $(READY) ## trains the demo weights again (two minutes)
	@$(RUN) -m compiler.zoo.digits

# Every extra but signing, whose requirements contradict those of build: it has an environment, and a file, of its own.
lock: $(VENV)/bin/uv ## resolves the dependencies again, with hashes and without addresses
	@$(RESOLVE) --extra tflite --extra openvino --extra onnxruntime --extra build --group dev pyproject.toml -o requirements/build.txt
	@$(RESOLVE) --extra signing --no-emit-package numpy pyproject.toml -o requirements/signing.txt
	@printf 'setuptools\nwheel\nhatchling\neditables\n' | $(RESOLVE) -c requirements/build.txt - -o requirements/bootstrap.txt
	@printf 'uv\n' | $(RESOLVE) - -o requirements/uv.txt

$(VENV)/bin/uv: requirements/uv.txt
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt

clean: ## removes the environment and caches, keeps artifacts
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .hypothesis
	find compiler tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

clean-artifacts: ## removes every built artifact and the store
	find artifacts -mindepth 1 -maxdepth 1 ! -name README.md -exec chmod -R u+w {} + -exec rm -rf {} +
