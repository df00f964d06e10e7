# `make demo` and `make test` need Python >= 3.10, make and git; they make their own environment in .venv.
#
#   make demo                    shards, a small sweep, evaluation, a report page; another of weights that were
#                                trained longer (configs/pretrained), fine-tuned: minutes on two cores
#   make demo DIGITS=FOLDER      the same with MNIST's original idx files instead of scikit-learn's digits
#   make test                    the tests;  make test-all  the slow ones too;  make coverage  what they reach
#   make test TESTS=FOLDER       some of them; what pytest takes
#   make slurm-test              those on a real Slurm of this machine; slurm/devcluster/cluster install gets it
#   make check                   formatting, lint, types, spelling
#   make docs                    the documentation as a site, into site/html/
#   make bench                   measurements, into benchmarks/
#   make gpu                     on a CUDA device: the tests for it, the numbers, rates and memory of the models there
#   make wheels                  into wheels/: what a machine with a GPU and no network lacks beside its PyTorch
#   make gpu OFFLINE=wheels      there: no network and no .venv, with that machine's own Python
#
# The constraints pin a set of versions that was tested together. For another torch: make CONSTRAINTS=/dev/null ...

PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
DIGITS ?=
TESTS ?=
OFFLINE ?=
WHEELS_PYTHON ?= 3.12
OUT ?= runs/gpu
GPU_SECONDS ?= 480
GPU_OPTIONS ?=
BIN := .venv/bin
READY := .venv/ready
export OMP_NUM_THREADS ?= 1

ifeq ($(DIGITS),)
DEMO_STORE := stores/demo
DEMO_RUNS := runs
else
DEMO_STORE := stores/demo-mnist
DEMO_RUNS := runs/mnist
endif

# A virtual environment would not see the PyTorch of a machine without network: what it lacks goes into a folder.
SITE := .offline
GPU_READY := $(if $(OFFLINE),$(SITE)/ready,$(READY))
GPU_PYTHON := $(if $(OFFLINE),PYTHONPATH=$(CURDIR):$(CURDIR)/$(SITE) $(PYTHON),$(BIN)/python)

.PHONY: demo test test-all slurm-test coverage check format docs bench wheels gpu clean

$(READY): setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m shards convert moving-mnist $(DEMO_STORE) $(if $(DIGITS),--digits $(DIGITS)) \
		--modes 1 --size 24 --digit-size 15 --length 15 --train 3000 --val 64 --test 128
	$(BIN)/python launch/sweep.py configs/sweeps/demo.yaml --cluster local --runs $(DEMO_RUNS) \
		--set data.store=$(DEMO_STORE)
	$(BIN)/python launch/sweep.py configs/sweeps/pretrained.yaml --cluster local --runs $(DEMO_RUNS) \
		--set data.store=$(DEMO_STORE)
	$(BIN)/python launch/report.py $(DEMO_RUNS)/demo
	$(BIN)/python launch/report.py $(DEMO_RUNS)/pretrained

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gpu" $(TESTS)

test-all: $(READY)
	$(BIN)/python -m pytest -m "not gpu" -o faulthandler_timeout=3900

slurm-test: $(READY)
	$(BIN)/python -m pytest -m slurm -o faulthandler_timeout=3900

# Processes that tests kill leave no record: their last lines count as not reached.
coverage: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow and not gpu"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs . site/html

bench: $(READY)
	$(BIN)/python benchmarks/unroll.py
	$(BIN)/python benchmarks/shards.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/cell.py
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/zero.py
	$(BIN)/python benchmarks/slurm.py

wheels: $(READY)
	$(BIN)/python benchmarks/wheels.py wheels --python $(WHEELS_PYTHON)

$(SITE)/ready: $(wildcard $(OFFLINE)/*.whl)
	$(if $^,,$(error $(OFFLINE) has no wheels: make it by `make wheels` on a machine with a network))
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
		--upgrade --target $(SITE) $^
	@touch $@

# The tests are one of its parts, so that they can't take all of its time.
gpu: $(GPU_READY)
	$(GPU_PYTHON) benchmarks/gpu.py --seconds $(GPU_SECONDS) --out $(OUT) $(GPU_OPTIONS)

clean:
	rm -rf .venv $(SITE) wheels build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
