"""sbatch texts: what stands in them for every stage, container and flag; nothing in them is interpreted."""

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.jobs.slurm.sbatch import python_command, sbatch_text


@pytest.fixture(autouse=True)
def _srun_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for srun, which submitit looks for and the text calls: it drops its own options and runs the rest."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(
        '#!/bin/sh\nwhile [ "$1" != sh ]; do shift; done\nexec "$@"\n'
    )
    (tmp_path / "bin/apptainer").write_text('#!/bin/sh\necho "apptainer: $*"\n')
    for name in ("srun", "apptainer"):
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")


def flags(text: str) -> dict[str, str]:
    lines = [
        line.removeprefix("#SBATCH --")
        for line in text.splitlines()
        if line.startswith("#SBATCH --")
    ]
    return {
        name: " ".join(shlex.split(value))
        for name, _, value in (line.partition("=") for line in lines)
    }


def text_of(command: list[str], folder: Path, elements: int = 3, **resources: object) -> str:
    partition = {"partition": "gpu", **resources}
    return sbatch_text(
        folder, "job", Resources(**partition), command, comment="c:0", elements=elements
    )


def test_everything_that_was_asked_stands_in_the_text(tmp_path: Path) -> None:
    found = flags(
        text_of(
            ["true"], tmp_path, nodes=2, gpus=4, cpus=6, memory_gb=20, minutes=90, minutes_min=20, account="lab",
            qos="long", constraint="a100|h100", exclude="n[1-2]", nice=100, array_parallelism=2, signal_lead_s=60,
        )
    )  # fmt: skip
    assert found["array"] == "0-2%2"
    assert {
        "nodes": "2", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "6", "mem": "20480MB", "time": "90",
        "time-min": "20", "account": "lab", "qos": "long", "constraint": "a100|h100", "exclude": "n[1-2]", "nice": "100",
        "signal": "USR2@60", "partition": "gpu", "comment": "c:0", "requeue": "", "open-mode": "append",
    }.items() <= found.items()  # fmt: skip


def test_further_options_stand_in_the_text_and_named_gpus_replace_their_number(
    tmp_path: Path,
) -> None:
    text = text_of(
        ["true"], tmp_path, gpus=2,
        sbatch_args={"gres": "gpu:a100:2", "exclusive": True, "reservation": "our lab"},
        srun_args={"cpu-bind": "none", "overlap": True},
    )  # fmt: skip
    found = flags(text)
    assert (found["gres"], found["exclusive"], found["reservation"]) == (
        "gpu:a100:2",
        "",
        "our lab",
    )
    assert "gpus-per-node" not in found
    assert found["ntasks-per-node"] == "2"
    assert "--cpus-per-task=1 --cpu-bind=none --overlap sh -c" in text


def test_what_was_not_asked_does_not(tmp_path: Path) -> None:
    found = flags(text_of(["true"], tmp_path, elements=0))
    assert not {
        "array",
        "gpus-per-node",
        "account",
        "qos",
        "constraint",
        "exclude",
        "nice",
        "time-min",
        "wckey",
    } & set(found)


def test_the_last_command_of_the_text_is_srun_so_that_a_job_ends_as_its_step_did(
    tmp_path: Path,
) -> None:
    text = text_of(["true"], tmp_path)
    assert text.strip().splitlines()[-1].startswith("srun --unbuffered")
    assert "--kill-on-bad-exit=1 --cpus-per-task=1" in text
    script = tmp_path / "job.sh"
    for code in (0, 75):
        script.write_text(text_of(["sh", "-c", f"exit {code}"], tmp_path))
        assert subprocess.run(["bash", str(script)], check=False).returncode == code


def test_the_command_is_quoted_and_its_signals_are_ignored_until_it_handles_them(
    tmp_path: Path,
) -> None:
    ugly = 'a b\'; touch pwned; $(touch pwned) `touch pwned` "$HOME" \\'
    code = "import signal, sys; print(sys.argv[1], signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM))"
    script = tmp_path / "job.sh"
    script.write_text(text_of([sys.executable, "-c", code, ugly], tmp_path))
    done = subprocess.run(
        ["bash", str(script)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == f"{ugly} {signal.SIG_IGN} {signal.SIG_IGN}\n"
    assert not (tmp_path / "pwned").exists()


def test_a_single_command_ends_when_it_is_told_to(tmp_path: Path) -> None:
    assert "trap '\"'\"''\"'\"' USR2; exec" in text_of(["true"], tmp_path, elements=0)
    assert "USR2 TERM; exec" in text_of(["true"], tmp_path, elements=1)


def test_memory_is_never_nought_which_is_all_of_a_node(tmp_path: Path) -> None:
    assert flags(text_of(["true"], tmp_path, memory_gb=0.0001))["mem"] == "1MB"


def test_modules_are_loaded_and_a_container_is_entered(tmp_path: Path) -> None:
    resources = {"container": "/images/our own.sif", "setup": ("export LOADED=yes", "echo loaded")}
    text = text_of(["unused"], tmp_path, **resources)
    assert text.index("echo loaded") < text.index("srun ")
    command = [
        *python_command(Resources(container="/images/our own.sif", gpus=1)),
        "-m",
        "hvae_hpc.jobs.worker.element",
    ]
    script = tmp_path / "job.sh"
    script.write_text(text_of(command, tmp_path, **resources))
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == "loaded\napptainer: exec --nv /images/our own.sif python3 -P -u -m hvae_hpc.jobs.worker.element\n"
    )


def test_without_a_container_it_is_the_python_that_submits_or_the_one_that_is_named() -> None:
    assert python_command(Resources()) == [sys.executable, "-P", "-u"]
    assert python_command(Resources(python="/opt/python")) == ["/opt/python", "-P", "-u"]
