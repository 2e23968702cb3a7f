# make lab   set up, then JupyterLab on the quickstart       make test  set up, then the tests
# make tour  all notebooks without a screen (PROFILE=…)      make bench the benchmark table
# make findings ROW=9   one row of the paper in miniature again (SMOKE=1: only to see that it runs; no ROW: all of them)
# TORCH_INDEX=https://download.pytorch.org/whl/cpu spares a machine without a GPU the CUDA download.

PYTHON ?= python3
PROFILE ?= smoke
TORCH_INDEX ?=
VENV := .venv
export OMP_WAIT_POLICY ?= PASSIVE
READY := $(VENV)/.ready
BIN := $(VENV)/bin
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab test tour bench findings setup

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tess2lite needs Python 3.11 or newer; give one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
ifeq ($(TORCH_INDEX)$(shell uname -s)$(shell command -v nvidia-smi),Linux)
	@echo "No NVIDIA GPU found. To spare the CUDA download, stop this (Ctrl-C) and say:"
	@echo "  make $(MAKECMDGOALS) TORCH_INDEX=https://download.pytorch.org/whl/cpu"
endif
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(BIN)/python -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch
endif
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab,eval,test]'
	@touch $@

lab: $(READY)
	$(BIN)/jupyter lab --ip=127.0.0.1 $(AS_ROOT) notebooks/00_quickstart.ipynb

test: $(READY)
	$(BIN)/python -m pytest

tour: $(READY)
	TESS2LITE_PROFILE=$(PROFILE) $(BIN)/python -m pytest --nbmake --nbmake-timeout=900 notebooks

bench: $(READY)
	$(BIN)/python tests/benchmarks/sampling.py
	$(BIN)/python tests/benchmarks/guidance.py
	$(BIN)/python tests/benchmarks/training.py

findings: $(READY)
	$(BIN)/python -m tess2lite_course.experiments.runner $(ROW) $(if $(SMOKE),--smoke)
