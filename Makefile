# The ways to build, try and test netprofiler. What each needs it installs by itself; `make help` lists them.

PREFIX ?= /usr/local
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 60
KERNELS ?=

.DEFAULT_GOAL := help
.PHONY: help install packages packages-kernels packages-test demo test test-unit test-kernel test-kernels test-user test-real test-go-matrix test-churn soak lint format fuzz bench lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-15s %s\n' "$$name" "$$text"; done

install: ## .venv with netprofiler and all it takes; as root also PREFIX/bin/netprofiler (/usr/local)
	@scripts/install.sh "$(PREFIX)"

packages:
	@scripts/debian.sh scripts/debian-packages-run.txt

packages-test:
	@scripts/debian.sh scripts/debian-packages-run.txt scripts/debian-packages-test.txt

packages-kernels:
	@scripts/debian.sh scripts/debian-packages-run.txt scripts/debian-packages-kernels.txt

demo: install packages ## a Go service, traffic in plaintext and over TLS, and netprofiler watching both; shows records and the ledger
	@PATH="$$(scripts/go.sh):$$PATH" GOTOOLCHAIN=local .venv/bin/python scripts/demo.py

test: install packages-test lint ## all checks and all tests; the kernel part as root (sudo)
	@scripts/test.sh $(PYTEST_ARGS)

test-unit: install ## the tests that need neither root nor a kernel: unit, property, golden
	@.venv/bin/python -m pytest -m "not kernel and not real" $(PYTEST_ARGS)

test-kernel: install packages-test ## the tests against this kernel (root)
	@scripts/test.sh tests/kernel $(PYTEST_ARGS)

test-kernels: install packages-kernels ## the tests on the kernels that Debian ships, in virtual machines (root; KERNELS=, minutes each, gigabytes)
	@PATH="$$(scripts/go.sh):$$PATH" GOTOOLCHAIN=local .venv/bin/python scripts/kernels.py $(KERNELS)

test-user: install packages-test ## the tests against this kernel, the agent as nobody with the capabilities that it needs alone (root)
	@NETPROFILER_TEST_USER=nobody scripts/test.sh tests/kernel $(PYTEST_ARGS)

test-real: install packages-test ## the tests against real servers and clients (root)
	@scripts/test.sh tests/real $(PYTEST_ARGS)

test-go-matrix: install packages-test ## every Go version that TLS is read of, in every build mode (root; minutes, gigabytes)
	@scripts/test.sh tests/real/go_matrix.py $(PYTEST_ARGS)

test-churn: install packages-test ## ten minutes of TLS programs that come and go (root)
	@scripts/test.sh tests/real/long_churn.py $(PYTEST_ARGS)

soak: install packages-test ## ten minutes of mixed load: memory, descriptors and ledger stay true; fifty agents killed (root)
	@scripts/test.sh tests/real/long_soak.py -s $(PYTEST_ARGS)

lint: install ## ruff, mypy --strict, import-linter, clang-format, gofmt, go vet
	@scripts/lint.sh

format: install ## mend what the formatters and ruff can mend
	@scripts/lint.sh --fix

fuzz: install ## coverage-guided fuzzing of all parsers, FUZZ_SECONDS (60) each; what is found is in build/fuzz
	@.venv/bin/python -m fuzz.run --all $(FUZZ_SECONDS)

bench: install packages-test ## the measurements of docs/benchmarks.md (root; minutes)
	@PATH="$$(scripts/go.sh):$$PATH" GOTOOLCHAIN=local .venv/bin/python benchmarks/run.py $(BENCH_ARGS)

lock: ## write the lock files anew from pyproject.toml
	@scripts/lock.sh

clean: ## remove all that the other targets made in this directory
	rm -rf .cache .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
