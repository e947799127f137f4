# make demo    set up, then train DeepFM on MovieLens-100K         make test    set up, then run all tests
# make demo-bid   set up, then from a log of auctions to a running OpenRTB bidder
# make setup   only .venv                                          make lint    ruff and mypy
# make clean   remove .venv and the tools' caches; data and runs stay
#
# PYTHON=python3.11 chooses the Python (3.10 to 3.12). pip's own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) say
# where packages come from. On a machine without a GPU, point PIP_EXTRA_INDEX_URL at torch's index of CPU builds to spare a download
# of some 3 GB: the general package index has only the CUDA build of torch for Linux, which works on a CPU too.

PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
TARGET ?= $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
DEMO_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
STAMP := .venv/ready-$(TARGET)

.PHONY: demo demo-bid test setup lint clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/trm demo $(DEMO_ARGS)

demo-bid: $(STAMP)
	$(BIN)/trm demo-bid $(DEMO_ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest

setup: $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy torchrec_models pipelines launch benchmarks

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch comes first, with what it asks for (a CPU build: little; the CUDA build: its libraries), at the versions of cuda.txt.
$(STAMP): requirements/$(TARGET).txt requirements/cuda.txt requirements/dev.txt pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 with the venv module was found. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up .venv for $(TARGET) with $$($(PYTHON) --version): some minutes, once"
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(PIP) --constraint requirements/cuda.txt "$$(grep '^torch==' requirements/$(TARGET).txt)"
	$(PIP) --no-deps --requirement requirements/$(TARGET).txt --requirement requirements/dev.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -c "import fbgemm_gpu, torch, torchrec; print('torch', torch.__version__, 'is ready for $(TARGET)')"
	@touch $@
