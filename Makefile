# The one way to install, check and test. Needs Python 3.11 and make; `make PYTHON=python3.12 verify` picks another one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help verify figures notebooks test test-system lint bench clean

help:  ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is newer than what it was installed from, so an unchanged tree installs nothing. The package itself is
# installed editable: changed code needs no new installation.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

verify: $(STAMP)  ## Attack every claim, then train for a moment with and without loss
	$(BIN)/lossproof verify
	$(BIN)/lossproof train --ranks 16 --loss 0 --loss 0.1 --steps 100 --seeds 2

# Two workers of one thread each: small tensors gain nothing from more, and two cores must not run four threads.
test: export OMP_NUM_THREADS := 1
test: export MKL_NUM_THREADS := 1
test: $(STAMP)  ## Run every test (12 minutes at most on two cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# What a browser, a kernel firewall and network namespaces are needed for; as root, where apt is, .ci/run installs them.
test-system: export OMP_NUM_THREADS := 1
test-system: $(STAMP)  ## Run the tests that need root and packages of the system: a real lossy link, a browser
	$(BIN)/python -m pytest tests/system

figures: $(STAMP)  ## Draw every figure of paper_figures/ (10 minutes at most on two cores)
	$(BIN)/lossproof figures

notebooks: $(STAMP)  ## Execute the notebooks and save what they put out (2 minutes at most)
	$(BIN)/python -m notebooks.run

# Recorded evidence that is stale (status 3) is said and no more: not every edit must cost a full run.
lint: $(STAMP)  ## Check style, format and types; say whether the recorded evidence is of this code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lossproof evidence --check || test $$? -eq 3

bench: $(STAMP)  ## Measure the speed, side by side: ratios into benchmarks/results (an idle machine, please)
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.ddp_overhead
	$(BIN)/python -m benchmarks.fsdp_memory
	$(BIN)/python -m benchmarks.kernels

clean:  ## Remove whatever the others made
	rm -rf $(VENV) build dist src/*.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
