"""Several processes at one training: how they meet, share a batch, and leave together.

Each holds the whole network and takes an equal, contiguous part of every batch. All losses are
means over the batch and no pair knows of another. So the mean of the parts' gradients is the
batch's, and the number of processes changes the weights by rounding alone. What they tell each
other beside gradients are CPU numbers, sent by gloo, that wait for no device. A process that is
alone touches no part of torch.distributed.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from hvae_hpc.config.loader import dump, load, read_json
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.models.blocks import Phase
from hvae_hpc.runs.folder import write_atomic_by
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.device import move_only

PATIENCE = timedelta(minutes=10)
"""How long a process waits for another."""
HERE = "here"
"""The key that says that the first process is in the store."""


@frozen
class Meeting:
    """Where the first process listens, and under which random key the others meet it."""

    host: str
    port: int
    key: str


@frozen
class Team:
    """The processes of one run; all call a method at the same place, and wait for each other.

    Attributes:
        rank: this process's number.
        world: how many there are.
        wrapped: what :meth:`wrap` made.
    """

    rank: int = 0
    world: int = 1
    wrapped: list[DistributedDataParallel] = field(default_factory=list)

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is up in any process."""
        if self.world == 1:
            return list(flags)
        up = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(up, dist.ReduceOp.MAX)
        return [bool(flag) for flag in up]

    def mean(self, numbers: Sequence[float]) -> list[float]:
        """Return each number's mean over the processes; not finite if it is not in one of them."""
        if self.world == 1 or not numbers:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(number) for number in total / self.world]

    def hand_out(self, content: bytes | None) -> bytes | None:
        """Return the first process's content; what the others give is not looked at."""
        if self.world == 1:
            return content
        size = torch.tensor([-1 if content is None or self.rank else len(content)])
        dist.broadcast(size, src=0)
        if size < 0:
            return None

        # As numbers: what torch sends as an object is a pickle, and whoever reads it runs it.
        letters = torch.empty(int(size), dtype=torch.uint8)
        if content and self.rank == 0:
            letters = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.broadcast(letters, src=0)
        return letters.numpy().tobytes()

    def wrap(self, forward: nn.Module, phases: tuple[Phase, ...]) -> list[nn.Module]:
        """Return a forward per phase, whose backward gives the gradients of the whole batch."""
        if self.world == 1:
            return [forward for _ in phases]
        for phase in phases:
            # A wrapper takes care of the weights that ask for a gradient now.
            move_only(phase, phases)
            # Before flow_from the flow's weights have none. The search for such weights also keeps
            # torch from sorting the buckets again after the first step. So a resumed training adds
            # up in the order of an undisturbed one.
            wrapper = DistributedDataParallel(forward, find_unused_parameters=True)
            wrapper.broadcast_buffers = False  # they follow from the weights
            self.wrapped.append(wrapper)
        return list(self.wrapped)


ALONE = Team()


def part_of_batch(batch_size: int, workplace: Workplace) -> slice:
    """Return which pairs of each batch are this process's.

    Raises:
        UserError: the processes cannot have equally many.
    """
    world = workplace.world
    if batch_size % world:
        raise UserError(
            f"optim.batch_size is {batch_size}, expected a multiple of the run's {world} processes "
            "(nodes x gpus); change it in the sweep, or nodes or gpus in the site file"
        )
    part = batch_size // world
    return slice(workplace.rank * part, (workplace.rank + 1) * part)


@contextlib.contextmanager
def join_team(workplace: Workplace, device: torch.device) -> Iterator[Team]:
    """Meet the run's other processes, and leave when all have come to the end of the block.

    Raises:
        UserError: they could not meet within ``PATIENCE``, or one went away before the end.
    """
    if workplace.world == 1:
        yield ALONE
        return
    team = Team(rank=workplace.rank, world=workplace.world)
    try:
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            store=_meet(workplace),
            rank=team.rank,
            world_size=team.world,
            timeout=PATIENCE,
        )
        team.any(True)
        if team.rank == 0:
            workplace.rendezvous.unlink(missing_ok=True)
        # Dynamo would cut graphs where the buckets of gradients end; compiled parts stay whole.
        torch._dynamo.config.optimize_ddp = False
        yield team
        team.any(True)  # srun ends all when one leaves early, and the first may still be writing
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"process {team.rank} lost touch with another of the run's {team.world} "
                f"({reason}); see what that one printed or, if it still runs, whether the nodes "
                "reach each other; the last checkpoint is kept"
            ) from error
        raise
    finally:
        for wrapper in team.wrapped:
            # It would keep the group beyond its end, and the others would not be told that this
            # process left. In the end its reducer would wait, holding Python's lock, for a thread
            # of gloo's that may want it (torch 2.13 hangs so).
            del wrapper.reducer, wrapper.logger, wrapper.process_group
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(workplace: Workplace) -> PrefixStore:
    """Open the store by which the processes meet, or find the one that the first process opened.

    A file that this user alone can read says where the store is, and under which random key. So no
    program that only reaches the port takes part by chance, and a file that a killed attempt left
    leads nowhere. The operating system chooses the port: one that follows from the job's id, as
    ``env://`` needs it, may be taken by another run of the node.
    """
    path = workplace.rendezvous
    if workplace.rank == 0:
        return _open_store(path, workplace.resources.nodes)
    end = time.monotonic() + PATIENCE.total_seconds()
    while time.monotonic() < end:
        with contextlib.suppress(UserError, dist.DistError):
            meeting = load(Meeting, read_json(path), str(path))
            wait = timedelta(seconds=5)
            server = TCPStore(meeting.host, meeting.port, wait_for_workers=False, timeout=wait)
            store = PrefixStore(meeting.key, server)
            if store.check([HERE]):
                server.set_timeout(PATIENCE)
                _choose_interface(meeting.host, meeting.port)
                return store
        time.sleep(0.2)
    raise UserError(
        f"{path}: process {workplace.rank} found no first process by it within {PATIENCE}; "
        "see what process 0 printed, and whether the run's folder is on a disk that all nodes share"
    )


def _open_store(path: Path, nodes: int) -> PrefixStore:
    """Open the store on the one interface by which the others come, and write where it is.

    Left to itself torch listens on all interfaces of the node.
    """
    host = "127.0.0.1"
    if nodes > 1:
        host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or socket.gethostname()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        server = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=PATIENCE,
            master_listen_fd=listener.detach(),
        )
    meeting = Meeting(host=host, port=port, key=secrets.token_hex(16))
    store = PrefixStore(meeting.key, server)
    store.set(HERE, "")
    _choose_interface(host, port)

    def write(temporary: Path) -> None:
        temporary.touch(0o600)
        temporary.write_text(json.dumps(dump(meeting)))

    write_atomic_by(path, write)
    return store


def _choose_interface(host: str, port: int) -> None:
    """Make gloo use the network interface that leads to the first process.

    By itself it takes the address of the node's own name, which is often 127.0.1.1, where no other
    node reaches it.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(
                    probe, 0x8915, struct.pack("256s", name.encode())
                )  # SIOCGIFADDR
                if answer[20:24] == own:
                    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
                    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
