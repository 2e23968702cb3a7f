# make lab   set up, then JupyterLab on the quickstart       make test  set up, then the tests
# make tour  all notebooks without a screen (PROFILE=…)      make bench the benchmark table
# make findings ROW=9   one row of the paper in miniature again (SMOKE=1: only to see that it runs; no ROW: all of them)
# make page  one offline HTML file in which a bundled model writes: build/page.html
#            (MODEL=tinytown-instruct answers questions)
# make site  notebooks, explorer and reference as one static site in build/site, with the page if it was made
# TORCH_INDEX=https://download.pytorch.org/whl/cpu spares a machine without a GPU the CUDA download.

SHELL := bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
PROFILE ?= smoke
MODEL ?= tinytown-base
TORCH_INDEX ?=
VENV := .venv
export OMP_WAIT_POLICY ?= PASSIVE
READY := $(VENV)/.ready
BIN := $(VENV)/bin
UV := $(shell command -v uv)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-compile -c constraints.txt
EXTRAS := lab,eval,site,test
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# Runs a command and shows only its large downloads and stages; if it fails, the end of its log.
define shown
	@{ $(1); } 2>&1 | tee $(VENV)/setup.log | \
	  awk '/MB\)/ {print "  " $$1, $$2, $$3, $$4} /^Installing/ {print "  Installing", NF - 3, "packages"} \
	    /^(Resolved|Prepared|Installed)/ {print "  " $$0} {fflush()}' || \
	  { tail -n 20 $(VENV)/setup.log; exit 1; }
endef

.PHONY: lab test tour bench findings page setup site

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tess2lite needs Python 3.11 or newer; give one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
ifeq ($(TORCH_INDEX)$(shell uname -s)$(shell command -v nvidia-smi),Linux)
	@echo "No NVIDIA GPU found. To spare the CUDA download, stop this (Ctrl-C) and say:"
	@echo "  make $(MAKECMDGOALS) TORCH_INDEX=https://download.pytorch.org/whl/cpu"
endif
	@echo "1/3 creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/3 installing torch with pip"
	$(call shown,$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch)
	@echo "3/3 installing everything else with $(if $(UV),uv,pip)"
	$(call shown,$(if $(UV),$(UV) pip install --python $(BIN)/python -c constraints.txt,$(PIP)) -e '.[$(EXTRAS)]')
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

site: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/site
	@echo "open build/site/index.html"

page: $(READY)
	@mkdir -p build
	$(BIN)/python -m tess2lite.viz.live build/page.html model=$(MODEL)
