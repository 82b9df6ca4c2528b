# Two commands do everything on a fresh machine with Python 3.11 to 3.13 and make:
#   make quickstart    makes .venv, installs, runs the main job, prints the table and the path of the page
#   make test          makes .venv if missing, installs, runs the tests

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
EXTRAS := test,speech-synthesis,pocketsphinx,lhotse,bench

.PHONY: quickstart showcase setup test test-slow format check audit bench scale chaos clean

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, got {v[0]}.{v[1]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.quickstart: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing ctxasr_ray and what the quickstart needs into .venv (a few minutes, once) ..."
	$(PIP) -e ".[speech-synthesis]"
	@touch $@

.venv/.setup: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing ctxasr_ray with all extras for tests and benchmarks into .venv (a few minutes, once) ..."
	$(PIP) -e ".[$(EXTRAS)]"
	@touch $@ .venv/.quickstart

setup: .venv/.setup

quickstart: .venv/.quickstart
	$(BIN)/ctxasr quickstart --root runs/quickstart

showcase: .venv/.quickstart
	$(BIN)/ctxasr evaluate showcase --root runs/showcase

test: .venv/.setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-slow: .venv/.setup
	$(BIN)/python -m pytest -m "slow and not gpu"

format: .venv/.setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: .venv/.setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: .venv/.setup
	$(BIN)/python .ci/audit.py

bench: .venv/.setup
	@failed=; for script in benchmarks/[a-z]*.py; do case $$script in */figures.py|*_peer.py|*/chaos.py|*/study_rare_words.py|*/study_adaptation.py) continue;; esac; \
		echo "== $$script"; $(BIN)/python $$script || failed="$$failed $$script"; done; \
		[ -z "$$failed" ] || { echo "== these did not end well:$$failed"; exit 1; }

scale: .venv/.setup
	$(BIN)/python benchmarks/scale.py 100000

chaos: .venv/.setup
	$(BIN)/python benchmarks/chaos.py

clean:
	rm -rf .venv build runs *.egg-info
