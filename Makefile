# Every target works on a fresh clone: .ci/setup finds a Python 3.12 and makes .venv first, and does nothing
# when it is up to date.

BIN := .venv/bin
BENCH ?= store stream ros ros_safety improve
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 2 ] && n=2; echo $$n)

.DEFAULT_GOAL := help
.PHONY: setup demo test check bench colcon clean help

setup: ## make .venv with .venv/bin/robo-reward in it (needs only a Python 3.12 on the machine)
	@.ci/setup

demo: setup ## the main job from nothing: record, train, evaluate, stream, report (ARGS="key=value ...")
	@$(BIN)/robo-reward demo $(ARGS)

test: setup ## every test, on at most two processes (ARGS="-k name" for some of them)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q $(ARGS)

check: setup ## formatting, lint, types, direction of imports
	@$(BIN)/ruff format --check --quiet . || { echo "mend it with: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/basedpyright --project pyproject.toml
	@$(BIN)/lint-imports --no-logo

bench: setup ## the measurements that need no trained model, or those named (BENCH="abort" ARGS="--help")
	@failed=; for name in $(BENCH); do \
	  echo "== tests/bench/bench_$$name.py"; \
	  $(BIN)/python "tests/bench/bench_$$name.py" $(ARGS) || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

colcon: setup ## build the ROS workspace as a robot with Jazzy does, with colcon (from PyPI's wheels; needs the network)
	@.ci/colcon

clean: ## remove caches and build outputs (.venv and runs stay)
	@rm -rf dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.uv/*' -prune -exec rm -rf {} +

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16
