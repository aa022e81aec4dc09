# Needs Python 3.11 or 3.12 and make; everything else comes into .tools, .venv and .venv-dags.
# CI calls these targets and nothing else.

# A version manager may leave a `python3.12` on PATH that does not run: take the first that does.
PYTHON := $(shell for python in python3.12 python3.11 python3; do \
	$$python -c 'import sys; (3, 11) <= sys.version_info[:2] < (3, 13) or sys.exit(1); print(sys.executable)' \
	2>/dev/null && break; done)
# The environments take the fastest one on PATH, unless `make setup PYTHON=path` says which.
FASTEST = $(if $(filter file,$(origin PYTHON)),"$$($(PYTHON) infra/interpreter.py)",$(PYTHON))
UV := $(or $(shell uv --version >/dev/null 2>&1 && command -v uv),.tools/bin/uv)
LOCKS := infra/requirements
BIN := .venv/bin
on = $(filter-out 0 no false,$(1))

.DEFAULT_GOAL := help
.PHONY: help setup setup-dags setup-peers check test demo up down lock clean

help:
	@echo 'make setup   everything that the other targets need (they call it themselves)'
	@echo 'make check   lint, format, types, import rules, rules of the house and of the docs'
	@echo 'make test    every test that this machine can run'
	@echo 'make demo    the whole flow on a real shop, then serve: [SMALL=1] [DETACH=1] [DATA=path] [PORT=n]'
	@echo 'make up      the real servers on this machine: Kafka, Redis, Spark, scorer, API, Airflow [AIRFLOW=0]'
	@echo 'make down    stop what `make up` or `make demo DETACH=1` left running'
	@echo 'make lock    pin the requirements anew'
	@echo 'make clean   remove the environments and caches, and keep the data in var/'

setup: .venv/ready .venv/loops $(if $(shell command -v java),.venv/spark-classes.jsa)
	@$(BIN)/python -m infra.cli.doctor || true

setup-dags: .venv-dags/ready

setup-peers: .venv-peers/ready

.tools/bin/uv: $(LOCKS)/tools.txt
	$(if $(PYTHON),,$(error Headrace needs Python 3.11 or 3.12 on PATH and found neither))
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --require-hashes --requirement $<
	@touch $@

# The stamp is older than a lock that changed: then the environment is synchronised again.
.venv/ready: $(LOCKS)/dev.txt pyproject.toml | $(filter .tools/%,$(UV))
	$(if $(PYTHON),,$(error Headrace needs Python 3.11 or 3.12 on PATH and found neither))
	test -x $(BIN)/python || $(UV) venv --quiet --python $(FASTEST) .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes $<
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Numba keeps the machine code; whoever comes first would compile for twenty seconds.
.venv/loops: .venv/ready features/recommender/compiled.py $(addprefix features/recommender/,candidate_kernels.py diversity.py recency.py)
	@$(BIN)/python -c 'import features.recommender.candidates, features.recommender.diversity'
	@touch $@

# Spark starts in half the time with its classes in an archive; it does without where this fails.
.venv/spark-classes.jsa: .venv/ready streaming/session.py
	@echo 'preparing Spark (half a minute, once)'
	@$(BIN)/python -m streaming.jvm_cds >.venv/spark-classes.log 2>&1 || cat .venv/spark-classes.log

.venv-dags/ready: $(LOCKS)/dags.txt | $(filter .tools/%,$(UV))
	$(if $(PYTHON),,$(error Headrace needs Python 3.11 or 3.12 on PATH and found neither))
	test -x .venv-dags/bin/python || $(UV) venv --quiet --python $(FASTEST) .venv-dags
	$(UV) pip sync --quiet --python .venv-dags/bin/python --require-hashes $<
	@touch $@

# Other projects' recommenders, for `headrace bench quality` only.
.venv-peers/ready: $(LOCKS)/peers.txt | $(filter .tools/%,$(UV))
	$(if $(PYTHON),,$(error Headrace needs Python 3.11 or 3.12 on PATH and found neither))
	test -x .venv-peers/bin/python || $(UV) venv --quiet --python $(FASTEST) .venv-peers
	$(UV) pip sync --quiet --python .venv-peers/bin/python --require-hashes $<
	@touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_house.py tests/test_names.py tests/test_docs.py

# Tests that need what this machine lacks (a GPU, Java, Chromium) skip themselves and say so.
test: setup setup-dags
	$(BIN)/python -m pytest -rs

demo: setup
	@$(BIN)/headrace demo $(if $(call on,$(SMALL)),--small) $(if $(call on,$(DETACH)),--detach) \
		$(if $(DATA),--data '$(DATA)') $(if $(PORT),--port $(PORT))

up: setup $(if $(filter 0 no false,$(AIRFLOW)),,setup-dags)
	@$(BIN)/headrace up $(if $(filter 0 no false,$(AIRFLOW)),--no-airflow)

down:
	@$(BIN)/headrace down

lock: | $(filter .tools/%,$(UV))
	@for role in dev serve stream train dags peers; do \
		$(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
			pyproject.toml --extra $$role --output-file $(LOCKS)/$$role.txt || exit 1; \
	done
	@echo uv | $(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
		- --output-file $(LOCKS)/tools.txt

clean:
	rm -rf .venv .venv-dags .venv-peers .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf spark-warehouse metastore_db derby.log *.egg-info
	find apps dags features infra streaming tests training -name __pycache__ -type d -prune -exec rm -rf {} +
