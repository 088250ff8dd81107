# Everything a person needs: `make demo` and `make test` set up what they use by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 5000

.PHONY: help demo ui pictures test test-all check fmt bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(STAMP)  ## train MNIST on an emulated instance, start to end
	@$(BIN)/mlflow-gce emulator exec --root .gce-emulator -- \
	    $(BIN)/mlflow run . --backend gce -P epochs=3
	@echo "compare runs in MLflow's UI: make ui"

ui: $(STAMP)  ## MLflow's UI on the demo's runs, artifacts included, at http://127.0.0.1:5000
	@echo "http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	@$(BIN)/mlflow-gce emulator exec --root .gce-emulator -- \
	    $(BIN)/mlflow server --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(PORT) --workers 1

pictures: $(STAMP)  ## docs/images, anew, by the browser tests
	@PICTURES=docs/images $(BIN)/pytest -q tests/browser

test: check  ## all tests: unit tests first, then the flows on the emulator
	@$(BIN)/pytest -q -n auto --dist loadgroup

test-all: check  ## the same with every cell of the matrices and the long tests; takes hours
	@$(BIN)/pytest -q -n auto --dist loadgroup --whole

check: $(STAMP)  ## formatting, lint, strict types
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

fmt: $(STAMP)  ## format and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(STAMP)  ## side-by-side measurements, written to bench/RESULTS.md
	@for script in $(filter-out bench/record.py,$(wildcard bench/*.py)); do \
	    echo "== $$script"; RECORD=1 $(BIN)/python $$script || exit 1; done

clean:  ## remove what demo and test left; keep the virtual environment
	rm -rf .gce-emulator mlflow.db mlruns outputs multirun .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 demo")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), once: PyTorch and MLflow are large"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@
