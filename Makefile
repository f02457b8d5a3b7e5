# Set-up and checks. Needs Python 3.10 or newer with pip, venv and headers, and a C compiler; everything else
# goes into .venv. Another Python: make PYTHON=python3.13 build (after `make clean` when .venv exists).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# protoc and cython-lint find the programs that they start by PATH.
WITH_PATH := PATH="$(CURDIR)/$(BIN):$$PATH"
PROTO := $(WITH_PATH) $(BIN)/python proto/generate.py
PYX := $(wildcard src/liftbridge/*.pyx src/liftbridge/*/*.pyx)
SOURCES := $(PYX) $(wildcard src/liftbridge/*.pxd src/liftbridge/*.pxi src/liftbridge/*/*.pxi src/liftbridge/*.h) setup.py pyproject.toml

.PHONY: help run build dev test test-the-tests torture sim chaos sim-bugs fuzz compatibility check proto bench bench-check bench-baseline wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make build   make .venv with liftbridge in it"
	@echo "make run     build, and start a server with an embedded NATS server (liftbridge dev)"
	@echo "make test    run the tests"
	@echo "make test-the-tests  plant bugs in a copy; the tests must catch each (CONTRIBUTING.md)"
	@echo "make torture kills, disk errors and losses of power under the log, for long (CONTRIBUTING.md)"
	@echo "make sim     run clusters under simulated faults, SEEDS=10000 of them, KIND=consensus for the core alone (CONTRIBUTING.md)"
	@echo "make chaos   real servers under faults for MINUTES=5, checked by what clients saw (CONTRIBUTING.md)"
	@echo "make sim-bugs  plant bugs in the cores; simulated runs must find each (CONTRIBUTING.md)"
	@echo "make compatibility  run the tests of each documented feature, write docs/compatibility.md"
	@echo "make fuzz    feed mutated input to all that reads strangers' bytes, FUZZ_SECONDS=60 each (CONTRIBUTING.md)"
	@echo "make check   format, lint, types, layers, generated code"
	@echo "make proto   write src/liftbridge/proto from proto/*.proto"
	@echo "make bench   measure this machine (benchmarks/README.md)"
	@echo "make bench-check  what a message costs the server, against benchmarks/baseline.json"
	@echo "make bench-baseline  write that file anew"
	@echo "make wheel   build sdist and wheel into dist, try the wheel in a clean environment"
	@echo "make clean   remove everything that was made, .venv too; ./data stays"

run: build
	$(BIN)/liftbridge dev

build: $(VENV)/.built

dev: $(VENV)/.test $(VENV)/.check

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "pip>=25.1"
	touch $@

$(VENV)/.built: $(VENV)/.made $(SOURCES)
	$(PIP) install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.built
	$(PIP) install --quiet --group test --group proto
	touch $@

$(VENV)/.check: $(VENV)/.built
	$(PIP) install --quiet --group check --group proto --group wheel
	touch $@

test: $(VENV)/.test
	$(BIN)/python -m pytest

# With the Python and Cython of `make check`, as the copies are built without pip.
test-the-tests: $(VENV)/.test $(VENV)/.check
	$(BIN)/python tests/sabotage/run.py --table docs/planted-bugs.md

# Each round has a seed of its own making; a seed in the environment repeats what it did.
torture: export LIFTBRIDGE_TORTURE_ROUNDS ?= 50
torture: $(VENV)/.test
	$(BIN)/python -m pytest -v -rP tests/log/test_log_disk.py tests/log/test_log_power_loss.py \
	  tests/log/test_log_kill_everywhere.py tests/log/test_log_errors_everywhere.py tests/log/test_log_awake.py \
	  tests/log/test_log_begin_disk.py \
	  tests/log/test_log_kill9.py

# Profiles take turns; FIRST is where to begin, as the same seeds do the same again.
SEEDS ?= 10000
FIRST ?= 0
KIND ?= cluster
sim: build
	$(BIN)/liftbridge sim $(KIND) --seed $(FIRST) --seeds $(SEEDS)

MINUTES ?= 5
chaos: $(VENV)/.test
	$(BIN)/python tests/chaos/chaos.py --minutes $(MINUTES)

sim-bugs: $(VENV)/.test
	$(BIN)/python tests/sim/sensitivity.py --table docs/simulated-bugs.md

compatibility: $(VENV)/.test
	$(BIN)/python tests/conformance/compatibility.py docs/compatibility.md

# Where there is no wheel of atheris, or no clang, it says so.
fuzz: $(VENV)/.test
	$(PIP) install --quiet --only-binary atheris --group fuzz || true
	$(BIN)/python tests/fuzz/fuzzer.py

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(WITH_PATH) $(BIN)/cython-lint src/liftbridge
	$(PROTO) --check

proto: $(VENV)/.check
	$(PROTO)

bench: build
	$(BIN)/python benchmarks/run.py

# Not among the tests: it takes minutes, and what it compares with is of one machine (benchmarks/README.md).
bench-check: build
	$(BIN)/python benchmarks/check.py

bench-baseline: build
	$(BIN)/python benchmarks/check.py --write

wheel: $(VENV)/.check
	$(BIN)/python .ci/wheel.py

clean:
	rm -rf $(VENV) build dist src/liftbridge.egg-info
	rm -f $(PYX:.pyx=.c) src/liftbridge/*.so src/liftbridge/*/*.so
