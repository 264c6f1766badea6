# Each target sets up what it needs in .venv; nothing else is touched.
PYTHON ?= python3
PORT ?= 8000
# Where torch comes from, if not from pip's own configuration, e.g. an index of CPU or CUDA builds:
#   make demo TORCH_INDEX=URL
TORCH_INDEX ?=
DATA ?= ../shared/data
# What `make bench-versions` compares this commit with.
COMMIT ?= cdc3a26

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo serve test test-long check-gpu lint train-starter train-default search-inner bench-transfer bench-intents bench-banking \
	bench-predict bench-packing bench-load bench-stored bench-adapt bench-versions bench-neighbours bench-metagrad bench-papers bench-label-words bench-curves bench-parity mutants faults \
	fuzz-files plots settings secrets certificate check-containers clean

demo: .venv/embedded
	$(BIN)/quickstudy demo

serve: .venv/embedded
	exec $(BIN)/quickstudy serve --port $(PORT) --tied $$PPID

# Two files of tests at a time, one thread each, the slowest first (tests/order.py). The tests start dozens of processes: they share
# compiled bytecode, whatever the environment says.
test: .venv/dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TEST_FLAGS)

test-long: .venv/dev
	$(BIN)/python -m pytest -m long

# The checks that need a GPU; without one they are skipped.
check-gpu: .venv/dev
	$(BIN)/python -m pytest -rs tests/gpu

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py

# A first initialization of one's own, on the task set that ships with the package, and a report on it: a few minutes.
train-starter: .venv/report
	$(BIN)/metatrain train starter --report

# The default initialization again, from the same data and recipe (see its README).
train-default: .venv/embedded
	$(BIN)/metatrain train default --data $(DATA) --out runs/default

# Accuracy: each trains what it needs (about 6 minutes a fold on a core) and resumes where it was stopped.
bench-transfer: .venv/bench
	$(BIN)/python -m benchmarks.folds --data $(DATA)
	$(BIN)/python -m benchmarks.transfer --data $(DATA)
	$(BIN)/python -m benchmarks.transfer --data $(DATA) --seconds

bench-intents: .venv/bench
	$(BIN)/python -m benchmarks.intents --data $(DATA)

bench-banking: .venv/bench
	$(BIN)/python -m benchmarks.folds banking77 --data $(DATA)
	$(BIN)/python -m benchmarks.banking --data $(DATA)

bench-predict: .venv/dev
	$(BIN)/python -m benchmarks.predict

bench-packing: .venv/dev
	$(BIN)/python -m benchmarks.packing

bench-load: .venv/embedded
	$(BIN)/python -m benchmarks.load

# With the folder of BANKING77 at $(DATA), its 77 classes too. SetFit takes most of the time: ADAPT_FLAGS=--setfit=0 leaves it out.
bench-adapt: .venv/bench
	$(BIN)/python -m benchmarks.adapt $(if $(wildcard $(DATA)/banking77),--data $(DATA)) $(ADAPT_FLAGS)

# Speeds of another commit and of this one, measured in turn: about ten minutes.
bench-versions: .venv/dev
	$(BIN)/python -m benchmarks.versions --commit $(COMMIT) $(VERSIONS_FLAGS)

# A quiet tenant alone and beside noisy ones, with the commit NEIGHBOURS_FLAGS=--commit=… and with this one: about twenty minutes; resumes.
bench-neighbours: .venv/dev
	$(BIN)/python -m benchmarks.neighbours $(NEIGHBOURS_FLAGS)

# Features of base models against the vectors of sentence-transformers, over a matrix of saved folders: five to ten minutes.
bench-parity: .venv/dev
	$(BIN)/python -m benchmarks.parity

# 100,000 adapters in Redis: some 6 GB of memory.
bench-stored: .venv/embedded
	$(BIN)/python -m benchmarks.stored

# On a machine at rest; resumes.
bench-metagrad: .venv/bench
	$(BIN)/python -m benchmarks.metagrad

# Hours on a CPU; MINUTES bounds one call, and the next one goes on.
bench-papers: .venv/bench
	$(BIN)/python -m benchmarks.papers --data $(DATA) $(if $(MINUTES),--minutes $(MINUTES))

# Rules for label words on many data sets: some minutes.
bench-label-words: .venv/dev
	$(BIN)/python -m benchmarks.label_words --data $(DATA)

# Minutes an algorithm.
bench-curves: .venv/bench
	$(BIN)/python -m benchmarks.curves

# 300 jobs while everything around them is killed, paused, filled and slowed: about seven minutes.
faults: .venv/embedded
	$(BIN)/python -m benchmarks.faults

# 20,000 mutated tables, recipes, JSON and safetensors files, read as the commands read them: about seven minutes.
fuzz-files: .venv/dev
	$(BIN)/python -m benchmarks.fuzz_files $(FUZZ_FLAGS)

# Small changes of the maths, and how many of them the tests notice: about an hour.
mutants: .venv/dev
	$(BIN)/python -m benchmarks.mutants

search-inner: .venv/embedded
	$(BIN)/metatrain search metatrain/searches/inner.yaml --data $(DATA)
	$(BIN)/metatrain search metatrain/searches/one-shot.yaml --data $(DATA)

# What docker-compose.yml reads: the password of Redis, in a folder that only its owner can open.
secrets: docker/secrets/redis_password

docker/secrets/redis_password:
	@mkdir -p -m 700 docker/secrets
	@python3 -c 'import secrets; print(secrets.token_hex(32))' > $@.tmp
	@chmod 644 $@.tmp
	@mv $@.tmp $@

# For trying the profile `proxy`: a certificate that no browser trusts. Put your own files in its place.
certificate:
	@mkdir -p -m 700 docker/secrets
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=localhost \
	  -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout docker/secrets/tls_key -out docker/secrets/tls_certificate
	@chmod 644 docker/secrets/tls_key docker/secrets/tls_certificate

# Builds the images and starts them with podman or Docker: hardening, health checks, and the proxy under slow and oversized requests.
check-containers: .venv/dev
	$(BIN)/python -m tests.containers.check $(CONTAINERS_FLAGS)

# The table in docs/settings.md, from the settings classes.
settings: .venv/dev
	$(BIN)/python -m tests.settings_page

plots: .venv/bench
	$(BIN)/python -m benchmarks.plots

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first and alone, so that TORCH_INDEX holds for it and for nothing else (what it needs comes with the next step).
.venv/torch: constraints.txt | .venv/bin/python
	$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	@touch $@

.venv/embedded: pyproject.toml client/pyproject.toml constraints.txt .venv/torch
	$(PIP) --editable ./client --editable '.[embedded]'
	@touch $@

.venv/report: pyproject.toml client/pyproject.toml constraints.txt .venv/torch
	$(PIP) --editable ./client --editable '.[embedded,report]'
	@touch $@ .venv/embedded

.venv/dev: pyproject.toml client/pyproject.toml constraints.txt .venv/torch
	$(PIP) --editable ./client --editable '.[dev]'
	@touch $@ .venv/embedded .venv/report

.venv/bench: pyproject.toml client/pyproject.toml constraints.txt .venv/torch
	$(PIP) --editable ./client --editable '.[bench]'
	@touch $@ .venv/embedded

clean:
	rm -rf .venv runs build *.egg-info client/build client/*.egg-info
