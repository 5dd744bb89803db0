# make demo, make test: everything from a fresh clone. They make .venv, install, build, and run.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := $(wildcard csrc/*/*) CMakeLists.txt setup.py pyproject.toml
CPP_FILES := $(wildcard $(foreach ending,h cpp cu cuh,csrc/*/*.$(ending) tests/*.$(ending) tests/*/*.$(ending)))

.PHONY: demo test bench lint format sanitize clean install

install: $(INSTALLED)

# torch first and alone: another package's requirement would pick a build of several gigabytes.
$(VENV)/.dependencies: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77' wheel pybind11 ninja cmake
	touch $@

$(INSTALLED): $(VENV)/.dependencies $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
	  -e ".[train,tensorboard,test,demo,bench,dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python demo/run.py

test: $(INSTALLED)
	$(BIN)/python -m pytest

bench: $(INSTALLED)
	$(BIN)/python -m bench

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)

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

clean:
	rm -rf build dist *.egg-info deeplab_fast/*.so $(INSTALLED)
