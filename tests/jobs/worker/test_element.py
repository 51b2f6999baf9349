"""One array element: its bundle, what it refuses, and how it goes back to the queue."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import CONFIGS
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.state import run_log
from hvae_hpc.jobs.state.run_log import BEGINS
from hvae_hpc.jobs.worker import element, signals
from hvae_hpc.jobs.worker.run import Report
from hvae_hpc.runs.done import read_results
from hvae_hpc.runs.folder import METRICS, read_log
from hvae_hpc.runs.plan import Array, Plan, write_plan
from tests.jobs.worker.test_run import make_plan, run_named

RUN = "import sys; from hvae_hpc.jobs.worker.element import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The runs of a tiny sweep on one data set."""
    return make_plan(tmp_path)


@pytest.fixture(autouse=True)
def _in_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_JOB_ID": "9",
    }.items():
        monkeypatch.setenv(name, value)


def submitted(plan: Plan, *ids: str, **changes: object) -> Path:
    """Write a submission of one array with one element."""
    path = plan.runs_folder / "submissions" / "tiny-1" / "plan.json"
    arrays = (Array(name="tiny-a", stage=plan.runs[ids[0]].stage, elements=(ids,), **changes),)
    write_plan(replace(plan, arrays=arrays), path)
    return path


def events(plan: Plan, run_id: str) -> list[str]:
    return [record["event"] for record in read_log(plan.folder(run_id)) if "event" in record]


def test_an_element_says_first_in_its_log_that_it_begins(
    plan: Plan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with pytest.raises(UserError, match="the package changed"):
        element.run_element(
            submitted(replace(plan, code_sha="other"), run_named(plan, "train", "vae")), 0
        )
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "element 7_0 begins, after 2 restarts"
    assert BEGINS.match(said[0])


def test_a_run_that_fails_does_not_stop_the_others_of_its_bundle(plan: Plan) -> None:
    blocked, good = run_named(plan, "generate", "vae"), run_named(plan, "segment", "reference")
    assert element.run_element(submitted(plan, blocked, good), 0) == 1
    results = read_results(plan)
    assert results[good].done
    assert events(plan, blocked) == ["blocked"]
    assert read_log(plan.folder(blocked))[-1]["job_id"] == "7_0"


def test_after_a_gpu_that_was_lost_the_other_runs_go_on_in_a_process_of_their_own(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def lose(plan: Plan, run_id: str) -> Report:
        asked.append(run_id)
        return Report(run_id=run_id, state="failed", message="CUDA", wall_s=0.0, gpu_lost=True)

    monkeypatch.setattr(element, "execute_when_free", lose)
    lost, good = run_named(plan, "segment", "vae+4"), run_named(plan, "segment", "reference")
    assert element.run_element(submitted(plan, lost, good), 0) == 1
    assert asked == [lost]
    assert read_results(plan)[good].done


def test_runs_of_a_package_that_changed_since_are_refused_unless_allowed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = run_named(plan, "segment", "reference")
    changed = replace(plan, code_sha="0" * 12)
    with pytest.raises(UserError, match="the package changed since this was submitted"):
        element.run_element(submitted(changed, good), 0)
    assert events(plan, good) == ["failed"]
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    assert element.run_element(submitted(replace(changed, allow_code_drift=True), good), 0) == 0
    notes = json.loads((plan.folder(good) / METRICS).read_text())["provenance"]["notes"]
    assert any(
        "the package changed after the sweep was planned (000000000000" in note for note in notes
    )


def test_a_run_that_never_gets_further_is_given_up_by_its_element(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = run_named(plan, "train", "vae")
    monkeypatch.setattr(signals, "_SEEN", [])
    monkeypatch.setattr(run_log, "STALLS", 3)
    stuck = replace(plan, resources=dict.fromkeys(CONFIGS, Resources()))
    path = submitted(stuck, run_id)

    def attempt() -> int:
        # Preempted before the first checkpoint: the log's "started" is all that remains.
        folder = stuck.folder(run_id)
        done = element.run_element(path, 0)
        (folder / METRICS).unlink(missing_ok=True)
        return done

    assert [attempt() for _ in range(3)] == [0] * 3
    assert attempt() == 1
    assert (
        "began 3 times at images_seen = 0 and never got further"
        in read_log(stuck.folder(run_id))[-1]["reason"]
    )
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")  # submitted again by a person
    assert attempt() == 0


def fake_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "calls"


def start(path: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start an element as its step does: signals ignored until Python has its handlers."""
    command = f"trap '' USR2 TERM; exec {sys.executable} -m hvae_hpc.jobs.worker.element --plan {path} --array 0"
    return subprocess.Popen(
        ["sh", "-c", command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(plan: Plan, run_id: str, what: str) -> None:
    deadline = time.time() + 60
    while not any(
        what in record or record.get("event") == what for record in read_log(plan.folder(run_id))
    ):
        assert time.time() < deadline
        time.sleep(0.05)


def start_and_signal(plan: Plan, run_id: str, path: Path) -> subprocess.Popen[str]:
    """Start an element and send it USR2 once its run trains."""
    process = start(path, {})
    wait_for(plan, run_id, "images_seen")
    process.send_signal(signal.SIGUSR2)
    return process


def long_training(plan: Plan) -> tuple[Plan, str]:
    """Return the plan with a training of minutes in it, and its id."""
    run_id = run_named(plan, "train", "hvae")
    run = plan.runs[run_id]
    config = replace(run.config, optim=replace(run.config.optim, images=400_000))
    run = replace(run, config=config)
    return replace(plan, runs={run.run_id: run}), run.run_id


def test_an_element_at_its_time_limit_saves_and_sends_itself_back(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_scontrol(tmp_path / "bin", monkeypatch)
    plan, run_id = long_training(plan)
    process = start_and_signal(plan, run_id, submitted(plan, run_id, minutes=1))
    deadline = time.time() + 30
    while not calls.exists():
        assert time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # what SLURM does then
    out, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (element.LEFT_EARLY, "")
    assert "at the time limit: saved, sent back to the queue" in out
    left = read_log(plan.folder(run_id))[-1]
    assert (left["event"], left["at_limit"], left["further"], left["goes_back"]) == (
        "left",
        True,
        True,
        True,
    )
    assert left["reason"] == "at its limit of 1 minutes"
    assert calls.read_text() == "requeue 7_0\n"
    assert list(plan.folder(run_id).glob("checkpoint-*.pt"))


def test_an_element_that_was_started_too_often_is_not_sent_back(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_scontrol(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "100")
    plan, run_id = long_training(plan)
    out, _ = start_and_signal(plan, run_id, submitted(plan, run_id, minutes=1)).communicate()
    assert "at the time limit, after 100 restarts: not sent back" in out
    assert read_log(plan.folder(run_id))[-1]["goes_back"] is False
    assert not calls.exists()


def test_a_refused_requeue_is_repeated_while_slurm_is_busy_and_then_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake_scontrol(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(signals, "_SEEN", [signal.SIGUSR2])
    monkeypatch.setattr(element, "ENDED_S", 0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    refusal = tmp_path / "refusal"
    with open(tmp_path / "bin/scontrol", "a") as script:
        script.write(f"test -e {refusal} || exit 0; cat {refusal} >&2; rm {refusal}; exit 1\n")
    refusal.write_text("Unable to contact slurm controller")
    element.requeue("7_0", 0.1)
    assert calls.read_text() == 2 * "requeue 7_0\n"
    assert "sent back to the queue" in capsys.readouterr().out
    refusal.write_text("Access/permission denied")
    element.requeue("7_0", 0.1)
    said = capsys.readouterr().out
    assert "could not be sent back (scontrol requeue 7_0: Access/permission denied)" in said


def test_an_element_that_is_cancelled_while_it_waits_is_not_sent_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_scontrol(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(signals, "_SEEN", [signal.SIGUSR2, signal.SIGTERM])
    element.requeue("7_0", 60.0)
    assert not calls.exists()


def test_usr2_long_before_the_time_limit_is_a_preemption(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_scontrol(tmp_path / "bin", monkeypatch)
    plan, run_id = long_training(plan)
    process = start_and_signal(plan, run_id, submitted(plan, run_id, minutes=60))
    process.communicate(timeout=30)
    assert process.returncode == element.LEFT_EARLY
    assert not calls.exists()
    assert read_log(plan.folder(run_id))[-1]["at_limit"] is False


def test_an_element_whose_last_run_is_done_as_the_signal_comes_ends_well(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_scontrol(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(signals, "_SEEN", [])
    monkeypatch.setattr(element, "ENDED_S", 0)
    monkeypatch.setattr(element, "_tell", lambda *_: signals._SEEN.append(signal.SIGUSR2))
    path = submitted(plan, run_named(plan, "segment", "reference"), minutes=1)
    assert element.run_element(path, 0) == 0
    assert not calls.exists()


def test_a_run_that_failed_is_not_tried_again_when_its_element_is_sent_back(plan: Plan) -> None:
    failing = run_named(plan, "train", "vae")
    changed = replace(plan, data={"tiny": {**plan.data["tiny"], "folder": "/nowhere"}})
    path = submitted(changed, failing)
    assert element.run_element(path, 0) == 1
    assert element.run_element(path, 0) == 1
    assert events(plan, failing).count("failed") == 1


def test_an_element_that_is_preempted_or_cancelled_saves_and_sends_nothing_back(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_scontrol(tmp_path / "bin", monkeypatch)
    plan, run_id = long_training(plan)
    for grace_s in (0, 2):
        process = start(submitted(plan, run_id, grace_s=grace_s), {})
        before = len(events(plan, run_id))
        deadline = time.time() + 60
        while len(events(plan, run_id)) == before:
            assert time.time() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        wait_for(plan, run_id, "stopped")
        if grace_s:  # it waits to be ended: SLURM requeues what still runs then
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=4)
            process.kill()
        else:  # it goes at once
            assert process.wait(timeout=30) == element.LEFT_EARLY
        process.communicate()
        (plan.folder(run_id) / "log.jsonl").unlink()
    assert not calls.exists()
    assert list(plan.folder(run_id).glob("checkpoint-*.pt"))


def test_signals_before_python_has_its_handlers_do_not_kill(plan: Plan) -> None:
    run_id = run_named(plan, "segment", "reference")
    process = start(submitted(plan, run_id), {})
    command = Path(
        f"/proc/{process.pid}/cmdline"
    )  # first pytest's, then the shell's, then Python's
    while b"hvae_hpc.jobs.worker.element\0" not in command.read_bytes():
        time.sleep(0.001)
    for _ in range(20):  # from Python's first instant on, while it starts and imports
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (0, element.LEFT_EARLY)
