# `make demo` runs the main job on a real network, `make test` runs every check. Both make .venv themselves.
PYTHON ?= python3
VENV := .venv
OPENVINO := .venv-openvino
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OPENVINO_STAMP := $(OPENVINO)/.installed
# What torch reads of CUDA as it starts; another major version for another torch.
CUDA ?= "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*"
# Two test processes with one thread each: more threads than cores are much slower.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# The rooms of tests/ that mirror what differs from the last commit, and tests that differ themselves.
CHANGED = $(sort $(wildcard $(shell { git diff --name-only HEAD; git ls-files --others --exclude-standard; } \
	| sed -nE 's,^(fxdecomp|tests)/([a-z]+)/.*\.py$$,tests/\2,p; s,^(tests/test_[a-z_]+\.py)$$,\1,p')))

.PHONY: demo test quick lint types unit coverage docs dist other-torch openvino openvino-short clean

demo: $(STAMP)
	$(BIN)/fxdecomp demo --out demo-output

# With -j2 what needs one core runs side by side; the tests, which need both, follow by themselves.
test: lint types docs
	$(MAKE) unit

quick: lint types
	$(if $(CHANGED),$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -q $(CHANGED),@echo "no room has changed")

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

# By itself, since it costs the tests a tenth of their time and more.
coverage: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal --cov=fxdecomp --cov-report=term:skip-covered

# The wheel is built from the source archive, so that both are known to be whole.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist -d dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/fxdecomp-*.tar.gz
	$(TEST_ENV) $(BIN)/python .ci/try_wheel.py dist/fxdecomp-*.whl

# The tests with another torch, in an environment of its own: make other-torch TORCH=2.14.1. PyPI has CUDA builds
# only, which are run without CUDA's 5 GB, but for two small libraries; these builds say at the first export that
# triton is not there, which one test must not hear.
other-torch: $(STAMP)
	@test -n "$(TORCH)" || { echo "which torch? make other-torch TORCH=2.14.1"; exit 2; }
	test -x .venv-torch-$(TORCH)/bin/python || $(BIN)/python -m venv --without-pip .venv-torch-$(TORCH)
	$(BIN)/python -m pip --python .venv-torch-$(TORCH)/bin/python install --quiet --no-deps torch==$(TORCH) $(CUDA)
	$(BIN)/python .ci/without_cuda.py .venv-torch-$(TORCH)/bin/python
	$(BIN)/python .ci/stand_in_front.py .venv-torch-$(TORCH)/bin/python
	$(TEST_ENV) .venv-torch-$(TORCH)/bin/python -m pytest -n 2 --dist worksteal $(TESTS) \
		--deselect tests/test_leaving_no_trace.py::test_the_first_export_of_a_process_is_quiet

# A second real provider: everything that is written for the CPU's, and one table of both.
openvino: openvino-short
	$(TEST_ENV) $(OPENVINO)/bin/python -m pytest tests/export/test_benchmark.py
	$(TEST_ENV) $(OPENVINO)/bin/python -m benchmarks.providers recogniser resnet18 --out build/providers

# What CI runs of it: export, parity, times, a budget of time and int8 on small networks.
openvino-short: $(OPENVINO_STAMP)
	$(TEST_ENV) $(OPENVINO)/bin/python -m pytest tests/providers

# onnxruntime-openvino and onnxruntime hold the same module: it stands in front of all that .venv has.
$(OPENVINO_STAMP): $(STAMP)
	test -x $(OPENVINO)/bin/python || $(BIN)/python -m venv --without-pip $(OPENVINO)
	$(BIN)/python -m pip --python $(OPENVINO)/bin/python install --quiet --no-deps --constraint constraints.txt onnxruntime-openvino
	$(BIN)/python .ci/stand_in_front.py $(OPENVINO)/bin/python
	touch $@

# A warning is an error: a broken link, a name without documentation, a page that is not there.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# torch goes first and by itself: a bare requirement would take the CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(OPENVINO) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis demo-output site
