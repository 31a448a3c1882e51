# Two commands need nothing but python3 and a package index: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench clean

demo: .venv/demo.stamp
	$(BIN)/python -m qualiclip_jax.train --config configs/demo.py
	$(BIN)/python -m qualiclip_jax.evaluate --checkpoint runs/demo --out runs/demo/evaluation
	$(BIN)/python launch/demo_photos.py runs/demo/photos
	$(BIN)/python -m qualiclip_jax.score --checkpoint runs/demo runs/demo/photos

test: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile

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
