# make demo: the whole path on made-up cases.  make test: all tests.  Both set up ./.venv by themselves.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint slurm

demo: $(VENV)/ready
	$(RUN) -m hvae_hpc.sweep demo --local

test: $(VENV)/ready slurm
	$(RUN) -m pytest -n 3

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# INSTALL_SLURM=1 installs the Debian packages that the tests on a real SLURM need, and starts no service.
slurm:
	@if [ -n "$(INSTALL_SLURM)" ]; then bash .ci/install_slurm.sh; \
	elif ! command -v sbatch >/dev/null; then echo "no SLURM here: its tests are skipped; make test INSTALL_SLURM=1 installs it"; fi

$(VENV)/ready: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
