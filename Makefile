# Everything runs in .venv, which `make setup` builds from hash-pinned locks with the pip settings of your environment.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Where it is set, each command that is started compiles all that it imports: 3 s of CPU for `vocbeam run`, hundreds of
# times in `make test`.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
INSTALLED := .venv/.installed
TYPES := build/types/vocbeam
FOLDERS := schemas transforms sinks pipelines deploy
TEST_PROCESSES ?= 2
GOVERNANCE ?= schemas/examples/retailer.yaml
# Where the compose file runs `vocbeam case receive`, and where its Alertmanager finds the secret.
CASES ?= --case-url http://cases:9466/alerts --case-token-file /run/secrets/case_token.password
# Of one test; 25 kills are 25 starts.
FAULTS_TIMEOUT_S := 1800
UV_COMPILE := $(BIN)/uv pip compile --quiet --only-binary autograd-gamma --generate-hashes --no-emit-index-url --no-emit-build-options --no-header --python-version 3.11

.PHONY: help setup demo test lint unit faults fuzz soak generate verify-alerts verify-real verify-redaction verify-tagging verify-value verify-bi bench screenshots audit lock lock-jars clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## Build .venv from the locked dependencies and install vocbeam in it
	@:

$(INSTALLED): requirements/dev.lock setup.py
	@for python in "$(PYTHON)" python3.11 python3.12 python3; do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	    then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No Python 3.11 or 3.12 with venv and ensurepip found; install one, or name it: make setup PYTHON=…" >&2; exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then echo "Creating .venv with $$($$found --version)"; "$$found" -m venv .venv; fi
	@echo "Installing the locked dependencies (1.1 GB on disk; one or two minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes --only-binary :all: -r requirements/dev.lock
	@echo "Installing vocbeam itself"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Broker, simulated and real events, pipeline, reconciliation, report
	@PATH="$(CURDIR)/$(BIN):$$PATH" ./deploy/demo.sh

test: setup lint ## Lint, types, schema compatibility, then all tests
	@echo "Checking that the event schemas stay compatible"
	@$(BIN)/vocbeam schemas check
	@echo "Running the tests (real Kafka and PostgreSQL are started for them)"
	@$(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder --durations=15

unit: setup ## Only the tests that start no server
	@$(BIN)/python -m pytest tests/unit

faults: setup ## The tests of faults in their long form, with a table of what was done and seen
	@$(BIN)/python -m pytest tests/faults --faults=long --timeout=$(FAULTS_TIMEOUT_S) --numprocesses=$(TEST_PROCESSES) --dist=loadfile

lint: setup ## Style (ruff), types (mypy, strict), container and compose files
	@echo "Checking style"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "Checking container and compose files"
	@$(BIN)/hadolint deploy/Containerfile
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose/compose.yaml
	@echo "Checking types"
	@mkdir -p $(TYPES)
	@for folder in $(FOLDERS); do ln -sfn "$(CURDIR)/$$folder" "$(TYPES)/$$folder"; done
	@MYPYPATH=build/types $(BIN)/mypy $(addprefix -p vocbeam.,$(FOLDERS))

fuzz: setup ## A million mutated messages into each database, damaged files and registry answers
	@VOCBEAM_FUZZ_MESSAGES="$${VOCBEAM_FUZZ_MESSAGES:-1000000}" VOCBEAM_FUZZ_EXAMPLES="$${VOCBEAM_FUZZ_EXAMPLES:-1000}" \
	    $(BIN)/python -m pytest -o timeout=3600 tests/unit/test_fuzz_files.py \
	    tests/unit/test_registry.py::test_confluent_registry__any_answer_is_understood_or_an_error_of_ours \
	    tests/integration/test_fuzz.py

generate: setup ## Write the generated files in deploy and the data dictionary from the retailer's governance file (GOVERNANCE=…)
	@$(BIN)/vocbeam generate prometheus --governance $(GOVERNANCE) --output deploy/generated/rules.yml
	@$(BIN)/vocbeam generate prometheus --format kubernetes --governance $(GOVERNANCE) --output deploy/kubernetes/alerts/rules.yaml
	@$(BIN)/vocbeam generate alertmanager --governance $(GOVERNANCE) --output deploy/generated/alertmanager.yml $(CASES)
	@$(BIN)/vocbeam generate grafana --governance $(GOVERNANCE) --output deploy/generated/vocbeam.json
	@$(BIN)/vocbeam generate dictionary --governance $(GOVERNANCE) --output docs/data-dictionary.md
	@$(BIN)/vocbeam generate contract --governance $(GOVERNANCE) --output deploy/bi/contract.odcs.yaml
	@$(BIN)/vocbeam generate dbt --governance $(GOVERNANCE) --output deploy/bi/dbt

verify-alerts: setup ## Count false and missed alarms by simulation; send an incident through the whole chain
	@$(BIN)/vocbeam verify alerts

verify-real: setup ## Compare the pipeline's figures with pandas on the real data sets
	@$(BIN)/vocbeam verify real

verify-redaction: setup ## Measure on labelled texts what the redaction finds and what it takes without need
	@$(BIN)/python -m tests.redaction.measure

verify-tagging: setup ## Train and test the text model on the real texts
	@$(BIN)/vocbeam verify tagging

verify-value: setup ## Simulate companies with planted effects; count intervals that hold them; noise and real orders
	@$(BIN)/vocbeam verify value

verify-bi: setup ## Query times of a year; the contract, dbt and Superset in environments of their own (1.5 GB)
	@fast=yes; clients=yes; \
	echo "1 of 2: query times of a year of events, SQLite and then PostgreSQL"; \
	$(BIN)/python -m benchmarks.bi $(BI) || fast=NO; \
	echo "2 of 2: what contract, dbt, MetricFlow and Superset make of the views"; \
	$(BIN)/python -m tests.bi.clients || clients=NO; \
	echo "verify-bi: views as fast as promised: $$fast; clients agree with the views: $$clients"; \
	[ $$fast$$clients = yesyes ]

bench: setup ## Measure throughput, steps, latency, growth and peers: an hour and more (BENCH="--part throughput …")
	@$(BIN)/python benchmarks/report.py $(BENCH)

soak: setup ## Load at half speed for 25 minutes, with a kill -9 every 2 minutes (SOAK="--seconds 600 …")
	@$(BIN)/python benchmarks/soak.py $(SOAK)

screenshots: setup ## Take docs/img from running web pages (WEB=the URL that `vocbeam web` printed) and the board's page (BOARD=its file)
	@$(BIN)/python docs/screenshots.py "$(WEB)" "$(BOARD)"

audit: setup ## Ask for known vulnerabilities of the locked dependencies
	@$(BIN)/python requirements/audit.py

lock: setup ## Resolve the dependencies anew into requirements/*.lock
	@$(UV_COMPILE) setup.py --upgrade --extra dev --output-file requirements/dev.lock
	@$(UV_COMPILE) setup.py --upgrade --extra broker --extra librdkafka --extra postgresql --extra value --extra web --constraint requirements/dev.lock --output-file requirements/run.lock
	@$(UV_COMPILE) setup.py --upgrade --extra librdkafka --extra postgresql --extra value --extra web --constraint requirements/dev.lock --output-file requirements/image.lock
	@echo setuptools | $(UV_COMPILE) - --upgrade --constraint requirements/dev.lock --output-file requirements/build.lock
	@echo "Wrote requirements/dev.lock, run.lock, image.lock and build.lock"

lock-jars: setup ## Resolve the jars of Kafka and Flink anew into deploy/*-jars.sha256
	@$(BIN)/python -m vocbeam.deploy.jars
	@echo "Wrote deploy/kafka-jars.sha256 and deploy/flink-jars.sha256"

clean: ## Remove what was built; .venv and the data in .vocbeam stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(FOLDERS) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "Removed builds and caches; remove .venv and .vocbeam by hand to start from nothing"
