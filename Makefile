# make train   everything from a fresh clone to a trained Mask R-CNN, its AP and pictures
# make test    format, lint, types, tests
#
# Variables: PYTHON (makes the environment), RUNS (where runs go), DATA (where the generated data set goes).

PYTHON ?= python3
RUNS ?= runs
DATA ?= data/shapes

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install train ui test lint clean

help:
	@echo "make train   install, generate the shapes data set, train and evaluate (RUNS=$(RUNS) DATA=$(DATA))"
	@echo "make ui      open the MLflow page of the runs in $(RUNS)"
	@echo "make test    format, lint, types, tests"
	@echo "make lint    format, lint, types"
	@echo "make clean   remove $(VENV) and caches; $(RUNS) and data stay"

install: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.11" >&2; \
	  exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): minutes, and some gigabytes where torch brings CUDA"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# val is written last: with it the data set is whole
$(DATA)/val/manifest.json: | $(INSTALLED)
	@$(BIN)/maskrcnn shard shapes --out $(DATA)

train: $(INSTALLED) $(DATA)/val/manifest.json
	@$(BIN)/maskrcnn train configs/shapes/quickstart.yaml \
	  data.train=$(DATA)/train data.val=$(DATA)/val cluster.runs_dir=$(RUNS)

ui: $(INSTALLED)
	@$(BIN)/maskrcnn ui --runs $(RUNS)

lint: $(INSTALLED)
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff --quiet .; echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

test: lint
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

clean:
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find model pipeline jobs tests -type d -name __pycache__ -prune -exec rm -rf {} +
	@echo "removed $(VENV) and caches; kept $(RUNS) and data (delete them by hand if you want to)"
