# Each command sets up what it needs in .venv: `make demo` runs the main job on generated farmland, `make test` adds the
# developer's packages and checks a change in a few minutes, `make test-cluster` runs all other tests, `make soak` kills
# processes of a run, `make docs` builds the site, `make page` the script of `atrous view`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# What installs packages: uv where it is on the PATH, with the torch that fits this machine's GPU or the lack of one, and
# pip where uv fails or is not there. Any other command can be given, such as pip with the torch for no GPU:
#     make demo INSTALL='.venv/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu'
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := UV_TORCH_BACKEND=auto uv pip install --quiet --python $(BIN)/python
UV_OR_PIP := either() { $(UV) "$$@" || { echo "uv failed, pip takes its place"; $(PIP) "$$@"; }; }; either
INSTALL ?= $(if $(shell command -v uv),$(UV_OR_PIP),$(PIP))

KERNELS := $(wildcard pipeline/refine/densecrf_native/* pipeline/score/label_maps_native/*)

.PHONY: install develop demo test test-cluster soak mutants lint docs page sanitize clean

# The package comes first, by itself; asking for it by name then installs what it depends on, and compiles nothing again.
$(VENV)/.installed: pyproject.toml setup.py $(KERNELS)
	@test -x $(BIN)/pip || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "compiling the kernels of the CRF: about half a minute"
	@$(INSTALL) --no-deps -e .
	@echo "installing the packages it needs: some minutes, 2 GB on disk"
	@$(INSTALL) atrous
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	@echo "installing the developer's packages: some minutes, 1 GB more"
	@$(INSTALL) 'atrous[dev]'
	@touch $@

install: $(VENV)/.installed

develop: $(VENV)/.developer

demo: install
	$(BIN)/python -m jobs.demo --output demo

# Two processes of one thread each: on the small tensors of tests, waking more threads costs more than they give.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

# Lint, all tests that need no Ray cluster, and the few of those that do which are marked `smoke`. A handful that take long
# are marked `slow`.
test: develop lint
	HYPOTHESIS_PROFILE=quick $(PYTEST) -m "not ray and not slow or smoke"

# All other tests, and every law with all its examples.
test-cluster: develop
	HYPOTHESIS_PROFILE=full $(PYTEST) -m "ray and not smoke or slow or hypothesis"

# The job on clusters of several nodes while processes are killed and the store fails: docs/benchmarks/soak.md. Half an hour.
KILLS ?= 50
IMAGES ?= 200

soak: develop
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.soak --kills '$(KILLS)' --images '$(IMAGES)' --seed '$(SEED)'

# Small mistakes planted in one module, and which of them its tests notice: docs/development/mutants.md.
#     make mutants MODULE=pipeline/infer/tile.py SAMPLE=all
SAMPLE ?= 40
SEED ?= 0

$(VENV)/.mutation: $(VENV)/.developer
	@$(INSTALL) 'atrous[mutation]'
	@touch $@

mutants: $(VENV)/.mutation
	@$(BIN)/python -m tests.mutation.mutants '$(MODULE)' --sample '$(SAMPLE)' --seed '$(SEED)'

lint: develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: develop
	$(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

# The script of `atrous view`, from TypeScript; needs npm. The result is committed, so that users need none.
page:
	cd pipeline/view/page && npm ci --silent && npm run --silent build

# The native code under AddressSanitizer and UndefinedBehaviorSanitizer, then built again without them.
sanitize: develop
	SANITIZE=1 $(BIN)/python setup.py -q build_ext --inplace --force
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest tests/pipeline/refine/test_native.py tests/pipeline/score/test_label_maps.py -s --timeout 900
	$(BIN)/python setup.py -q build_ext --inplace --force

clean:
	rm -rf demo build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
