# make demo, make test: everything from a fresh clone. They make .venv, install, build, and run.
PYTHON ?= python3
TORCH ?= torch==2.13.0
CUDA_TORCH ?= torch==2.14.1
PYTHON310 ?= $(shell for python in python3.10 $(HOME)/.pyenv/versions/3.10.*/bin/python; do \
  "$$python" --version >/dev/null 2>&1 && echo "$$python" && break; done)
LOWEST_TESTS ?= commands/test_cli.py commands/test_cli_errors.py commands/test_crf_dataset.py package/test_pictures.py \
  package/test_stored_scores.py package/test_examples.py data/test_label_values.py crf/test_refine.py crf/test_dataset*.py \
  drop_in/test_pydensecrf_*.py
LOWEST_TORCH_TESTS ?= commands/test_cli_system*.py package/test_config.py data models/test_models.py models/test_weights.py models/test_caffe.py \
  evaluation/test_evaluation*.py evaluation/test_metrics.py training/test_training_recipe.py convolution/test_a*.py lattice \
  crf/test_dense_crf.py upsample/test_upsample.py nn/test_nn_dense_crf.py patching/test_patch.py
CUDA_TORCH_TESTS ?= build/test_cuda_torch.py build/test_fake_cuda.py build/test_built_libraries.py build/test_missing_kernels.py commands/test_doctor.py convolution \
  lattice crf upsample/test_upsample.py nn patching models/test_models*.py drop_in/test_properties.py kernels/test_kernels_compile.py \
  kernels/test_kernels_interpreter.py
VENV := .venv
BIN := $(VENV)/bin
# Those that `make wheel` builds for; where none are named, all of 3.10 to 3.14 that are found.
PYTHONS ?=
NVCC ?= $(foreach part,nvcc runtime cccl crt,'nvidia-cuda-$(part)==13.0.*') 'nvidia-nvvm==13.0.*'
INSTALLED := $(VENV)/.installed
WHEEL := build/wheel/.built
SOURCES := $(wildcard csrc/*/*) CMakeLists.txt setup.py pyproject.toml
CPP_FILES := $(wildcard $(foreach ending,h cpp cu cuh,csrc/*/*.$(ending) tests/*.$(ending) tests/*/*.$(ending) release/*.$(ending)))

.PHONY: demo test wheel wheel-in-container wheel-tools check-wheel test-wheel test-cuda-torch test-triton-3.6 test-lowest test-lowest-3.10 bench docs lint format sanitize test-aarch64 clean install

install: $(INSTALLED)

# torch first and alone: another package's requirement would pick a build of several gigabytes.
$(VENV)/.dependencies: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77' wheel pybind11 ninja cmake
	touch $@

# What is compiled beside a CPU build of torch serves CUDA builds as well.
$(WHEEL): $(INSTALLED) $(wildcard kernels/*.py) $(shell find deeplab_fast -name '*.py')
	rm -rf $(@D) build/lib* build/bdist*
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
	  --wheel-dir $(@D) .
	touch $@

$(INSTALLED): $(VENV)/.dependencies $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -e ".[train,tensorboard,test,triton,demo,bench,dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python demo/run.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

# What an index would serve: a wheel a Python, for glibc 2.28 and later, in dist/.
wheel: $(INSTALLED)
	$(BIN)/python release/build_wheels.py $(PYTHONS)
	$(BIN)/python release/check_wheels.py dist/*.whl

# The same for other machines, too, in containers with an older system (needs docker or podman); pyproject.toml says how.
wheel-in-container: $(VENV)/.dependencies
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'cibuildwheel>=3.2'
	$(BIN)/cibuildwheel --platform linux --output-dir dist

# What they build with: of torch only what it needs to be compiled against, and nvcc.
wheel-tools:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ninja cmake $(NVCC)
	for cuda in $(VENV)/lib/python3*/site-packages/nvidia/cu13; do ln -sfn lib $$cuda/lib64; done  # where nvcc looks

check-wheel:
	test -x $(BIN)/auditwheel || $(BIN)/python -m pip install --quiet --disable-pip-version-check auditwheel
	$(BIN)/python release/check_wheels.py dist/*.whl

# A wheel in an environment with no compiler on PATH: first without torch, then with TORCH and the extra `train`.
WHEEL_VENV := build/wheels/installed
test-wheel:
	test -n "$$(ls dist/*.whl)"
	rm -rf $(WHEEL_VENV) && $(or $(firstword $(PYTHONS)),$(PYTHON)) -m venv $(WHEEL_VENV)
	cp tests/build/test_installed.py $(WHEEL_VENV)
	for what in "deeplab-fast" "$(TORCH) deeplab-fast[train]"; do \
	  $(WHEEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary deeplab-fast --find-links dist pytest $$what && \
	  (cd $(WHEEL_VENV) && PATH=$$PWD/bin bin/python -m pytest --noconftest --rootdir . -c /dev/null test_installed.py) || exit 1; \
	done

# In a CUDA build of torch (5.5 GB), with a GPU or without: the libraries load as they are, and the ops' tests pass.
test-cuda-torch: $(WHEEL)
	test -x .venv-cuda/bin/python || $(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check $(CUDA_TORCH)
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check "$$(echo $(CURDIR)/build/wheel/*.whl)[train,test]"
	.venv-cuda/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/wheel/*.whl
	cd tests && ../.venv-cuda/bin/pytest $(CUDA_TORCH_TESTS)

# The Triton kernels, interpreted and compiled ahead, with Triton 3.6, which machines with torch 2.11 have. Its interpreter
# takes one-element arrays for numbers, as NumPy allowed before 2.4.
test-triton-3.6: $(WHEEL)
	test -x .venv-triton-3.6/bin/python || $(PYTHON) -m venv .venv-triton-3.6
	.venv-triton-3.6/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-triton-3.6/bin/python -m pip install --quiet --disable-pip-version-check triton==3.6.0 'numpy<2.4' pytest hypothesis build/wheel/*.whl
	.venv-triton-3.6/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/wheel/*.whl
	cd tests && ../.venv-triton-3.6/bin/pytest kernels

# With the lowest versions that pyproject.toml allows: everything but torch, of which lower ones than TORCH are only to be
# had as GPU builds of several gigabytes; and, without torch, on Python 3.10, if it is at hand.
test-lowest: $(WHEEL)
	rm -rf .venv-lowest .venv-lowest-3.10
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	  $$($(BIN)/python tests/support/lowest_versions.py train tensorboard test) && \
	  .venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps build/wheel/*.whl
	cd tests && ../.venv-lowest/bin/pytest $(LOWEST_TESTS) $(LOWEST_TORCH_TESTS)
	@test -n "$(PYTHON310)" || echo "Python 3.10 is not at hand: not tested"
	test -z "$(PYTHON310)" || $(MAKE) test-lowest-3.10

test-lowest-3.10:
	$(PYTHON310) -m venv .venv-lowest-3.10
	.venv-lowest-3.10/bin/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python tests/support/lowest_versions.py build test)
	PATH="$(CURDIR)/.venv-lowest-3.10/bin:$$PATH" CMAKE_ARGS=-DDEEPLAB_FAST_TORCH=OFF .venv-lowest-3.10/bin/python -m pip install \
	  --quiet --disable-pip-version-check --no-deps --no-build-isolation .
	cd tests && ../.venv-lowest-3.10/bin/pytest $(LOWEST_TESTS)

bench: $(INSTALLED)
	$(BIN)/python -m bench

# The site, into build/site; what the extra `docs` names is installed here, not by `make test`. Any warning is an error.
DOCS_EXTRA := from importlib.metadata import requires; \
  print(*(line.split(";")[0] for line in requires("deeplab-fast") if line.endswith("extra == \"docs\"")))
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python -c '$(DOCS_EXTRA)')
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# The compute core under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer.
sanitize: $(INSTALLED)
	for sanitizer in address,undefined thread; do \
	  $(BIN)/cmake -S . -B build/$$sanitizer -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DDEEPLAB_FAST_SANITIZE=$$sanitizer -DDEEPLAB_FAST_CUDA=OFF >/dev/null && \
	  $(BIN)/cmake --build build/$$sanitizer --target core_check && build/$$sanitizer/core_check || exit 1; \
	done

# The compute core for 64-bit ARM: its checks under qemu, and no vector of the hot loops on the stack. Needs
# aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: g++-aarch64-linux-gnu, qemu-user-static).
ARM := build/aarch64
test-aarch64: $(INSTALLED)
	$(BIN)/cmake -S . -B $(ARM) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DDEEPLAB_FAST_TORCH=OFF \
	  -DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON >/dev/null
	$(BIN)/cmake --build $(ARM) --target core_check
	aarch64-linux-gnu-objdump -dC --no-show-raw-insn $(ARM)/CMakeFiles/isa_baseline.dir/csrc/crf/mean_field_isa.cpp.o \
	  | $(BIN)/python tests/native/hot_loops.py
	qemu-aarch64-static -L /usr/aarch64-linux-gnu $(ARM)/core_check

clean:
	rm -rf build dist *.egg-info deeplab_fast/*.so $(INSTALLED)
