"""Real SLURM daemons, started and ended by the tests: skipped, with the reason, where there are none."""

import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError, run_command
from tests import ROOT
from tests.minislurm import minislurm as module
from tests.minislurm.minislurm import MiniSlurm, MiniSlurmConfig, main, missing_programs

needs_slurm, needs_accounting = pytest.mark.needs_slurm, pytest.mark.needs_accounting


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def submit(slurm: MiniSlurm, script: str, *options: str) -> str:
    """Submit a shell script and return the job's number."""
    command = [
        "sbatch",
        "--parsable",
        "--mem=100",
        "--output=/dev/null",
        *options,
        f"--wrap={script}",
    ]
    return slurm.client(*command).strip()


def job(slurm: MiniSlurm, number: str) -> dict[str, str]:
    """Return what SLURM says about a job: JobState, Restarts, NodeList, ..."""
    shown = slurm.client("scontrol", "-o", "show", "job", number)
    return dict(re.findall(r"(\w+)=(\S*)", shown.splitlines()[0]))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def quiet(minislurm: MiniSlurm) -> Iterator[MiniSlurm]:
    """The session's SLURM, without jobs before and after."""
    yield minislurm
    minislurm.client("scancel", "--user", str(os.geteuid()))
    for node in set(minislurm.status()) - set(minislurm.pids()):  # a test that failed left it
        minislurm.start_node(node)
    wait_until(lambda: set(minislurm.status().values()) == {"idle"})


@needs_slurm
def test_array_spreads_over_nodes_and_each_element_sees_its_own_gpu(
    quiet: MiniSlurm, tmp_path: Path
) -> None:
    script = (
        f'echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" > {tmp_path}/$SLURM_ARRAY_TASK_ID; '
        f"while [ $(ls {tmp_path} | wc -l) -lt 8 ]; do sleep 0.2; done"  # all eight at the same time
    )
    submit(quiet, script, "--array=0-7", "--gres=gpu:1")
    wait_until(lambda: len(list(tmp_path.iterdir())) == 8 and not quiet.client("squeue", "-h"))
    places = [path.read_text().split() for path in tmp_path.iterdir()]
    assert sorted(map(tuple, places)) == [
        (f"n{node}", gpu) for node in (1, 2, 3, 4) for gpu in "01"
    ]


@needs_slurm
def test_step_over_two_nodes_runs_on_both(quiet: MiniSlurm) -> None:
    assert set(quiet.client("srun", "-N2", "-n2", "printenv", "SLURMD_NODENAME").split()) == {
        "n1",
        "n2",
    }


@needs_slurm
def test_urgent_job_preempts_and_the_preempted_job_runs_again(
    quiet: MiniSlurm, tmp_path: Path
) -> None:
    script = f"echo $SLURM_RESTART_COUNT >> {tmp_path}/starts; sleep 60"
    low = submit(quiet, script, "-wn2", "--gres=gpu:2", "--requeue")
    wait_until((tmp_path / "starts").exists)
    high = submit(quiet, "sleep 1", "-wn2", "--gres=gpu:2", "--partition=urgent")
    wait_until(lambda: job(quiet, high)["JobState"] == "COMPLETED")
    assert job(quiet, low)["Restarts"] == "1"
    wait_until(lambda: (tmp_path / "starts").read_text() == "\n1\n")


@needs_slurm
def test_killed_node_requeues_its_job_and_comes_back(quiet: MiniSlurm, tmp_path: Path) -> None:
    number = submit(quiet, f"sleep 60 & echo $! > {tmp_path}/pid; wait", "-wn3", "--requeue")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    daemon, step = quiet.pids()["n3"], int((tmp_path / "pid").read_text())
    quiet.kill_node("n3")
    assert not is_alive(daemon)
    assert not is_alive(step)
    assert quiet.status()["n3"].startswith("down")
    wait_until(lambda: job(quiet, number)["Restarts"] == "1")
    quiet.start_node("n3")
    assert quiet.status()["n3"] == "idle"
    assert quiet.pids()["n3"] != daemon
    with pytest.raises(UserError, match="no node n9"):
        quiet.kill_node("n9")


def test_what_dies_with_a_node_tells_nobody_of_another_s_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kill = os.kill

    def kill_slowly(pid: int, number: int) -> None:
        kill(pid, number)
        time.sleep(0.1)

    monkeypatch.setattr(module.os, "kill", kill_slowly)
    commands = [f"sleep 60; echo > {tmp_path}/told-{i}; sleep 60" for i in range(4)]
    parents = [subprocess.Popen(["bash", "-c", command]) for command in commands]
    children = [Path(f"/proc/{parent.pid}/task/{parent.pid}/children") for parent in parents]
    wait_until(lambda: all(path.read_text() for path in children))
    # the child's turn is before the parent's for half of them at least, in whatever order a
    # set has them
    pids = {*(parent.pid for parent in parents), *(int(path.read_text()) for path in children)}
    module._end(lambda: {pid for pid in pids if is_alive(pid)}, 0.0)
    assert not list(tmp_path.iterdir())
    assert [parent.wait() for parent in parents] == [-signal.SIGKILL] * 4


@needs_slurm
def test_two_instances_do_not_see_each_other_and_stop_ends_only_its_own(
    quiet: MiniSlurm, tmp_path: Path
) -> None:
    config = MiniSlurmConfig(
        folder=tmp_path / "blanks, and long" / ("x" * 120),
        nodes=1,
        gpus_per_node=0,
        extra_slurm_conf="KillWait=7",
    )
    with MiniSlurm(config) as other:
        assert re.search(r"KillWait += 7 sec", other.client("scontrol", "show", "config"))
        link = Path(other.environment()["SLURM_CONF"]).parent.parent
        # a job that ignores SIGTERM, and a process that left its job's session and environment
        script = (
            f"trap '' TERM; setsid env -i sleep 77 & echo $! > {tmp_path}/pid; sleep 78; sleep 79"
        )
        submit(other, script)
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        assert other.client("squeue", "-h", "-o", "%T").split() == ["RUNNING"]
        assert quiet.client("squeue", "-h") == ""
        assert list(other.status()) == ["n1"]
        assert len(quiet.status()) == 4
        processes = module._processes(other._record()["cluster"])
        assert set(other.pids().values()) < set(processes)
        assert int((tmp_path / "pid").read_text()) in processes
        assert not set(processes) & set(quiet.pids().values())
    assert not [pid for pid in processes if is_alive(pid)]
    assert not link.is_symlink()
    assert len(quiet.pids()) == 6
    assert len(quiet.status()) == 4


@needs_slurm
def test_down_ends_what_a_killed_starter_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--folder", str(tmp_path / "slurm"), "--nodes", "1"]
    code = (
        "import os, signal, sys; from tests.minislurm.minislurm import MiniSlurm, main;"
        "MiniSlurm.status = lambda self: os.kill(os.getpid(), signal.SIGKILL);"
        "main(sys.argv[1:])"
    )
    died = subprocess.run([sys.executable, "-c", code, "up", *arguments], check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL
    slurm = MiniSlurm(MiniSlurmConfig(folder=tmp_path / "slurm"))
    pids = slurm.pids()
    assert set(pids) == {"munged", "slurmctld", "n1"}
    assert run_command(main, ["up", *arguments]) == 2
    assert "`down` ends it" in capsys.readouterr().err
    wait_until(lambda: run_command(main, ["status", *arguments]) == 0)
    assert "gpu*" in capsys.readouterr().out
    assert main(["down", *arguments]) == 0
    assert not [pid for pid in pids.values() if is_alive(pid)]
    assert run_command(main, ["status", *arguments]) == 2


@needs_accounting
def test_sacct_answers_with_accounting_and_says_so_without(
    quiet: MiniSlurm, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="accounting storage is disabled"):
        quiet.client("sacct")
    with MiniSlurm(MiniSlurmConfig(folder=tmp_path / "slurm", nodes=1, accounting=True)) as slurm:
        number = submit(slurm, "srun true", "--gres=gpu:1")
        ask = ("sacct", "-n", "-P", "-X", "-j", number, "-o", "state,alloctres")
        wait_until(lambda: slurm.client(*ask).startswith("COMPLETED"))
        assert "gres/gpu=1" in slurm.client(*ask)
        pids = slurm.pids()
        assert {"slurmdbd", "mariadbd"} < set(pids)
    assert not [pid for pid in pids.values() if is_alive(pid)]


@needs_slurm
def test_failed_start_shows_the_log_and_leaves_nothing(tmp_path: Path) -> None:
    slurm = MiniSlurm(
        MiniSlurmConfig(folder=tmp_path / "slurm", extra_slurm_conf="SelectType=select/nonsense")
    )
    with pytest.raises(UserError, match=r"(?s) ended; the log ends with\n.*select/nonsense"):
        slurm.start()
    assert slurm.pids() == {}
    assert not Path(slurm.environment()["SLURM_CONF"]).parent.parent.is_symlink()


def test_user_faults_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="GPUs from 0"):
        MiniSlurm(MiniSlurmConfig(folder=tmp_path, gpus_per_node=-1)).start()
    with pytest.raises(UserError, match="no minislurm here"):
        MiniSlurm(MiniSlurmConfig(folder=tmp_path)).status()
    MiniSlurm(MiniSlurmConfig(folder=tmp_path)).stop()
    monkeypatch.setattr(module, "missing_programs", lambda accounting: [])
    with pytest.raises(UserError, match="not empty and not a minislurm"):
        MiniSlurm(MiniSlurmConfig(folder=tmp_path)).start()
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    monkeypatch.undo()
    folder = tmp_path / "new"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "SYSTEM_PATH", "")
    assert {"munged", "slurmctld", "sbatch"} < set(missing_programs())
    with pytest.raises(UserError, match=r"slurmd, .*: install munge slurmctld"):
        MiniSlurm(MiniSlurmConfig(folder=folder)).start()
    assert not folder.exists()


def write_record(folder: Path, **changes: object) -> None:
    record = {
        "cluster": "minislurm-0123abcd",
        "link": "/tmp/minislurm-0123abcd",
        "user": getpass.getuser(),
        "nodes": ["n1"],
        "ports": {},
    }
    (folder / module.RECORD).write_text(json.dumps(record | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": r"none:x\0|\0VICTIM=(yes)\0"},
        {"link": "{home}/thesis.tex"},
        {"cluster": "minislurm-0123abcd/../x", "link": "/tmp/minislurm-0123abcd/../x"},
        {"nodes": ["n1; rm"]},
        {"user": "somebody-else"},
    ],
)
def test_a_record_that_another_wrote_ends_no_process_and_removes_no_file(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    thesis, folder = tmp_path / "thesis.tex", tmp_path / "received"
    thesis.write_text("precious")
    folder.mkdir()
    write_record(
        folder,
        **{k: str(v).format(home=tmp_path) if k == "link" else v for k, v in changes.items()},
    )
    with subprocess.Popen(["sleep", "60"], env={"VICTIM": "yes"}) as victim:
        with pytest.raises(UserError, match="not a record of a minislurm of yours"):
            MiniSlurm(MiniSlurmConfig(folder=folder)).stop()
        assert victim.poll() is None
        victim.kill()
    assert thesis.read_text() == "precious"


def test_the_link_of_a_record_is_removed_only_where_it_is_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path)
    unlinked: list[Path] = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: unlinked.append(path))
    MiniSlurm(MiniSlurmConfig(folder=tmp_path)).stop()
    assert unlinked == []


@needs_accounting
def test_others_reach_neither_the_sockets_nor_the_database(strict_slurm: MiniSlurm) -> None:
    assert strict_slurm.folder.stat().st_mode & 0o777 == 0o700
    socket = f"--socket={strict_slurm.folder}/run/mariadb.socket"
    passwords = (
        "select json_value(Priv, '$.authentication_string') from mysql.global_priv"
        " where User != 'mariadb.sys'"
    )
    known = strict_slurm.client("mariadb", "--no-defaults", socket, "-Ne", passwords).split()
    # No account has a password: each is the system's user of its name, root or whoever made it.
    assert set(known) == {"invalid"}


def test_environment_hides_an_outer_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path)
    outer = {"SLURM_JOB_ID", "SBATCH_PARTITION", "SQUEUE_FORMAT", "SRUN_CPUS_PER_TASK", "PMIX_RANK"}
    for name in outer | {"HOME2"}:
        monkeypatch.setenv(name, "1")
    environment = MiniSlurm(MiniSlurmConfig(folder=tmp_path)).environment()
    assert environment["SLURM_CONF"] == "/tmp/minislurm-0123abcd/etc/slurm.conf"
    assert "HOME2" in environment
    assert not outer & set(environment)


PLAIN = "import sys; from tests.minislurm.minislurm import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.needs_slurm
def test_a_plain_user_has_one_too() -> None:
    """The other tests show it for the user who runs them; where that is root, this one does for nobody."""
    if os.geteuid() != 0:
        pytest.skip("the tests run as a plain user already")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # pytest's own folders are root's alone
        shutil.copytree(ROOT, f"{place}/tree", ignore=shutil.ignore_patterns(".*"))
        subprocess.run(["chown", "-R", "65534", place], check=True)
        environment = {"PATH": os.environ["PATH"], "HOME": place, "PYTHONPATH": f"{place}/tree"}
        can = subprocess.run(
            [*as_nobody, str(python), "-c", "import tomllib"], env=environment, check=False
        )
        if can.returncode:
            pytest.skip("no python3 of 3.11 or later that a plain user can run")

        def run(*command: str) -> str:
            done = subprocess.run(
                [*as_nobody, *command],
                env=environment,
                cwd=place,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        minislurm = [str(python), "-c", PLAIN]
        out = run(*minislurm, "up", "--folder", f"{place}/slurm", "--nodes", "2")
        try:
            environment["SLURM_CONF"] = out.strip().rpartition("=")[2]
            assert run("srun", "-N", "2", "id", "-u").split() == ["65534"] * 2
            assert "gpu" in run(*minislurm, "status", "--folder", f"{place}/slurm")
        finally:
            run(*minislurm, "down", "--folder", f"{place}/slurm")
