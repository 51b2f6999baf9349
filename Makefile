# make demo: the whole path on made-up cases.     make test: all tests.     Both set up ./.venv by themselves.
# make check: lint, and the tests that need no SLURM, no compiler and no browser.
# make drill: faults on purpose, at length.        make fuzz: 10,000 damaged inputs; N=500 for fewer.
# make slurm: a private SLURM of four nodes on this machine.
# make gpu-kernels: compile all Triton kernels of the training steps, without a GPU; FORMS=0 in all their forms.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check lint drill fuzz slurm slurm-packages gpu-kernels

demo: $(VENV)/ready
	$(RUN) -m hvae_hpc.sweep demo --local

test: $(VENV)/ready slurm-packages
	$(RUN) -m pytest -n 6 --dist loadfile --no-loadscope-reorder

check: lint
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

drill: $(VENV)/ready
	$(RUN) -m tests.drill --folder drill
	DRILL_SEEDS=13 $(RUN) -m pytest tests/drill/test_faults.py
	HOSTILE_FILES=3000 $(RUN) -m pytest tests/jobs/commands/test_hostile_folder.py
	KILLS=50 $(RUN) -m pytest tests/training/test_kills.py

# What ended wrongly is kept in build/fuzz.txt, and runs first the next time.
N ?= 10000
fuzz: $(VENV)/ready
	mkdir -p build
	$(RUN) -m tests.fuzz --inputs $(N) --keep build/fuzz.txt

slurm: $(VENV)/ready
	$(RUN) -m tests.minislurm up

# Triton is 0.6 GB and of no use on a CPU, so it has a folder of its own.
# Autotuning tries each kernel in several forms; one of each takes CPU minutes, all take long.
FORMS ?= 1
gpu-kernels: $(VENV)/ready build/triton/triton
	PYTHONPATH=build/triton $(RUN) -W ignore -m tests.gpu_without_gpu \
	hvae-gan resenc_unet unet lsgan vae hvae edm --compile on --kernels sm_80 sm_90 --most-forms $(FORMS)

build/triton/triton:
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --target build/triton triton==3.7.1

# INSTALL_SLURM=1 installs the Debian packages for the tests on a real SLURM and in a real browser. It starts no service.
slurm-packages:
	@if [ -n "$(INSTALL_SLURM)" ]; then bash .ci/install_slurm.sh; \
	elif ! command -v sbatch >/dev/null; then \
	echo "no SLURM here: its tests are skipped; make test INSTALL_SLURM=1 installs it"; fi

$(VENV)/ready: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
