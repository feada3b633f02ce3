# Every target does all of its own set-up in .venv; nothing else needs to be installed first.
#   make demo           see what the cache is worth on this machine (≤ 5 minutes)
#   make test           lint, types, layers, docs, tests (≤ 8 minutes)
#   make test-service   tests that start real server processes
#   make test-slow      the long ones: before a change is called done

PYTHON ?= python3
# CPU builds suffice for everything here. To choose another build: make demo TORCH=/path/to/torch.whl
TORCH ?= torch==2.13.0

BIN := .venv/bin
ENGINE := .venv/.installed-engine
TEST := .venv/.installed-test
SOURCES := src tests benchmarks

.PHONY: demo test test-service test-slow chromium lint types format docs clean
.DELETE_ON_ERROR:

demo: $(ENGINE)
	$(BIN)/prefixlab demo

test: lint types
	$(BIN)/pytest -n 2 -m "not slow and not service"

test-service: $(TEST) chromium
	$(BIN)/pytest -m "service and not slow"

test-slow: $(TEST)
	$(BIN)/pytest -m slow

# The HTML report is tested in a real browser.
chromium:
	command -v chromium >/dev/null || { apt-get -q update && apt-get -qy install --no-install-recommends chromium fonts-dejavu-core; }

lint: $(TEST)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(TEST)
	$(BIN)/mypy

format: $(TEST)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(ENGINE)
	$(BIN)/python -m prefixlab.cli.docs

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-results

# torch goes first and by exact version, so that no other package pulls in a larger build of it.
$(ENGINE): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prefixlab needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[engine]'
	touch $@

$(TEST): $(ENGINE)
	$(BIN)/pip install --quiet --editable '.[engine,test]'
	touch $@
