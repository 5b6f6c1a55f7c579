# vdiff: `make demo` draws digits with a four-step model, `make test` checks everything, `make quick` what is quick,
# `make fix` formats. Each sets up .venv by itself.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin

.PHONY: demo test quick fix lint types types-here types-darwin types-win32 check coverage clean
.DELETE_ON_ERROR:
# Each of the many processes that tests start would compile vdiff again.
unexport PYTHONDONTWRITEBYTECODE

demo: .venv/.installed
	$(BIN)/vdiff demo

test: lint types check

# Files that start no processes of their own and train nothing of length: under a minute on two cores.
QUICK := agreement architecture array_file blocks checkpoint clipping colour condition cores diffusers_folder digits \
	distribution doubling evaluation_table every_dataset every_format every_network every_sampler every_schedule \
	every_source fast frechet golden images labels layout learner lock log memory micro_batch norm objectives origin \
	packed pair_metric plan precision prediction prepare progressive randomness recipe_text recipes reference \
	run_folder schedule sections store tables tests threads unet_config weighting whole_folder wording

quick: lint
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile $(QUICK:%=tests/test_%.py)

fix: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		--cov --cov-report term:skip-covered --cov-report html

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The benchmarks are for Linux: what they measure are its processes and signals.
PLATFORMS := types-here types-darwin types-win32 types-public

# mypy works on one core, and what it knows of one platform does not help for another: all three at once.
types: .venv/.installed-dev
	$(MAKE) --jobs 3 --output-sync=target --keep-going $(PLATFORMS)

types-here: .venv/.installed-dev
	$(BIN)/mypy

types-darwin types-win32: types-%: .venv/.installed-dev
	$(BIN)/mypy --cache-dir .mypy_cache/$* --platform $* vdiff examples

# What docs/api.md lists: every name has a complete type.
types-public: .venv/.installed-dev
	$(BIN)/python -m tests.public_types

# WORKERS=3 on two cores: while a test waits for the disk or a process, another one computes.
WORKERS := logical
check: .venv/.installed-dev
	$(BIN)/python -m pytest -p tests.cpu_time -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The stamp is written last: an install that failed half-way is done again by the next make.
.venv/.installed: pyproject.toml | .venv/.python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# pip compiles modules on one core, `compileall` on all. A package may hold files that are not for this Python.
.venv/.installed-dev: pyproject.toml | .venv/.python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch .venv/.installed $@

.venv/.python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found" >&2; \
		echo "fix: install one, or run: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make a virtual environment" >&2; \
		echo "fix: on Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip --version > /dev/null
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis vdiff-demo
