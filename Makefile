# Two commands do all the set-up: `make demo` runs the main job on generated farmland, `make test` runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint sanitize clean

$(VENV)/.installed: pyproject.toml setup.py $(wildcard pipeline/refine/densecrf_native/* pipeline/score/label_maps_native/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python -m jobs.demo --output demo

# Two processes of one thread each: on the small tensors of tests, waking more threads costs more than they give.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The native code under AddressSanitizer and UndefinedBehaviorSanitizer, then built again without them.
sanitize: install
	SANITIZE=1 $(BIN)/python setup.py -q build_ext --inplace --force
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest tests/pipeline/refine/test_native.py tests/pipeline/score/test_label_maps.py -s --timeout 900
	$(BIN)/python setup.py -q build_ext --inplace --force

clean:
	rm -rf demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis
