# Development and the demo, in a virtual environment of its own. `make` lists the targets.

PYTHON ?= python3
PYTEST_ARGS ?=
FUZZ ?= 10000
TRIALS ?= 200
BENCH ?= packing loader packs plans codecs stores speed growth table
BENCH_ARGS ?=
PYTHONS ?= $(PYTHON)
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz soak trials bench check samples release clean

help: ## list the targets
	@echo "Targets (PYTHON=$(PYTHON) makes .venv):"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf '%-10s %s\n' "$$target" "$$text"; done

demo: $(INSTALLED) ## turn samples/clips into demo-shards and describe them
	@echo "$(BIN)/spacepatch tokenize samples/clips/ --out demo-shards --overwrite"; \
	code=0; $(BIN)/spacepatch tokenize samples/clips/ --out demo-shards --overwrite || code=$$?; \
	case $$code in \
		0) ;; \
		3) echo "Exit code 3 is expected: samples/clips/broken_on_purpose.mp4 is broken on purpose," \
			"and its loss was counted." ;; \
		*) echo "demo: spacepatch tokenize failed with exit code $$code" >&2; exit $$code ;; \
	esac
	$(BIN)/spacepatch inspect demo-shards
	@echo "Next, a folder of your own: . $(BIN)/activate && spacepatch plan YOUR_VIDEOS/"

# Three processes for two cores, because tests of kills, clusters and stores mostly wait. A file stays
# in one, with what its tests share. In the order of tests/conftest.py.
test: $(INSTALLED) ## run the tests (PYTEST_ARGS="-k packing" for some)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 20 $(PYTEST_ARGS)

fuzz: $(INSTALLED) ## tokenize 10,000 mutated videos (FUZZ=500 for fewer)
	$(BIN)/python tests/fuzz.py --files $(FUZZ)

soak: $(INSTALLED) ## see that memory stays as it is over 2,000 clips and over 3 hours
	$(BIN)/python tests/soak.py

trials: $(INSTALLED) ## write to S3 under faults and kills, 200 times (TRIALS=20 for fewer)
	$(BIN)/python tests/remote_trials.py --trials $(TRIALS)

# Every part is run, also after one that does not reach what is wanted of it.
bench: $(INSTALLED) ## run the benchmarks (BENCH=loader for one, BENCH_ARGS="--rounds 3")
	@code=0; for part in $(BENCH); do \
		echo "== $$part"; $(BIN)/python -m tests.benchmarks.$$part $(BENCH_ARGS) || code=$$?; \
	done; exit $$code

check: $(INSTALLED) ## check format, lint and types
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

samples: $(INSTALLED) ## make samples/clips again
	$(BIN)/python samples/make_clips.py

release: $(INSTALLED) ## build dist/ and use it in a fresh environment (PYTHONS="python3.12 python3.13")
	$(BIN)/python tests/release.py --python $(PYTHONS)

clean: ## remove what the targets made, except .venv
	rm -rf demo-shards build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find samples spacepatch tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Compiled, as pip does with what it does not leave where it is: it halves the time of a start.
# `python -m pip`, not `pip`: the scripts of a .venv that was moved name their old place.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q spacepatch
	@touch $@
