"""A private SLURM of several nodes on one machine, for the tests and for trying a sweep.

In goes a folder and the number of nodes. Out comes an environment in which sbatch, squeue, scontrol
and sacct reach this SLURM and no other. Everything lies in that folder, which only its owner may
enter (mode 0700): so nobody else reaches the sockets of munge and MariaDB. SLURM knows the folder by
a short link in /tmp, since sockets allow 107 characters and slurm.conf no blanks. Nothing needs
root. Only slurmdbd listens beyond loopback. Daemons and steps carry a mark in their environment and
jobs the cluster's name; by these stop() finds them all, and nobody else's.
"""

import argparse
import contextlib
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.slurm.client import clean_environment
from hvae_hpc.runs.folder import write_json

RECORD = "minislurm.json"
CLUSTER = re.compile(r"minislurm-[0-9a-f]{8}")
NODE = re.compile(r"n[0-9]{1,4}")
MARK = "HVAE_MINISLURM"
SYSTEM_PATH = ":/usr/local/sbin:/usr/sbin:/sbin"  # where Debian has the daemons, off a user's PATH
PROGRAMS = [
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "squeue",
    "sinfo",
    "scontrol",
    "srun",
    "setsid",
]
ACCOUNTING_PROGRAMS = ["slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db"]
PACKAGES = "munge slurmctld slurmd slurm-client slurmdbd mariadb-server"
# cred_expire also sets how long a requeued job waits: 11 s here, 2 minutes by default.
SLURM_OPTIONS = """
ClusterName={cluster} SlurmctldHost={host}(127.0.0.1) CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={ports[slurmctld]} SlurmUser={user} SlurmdUser={user} SlurmctldPidFile={link}/run/slurmctld.pid
MailProg=/bin/true AuthInfo=socket={link}/run/munge.socket,cred_expire=10 SlurmdPidFile={link}/run/%n.pid
StateSaveLocation={link}/state SlurmdSpoolDir={link}/spool/%n ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/linux SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
GresTypes=gpu SelectType=select/cons_tres SelectTypeParameters=CR_CPU_Memory SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio ReturnToService=2 SlurmdTimeout=15 AccountingStoragePort={ports[slurmdbd]}
PreemptMode=REQUEUE KillWait=5 DefMemPerCPU={memory_mb_per_cpu} AccountingStoragePass={link}/run/munge.socket
MaxArraySize={max_array_size} AccountingStorageType=accounting_storage/slurmdbd AccountingStorageTRES=gres/gpu
"""
NODES = """
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs={cpus_per_node} \
RealMemory={memory_mb_per_node} Gres=gpu:{gpus_per_node}
PartitionName=gpu Nodes=ALL PriorityTier=1 Default=YES
PartitionName=cpu Nodes=ALL PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=10
"""
SLURMDBD_OPTIONS = """
AuthInfo=socket={link}/run/munge.socket SlurmUser={user} PidFile={link}/run/slurmdbd.pid DbdHost=localhost
DbdPort={ports[slurmdbd]} StorageType=accounting_storage/mysql StorageUser={user} StorageLoc=slurm
"""
DATABASE = (
    "--no-defaults --user={user} --datadir={link}/database --innodb-log-file-size=16M "
    "--tmpdir={link}/run"  # one that starts deletes the temporary files of others in its folder
)
COMMANDS = {
    # --force, since a folder that a group may write is good enough for this key
    "munged": "munged --foreground --force --key-file={link}/etc/munge.key --socket={link}/run/munge.socket "
    "--pid-file={link}/run/munged.pid --seed-file={link}/run/munged.seed",
    # Only the system's user of the same name gets in: there is no account with an empty password.
    "database": f"mariadb-install-db {DATABASE} --skip-test-db "
    "--auth-root-authentication-method=socket --auth-root-socket-user={user}",
    "mariadbd": f"mariadbd {DATABASE} --socket={{link}}/run/mariadb.socket --skip-networking",
}


@dataclass(frozen=True, kw_only=True)
class MiniSlurmConfig:
    """What the private cluster looks like; what its nodes hand out, the machine need not have."""

    folder: (
        Path  # where everything lies: new, empty, or an earlier minislurm's, which is then wiped
    )
    nodes: int = 4  # they are named n1, n2, ...
    cpus_per_node: int = 4
    memory_mb_per_node: int = 8000
    gpus_per_node: int = 2  # stand-ins: they set CUDA_VISIBLE_DEVICES
    accounting: bool = False  # also start slurmdbd and a private MariaDB, so that sacct answers
    max_array_size: int = 1001  # the highest index of an array, plus one
    extra_slurm_conf: str = ""  # more lines of slurm.conf; an option in them replaces ours


def missing_programs(*, accounting: bool = False) -> list[str]:
    """Name the needed programs that are neither on PATH nor in the system's sbin folders."""
    path = os.environ.get("PATH", os.defpath) + SYSTEM_PATH
    return [
        name
        for name in PROGRAMS + ACCOUNTING_PROGRAMS * accounting
        if not shutil.which(name, path=path)
    ]


class MiniSlurm:
    """One private SLURM, running or not: its folder tells, so any object of that folder can stop it."""

    def __init__(self, config: MiniSlurmConfig) -> None:
        self.config = config
        self.folder = config.folder.expanduser().absolute()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, timeout_s: float = 60.0) -> None:
        """Start all daemons and return when every node is idle; each part of it may take ``timeout_s``.

        What prevents it is a UserError, with the end of a log; then nothing is left running.
        """
        if min(self.config.nodes, self.config.cpus_per_node, self.config.gpus_per_node + 1) < 1:
            raise UserError(
                f"minislurm: expected nodes and CPUs from 1, GPUs from 0, got {self.config}"
            )
        if missing := missing_programs(accounting=self.config.accounting):
            raise UserError(
                f"{', '.join(missing)} not found: install {PACKAGES} (.ci/install_slurm.sh does)"
            )
        self._claim_folder()
        try:
            record, run = self._write_files(), self.folder / "run"
            self._launch(["munged"], (run / "munge.socket").exists, timeout_s)
            if self.config.accounting:
                self.client(*COMMANDS["database"].format_map(record).split())
                self._launch(["mariadbd"], (run / "mariadb.socket").exists, timeout_s)
                self._launch(
                    ["slurmdbd"], lambda: self.client("sacctmgr", "show", "cluster"), timeout_s
                )
            rest = ["slurmctld", *record["nodes"]]
            self._launch(rest, lambda: set(self.status().values()) == {"idle"}, timeout_s)
        except BaseException:
            self.stop()
            raise

    def stop(self, grace_s: float = 3.0) -> None:
        """End every daemon and job of this folder: SIGTERM, after ``grace_s`` SIGKILL. The logs stay."""
        if (self.folder / RECORD).exists():
            record = self._record()
            _end(lambda: _processes(record["cluster"]), grace_s)
            if Path(record["link"]).is_symlink():
                Path(record["link"]).unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """Return this process's environment, so changed that SLURM's clients reach this SLURM only."""
        own = clean_environment()
        own["PATH"] = own.get("PATH", os.defpath) + SYSTEM_PATH
        return own | {"SLURM_CONF": f"{self._record()['link']}/etc/slurm.conf"}

    def kill_node(self, name: str) -> None:
        """Let a node die with all that runs on it, and tell the controller, which else needs 30 s."""
        cluster, mine = self._record(node=name)["cluster"], (name, f"{name} step")
        _end(lambda: [pid for pid, owner in _processes(cluster).items() if owner in mine], 0.0)
        self.client("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def start_node(self, name: str, timeout_s: float = 30.0) -> None:
        """Start a node that was killed and return when it takes jobs again."""
        if self._record(node=name) and name in self.pids():
            raise UserError(f"{self.folder}: node {name} runs already")
        self._launch(
            [name], lambda: self.status()[name] in ("idle", "mixed", "allocated"), timeout_s
        )

    def pids(self) -> dict[str, int]:
        """Map each daemon that runs (munged, slurmctld, n1, ...) to its process id."""
        processes = _processes(self._record()["cluster"])
        return {owner: pid for pid, owner in processes.items() if not owner.endswith(" step")}

    def status(self) -> dict[str, str]:
        """Map each node to its state in sinfo's words: idle, mixed, allocated, down*, ..."""
        lines = self.client("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %T").splitlines()
        return {name: state for name, state in (line.split() for line in lines)}

    def client(self, *command: str) -> str:
        """Run one of SLURM's commands against this SLURM and return its output; UserError if it fails."""
        end = subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=False
        )
        if end.returncode != 0:
            said = (end.stderr or end.stdout).strip() or end.returncode
            raise UserError(f"{self.folder}: {' '.join(command)}: {said}")
        return end.stdout

    def _record(self, node: str | None = None) -> dict[str, Any]:
        if not (self.folder / RECORD).exists():
            raise UserError(
                f"{self.folder}: no minislurm here; `python -m tests.minislurm up` starts one"
            )
        record = self._check_record(json.loads((self.folder / RECORD).read_text()))
        if node is not None and node not in record["nodes"]:
            raise UserError(
                f"{self.folder}: no node {node}, expected one of {', '.join(record['nodes'])}"
            )
        return record

    def _check_record(self, record: Any) -> dict[str, Any]:
        """Return the folder's record if stop() may act on it: it names processes to end and a link.

        Raises:
            UserError: the folder is another user's, or its record is not one that start() wrote.
        """
        if self.folder.stat().st_uid != os.geteuid():
            raise UserError(f"{self.folder}: belongs to another user; give a folder of your own")
        good = (
            isinstance(record, dict)
            and CLUSTER.fullmatch(str(record.get("cluster")))
            and record.get("link") == f"/tmp/{record['cluster']}"
            and record.get("user") == pwd.getpwuid(os.geteuid()).pw_name
            and isinstance(record.get("nodes"), list)
            and all(NODE.fullmatch(str(node)) for node in record["nodes"])
        )
        if not good:
            raise UserError(
                f"{self.folder}/{RECORD}: not a record of a minislurm of yours; give another folder"
            )
        return dict(record)

    def _claim_folder(self) -> None:
        """Make the folder ours alone; refuse one that is in use or holds anything else."""
        if self.folder.is_symlink():
            raise UserError(f"{self.folder}: is a link; give the folder itself")
        if self.folder.exists() and self.folder.stat().st_uid != os.geteuid():
            raise UserError(f"{self.folder}: belongs to another user; give a folder of your own")
        if (self.folder / RECORD).exists():
            if running := _processes(self._record()["cluster"]):
                raise UserError(
                    f"{self.folder}: {len(running)} processes of a minislurm run; `down` ends it"
                )
            self.stop()  # takes away the link that a crash may have left
        elif self.folder.exists() and any(path.suffix != ".tmp" for path in self.folder.iterdir()):
            raise UserError(f"{self.folder}: not empty and not a minislurm's; give another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)

    def _write_files(self) -> dict[str, Any]:
        config, cluster = self.config, f"minislurm-{secrets.token_hex(4)}"
        nodes = [f"n{index + 1}" for index in range(config.nodes)]
        tables = "".join(table.read_text() for table in Path("/proc/net").glob("tcp*"))
        used = {int(port, 16) for port in re.findall(r": \w+:(\w{4}) ", tables)}
        drawn = secrets.SystemRandom().sample(
            sorted({*range(20_000, 32_000)} - used), config.nodes + 2
        )
        ports = dict(
            zip(["slurmctld", "slurmdbd", *nodes], drawn, strict=True)
        )  # below the system's own
        user, link = pwd.getpwuid(os.geteuid()).pw_name, Path("/tmp") / cluster
        record = {
            "cluster": cluster,
            "link": str(link),
            "user": user,
            "nodes": nodes,
            "ports": ports,
        }
        write_json(self.folder / RECORD, record)  # before all else, for the start after a crash
        for name in ("etc", "run", "log", "state", "spool", "dev", "database"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        link.symlink_to(self.folder)
        words = record | asdict(config) | {"host": socket.gethostname().partition(".")[0]}
        words["node_ports"] = ",".join(str(ports[node]) for node in nodes)
        words["memory_mb_per_cpu"] = config.memory_mb_per_node // config.cpus_per_node
        unwanted = re.findall(r"^\s*(\w+)\s*=", config.extra_slurm_conf, re.MULTILINE)
        unwanted += [] if config.accounting else re.findall(r"AccountingStorage\w+", SLURM_OPTIONS)
        options = [
            option for option in SLURM_OPTIONS.split() if option.partition("=")[0] not in unwanted
        ]
        gpus = [f"{link}/dev/gpu{index}" for index in range(config.gpus_per_node)]
        for (
            gpu
        ) in gpus:  # SLURM wants a device, takes the GPU's number from its name, and never opens it
            Path(gpu).symlink_to("/dev/null")
        for name, text in {
            "slurm.conf": "\n".join([*options, NODES]).format_map(words) + config.extra_slurm_conf,
            "slurmdbd.conf": "\n".join(SLURMDBD_OPTIONS.split()).format_map(words),
            "gres.conf": f"Name=gpu File={','.join(gpus)}" if gpus else "",
            "munge.key": secrets.token_hex(64),
        }.items():
            (self.folder / "etc" / name).touch(
                mode=0o600
            )  # munged and slurmdbd refuse what others can read
            (self.folder / "etc" / name).write_text(f"{text}\n")
        return record

    def _launch(
        self, names: Sequence[str], is_ready: Callable[[], object], timeout_s: float
    ) -> None:
        """Start daemons that are nobody's children, outlive us and hold none of our pipes; wait for them."""
        record = self._record()
        own = self.environment() | {"MYSQL_UNIX_PORT": f"{record['link']}/run/mariadb.socket"}
        for name in names:
            otherwise = f"slurmd -D -N {name}" if name in record["nodes"] else f"{name} -D"
            command = COMMANDS.get(name, otherwise).format_map(record).split()
            with open(self.folder / f"log/{name}.log", "ab") as log:
                subprocess.run(
                    ["setsid", "--fork", *command], env=own | {MARK: f"{record['cluster']}:{name}"},
                    cwd=self.folder, umask=0o022, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True
                )  # fmt: skip
        deadline, gone = time.monotonic() + timeout_s, 0
        while (
            time.monotonic() < deadline and gone < 20
        ):  # a process in the making shows no environment for a moment
            dead = set(names) - self.pids().keys()
            gone = gone + 1 if dead else 0
            with contextlib.suppress(UserError):  # the controller does not answer yet
                if not dead and is_ready():
                    return
            time.sleep(0.1)
        fault = (
            f"{' '.join(sorted(dead))} ended"
            if dead
            else f"{' '.join(names)} not ready in {timeout_s} s"
        )
        logs = [
            (self.folder / f"log/{name}.log").read_text(errors="replace") for name in dead or names
        ]
        ends = [line for log in logs[:2] for line in log.splitlines()[-6:]]
        raise UserError("\n".join([f"{self.folder}: {fault}; the log ends with", *ends]))


def _processes(cluster: str) -> dict[int, str]:
    """Map all living processes of a minislurm but this one to their daemon, for a step with " step" on it."""
    owners, parents = dict[int, str](), dict[int, int]()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            name, _, stat = (
                (entry / "stat").read_text(errors="replace").partition("(")[2].rpartition(") ")
            )
            variables = f"\0{(entry / 'environ').read_text(errors='replace')}\0"
            if stat[0] in "ZX" or (pid := int(entry.name)) == os.getpid():  # dead, or ourselves
                continue
            parents[pid] = int(stat.split()[1])
            if mark := re.search(rf"\0{MARK}={cluster}:(\w+)\0", variables):
                owners[pid] = mark[1] + (" step" if name == "slurmstepd" else "")
            elif f"\0SLURM_CLUSTER_NAME={cluster}\0" in variables:
                node = re.search(r"\0SLURMD_NODENAME=(\w+)\0", variables)
                owners[pid] = f"{node[1] if node else 'client'} step"
    while new := [
        pid for pid in parents if parents[pid] in owners and " step" not in owners.get(pid, "")
    ]:
        for pid in new:  # what a daemon or a job started, with or without our mark
            owners[pid] = owners[parents[pid]].removesuffix(" step") + " step"
    return owners


def _end(find: Callable[[], Iterable[int]], grace_s: float) -> None:
    """Send SIGTERM, from ``grace_s`` on SIGKILL, to what ``find`` finds, until it finds nothing more."""
    began_s, asked = time.monotonic(), set[int]()
    while pids := set(find()):
        late_s = time.monotonic() - began_s - grace_s
        if late_s > 10:
            raise UserError(f"processes {sorted(pids)} do not end, even after SIGKILL")
        kinds = (
            (signal.SIGSTOP, signal.SIGKILL) if late_s >= 0 else (signal.SIGTERM,)
        )  # none tells of another's end
        for kind in kinds:
            for pid in pids if late_s >= 0 else pids - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, kind)
        asked |= pids
        time.sleep(0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Start, stop or show a private SLURM of several nodes on this machine."""
    parser = argparse.ArgumentParser(prog="python -m tests.minislurm", description=main.__doc__)
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument(
        "--folder", type=Path, default=Path("~/.cache/hvae_hpc/minislurm"), help="its place"
    )
    parser.add_argument("--nodes", type=int, default=4, help="number of nodes")
    parser.add_argument(
        "--gpus", type=int, default=2, dest="gpus_per_node", help="stand-ins, on each node"
    )
    parser.add_argument(
        "--accounting", action="store_true", help="with slurmdbd and MariaDB, for sacct"
    )
    asked = vars(parser.parse_args(argv))
    action, slurm = asked.pop("action"), MiniSlurm(MiniSlurmConfig(**asked))
    if action == "up":
        slurm.start()
        print(f"export SLURM_CONF={slurm.environment()['SLURM_CONF']}")
    elif action == "down":
        slurm.stop()
    elif slurm.pids():
        print(slurm.client("sinfo"), end="")
    else:
        raise UserError(
            f"{slurm.folder}: no minislurm runs here; `python -m tests.minislurm up` starts one"
        )
    return 0
