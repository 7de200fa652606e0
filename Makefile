# make run: the main job; make test: lint, types and tests. Both set up .venv when it is missing or out of date.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
READY := .venv/.ready

.PHONY: run test
run: $(READY)
	.venv/bin/python run.py sweep name=demo sweep=rank_sparsity scale=two_shards

test: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p orchestrator -p methods -p benchmarks -m run
	.venv/bin/pytest -n auto -m "not ray and not slow"
	.venv/bin/pytest -m "ray and not slow"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
