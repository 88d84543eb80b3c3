# make demo   install, then run the embedded demo
# make demo-all   the same for every exps/*_demo.json
# make bench  measure speed and memory beside the plain ways
# make bench-methods   every method on every small stream, hours on two cores; stopped, it goes on; writes benchmarks/METHODS.md
# make test   install, then run the whole test suite
# make docs   the documentation as a site in site/
# make soak   an hour of faults at system calls and of random settings; its figures are in docs/checkpoints.md
# make gpu    tests and benchmarks of a GPU, under 8 minutes; without one, the same in short on a pretended one
# make gpu-check   every method and switch on a CUDA device that is only pretended; needs no GPU
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
THREADS ?= 2
SEED ?= 0
DEMO := finetune sl slca slcapp joint

PRETEND = $$($(PY) -c 'import torch; print("" if torch.cuda.is_available() else "--pretend_cuda")')

.PHONY: demo demo-all test soak gpu gpu-check bench bench-methods docs lint clean

demo: $(VENV)/.installed
	OMP_NUM_THREADS=$(THREADS) $(PY) main.py --config $(DEMO:%=exps/%_demo.json)
	$(PY) main.py compare $(DEMO:%=logs/%_demo) --out logs/demo

demo-all: $(VENV)/.sweep
	$(PY) main.py --config exps/*_demo.json --on local --jobs $(THREADS)
	$(PY) main.py compare logs/*_demo --sort last --out logs/all

test: $(VENV)/.installed-dev
	$(PY) -m pytest -n 2

soak: $(VENV)/.installed-dev
	$(PY) -m tests.soak faults --seed $(SEED) --jobs $(THREADS) --minutes 30
	$(PY) -m tests.soak configs --seed $(SEED) --jobs $(THREADS) --minutes 30

gpu: $(VENV)/.installed-dev
	$(PY) -m pytest tests/test_cuda.py -m cuda -n auto --maxprocesses 6 $(PRETEND)
	$(PY) benchmarks/gpu.py

gpu-check: $(VENV)/.installed-dev
	$(PY) -m pytest -m gpu_check tests/test_pretend_cuda.py

bench: $(VENV)/.installed
	OMP_NUM_THREADS=$(THREADS) $(PY) benchmarks/alignment.py
	OMP_NUM_THREADS=$(THREADS) $(PY) benchmarks/stage1.py
	OMP_NUM_THREADS=$(THREADS) $(PY) benchmarks/whole_run.py
	OMP_NUM_THREADS=$(THREADS) $(PY) benchmarks/data_path.py
	OMP_NUM_THREADS=$(THREADS) $(PY) benchmarks/epochs_ahead.py
	OMP_NUM_THREADS=$(THREADS) $(PY) benchmarks/checkpoints.py
	OMP_NUM_THREADS=$(THREADS) $(PY) benchmarks/pretended.py
	OMP_NUM_THREADS=$(THREADS) $(PY) benchmarks/many_tasks.py
	$(PY) benchmarks/report.py

bench-methods: $(VENV)/.sweep
	$(PY) benchmarks/methods.py --jobs $(THREADS)

docs: $(VENV)/.installed
	$(PY) -m utils.extras docs > $(VENV)/docs.txt
	$(PY) -m pip install --quiet --requirement $(VENV)/docs.txt
	$(PY) -m mkdocs build --strict

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV)

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --requirement requirements-dev.txt
	touch $@

$(VENV)/.sweep: requirements-extra.txt $(VENV)/.installed
	$(PY) -m utils.extras sweep > $@.txt
	$(PY) -m pip install --quiet --requirement $@.txt
	touch $@
