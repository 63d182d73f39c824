# `make study` and `make test` need Python >= 3.11, pip and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
OUT ?= results/quick
# whole files to each process: the tests of a file share what they compile; as they come, since by their
# number of tests, the default, notebooks would come last and one process be idle
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# fast tests compile more than they run: half the time went into making their programs faster
UNOPTIMISED := --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true
# notebooks run at the sizes that their metadata mock, compiled as tests are, see tests/conftest.py
NOTEBOOKS := --nbmake --nbmake-timeout=600 --nbmake-kernel=quick

.PHONY: study test test-fast bench tables docs lint format types check clean

study: $(VENV)/.study
	$(BIN)/bayesmoe study run quick --out $(OUT)

test: $(VENV)/.test
	JUPYTER_PATH=$(CURDIR)/tests/jupyter $(BIN)/python -m pytest $(PARALLEL) $(NOTEBOOKS) notebooks tests

test-fast: $(VENV)/.test
	XLA_FLAGS="$(UNOPTIMISED) $$XLA_FLAGS" $(BIN)/python -m pytest $(PARALLEL) -m "not slow"

# peers get an environment of their own: what they bring along must not take part in the tests
# R's flexmix takes part where R has it: on Debian, apt-get install r-base-core r-cran-flexmix
bench:
	$(MAKE) VENV=.venv-bench .venv-bench/.bench
	.venv-bench/bin/python -m benchmarks $(BENCH)

# tables and figures of the guide on the data sets, a quarter of an hour at least; `make docs` shows them
tables: $(VENV)/.test
	$(BIN)/python docs/tables.py

docs: $(VENV)/.test
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

check: lint types

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy cannot follow the mapping of models/ to bayesmoe.models: it gets the installed layout as links
types: $(VENV)/.test
	rm -rf build/types
	mkdir -p build/types/bayesmoe
	ln -s $(CURDIR)/bayesmoe/* build/types/bayesmoe/
	ln -s $(CURDIR)/models build/types/bayesmoe/models
	MYPYPATH=build/types $(BIN)/mypy -p bayesmoe

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.study: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt $(VENV)/.created
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) .venv-bench build dist .cache *.egg-info
