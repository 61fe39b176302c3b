PYTHON ?= python3

.PHONY: build test bench gpu

build:  ## compile in place
	$(PYTHON) setup.py build_ext --inplace

test:  ## of the installed package
	$(PYTHON) -P -m pytest -q -n 2

bench:  ## of the installed package; one JSON file a run, in .benchmarks/
	$(PYTHON) -P -m pytest benchmarks --benchmark-only -q

gpu:  ## on a CUDA machine, network or not: build, gpu tests, gpu benchmarks, one JSON in benchmarks/results/
	$(PYTHON) benchmarks/gpu.py
