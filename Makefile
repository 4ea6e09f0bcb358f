# make help lists the targets. PYTHON=python3.12 make setup picks another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow smoke lint format browser docs slurm bench torture soak gpu-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## create .venv and install relgan with its development tools

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; try PYTHON=python3.12 make setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(READY)

train: setup ## train the default: ragan on stacked_digits (ARGS="loss=sgan" adds options)
	$(BIN)/relgan-train $(ARGS)

# A file at a time on each core: files share what is costly to make.
PARALLEL := -n auto --dist loadfile

test: setup ## run the test suite (under 4 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-slow: setup ## run the slow tests too
	$(BIN)/python -m pytest -m '' --timeout 1800 $(ARGS)

smoke: setup ## run every experiment at scale=smoke, on pictures of noise
	$(BIN)/python -m pytest -m '' -v --timeout 600 --durations 0 -k smoke_really_runs tests/test_experiments.py $(ARGS)

lint: setup ## ruff, format check, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

browser: ## install chromium, which the tests of the comparison page drive (Debian, Ubuntu; as root)
	@if command -v chromium >/dev/null; then echo "chromium is installed"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -q update && apt-get install -y -q --no-install-recommends chromium; \
	else echo "install chromium (apt-get install chromium), or set CHROMIUM to a Chrome; without it those tests are skipped"; fi

docs: setup ## build the documents as a site in site/, with what is made from the code
	$(BIN)/python docs/_make/configuration.py
	$(BIN)/python docs/_make/curves.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

slurm: ## install a Slurm of one node, which slow tests start and stop (Debian, Ubuntu; as root)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -q update && apt-get install -y -q --no-install-recommends slurm-wlm slurmdbd munge mariadb-server; \
	else echo "install slurm-wlm, slurmdbd, munge and mariadb-server; without them those tests are skipped"; fi

bench: setup ## measure the training step, the scores and the data path
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.scores
	$(BIN)/python -m benchmarks.data

torture: setup ## stop a small training fifty times at random instants, by SIGKILL, SIGHUP, SIGTERM (ARGS="--seed 1 --kills 10")
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py $(ARGS)

MINUTES ?= 20
soak: setup ## train and score for 20 minutes and watch memory, open files and speed (MINUTES=5)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

gpu-check: setup ## on a CUDA machine, at most ten minutes: is it right, is it fast (IMAGES=cifar10.zip)
	$(BIN)/python -m benchmarks.gpu_check $(if $(IMAGES),--images $(IMAGES)) $(ARGS)

clean: ## remove what make created, but not outputs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
