# Titer: `make demo` and `make test` set up what they need; nothing but Python 3.11 or newer is assumed.
PYTHON ?= python3
BIN := .venv/bin
# A container may set this; without compiled files every process would compile PyTorch and transformers again (16 s instead of 6).
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: demo test long check check-all docs dist study parity bridges cluster bench clean

demo: .venv/core
	$(BIN)/titer demo

test: .venv/dev
	$(BIN)/python -m pytest -n logical --dist loadfile

long: .venv/dev
	$(BIN)/python -m pytest -n logical --dist loadfile -m "long and not slow"

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

dist: .venv/dev
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist
	set -e; clean=$$(mktemp -d); trap 'rm -rf '$$clean EXIT; install="$$clean/bin/python -m pip install --quiet --no-compile --disable-pip-version-check"; \
	$(BIN)/python -m venv $$clean; $$install -c constraints.txt torch dist/*.whl; \
	(cd $$clean && bin/titer --version && bin/titer list && bin/titer demo --dry-run); \
	$$install --no-deps --force-reinstall dist/*.tar.gz; cd $$clean && bin/titer --version

check-all: check
	$(BIN)/python -m pytest -m "slow or not slow or long"

study: .venv/core
	$(BIN)/titer study jain2024 --scale nano --seeds 4
	$(BIN)/titer study huang2024 --scale nano --part core --seeds 4
	$(BIN)/titer study qi2024 --seeds 4

parity: .venv/dev
	@test -d .venv/parity || $(PIP) --target .venv/parity --no-deps -r tests/methods/parity.txt
	PYTHONPATH=.venv/parity $(BIN)/python -m pytest tests/core/test_agreement.py tests/methods/test_preference.py tests/integrations/test_trl.py tests/test_examples.py -m "slow or not slow" -p no:cacheprovider

bridges: .venv/dev
	@test -d .venv/bridges || $(PIP) --target .venv/bridges --no-deps -r tests/integrations/bridges.txt
	PYTHONPATH=.venv/bridges $(BIN)/python -m pytest tests/integrations/test_lm_eval.py tests/integrations/test_inspect.py tests/integrations/test_inspect_log.py -p no:cacheprovider

cluster: .venv/dev  # PICK='-k ...': only some tests
	@$(PIP) --compile -e '.[ray]'  # a node of Ray is given 15 s for its first imports
	$(BIN)/python -m pytest tests/core/test_ray_cluster.py -p no:cacheprovider $(PICK)

bench: .venv/dev
	$(BIN)/python benchmarks/all.py

.venv/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Titer needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "No venv module: install Debian's python3-venv, or give another PYTHON=..."; rm -rf .venv; exit 2; }
	@echo "Installing into .venv (once, some minutes) ..."
	@$(PIP) --upgrade pip
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

.venv/dev: .venv/core
	@$(PIP) -e '.[dev]'
	@touch $@

.venv/docs: .venv/core
	@$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
