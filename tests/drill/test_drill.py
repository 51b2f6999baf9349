"""The short drill, a drill of broken code, and what no drill may touch."""

import getpass
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.worker.run import STAGES
from tests import ROOT
from tests.drill.compare import compare
from tests.drill.drill import SWEEP
from tests.drill.drill_slurm import find_own_slurm
from tests.drill.faults import KINDS, damage, draw_fault
from tests.drill.fork_server import Lane
from tests.minislurm.minislurm import MiniSlurm
from tests.tiny import make_data_set

SHORT = f"""
extends = "{SWEEP}"
name = "short"
samplers = ["hmc"]
arms = ["hvae-hmc+4"]
"""
FORGETFUL = """
from hvae_hpc.jobs.worker import run as tasks

def forget(saved):
    for optimizer in saved["optimizers"] if saved else ():
        optimizer["state"] = {}
    return saved

def forgetful(stage, whole=tasks.stage_function):
    function = whole(stage)
    from hvae_hpc.training import loop
    if loop.load_checkpoint.__name__ != "<lambda>":
        load = loop.load_checkpoint
        loop.load_checkpoint = lambda *where: forget(load(*where))
    return function

tasks.stage_function = forgetful
"""


def drill(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "tests.drill",
        "--folder",
        str(folder),
        "--workers",
        "2",
        *arguments,
    ]
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        command, cwd=folder, env=own, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drill")
    make_data_set(folder / "shards", "brats2021", n=14)
    (folder / "short.toml").write_text(SHORT)
    return folder


def test_twenty_five_faults_at_every_stage_change_nothing(folder: Path) -> None:
    done = drill(folder, "short.toml", "--faults", "25", "--seed", "8", "--json")
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "drill.log").read_text()
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["faults"] == sum(told[kind] for kind in KINDS) == 25
    assert told["problems"] == []
    assert sum(told["of"].values()) == 25
    assert {row.split()[0] for row in told["of"]} == set(STAGES)
    assert min(told[kind] for kind in KINDS) > 0
    assert told["resumed"] > 0
    assert "25 faults in" in done.stdout
    assert "none lost, none doubled, none different" in done.stdout
    assert not list(folder.glob("disturbed-*"))


def test_an_answer_that_comes_along_with_the_number_of_its_process_is_heard() -> None:
    ours, theirs = socket.socketpair()
    lane = Lane(ours)
    theirs.sendall(b"4711\n-9\n")
    lane.begin(Path("plan.json"), "0" * 12)
    assert lane.pid == 4711
    assert lane.is_over(0.0)
    assert lane.end() == -9
    assert theirs.recv(100) == b"000000000000 plan.json\n"
    theirs.close()
    with pytest.raises(UserError, match="ended or hangs"):
        lane.hear(1.0)


def test_the_drill_notices_a_checkpoint_that_forgets_the_optimizer(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FORGETFUL)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    broken = ("short.toml", "--faults", "40", "--fresh", "0")
    done = drill(folder, *broken, "--seed", "1", PYTHONPATH=path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "differs" in done.stdout or "metrics.json: metrics" in done.stdout
    assert "problems, see above" in done.stdout


@pytest.mark.parametrize("conf", ["", "/etc/slurm/slurm.conf", "own"])
def test_no_slurm_but_a_minislurm_is_drilled(conf: str, tmp_path: Path) -> None:
    if conf == "own":  # a folder that looks like one, without a minislurm's record
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "slurm.conf").write_text("ClusterName=minislurm-1\n")
        conf = str(tmp_path / "etc" / "slurm.conf")
    done = drill(tmp_path, "--slurm", SLURM_CONF=conf)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "expected that of a minislurm" in done.stderr
    assert not list(tmp_path.glob("undisturbed-*"))


@pytest.mark.parametrize(
    ("cluster", "state", "jobs", "said"),
    [
        ("hpc", "{}/state", "", "cluster hpc with its state in"),
        ("{own}", "/var/spool/slurm", "", "is no minislurm's"),
        ("{own}", "{}/state", "7\n8\n", "jobs 7, 8 are in the queue"),
        ("{own}", "{}/state", "", ""),
    ],
)
def test_a_slurm_that_answers_for_a_minislurm_must_be_one_and_idle(
    cluster: str,
    state: str,
    jobs: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    own = f"minislurm-{secrets.token_hex(4)}"
    link = Path("/tmp", own)
    link.symlink_to(tmp_path)
    request.addfinalizer(link.unlink)
    record = {"cluster": own, "link": str(link), "user": getpass.getuser(), "nodes": ["n1"]}
    (tmp_path / "minislurm.json").write_text(json.dumps(record))
    config = (
        f"ClusterName = {cluster.format(own=own)}\nStateSaveLocation = {state.format(tmp_path)}\n"
    )
    monkeypatch.setenv("SLURM_CONF", f"{link}/etc/slurm.conf")
    monkeypatch.setattr(MiniSlurm, "pids", lambda self: {"slurmctld": 1})
    monkeypatch.setattr(
        MiniSlurm, "client", lambda self, name, *_: config if name == "scontrol" else jobs
    )
    if not said:
        assert find_own_slurm().folder == tmp_path
        return
    with pytest.raises(UserError, match=said):
        find_own_slurm()


def test_a_site_file_that_is_not_its_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("[all]\naccount = 'mine'\n")
    done = drill(tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "site.toml: is not the drill's" in done.stderr
    assert (tmp_path / "site.toml").read_text() == "[all]\naccount = 'mine'\n"


@pytest.mark.parametrize(
    "content", [b"some bytes and more", bytes(100), b"x"], ids=["bytes", "zeros", "one"]
)
def test_damage_damages(content: bytes, tmp_path: Path) -> None:
    for detail in (0.0, 0.2, 0.4, 0.6, 0.8, 0.999):
        (tmp_path / "file").write_bytes(content)
        damage(tmp_path / "file", detail)
        assert (tmp_path / "file").read_bytes() != content


def test_one_seed_draws_one_sequence_of_faults() -> None:
    draws = [
        [draw_fault(chance, 0.5, True) for _ in range(50)]
        for chance in (random.Random("7 1"), random.Random("7 1"))
    ]
    assert draws[0] == draws[1]
    assert {fault.kind for fault in draws[0]} == set(KINDS)
    assert "damaged" not in {draw_fault(random.Random(i), 0.5, False).kind for i in range(50)}


def test_what_is_left_over_missing_or_other_is_told(folder: Path, tmp_path: Path) -> None:
    (made,) = next(folder.glob("undisturbed-*")).glob("train/*-vae-*")
    run_id = made.name.rsplit("-", 1)[1]
    other = Path(shutil.copytree(made, tmp_path / made.name))
    assert compare(made, other, run_id) == []
    (other / "snapshot.pt").unlink()
    (other / ".metrics.json.1-2.tmp").touch()
    told = json.loads((other / "metrics.json").read_text())
    told["metrics"]["images_seen"] += 1
    (other / "metrics.json").write_text(json.dumps(told))
    with open(other / "log.jsonl", "a") as log:
        log.write('{"event": "started", "time": 2e9}\n')
    assert [line.split(": ")[0] for line in compare(made, other, run_id)] == [
        "metrics.json",
        "snapshot.pt is missing",
        ".metrics.json.1-2.tmp is left over",
        "made by attempt 1 of 2 in its log",
    ]
    (other / "metrics.json").write_text("{")
    assert len(compare(made, other, run_id)) == 1
