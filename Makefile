# Two commands need nothing but python3 and a package index: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types wheel test-accelerator bench clean

demo: .venv/demo.stamp
	$(BIN)/python -m qualiclip_jax.train --config configs/demo.py
	$(BIN)/python -m qualiclip_jax.evaluate --checkpoint runs/demo --out runs/demo/evaluation
	$(BIN)/python -m qualiclip_jax.data sample runs/demo/photos
	$(BIN)/python -m qualiclip_jax.score --checkpoint runs/demo runs/demo/photos

test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test.stamp
	$(BIN)/python -m mypy --num-workers 2

# The wheel, and a real use of it in an empty environment.
wheel:
	PYTHON=$(PYTHON) .ci/wheel

# What needs an NVIDIA GPU; `make test` runs it too where there is one, and jax[cuda] is installed.
test-accelerator: .venv/test.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cuda]'
	$(BIN)/python -m pytest -m accelerator

bench:
	@echo "Benchmarks print ratios against a baseline in the same run:"
	@for script in benchmarks/*.py; do \
		printf '  %-36s %s\n' "python $$script" "$$(sed -n '1s/^"""//;1s/"""$$//;1p' $$script)"; done

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or later is needed, e.g. make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/demo.stamp: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/test.stamp: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,parity,parquet,tensorboard]'
	@touch $@ .venv/demo.stamp

clean:
	rm -rf .venv runs build *.egg-info
