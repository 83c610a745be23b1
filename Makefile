# Every command that the README names. `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The stack is tested on Python 3.11, so that one is taken where there are several.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SEEDS ?= 0 1 2
TEST_PROCESSES ?= 2
STUDY_SEEDS := $(SEEDS:%=study-seed-%)
BENCHMARKS := $(filter-out benchmarks/study.py benchmarks/compare.py benchmarks/_%.py benchmarks/__init__.py,$(wildcard benchmarks/*.py))

# A thread that spins while it waits takes the core from the one it waits for.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart study $(STUDY_SEEDS) test test-slow quality style bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv and install the tested stack, without a GPU and without torchvision

# torch stands in the same command as what depends on it: asked for alone or later, a resolver may fetch another build.
# lmms-eval comes last and without its own dependencies, because they bring a torchvision built for CUDA, which breaks
# Transformers on a CPU torch; the extra `eval-cpu` holds what of them is really imported.
$(STAMP): setup.py constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[eval-cpu,quality,similarity,test]" "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt --no-deps lmms-eval
	touch $(STAMP)

# Nothing below needs the Hub: the images are composed from scans that scikit-learn ships, the models are built here.
quickstart study $(STUDY_SEEDS) test test-slow: export HF_HUB_OFFLINE := 1

# Two threads: a model this small gains nothing from more.
quickstart: export OMP_NUM_THREADS ?= 2
quickstart: $(STAMP)  ## SICOG from base model to report on the digits world
	$(BIN)/python recipes/self_improve.py --config recipes/digits/self_improve.yaml

study: $(STUDY_SEEDS)  ## all controls, three seeds, then one table (make -j2 study: two seeds at a time)
	$(BIN)/python benchmarks/study.py $(SEEDS:%=runs/study/seed-%)

# One thread each, so that a seed computes the same sums alone and beside another.
$(STUDY_SEEDS): export OMP_NUM_THREADS := 1
$(STUDY_SEEDS): study-seed-%: $(STAMP)
	$(BIN)/python recipes/self_improve.py --config recipes/digits/self_improve.yaml \
		--controls annotated_only random_candidate oracle --seed $* --output_dir runs/study/seed-$*

test test-slow: export OMP_NUM_THREADS := 1
test: $(STAMP)  ## the offline tests (PYTEST_ARGS="-k curation" passes options on)
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

test-slow: $(STAMP)  ## the tests that take minutes; installs bitsandbytes, Ray, and DeepSpeed, which needs a C++ compiler
	$(BIN)/python -m pip install -c constraints.txt -e ".[deepspeed,qlora,ray]" "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

quality: $(STAMP)  ## check style and formatting of all Python folders
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

style: $(STAMP)  ## repair what `quality` complains about, where a tool can
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: export HF_HUB_OFFLINE := 1
bench: $(STAMP)  ## run every benchmark (BENCH_ARGS=--quick for a short look)
	@test -n "$(strip $(BENCHMARKS))" || { echo "there is no benchmark to run in benchmarks/" >&2; exit 1; }
	set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script $(BENCH_ARGS); done

clean:  ## remove .venv, caches and build leftovers; runs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache
	find src recipes benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
