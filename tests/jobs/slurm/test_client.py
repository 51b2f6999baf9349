"""SLURM's clients: what they print, what they must not inherit, and a controller that is busy."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm import client as slurm
from hvae_hpc.jobs.slurm.limits import _minutes


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("3", (3,)),
        ("0-4,7", (0, 1, 2, 3, 4, 7)),
        ("0-10:5%2", (0, 5, 10)),
        ("N/A", ()),
        ("4-6%1", (4, 5, 6)),
    ],
)
def test_element_lists_are_read_as_squeue_prints_them(text: str, places: tuple[int, ...]) -> None:
    assert slurm.parse_places(text) == places


def test_what_a_job_or_a_profile_left_of_slurm_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "SLURM_JOB_ID",
        "SBATCH_PARTITION",
        "SRUN_CPUS_PER_TASK",
        "PMIX_RANK",
        "SLURM_CPU_BIND",
    ):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    environment = slurm.clean_environment()
    assert {name for name in environment if slurm.FOREIGN.match(name)} == {"SLURM_CONF"}
    assert environment["PATH"] == os.environ["PATH"]


def fake(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_busy_controller_is_asked_again_and_a_refusal_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(
        slurm, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    )
    count = tmp_path / "count"
    text = f'echo x >> {count}; [ $(wc -l < {count}) -ge 4 ] || {{ echo "Unable to contact slurm controller" >&2; exit 1; }}; echo fine'
    fake(tmp_path / "bin", "squeue", text, monkeypatch)
    assert slurm.ask(["squeue"]) == "fine\n"
    assert len(pauses) == 3
    assert all(2 * 2**i * 0.5 <= pause <= 2 * 2**i * 1.5 for i, pause in enumerate(pauses))
    fake(
        tmp_path / "bin",
        "sinfo",
        f"echo x >> {count}; echo 'Invalid user' >&2; exit 1",
        monkeypatch,
    )
    before = len(count.read_text())
    with pytest.raises(UserError, match="sinfo: Invalid user"):
        slurm.ask(["sinfo"])
    assert len(count.read_text()) == before + 2


def test_an_answer_in_latin_1_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path / "bin", "squeue", r"printf 'Gr\374n\n'", monkeypatch)
    assert slurm.ask(["squeue"]) == "Gr\ufffdn\n"


def test_without_a_controller_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "scontrol: fatal: Could not establish a configuration source"
    fake(tmp_path / "bin", "scontrol", f"echo '{said}' >&2; exit 1", monkeypatch)
    with pytest.raises(UserError, match=r"try it on a login node, or check SLURM_CONF$"):
        slurm.ask(["scontrol"])


@pytest.mark.parametrize("printed", ["12", "12;cluster"])
def test_the_id_of_a_job_is_read_from_what_sbatch_prints(
    printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "sbatch", f"echo '{printed}'", monkeypatch)
    assert slurm.parse_job_id(slurm.sbatch([], "text")) == "12"


@pytest.mark.parametrize("printed", ["Welcome to the cluster!\n12", "Submitted batch job 12", ""])
def test_an_answer_of_sbatch_that_is_no_id_is_told_in_a_line(
    printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "sbatch", f"printf '{printed}'", monkeypatch)
    with pytest.raises(UserError) as error:
        slurm.parse_job_id(slurm.sbatch([], "text"))
    (line,) = str(error.value).splitlines()
    assert f"printed {printed.replace(chr(10), ' ')!r}, expected the job's id alone" in line
    assert "the job may be queued" in line


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path / "bin", "squeue", "echo 'rate limit exceeded' >&2; exit 1", monkeypatch)
    with pytest.raises(slurm.BusyError, match="rate limit exceeded"):
        slurm.ask(["squeue"], patience_s=0.5)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("UNLIMITED", 0),
        ("1-00:00:00", 1440),
        ("02:30:00", 150),
        ("2-01:05:00", 2945),
        ("00:00:30", 1),
    ],
)
def test_time_limits_are_minutes(text: str, minutes: int) -> None:
    assert _minutes(text) == minutes


QUEUE = """41|0-9%4|PENDING|Dependency|2026-01-02T03:04:05|tiny|hvae_hpc:tiny-abc:3
40|2|RUNNING|None|2026-01-02T03:04:05|tiny|hvae_hpc:tiny-abc:2
39|N/A|PENDING|Priority|2026-01-02T03:04:05|other|a|b
second line of that comment
"""


def test_the_queue_is_read_once_for_everybody_and_again_where_it_must_be_young(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SLURM_CONF", "one")
    fake(
        tmp_path / "bin",
        "squeue",
        f"echo x >> {tmp_path}/count; cat <<END\n{QUEUE}END",
        monkeypatch,
    )
    queue = slurm.read_queue(time.time() - 60)
    assert queue.elements == 12
    assert queue.rows[0][:5] == (
        "41",
        tuple(range(10)),
        "PENDING",
        "Dependency",
        "hvae_hpc:tiny-abc:3",
    )
    assert queue.rows[2].comment == "a|b"
    assert slurm.read_queue(time.time() - 60) == queue
    assert (tmp_path / "count").read_text() == "x\n"
    assert slurm.read_queue(not_before=queue.asked_at + 1e-3).asked_at > queue.asked_at
    monkeypatch.setenv("SLURM_CONF", "another cluster's")
    slurm.read_queue(time.time() - 60)
    assert (tmp_path / "count").read_text() == "x\nx\nx\n"
    for path in (tmp_path / "cache/hvae_hpc").glob("*.json"):
        path.write_text("[1, {")
    assert slurm.read_queue(time.time() - 60).elements == 12


@pytest.mark.parametrize(
    ("said", "is_limit"),
    [
        (
            "AssocMaxSubmitJobLimit Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            True,
        ),
        (
            "QOSMaxSubmitJobPerUserLimit ... (job submit limit, user's size and/or time limits)",
            True,
        ),
        (
            "QOSMaxWallDurationPerJobLimit ... (job submit limit, user's size and/or time limits)",
            False,
        ),
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            True,
        ),
        ("Requested node configuration is not available", False),
    ],
)
def test_a_submit_limit_is_told_from_other_policies(said: str, is_limit: bool) -> None:
    assert slurm.is_submit_limit(said) == is_limit
