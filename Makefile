# make demo   train on the picturebook, retrieve, generate, draw; PHOTOS="a.jpg b.jpg" adds photographs of yours
# make test   the tests, offline, in two processes; ARGS="tests/data -x" picks some
# make test-slow  the long ones, which `make test` leaves out: runs that are killed, some minutes
# make lab    the paper's experiments on the picturebook, hours; what is done already is not done again
# make lab-quick  the same, far smaller, to see that all of it runs
# make check  lint, format and types
# make clean  remove what these leave behind (the environment stays)
#
# Each sets up .venv when needed, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
PHOTOS ?=
ARGS ?=
# Processes that run the tests, 0 for none but this one, as a debugger wants it; and processes of the lab.
WORKERS ?= 2
# Where pip looks for torch first. Without a GPU, https://download.pytorch.org/whl/cpu has a much smaller build.
TORCH_INDEX ?=

PIP := .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt
READY := .venv/.ready

export HF_HUB_OFFLINE := 1
export MPLBACKEND := Agg
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-slow lab lab-quick check clean

demo: $(READY)
	@.venv/bin/python examples/demo.py $(PHOTOS)

test: $(READY)
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) $(ARGS)

test-slow: $(READY)
	@.venv/bin/python -m pytest -m slow $(ARGS)

lab: $(READY)
	@.venv/bin/sugar-hf lab --workers $(WORKERS) $(ARGS)

lab-quick: $(READY)
	@.venv/bin/sugar-hf lab --budget quick --workers $(WORKERS) $(ARGS)

check: $(READY)
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy src/sugar_hf

$(READY): pyproject.toml constraints.txt
	@test -x .venv/bin/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON=")'
	@echo "setting up .venv (a few minutes the first time)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) -e ".[dev]"
	@$(PIP) loguru pytablewriter pytz tenacity sacrebleu portalocker tabulate colorama lxml
	@$(PIP) --no-deps lmms_eval  # with them it would bring torchvision, OpenCV and the clients of a dozen services
	@touch $@

clean:
	@rm -rf sugar demo_output .cache build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
	@rm -f $(READY)
