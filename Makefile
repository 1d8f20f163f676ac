# Everything happens in .venv of this checkout.
PYTHON ?= python3
BIN := .venv/bin
# Byte code is compiled when a module is first imported: most of what is installed never is.
INSTALL := pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Two processes, each with whole modules in the order that tests/conftest.py gives them.
PYTEST := pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-lowest lint docs bench clean

demo: .venv/demo  ## the main job on real text, with real models
	$(BIN)/pgrerank demo $(ARGS)

test: .venv/ready  ## all tests; ARGS="-k search" for some
	$(BIN)/$(PYTEST) $(ARGS)

test-lowest:  ## all tests, with the lowest versions that pyproject.toml allows; Typer's own page differs
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct \
		-c constraints.txt -e '.[dev]'
	.venv-lowest/bin/$(PYTEST) \
		--deselect tests/test_docs.py::test_the_cli_reference_is_what_the_commands_say $(ARGS)

lint: .venv/ready  ## formatting, spelling, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mdformat --check $$(git ls-files '*.md')
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready  ## the documentation's site, in build/site
	$(BIN)/zensical build --strict --clean

bench: .venv/ready  ## side-by-side measurements
	$(BIN)/$(INSTALL) -e '.[bench]'
	$(BIN)/python benchmarks/rpc.py
	$(BIN)/python benchmarks/maxsim.py

clean:
	rm -rf .venv .venv-lowest

.venv/demo: pyproject.toml constraints.txt
	@echo "Installing what the demo needs into .venv: PyTorch, the models, Postgres 18 with pgvector."
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) -e '.[demo]'
	@touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) -e '.[dev]'
	@touch .venv/demo $@  # of which the demo's are a part
