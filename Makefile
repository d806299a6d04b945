# Each target creates what it needs: a virtual environment of its own and the dependencies in it.
#
#   make demo    the main job, for real (Linux: in network namespaces of its own)
#   make test    all tests
#   make help    the rest

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# It finds what is installed by the Python that is first in the path. Without a warning it does not ask for newer releases.
PYRIGHT := PATH="$(abspath $(BIN)):$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
LOWEST := $(VENV)-lowest
# Hundreds of programs are started, and would compile bindsock and what they import each time.
unexport PYTHONDONTWRITEBYTECODE
BENCH := $(VENV)-bench
# The tests wait far more than they compute, so there are many more workers than processors.
WORKERS ?= 8
# Where `make bench` saves its results, the table and the picture; `docs/performance` is what the documentation shows.
RESULTS ?= build/bench
# How long `make chaos` begins new rounds; an hour before a release.
MINUTES ?= 5

.PHONY: help demo test test-long test-lowest test-vpn test-vpn-uml record-vpn chaos lint abi bench bench-quick profile svg docs dist findings clean

help:
	@echo 'make demo         show the main job: VPN up, uplinks come and go, connections stay'
	@echo 'make test         run the tests, all but the soaks, in parallel (ARGS="-k watcher" to choose, ARGS=-n0 for one by one)'
	@echo 'make test-long    run all tests, the soaks included, but the VPN programs'
	@echo 'make test-lowest  run the tests with the lowest allowed version of each dependency'
	@echo 'make test-vpn     run real VPN programs (on Debian, root installs what is missing; the rest is skipped)'
	@echo 'make test-vpn-uml run those of them for which this kernel lacks IPsec or PPP, in User Mode Linux (root, Debian)'
	@echo 'make record-vpn   write down anew what they do to the routes (NAMES="openvpn-tls" to choose)'
	@echo 'make chaos        change the network at random under connections of every kind (MINUTES=60 ARGS="--network all" before a release)'
	@echo 'make lint         ruff, mypy for linux and darwin, import contracts, completeness of the public types'
	@echo 'make abi          compile the Darwin structures against Apple'"'"'s public headers'
	@echo 'make bench        measure all, beside asyncio, uvloop, pyroute2, microsocks, dante (ARGS=--help for the options)'
	@echo 'make bench-quick  the main figures, in less than a minute'
	@echo 'make profile      where the microseconds of a connect, an endpoint, a datagram and a move go'
	@echo 'make svg          save the timeline that the README shows'
	@echo 'make docs         build the documentation into docs/_build/html'
	@echo 'make dist         build the sdist and the wheel, install each and try it (VERSION=1.2.3 if it has to be that)'
	@echo 'make findings     run what was found out about libraries and tools again (not in CI; some need root)'
	@echo 'make clean        remove what the targets made'
	@echo 'PYTHON=python3.13 VENV=.venv313 choose another Python'

# niquests, one of the libraries that are measured, needs urllib3-future, which overwrites urllib3 unless it is built so. arq wants
# redis before version 6, and works with later ones.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bindsock needs Python 3.11 or later; choose one with PYTHON=")'
	@echo "setting up $(VENV) (once; about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@URLLIB3_NO_OVERRIDE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-binary urllib3-future niquests \
		|| echo "niquests cannot be installed here: it is not measured"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps arq
	@touch $@

demo: $(READY)
	@$(BIN)/python -m bindsock demo $(ARGS)

test: $(READY)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not soak and not vpn' $(ARGS)

test-long: $(READY)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not vpn' $(ARGS)

$(LOWEST)/.ready: pyproject.toml
	@echo "setting up $(LOWEST) (once; about a minute)"
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	@touch $@

test-lowest: $(LOWEST)/.ready
	@$(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m 'not soak and not vpn' $(ARGS)

test-vpn: $(READY)
	@tests/vpn/install
	@$(BIN)/python -m pytest tests/vpn -n 4 -m vpn $(ARGS)

test-vpn-uml: $(READY)
	@tests/vpn/install
	@tests/vpn/another-kernel "$(abspath $(BIN))/python" tests/vpn -m vpn -k "charon-policy or pppoe" $(ARGS)

record-vpn: $(READY)
	@tests/vpn/install
	@$(BIN)/python -m tests.vpn.recorded $(NAMES)

chaos: $(READY)
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --platform linux
	@$(BIN)/mypy --platform darwin
	@$(BIN)/lint-imports
	@if $(PYRIGHT) --version > /dev/null 2>&1; then \
		$(PYRIGHT) --ignoreexternal --verifytypes bindsock > $(VENV)/types.txt; failed=$$?; \
		sed -n '/^Symbols used/,$$p' $(VENV)/types.txt; exit $$failed; \
	else \
		echo 'the completeness of the public types is not checked: pyright does not run here'; \
	fi

abi: $(READY)
	@$(BIN)/python -m tests.abi

$(BENCH)/.ready: pyproject.toml
	@echo "setting up $(BENCH) (once)"
	@$(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

bench: $(BENCH)/.ready
	@tests/install-debian microsocks dante-server
	@$(BENCH)/bin/python -m benchmarks --json $(RESULTS)/results.json --table $(RESULTS)/table.md --picture $(RESULTS) $(ARGS)

bench-quick: $(BENCH)/.ready
	@$(BENCH)/bin/python -m benchmarks --quick $(ARGS)

profile: $(BENCH)/.ready
	@$(BENCH)/bin/python -m benchmarks.profile --table $(RESULTS)/profile.md $(ARGS)

svg: $(READY)
	@$(BIN)/python -m bindsock demo --svg docs/timeline.svg

docs: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@$(BIN)/python -m sphinx -W -b html docs docs/_build/html

dist:
	@$(PYTHON) -m venv .venv-dist
	@.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check build twine
	@rm -rf dist
	@.venv-dist/bin/python -m build --outdir dist .
	@.venv-dist/bin/python -m twine check --strict dist/*
	@.venv-dist/bin/python .ci/check_distribution.py dist $(VERSION)

findings: $(READY)
	@PYTHON="$(abspath $(BIN))/python" findings/run-all

clean:
	rm -rf $(VENV) .venv-* docs/_build build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
