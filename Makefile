# Everything is installed into .venv with the versions in constraints.txt; nothing outside this folder changes.
# Another interpreter: make demo PYTHON=python3.12

SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo app test lint format docs test-browser screenshots test-slow gpu-check test-gpu test-sat test-clients test-ray test-store test-ocr test-oldest light test-light constraints clean

VENV_PYTHON := .venv/bin/python
# What the tests need beyond the core; further down, `make test-oldest` takes the same.
EXTRAS := dev,finetune,demo
export PYTHON

# A stamp says that .venv holds what setup.cfg asks for. It is named after the dependencies and this folder, so
# that a changed requirement, another branch or a moved clone installs again, and anything else takes no time.
STATE := $(shell (pwd; cat pyproject.toml constraints.txt; \
	awk '/^\[/ { on = /^\[(metadata|options)/ } on' setup.cfg) | cksum | cut -d ' ' -f 1)
CORE := .venv/.core-$(STATE)
DEV := .venv/.dev-$(STATE)
APP := .venv/.app-$(STATE)
DOCS := .venv/.docs-$(STATE)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(CORE)  ## install visglm and ask it two questions about a picture
	@$(VENV_PYTHON) examples/first_answer.py
	@printf '\nTry next:\n'
	@printf '  %s\n' \
		'.venv/bin/visglm chat examples/cat.png       ask your own questions about a picture' \
		'.venv/bin/visglm describe examples/*.png     describe many' \
		'.venv/bin/visglm --help                      what else there is'

app: $(APP)  ## open the page in the browser: make app, or make app MODEL=folder
	@.venv/bin/visglm app $(if $(MODEL),--model $(MODEL))

test: $(DEV)  ## run the test suite
	@$(VENV_PYTHON) -m pytest -n 2 --dist loadfile

lint: $(DEV)  ## check style and types
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy

format: $(DEV)  ## mend what `make lint` says about style
	@$(VENV_PYTHON) -m ruff check --fix .
	@$(VENV_PYTHON) -m ruff format .

docs: $(DOCS)  ## build the documentation site into build/site; any warning is an error
	@$(VENV_PYTHON) docs/build.py

test-browser: $(DEV) $(APP)  ## run the tests of the page and of the site that drive Chromium; `make test` runs the others
	@$(VENV_PYTHON) -m pytest tests/demos tests/docs/test_site.py tests/serve/test_browser.py -m browser --timeout 600 -n 2 --dist loadfile

screenshots: $(DEV) $(APP)  ## take the pictures of the page that README shows (needs Chromium)
	@$(VENV_PYTHON) -m tests.demos.screenshots docs/screenshots

test-slow: $(DEV)  ## run the tests that take minutes or much memory
	@$(VENV_PYTHON) -m pytest -m "slow or full_size" --timeout 1800

gpu-check: $(DEV)  ## look at a GPU: right numbers first, then tokens, pictures and steps a second
	@$(VENV_PYTHON) benchmarks/gpu_check.py

test-gpu: $(DEV)  ## run the tests that need a CUDA device
	@$(VENV_PYTHON) -m pytest -m gpu

test-sat: $(DEV)  ## install SwissArmyTransformer and compare with it
	@.ci/install .venv '.[$(EXTRAS),sat]' constraints.txt
	@VISGLM_NEEDS_SAT=1 $(VENV_PYTHON) -m pytest tests/checkpoint/test_sat.py

test-clients: $(DEV)  ## install clients of others and ask a server with them (Python 3.11 or newer)
	@.ci/install .venv '.[$(EXTRAS),clients]' constraints.txt
	@$(VENV_PYTHON) -m pytest tests/serve/clients -m clients --timeout 600

test-ray: $(DEV)  ## install Ray and run replicas and workers on this machine
	@.ci/install .venv '.[$(EXTRAS),ray,s3-server]' constraints.txt
	@$(VENV_PYTHON) -m pytest tests/serve/test_ray.py tests/describe/test_ray.py tests/library/test_stores.py tests/families/test_read.py -m ray --timeout 600

test-store: $(DEV)  ## install an object store; describe its pictures and keep libraries there
	@.ci/install .venv '.[$(EXTRAS),s3-server]' constraints.txt
	@$(VENV_PYTHON) -m pytest tests/describe/test_s3.py tests/library/test_stores.py -m "s3 and not ray" --timeout 600

test-ocr: $(DEV)  ## install RapidOCR and read scans and pictures with it
	@.ci/install .venv '.[$(EXTRAS),ocr]' constraints.txt
	@$(VENV_PYTHON) -m pytest tests/library/test_ocr.py -m ocr --timeout 600

# Beside .venv, not inside: numpy's lower bound has no wheel for Python 3.13.
test-oldest: PYTHON := python3.10 python3.11 python3.12
test-oldest:  ## run the test suite on the lower bounds in setup.cfg
	@mkdir -p build
	@sed -nE 's/^    ([A-Za-z0-9_.-]+)>=([0-9.]+)$$/\1==\2/p' setup.cfg > build/lower-bounds.txt
	@.ci/install .venv-oldest '.[$(EXTRAS)]' build/lower-bounds.txt
	@.venv-oldest/bin/python -m pytest -n 2 --dist loadfile

# visglm-light: the same tree without what needs torch, as a distribution of its own.
light: $(DEV)  ## build the wheel of visglm-light, which answers without torch, in build/light
	@$(VENV_PYTHON) .ci/light.py build/light

test-light: $(DEV)  ## install visglm-light into an environment of its own, and ask it about a picture
	@$(VENV_PYTHON) -m pytest tests/light tests/export -m fresh --timeout 1800 -s

constraints: $(DEV)  ## bring constraints.txt up to date with setup.cfg, keeping every version that still fits
	@$(VENV_PYTHON) -m pip install --quiet uv
	@$(VENV_PYTHON) -m uv pip compile --quiet --universal --python-version 3.10 --all-extras setup.cfg \
		--no-annotate --custom-compile-command 'make constraints' --output-file constraints.txt

clean:  ## remove caches and build products (.venv stays: delete it by hand)
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

$(CORE):
	@.ci/install .venv . constraints.txt
	@rm -f .venv/.core-* .venv/.dev-*
	@touch $@

$(DEV):
	@.ci/install .venv '.[$(EXTRAS)]' constraints.txt
	@rm -f .venv/.core-* .venv/.dev-*
	@touch $(CORE) $@

$(DOCS):
	@.ci/install .venv '.[docs]' constraints.txt
	@rm -f .venv/.docs-*
	@touch $@

$(APP):
	@.ci/install .venv '.[demo,finetune,library]' constraints.txt
	@rm -f .venv/.app-*
	@touch $@

-include finetune/visglm-tiny/tiny.mk
