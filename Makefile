# Every target sets up all it needs, from a machine with Python 3.11 or later and make.
#   make test                      make demo ARGS="--quick"      make test PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest
PARALLEL := -n 2 --dist worksteal
NOTEBOOKS = $(wildcard notebooks/*.ipynb)
INSTALLED := $(VENV)/.installed
INSTALLED_LAB := $(VENV)/.installed-lab
INSTALLED_DOCS := $(VENV)/.installed-docs
BENCH_VENV := .venv-bench
INSTALLED_BENCH := $(BENCH_VENV)/.installed
SITE := docs/_build/html
# On a page an output is compared to the digits that are shown.
ON_PAGES := NORMALIZE_WHITESPACE NUMBER ELLIPSIS
NEEDS_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or later is needed, and $(PYTHON) is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
PAGES = README.md $(wildcard docs/*.md docs/guides/*.md docs/api/*.md)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format doctest check pyro-suite notebooks benchmarks bench lab docs browse figures pages clean

help:  ## Say what the targets are
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(INSTALLED)  ## Train a VAE on real digits under each loss (options in ARGS)
	$(PY) -m pyro_elbo $(ARGS)

test: doctest pages  ## Run every example and all tests but the slow ones
	$(PYTEST) $(PARALLEL) -m "not slow" $(ARGS)

lint: $(INSTALLED)  ## Check style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(INSTALLED)  ## Put the format right, and what style can be mended by itself
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

doctest: $(INSTALLED)  ## Run every example of the docstrings
	$(PYTEST) $(PARALLEL) --doctest-modules pyro_elbo

pages: $(INSTALLED)  ## Run every example of the README and the documentation
	$(PYTEST) $(PARALLEL) -o doctest_optionflags='$(ON_PAGES)' --doctest-glob='*.md' $(PAGES)

check: lint doctest pages docs  ## Run everything, the slow tests included, with coverage
	$(PYTEST) $(PARALLEL) --cov=pyro_elbo $(ARGS)

pyro-suite: $(INSTALLED)  ## Run Pyro's own tests with these losses (PYRO_TESTS=its checkout)
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(PY) -m pyro_suite $(PARALLEL) $(ARGS)

notebooks: $(INSTALLED)  ## Run the notebooks in full, keep their outputs, and say what each took
	$(PY) tests/run_notebooks.py $(NOTEBOOKS)

benchmarks: $(INSTALLED)  ## Measure the cost of fit, and the gradients' variance model by model, again
	OMP_NUM_THREADS=1 $(PY) benchmarks/fit_overhead.py
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(PY) benchmarks/gradient_variance.py $(ARGS)

bench: $(INSTALLED_BENCH)  ## Measure a step beside Pyro, PyTorch, NumPyro and PyMC (ARGS="--quick")
	$(BENCH_VENV)/bin/python -m benchmarks $(ARGS)

lab: $(INSTALLED_LAB)  ## Open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

docs: $(INSTALLED_DOCS)  ## Build the documentation into docs/_build/html, and check its links
	rm -rf $(SITE)
	$(PY) -m sphinx -q --fail-on-warning --keep-going --fresh-env -b html docs $(SITE)
	$(PY) docs/check_site.py $(SITE)

browse: docs  ## Look at every page in a browser (CHROMIUM=/path/to/one), and picture it
	$(PIP) -e '.[browse]'
	$(PY) docs/browse.py $(SITE) docs/_build/pictures

figures: $(INSTALLED)  ## Draw the documentation's figures again
	$(PY) docs/figures.py

clean:  ## Remove the virtual environments and every cache; results of the demo stay
	rm -rf $(VENV) $(BENCH_VENV) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		build dist *.egg-info docs/_build docs/notebooks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(NEEDS_PYTHON)
	@echo "Installing into $(VENV), once; this takes a few minutes."
	@rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	@touch $@

$(INSTALLED_BENCH): pyproject.toml constraints.txt
	@$(NEEDS_PYTHON)
	@echo "Installing into $(BENCH_VENV), once; this takes a few minutes."
	@rm -f $@
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

$(INSTALLED_LAB): $(INSTALLED)
	$(PIP) -e '.[notebooks]'
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP) -e '.[docs]'
	@touch $@
