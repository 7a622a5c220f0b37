# Everything goes into .venv. Two commands matter: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= $(shell test -x /usr/bin/python3 && /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo /usr/bin/python3 || command -v python3)
BIN := .venv/bin
DEBIAN := git python3 python3-venv ca-certificates
DEBIAN_TEST := curl iproute2 iptables nftables softhsm2
DEBIAN_GUEST := qemu-system-x86 busybox-static lz4

.DEFAULT_GOAL := help
.PHONY: docs help setup demo test runsc test-backends test-egress test-real test-spiffe test-api test-sinks test-vectors test-bare test-postgres check format bench bench-decision bench-egress bench-redos bench-agentdojo bench-search bench-streaming bench-audit bench-ledger bench-identity bench-ship fuzz simulate kill cycles prove clean audit-deps dist audit-offline release

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.done ## a virtual environment with the locked dependencies (and Debian packages, where root)

.venv/.done: uv.lock pyproject.toml
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=$$(for p in $(DEBIAN); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	  if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi; \
	fi
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r supply/uv.txt
	@$(BIN)/uv sync -q --locked --inexact --no-build
	@$(BIN)/python -m compileall -q src/nucleus
	@touch $@

demo: setup ## the main job: an honest task, then a hijacked agent that gets nowhere (ISOLATION=gvisor)
	@$(BIN)/python demo/demo.py $(if $(ISOLATION),--isolation $(ISOLATION))

test: setup ## the tests; ends with what was skipped and why
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=$$(for p in $(DEBIAN_TEST) $(DEBIAN_GUEST); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	  if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi; \
	fi
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then sh supply/runsc.sh || echo "no runsc here"; fi
	@$(BIN)/pytest

runsc: ## gVisor's runsc to /usr/local/bin, from Debian 13 (root)
	@sh supply/runsc.sh

test-backends: setup ## every promise of a pod, tried against each kind of isolation that this machine can start
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then sh supply/runsc.sh || echo "no runsc here"; \
	  missing=$$(for p in $(DEBIAN_GUEST); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	  if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi; \
	fi
	@NUCLEUS_BACKENDS=all $(BIN)/pytest tests/pod/test_conformance.py tests/integration/test_gvisor.py tests/integration/test_qemu.py

test-egress: setup ## every attempt to get out of a pod, and what is to work
	@$(BIN)/pytest tests/network tests/adversarial/test_egress.py $(wildcard tests/adversarial/test_opened_attacks.py) \
	  $(addprefix tests/integration/test_,web_fetch.py drift.py drift_sender.py opened_tls.py services.py net.py package_managers.py)

test-real: setup ## programs of others as the outside: httpbin, searx, GitHub's own description of its API (in .real)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=$$(for p in curl iproute2 searx; do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done; command -v npm >/dev/null || echo nodejs npm); \
	  if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi; \
	fi
	@test -x .real/venv/bin/python || $(PYTHON) -m venv .real/venv
	@.real/venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r tests/real/requirements.txt
	@cp tests/real/package.json tests/real/package-lock.json .real/ && npm ci --prefix .real --no-audit --no-fund --silent
	@NUCLEUS_REAL=$(CURDIR)/.real $(BIN)/pytest tests/real

test-spiffe: setup ## the Workload API with clients of others, as they are: PyPI's spiffe, grpc-js, Envoy (in .spiffe)
	@test -x .spiffe/venv/bin/python || $(PYTHON) -m venv .spiffe/venv
	@.spiffe/venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r tests/spiffe/requirements.txt
	@if command -v npm >/dev/null; then mkdir -p .spiffe/node && cp tests/spiffe/node/package*.json .spiffe/node/ && \
	  npm ci --prefix .spiffe/node --ignore-scripts --no-audit --no-fund --silent; fi
	@NUCLEUS_SPIFFE=$(CURDIR)/.spiffe $(BIN)/pytest tests/spiffe

test-sinks: setup ## the audit log shipped to programs of others: rsyslog, PostgreSQL, an S3 server, OpenTelemetry's messages (in .sinks)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=$$(for p in rsyslog rsyslog-gnutls; do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	  if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi; \
	fi
	@test -x .sinks/venv/bin/python || $(PYTHON) -m venv .sinks/venv
	@.sinks/venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r tests/sinks_real/requirements.txt
	@NUCLEUS_SINKS=$(CURDIR)/.sinks $(BIN)/pytest tests/sinks_real tests/sinks

test-bare: setup ## the first command on a bare Debian 12, made by mmdebstrap (root, network; in .bare)
	@dpkg -s mmdebstrap >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null; }
	@NUCLEUS_BARE=$(CURDIR)/.bare $(BIN)/pytest tests/bare

test-vectors: setup ## Wycheproof's Ed25519 signatures and RFC 4231's HMACs against ours (in .vectors)
	@test -d .vectors/cryptography_vectors || $(BIN)/uv pip install -q --target .vectors --require-hashes -r tests/vectors/requirements.txt
	@NUCLEUS_VECTORS=$(CURDIR)/.vectors $(BIN)/pytest tests/vectors

test-api: setup ## the HTTP API against its OpenAPI document, by schemathesis (in .api; NUCLEUS_API_EXAMPLES=60)
	@test -x .api/venv/bin/python || $(PYTHON) -m venv .api/venv
	@.api/venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r tests/api/requirements.txt
	@NUCLEUS_API=$(CURDIR)/.api $(BIN)/pytest tests/api -s

test-postgres: setup ## the ledger on both engines, SQLite and PostgreSQL (Debian's server, installed where root)
	@if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && [ "$$(id -u)" = 0 ]; then \
	  mkdir -p /etc/postgresql-common && echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >/dev/null; fi
	@$(BIN)/pytest tests/store tests/integration/test_ledger_in_postgres.py

check: setup ## ruff, mypy --strict, and how many promises are shown and pending
	@$(BIN)/ruff check src tests bench demo proofs simulate fuzz docs supply
	@$(BIN)/ruff format --check src tests bench demo proofs simulate fuzz docs supply
	@$(BIN)/mypy
	@$(BIN)/python tests/specification.py

format: setup ## ruff format, and the fixes that are safe
	@$(BIN)/ruff format src tests bench demo proofs simulate fuzz docs supply
	@$(BIN)/ruff check --fix src tests bench demo proofs simulate fuzz docs supply

bench: setup ## every comparison in one interleaved run, into README and docs (10 min; BENCH=quick: 3, printed only; BENCH_NOTE=of the machine)
	@$(BIN)/python -m bench $(if $(filter quick,$(BENCH)),--scale quick,--publish) --note "$(BENCH_NOTE)"

bench-decision: setup ## one decision against cedarpy, regorus, agent-governance-toolkit and casbin
	@$(BIN)/python -m bench.decision

bench-redos: setup ## the ReDoS scan on public corpora of patterns (network; the first run takes a quarter of an hour)
	@$(BIN)/python -m bench.redos

bench-egress: setup ## what the way out costs: requests, a stream of bytes, names, a hundred gateways
	@$(BIN)/python -m bench.egress --gateways 100

bench-agentdojo: setup ## AgentDojo without a model: what a fully hijacked agent gets done in each trifecta mode
	@for mode in static session provenance all; do $(BIN)/python -m bench.agentdojo --mode $$mode || exit 1; done

audit-deps: audit-offline ## licences, hashes, bill of materials in dist/, known vulnerabilities (AUDIT_SERVICE=pypi|osv, AUDIT_URL=https://HOST)
	@$(BIN)/python -m supply vulnerabilities

audit-offline: setup ## of these what needs no service: all but known vulnerabilities
	@test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r supply/requirements.txt
	@$(BIN)/python -m supply sbom dist/nucleus.cdx.json && .venv-audit/bin/python supply/validate.py dist/nucleus.cdx.json
	@$(BIN)/python -m supply offline

dist: setup ## the wheel, the same bytes from the same commit, its bill of materials and their SHA-256 (docs/release.md)
	@rm -rf dist && mkdir dist
	@export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) && \
	  $(BIN)/uv build -q --wheel --build-constraints supply/build.txt --require-hashes --out-dir dist && \
	  $(BIN)/python -m supply sbom dist/nucleus.cdx.json
	@rm -f dist/.gitignore && cd dist && sha256sum * > SHA256SUMS && cat SHA256SUMS

release: dist ## what dist made, with signed provenance (KEY=private.pem, kept elsewhere): dist/nucleus.intoto.jsonl
	@test -n "$(KEY)" || { echo "KEY=private.pem: docs/release.md"; exit 2; }
	@$(BIN)/python -m supply attest dist --key "$(KEY)"

docs: setup ## what the documentation takes from the code: README's limits, the policy's schema
	@$(BIN)/python docs/generate.py

bench-search: setup ## glob and grep against ripgrep and a plain scandir walk, on a synthetic tree of 63 MB
	@$(BIN)/python -m bench.search

bench-ledger: setup ## reservations and nonces against a bare SQLite writer that syncs as often
	@$(BIN)/python -m bench.ledger

bench-streaming: setup ## what streaming costs: a line from the pod to its reader, a run with and without
	@$(BIN)/python -m bench.streaming

fuzz: setup ## coverage-guided tests of all that reads hostile bytes (FUZZ_SECONDS=60, or FUZZ_RUNS; TARGET=, REPLAY=)
	@UV_PROJECT_ENVIRONMENT=.venv-fuzz $(BIN)/uv sync -q --locked --no-dev --group fuzz
	@.venv-fuzz/bin/python -m fuzz --seconds $(or $(FUZZ_SECONDS),60) --runs $(or $(FUZZ_RUNS),0) $(if $(TARGET),--target $(TARGET)) $(if $(REPLAY),--replay $(REPLAY))

simulate: setup ## the authority on a disk and a clock that fail: 1e6 seeded steps (SEED=1 STEPS=1000000)
	@$(BIN)/python -m simulate --seed $(or $(SEED),1) --steps $(or $(STEPS),1000000)

kill: setup ## the authority killed by -9 two hundred times under sixteen clients
	@NUCLEUS_KILL_ROUNDS=200 $(BIN)/pytest tests/authority/test_recovery.py -k round_after_round --durations=1

bench-audit: setup ## the audit log against its floors
	@$(BIN)/python -m bench.audit

bench-ship: setup ## the audit log shipped to a file and to PostgreSQL, against a bare copy that verifies nothing
	@$(BIN)/python -m bench.ship

bench-identity: setup ## the gate's door against bare aiohttp with mutual TLS; SVIDs issued and fetched (as root)
	@$(BIN)/python -m bench.identity

cycles: setup ## a thousand pods made and destroyed, launchers and node killed by -9 now and then: nothing may stay (as root)
	@$(BIN)/python -m simulate.pods

prove: setup ## the lattice's laws: by Z3 on the production functions, and exhaustively on ints
	@$(BIN)/python -m proofs

clean: ## remove what the targets made
	rm -rf .venv .venv-bench .venv-agentdojo .venv-prove .venv-audit .real .spiffe .sinks .vectors .bare .mypy_cache .ruff_cache .pytest_cache .hypothesis dist bench/results
