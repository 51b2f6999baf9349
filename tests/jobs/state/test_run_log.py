"""What a log says of a run's attempts, and the evidence of how one ended."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.state.run_log import (
    count_oom_kills,
    evidence_of,
    evidence_of_death,
    record,
    spent_s,
    split_attempts,
)
from hvae_hpc.runs.folder import LogRecord, read_log, write_atomic


def caught(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        write_atomic(folder / "file" / "below", b"")
    return caught.value


def test_an_error_is_known_by_its_types_and_the_system_s_number(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert evidence_of(caught(tmp_path)) == {
        "errors": ["UserError", "FileExistsError"],
        "errno": errno.EEXIST,
    }
    assert evidence_of(MemoryError()) == {"errors": ["MemoryError"]}


NO_ROOM_ANYWHERE = """
import json, resource, tempfile
from hvae_hpc.jobs.state.run_log import evidence_of

resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    tempfile.mkdtemp()
except OSError as error:
    print(json.dumps(evidence_of(error)))
"""


def test_no_room_for_a_temporary_file_is_a_full_disk_though_python_says_not_found() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM_ANYWHERE], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"errors": ["FileNotFoundError"], "errno": errno.ENOSPC}


def test_what_is_known_of_a_death_stands_beside_its_reason(tmp_path: Path) -> None:
    record(tmp_path, "died", "its process\ndied", **evidence_of_death(-signal.SIGKILL, 1))
    (entry,) = read_log(tmp_path)
    assert (entry["reason"], entry["signal"], entry["oom_kills"]) == (
        "its process died",
        "SIGKILL",
        1,
    )
    assert entry["host"]
    assert evidence_of_death(3, 0) == {"exit_code": 3}


def test_the_kernel_s_count_is_read_of_either_version_of_cgroups(tmp_path: Path) -> None:
    for line, file, text in (
        (
            "0::/job_1/step_0",
            "job_1/step_0/memory.events",
            "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
        ),
        (
            "4:memory:/job_1",
            "memory/job_1/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
        (tmp_path / "cgroup").write_text(f"9:name=systemd:/\n{line}\n")
        assert count_oom_kills(tmp_path / "cgroup", tmp_path) == 2
    assert count_oom_kills(tmp_path / "none", tmp_path) == 0


def test_an_attempt_lasts_from_its_beginning_to_its_last_record() -> None:
    log = [
        LogRecord(event="blocked", time=1.0),
        LogRecord(event="started", time=10.0),
        LogRecord(images_seen=32, time=15.0),
        LogRecord(event="started", time=100.0),
        LogRecord(event="stopped", time=107.0),
    ]
    assert split_attempts(log) == [log[1:3], log[3:]]
    assert spent_s(log) == 12.0
    assert spent_s([]) == 0.0
