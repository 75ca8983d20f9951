# Two commands: `make demo` and `make test`. Each sets up .venv on its first call and installs nothing afterwards.
#
# SHARD_TORCH_INDEX=URL  take torch from this package index (where `torch==2.13.0` alone is not a CPU build)
# PYTHON=python3.12      the interpreter for .venv (3.11 or newer)
# BENCH="--budget-seconds 500 --resume"  options of `make bench-...`; BENCH=--help lists them

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Downloads of this size want more patience than pip's default.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --timeout 120

.PHONY: demo sweep test unit lint format lock seed-model kill-test soak peers bench-kernels bench-generation bench-training bench-evaluation bench-nodes clean help

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(STAMP)  ## The whole method on a toy model: prompts in, report out
	$(BIN)/shard-dist run configs/demo.yaml

sweep: $(STAMP)  ## Self, teacher and the better of both, two seeds each, on the toy model: one page (after make demo; 10 minutes)
	$(BIN)/shard-dist sweep configs/sweeps/demo.yaml

test: unit  ## Every test
	$(BIN)/python -m pytest -m "ray or vllm or zero or e2e"

unit: $(STAMP)  ## Tests without Ray, vLLM or DeepSpeed, on every core: three minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not ray and not vllm and not zero and not e2e"

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

seed-model: $(STAMP)  ## Train the demo's toy model again (about 16 minutes on 2 idle cores)
	$(BIN)/python -m shard_dist.demo.build_seed

kill-test: $(STAMP)  ## Kill the demo in generation, training and evaluation; count what was done twice
	$(BIN)/python tests/soak/kill_demo.py

soak: $(STAMP)  ## Ten minutes of generation in which something breaks every few seconds (SOAK="--minutes 30")
	$(BIN)/python tests/soak/generation.py --json build/bench/soak.json $(SOAK)

peers: .venv/.peers  ## Install what bench-kernels and bench-training compare with, and matplotlib

bench-kernels: $(STAMP)  ## Time, memory and error of the fused loss and its peers, into build/bench/ (CPU: 2 minutes)
	PYTHONPATH=kernels $(BIN)/python -m bench $(BENCH)

bench-generation: $(STAMP)  ## Engines, scheduling, ledger and resume against ideals and peers, into build/bench/ (30 minutes)
	$(BIN)/python tests/benchmarks/generation.py $(BENCH)
	$(BIN)/python tests/benchmarks/ledger.py

bench-training: .venv/.peers  ## Training beside TRL: speed, parity, export; resume with BENCH="--kills 20" (25 minutes)
	$(BIN)/python tests/benchmarks/training.py $(BENCH)

bench-evaluation: $(STAMP)  ## 100,000 answers judged and measured, coverage of the intervals, the page at 10,000 x 6 (5 minutes)
	$(BIN)/python tests/benchmarks/evaluation.py $(BENCH)
	$(BIN)/python tests/benchmarks/page.py

bench-nodes: $(STAMP)  ## From 1 to 64 nodes by simulation: throughput and what limits it, a plot (BENCH=--measure: anew, as root)
	$(BIN)/python tests/benchmarks/many_nodes.py $(BENCH)

lock:  ## Resolve requirements/{cpu,gpu}.in again (needs uv)
	uv pip compile --quiet --no-header --no-annotate --python-version 3.11 requirements/cpu.in \
	    --override requirements/overrides.txt --output-file requirements/cpu.lock
	sed -i 's/^torch==2\.13\.0+cpu$$/torch==2.13.0/' requirements/cpu.lock
	cp requirements/cpu.lock requirements/gpu.lock    # uv keeps versions that it finds where they fit
	uv pip compile --quiet --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    requirements/gpu.in --output-file requirements/gpu.lock

clean:  ## Remove .venv and caches; runs stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(STAMP): requirements/cpu.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shard_dist needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: a few minutes and about 4 GB, once"
	$(if $(SHARD_TORCH_INDEX),$(PIP) --index-url $(SHARD_TORCH_INDEX) torch==2.13.0)
	$(PIP) -r requirements/cpu.lock
	$(PIP) --no-build-isolation --editable .
	@$(BIN)/python -c 'import torch, sys; sys.exit(torch.version.cuda and "torch is a CUDA build: set SHARD_TORCH_INDEX to an index with CPU builds and call make clean first")' \
	    || { echo "torch does not import as a CPU build; see SHARD_TORCH_INDEX in the Makefile" >&2; exit 1; }
	@touch $(STAMP)

.venv/.peers: requirements/peers.txt $(STAMP)
	$(PIP) -r requirements/peers.txt
	@touch $@
