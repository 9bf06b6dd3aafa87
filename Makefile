# make demo   train on the picturebook, retrieve, generate, draw; PHOTOS="a.jpg b.jpg" adds photographs of yours
# make test   the tests, offline, in two processes; ARGS="tests/data -x" picks some
# make test-lab   the tests of the laboratory (src/sugar_lab), which `make test` leaves out
# make test-slow  the long ones, which `make test` leaves out: runs that are killed, some minutes
# make test-families    every type of backbone that transformers has, compared with docs/backbones.md, some minutes
# make test-newest       the tests with the newest versions that pyproject.toml allows today
# make test-lowest       the tests with the lowest that it allows
# make test-torchvision  the families and the processors where torchvision is installed
# make test-space    the page of a Space on the real Gradio, in headless Chromium if there is one
# make test-install      install the package as a user does, and use it
# make lab    the paper's experiments on the picturebook, hours; what is done already is not done again
# make lab-quick  the same, far smaller, to see that all of it runs
# make docs   build the documentation site in docs/_build/html, warnings are errors
# make check  lint, format and types
# make clean  remove what these leave behind (the environments stay)
#
# Each sets up an environment when needed (.venv, .venv-newest and so on), and again when what it is made of changes.

PYTHON ?= python3
PHOTOS ?=
ARGS ?=
# Processes that run the tests, 0 for none but this one, as a debugger wants it; and processes of the lab.
WORKERS ?= 2
# Where pip looks for torch first. Without a GPU, https://download.pytorch.org/whl/cpu has a much smaller build.
TORCH_INDEX ?=

READY := .venv/.ready
SPACE := .venv-space/.ready
DEMO := .venv/.demo
NEWEST := .venv-newest/.ready-$(shell date +%F)
LOWEST := .venv-lowest/.ready
TORCHVISION := .venv-torchvision/.ready

export HF_HUB_OFFLINE := 1
export MPLBACKEND := Agg
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-lab test-slow test-families test-newest test-lowest test-torchvision test-space test-install lab lab-quick docs check clean

demo: $(DEMO)
	@.venv/bin/python examples/demo.py $(PHOTOS)

test: $(READY)
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) $(ARGS)

test-lab: $(READY)
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "lab and not slow" tests/lab -n $(WORKERS) $(ARGS)

test-slow: $(READY)
	@.venv/bin/python -m pytest -m "slow and not families" $(ARGS)

test-families: $(READY)
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m families -n $(WORKERS) -vv $(ARGS)

test-newest: $(NEWEST)
	@OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n $(WORKERS) $(ARGS)

test-lowest: $(LOWEST)
	@OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(WORKERS) $(ARGS)

test-torchvision: $(TORCHVISION)
	@OMP_NUM_THREADS=1 .venv-torchvision/bin/python -m pytest -n $(WORKERS) tests/families tests/model $(ARGS)

test-space: $(READY) $(SPACE)
	@SUGAR_SPACE_PYTHON=$(CURDIR)/.venv-space/bin/python .venv/bin/python -m pytest -m slow tests/cli/test_space.py $(ARGS)

# As a user has it, so without constraints, and new each time.
test-install:
	@$(PYTHON) -m venv --clear .venv-install
	@.venv-install/bin/python -m pip install -qq --disable-pip-version-check . sentence-transformers
	@cd .venv-install && bin/python -I ../.ci/installed.py
	@rm -rf .venv-install

lab: $(READY)
	@.venv/bin/python -m sugar_lab --workers $(WORKERS) $(ARGS)

lab-quick: $(READY)
	@.venv/bin/python -m sugar_lab --budget quick --workers $(WORKERS) $(ARGS)

docs: $(READY)
	@.venv/bin/python -W ignore -m sphinx -q -W --keep-going docs docs/_build/html
	@echo "open docs/_build/html/index.html"

check: $(READY)
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy src

# $(call environment,FOLDER,OPTIONS OF PIP): what the tests need, in a folder of its own. torch comes first and alone,
# so that nothing pulls another build of it in.
define environment
	$(call base,$(1),$(2))
	@$(call pip,$(1),$(2)) -e ".[dev]"
	@$(call pip,$(1),$(2)) loguru pytablewriter pytz tenacity sacrebleu portalocker tabulate colorama lxml
	@$(call pip,$(1),$(2)) --no-deps lmms_eval  # with them it would bring torchvision, OpenCV and the clients of a dozen services
endef
define base
	@test -x $(1)/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=")'
	@echo "setting up $(1) (a few minutes the first time)"
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(call pip,$(1),$(2)) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
endef
pip = $(1)/bin/python -m pip install -qq --disable-pip-version-check $(2)

$(READY): pyproject.toml constraints.txt
	$(call environment,.venv,-c constraints.txt)
	@touch $@ $(DEMO)

# What the demo needs and no more; the tests' environment has it, too.
$(DEMO): pyproject.toml constraints.txt
	$(call base,.venv,-c constraints.txt)
	@$(call pip,.venv,-c constraints.txt) -e ".[demo]"
	@touch $@

$(NEWEST): pyproject.toml
	$(call environment,.venv-newest,--upgrade --upgrade-strategy eager)
	@rm -f .venv-newest/.ready-*
	@touch $@

$(LOWEST): pyproject.toml .ci/lowest.py
	@mkdir -p .cache
	@$(PYTHON) .ci/lowest.py pyproject.toml > .cache/lowest.txt
	$(call environment,.venv-lowest,-c .cache/lowest.txt)
	@touch $@

# The pins, but with a torch that has a torchvision. Nowhere else is it installed.
$(TORCHVISION): pyproject.toml constraints.txt Makefile
	@mkdir -p .cache
	@sed 's/^torch==.*/torch==2.14.1\ntorchvision==0.29.1/' constraints.txt > .cache/torchvision.txt
	$(call environment,.venv-torchvision,-c .cache/torchvision.txt)
	@$(call pip,.venv-torchvision,-c .cache/torchvision.txt) torchvision
	@touch $@

# Gradio takes no Pillow as new as the pin. Everything else is as it is pinned.
$(SPACE): pyproject.toml constraints.txt src/sugar_cli/space_files.py
	@mkdir -p .cache
	@sed '/^pillow==/d' constraints.txt > .cache/space.txt
	$(call base,.venv-space,-c .cache/space.txt)
	@$(call pip,.venv-space,-c .cache/space.txt) -e . spaces "$$(sed -n 's/^GRADIO, PILLOW = "\(.*\)", .*/gradio==\1/p' src/sugar_cli/space_files.py)"
	@touch $@

clean:
	@rm -rf sugar demo_output docs/_build .cache build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	@rm -f $(READY) $(DEMO)
