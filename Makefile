# make run: the main job; make test: lint, types and tests. Both set up .venv when it is missing or out of date.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
READY := .venv/.ready

.PHONY: run test
# Part of the images, once each, so that it takes minutes; at the default rate all four trials would end alike.
run: $(READY)
	.venv/bin/python run.py sweep name=demo sweep=rank_sparsity scale=two_shards train.epochs=1 \
	train.learning_rate=5e-4 benchmark.train_per_class=100 benchmark.test_per_class=30 sweep.confirm=0
	@echo "Next: open runs/demo/report.html, then your own pictures:" \
	"source .venv/bin/activate; evergreen train benchmark=image_folder benchmark.path=DIR"

# All parts run, so that one call shows everything that is wrong.
test: $(READY)
	@status=0; export PATH="$$PWD/.venv/bin:$$PATH"; \
	ruff check . || status=1; \
	ruff format --check . || status=1; \
	mypy -p orchestrator -p methods -p benchmarks -m run || status=1; \
	pytest -n auto -m "not ray and not slow" || status=1; \
	pytest -m "ray and not slow" || status=1; \
	[ $$status = 0 ] && echo "All is well: commit, or try it with make run." \
	|| echo "Something failed: mend what is told above, then make test again."; \
	exit $$status

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 2; }
	@echo "Installing into .venv, which takes some minutes and happens once ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)
