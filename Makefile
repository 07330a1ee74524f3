# Every target sets itself up. Override: PYTHON=python3.12, VENV=/path, SPLIT=1, SEED=3.
PYTHON ?= python3
VENV ?= .venv
SPLIT ?= 0
SEED ?= 0

PYVER := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS := constraints-$(PYVER).txt
# The stamp carries the Python version: another PYTHON builds the environment anew.
STAMP := $(VENV)/.ready-$(PYVER)
RUN := $(VENV)/bin/python
# A file's tests share fixtures, so one worker takes them all, in the order of conftest.py.
PYTEST := $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export MUJOCO_GL ?= osmesa

.DEFAULT_GOAL := help
.PHONY: help setup system check test test-slow demo demo-arms clean

help:
	@echo "make demo [SPLIT=0 SEED=0] | test | check | test-slow | demo-arms | setup | clean"

ifeq ($(filter py311 py312,$(PYVER)),)
setup $(STAMP) system:
	@echo "setup: '$(PYTHON)' is $(or $(PYVER),not there); vla_jax needs Python 3.11 or 3.12 (make PYTHON=python3.12)" >&2; exit 1
else
setup: system $(STAMP)

system:
	@tools/setup_system.sh $(PYTHON)

# constraints-*.txt list every package, so nothing is resolved here; `pip check` judges the result.
$(STAMP): $(CONSTRAINTS) setup.py | system
	@test -f $@ || $(VENV)/bin/python -c 'import sys; sys.exit("py%d%d" % sys.version_info[:2] != "$(PYVER)")' 2>/dev/null \
	  && $(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps -r $(CONSTRAINTS)
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(RUN) -m pip check
	@rm -f $(VENV)/.ready-*; touch $@
endif

check: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(PYTEST) -q -m "not slow and not sim and not mesh"

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m slow

demo: setup
	$(RUN) tools/demo.py --split $(SPLIT) --seed $(SEED) --out runs/demo

demo-arms: setup
	$(RUN) tools/demo.py --split $(SPLIT) --seed $(SEED) --arms --out runs/demo-arms

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
