# Everything happens in .venv of this checkout.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/ready  ## the main job on real text, with real models
	$(BIN)/pgrerank demo $(ARGS)

test: .venv/ready  ## all tests; ARGS="-k search" for some
	$(BIN)/pytest -n 2 --dist loadscope $(ARGS)

lint: .venv/ready  ## formatting, spelling, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mdformat --check $$(git ls-files '*.md')
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready  ## side-by-side measurements
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/rpc.py
	$(BIN)/python benchmarks/maxsim.py

clean:
	rm -rf .venv

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
