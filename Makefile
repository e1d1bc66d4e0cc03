# `make demo` and `make test` need nothing but Python 3.11+ with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
ENCODER ?= lgi_former

.PHONY: setup demo demo-long test check format

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	mkdir -p .types && ln -sfn .. .types/mien
	touch $@

demo: setup
	$(BIN)/python experiments/tune_dfew.py --demo encoder=$(ENCODER)

demo-long: setup
	$(BIN)/python experiments/tune_dfew.py --demo-long encoder=$(ENCODER)

test: setup
	$(BIN)/python -m pytest

check: setup $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml $(addprefix mien/,models data_pipelines platform experiments)

format: setup $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.tools: setup
	$(BIN)/python -m pip install --disable-pip-version-check -q ruff==0.17.6 mypy==2.4.1 types-PyYAML
	touch $@
