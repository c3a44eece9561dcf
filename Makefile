# `make demo` and `make test` are all a fresh clone needs: each makes its virtual environment in .venv first,
# and installs again only when pyproject.toml or constraints.txt have changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
WORKERS ?= 2

.PHONY: help demo test test-torch lint bench clean
.NOTPARALLEL:

help:
	@echo "make demo    run the examples; pictures go to examples/output/"
	@echo "make test    ruff, mypy and pytest; Triton kernels in its interpreter"
	@echo "make test-torch TORCH=2.15.0   torch's transforms with another torch"
	@echo "make lint    ruff and mypy alone"
	@echo "make bench   on the CPU, ours against PyKeOps, torch, FAISS and scikit-learn (ARGS=\"--quick --cases gaussian_d3\")"
	@echo "make clean   remove .venv, caches, build products and pictures"

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/sum_reduction.py
	$(BIN)/python examples/digits.py
	$(BIN)/python examples/gaussian_mixture.py
	$(BIN)/python examples/sinkhorn.py
	$(BIN)/python examples/block_sparse.py
	$(BIN)/python examples/compiled_model.py

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/interpreted

# The private names of torch that runtime/library.py builds on, with another torch in an environment of its own.
test-torch:
	$(PYTHON) -m venv .venv-torch-$(TORCH)
	.venv-torch-$(TORCH)/bin/python -m pip --quiet --disable-pip-version-check install torch==$(TORCH) pytest --editable .
	.venv-torch-$(TORCH)/bin/python -m pytest tests/torch_api/test_transforms.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) .venv-torch-* build dist examples/output .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of extras (demo, test, bench) in the one environment. torch goes first and pinned: asking
# for `torch>=2.11` alone may fetch a build with gigabytes of CUDA libraries.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing tritonkeops[$*] into $(VENV)"
	@$(PIP) install "$$(grep '^torch==' constraints.txt)"
	@$(PIP) install --constraint constraints.txt --editable ".[$*]"
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

.PRECIOUS: $(VENV)/.installed-%
