"""Several processes at one training give what one gives, leave together, and do not wait for one that is gone.

Starting a process costs seconds, so four are started once, and each test gives some of them work.
"""

import functools
import hashlib
import itertools
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.loader import read_json
from hvae_hpc.config.model import HVAEConfig, LSGANConfig, MovesConfig, NetworkConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import SplitConfig, TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.models.blocks import Batch, Loss, Phase
from hvae_hpc.models.edm import EDM
from hvae_hpc.models.hvae import HVAE
from hvae_hpc.models.hybrid import HybridHVAE
from hvae_hpc.models.lsgan import LSGAN
from hvae_hpc.runs.folder import SNAPSHOT, read_log, write_json
from hvae_hpc.runs.workplace import Outcome, Workplace
from hvae_hpc.training import device, distributed, loop, rehearsal
from hvae_hpc.training.batches import PairTensors, to_tensors
from hvae_hpc.training.checkpoint import find_checkpoints
from hvae_hpc.training.train import train_generator
from tests.tiny import make_data_set, make_pairs

NETWORK = NetworkConfig(channels=(16, 16), attention_levels=(1,), attention_heads=2, latent_size=4)
VAE = HVAEConfig(network=NETWORK, n_leapfrog=0)
HYBRID = replace(
    VAE,
    image_likelihood="textured",
    n_leapfrog=1,
    flow_from=0.7,
    adversarial_weight=0.5,
    perceptual_weight=0.1,
)
OPTIM = OptimConfig(images=32, batch_size=4, lr=1e-3, ema_decay=0.9, precision="fp32")
WAIT_S = 240.0
DISK_IS_FULL = "the disk is full"


class OneSided(nn.Module):
    """One of its terms is infinite from the fifth step on in the process that has the batch's last pair."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("only", self),)

    def draw(self, n: int, share: float, generator: torch.Generator) -> dict[str, Tensor]:
        place = torch.arange(n, dtype=torch.float32)
        return {"huge": torch.where((place == n - 1) & (share >= 0.5), torch.inf, 1.0)}

    def forward(self, batch: Batch, phase: str) -> Loss:
        return Loss(self.weight.square().sum(), {"size": batch["huge"]})


MODELS = {
    "vae": lambda: HVAE(VAE, (16, 16)),
    "hvae": lambda: HVAE(HVAEConfig(network=NETWORK, n_leapfrog=2, flow_from=0.5), (16, 16)),
    "lsgan": lambda: LSGAN(LSGANConfig(network=NETWORK, discriminator_channels=(4, 8)), (16, 16)),
    "edm": lambda: EDM(EDMConfig(channels=(16, 16), attention_heads=2), (16, 16)),
    "hvae-gan": lambda: HybridHVAE(HYBRID, (16, 16)),
    "one-sided": OneSided,
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, of which each process does its part.

    Attributes:
        data: a packed data set: run the whole train stage on it instead.
        stop_after: rank to the steps after which that process alone is asked to leave.
        break_after: rank to the steps after which something breaks there.
        full_disk: no checkpoint can be written.
        short_of_memory: the process whose first rehearsal finds too little memory.
        compiled, recompute, micro_batch: see Resources.
    """

    folder: Path
    kind: str = "vae"
    double: bool = True
    optim: OptimConfig = OPTIM
    data: Path | None = None
    stop_after: Mapping[int, int] = field(default_factory=dict)
    break_after: Mapping[int, int] = field(default_factory=dict)
    checkpoint_every_s: float = 120.0
    full_disk: bool = False
    short_of_memory: int | None = None
    compiled: bool = False
    recompute: bool = False
    micro_batch: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one process says of a job; ``digest`` is of all its weights."""

    finished: bool = False
    digest: str = ""
    weights: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    error: str = ""


def refuse(*args: object) -> None:
    raise UserError(DISK_IS_FULL)


def perform(job: Job, rank: int = 0, world: int = 1) -> Result:
    """Do one process's part of a job."""
    job.folder.mkdir(exist_ok=True)
    steps = 0

    def stopped() -> bool:
        nonlocal steps
        steps += 1
        if steps == job.break_after.get(rank):
            raise ZeroDivisionError("a bug")
        return steps == job.stop_after.get(rank)

    place = Workplace(
        folder=job.folder,
        data=job.data or job.folder,
        parents={},
        resources=Resources(
            checkpoint_every_s=job.checkpoint_every_s,
            compile="on" if job.compiled else "off",
            recompute=job.recompute,
            micro_batch=job.micro_batch,
        ),
        stopped=stopped,
        rank=rank,
        world=world,
        local_rank=rank,
        rendezvous=job.folder / "meeting.json",
    )
    try:
        with mock.patch.object(
            loop, "save_checkpoint", refuse if job.full_disk else loop.save_checkpoint
        ):
            return _train_stage(job, place) if job.data else _train(job, place)
    except Exception as error:
        return Result(error=f"{type(error).__name__}: {error}")


def _train(job: Job, place: Workplace) -> Result:
    torch.set_num_threads(1)
    data, model = (
        to_tensors(make_pairs(6, 16), 0),
        device.build(MODELS[job.kind], 3, torch.device("cpu")),
    )
    if job.double:
        data, model = (
            PairTensors(images=data.images.double(), masks=data.masks.double()),
            model.double(),
        )
    rehearse, attempts = loop._Training.rehearse, itertools.count()

    def rehearse_in_little_memory(self: loop._Training, *of: Any) -> None:
        if place.rank == job.short_of_memory and next(attempts) == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        rehearse(self, *of)

    # Compiled as on a GPU but for the last step, which takes a compiler minutes.
    traced = functools.partial(torch.compile, backend="aot_eager")
    with (
        mock.patch.object(device.torch, "compile", traced),
        mock.patch.object(loop._Training, "rehearse", rehearse_in_little_memory),
        mock.patch.object(
            rehearsal, "needs_rehearsal", return_value=job.short_of_memory is not None
        ),
    ):
        report = loop.train(model, data, job.optim, 3, MovesConfig(), place)
    weights = {name: value.numpy() for name, value in (report.weights if report else {}).items()}
    digest = hashlib.sha256(b"".join(value.tobytes() for value in weights.values())).hexdigest()
    terms = report.terms if report else {}
    return Result(finished=report is not None, digest=digest, weights=weights, terms=terms)


def _train_stage(job: Job, place: Workplace) -> Result:
    split = SplitConfig(train=6, test=5)
    config = TrainConfig(
        data="tiny", generator="vae", split=split, image_px=0, model=VAE, optim=job.optim
    )
    return Result(finished=True, outcome=train_generator(config, place))


def serve(rank: int, connection: Connection) -> None:
    """Do jobs until the test process is gone."""
    try:
        while True:
            connection.send(perform(connection.recv(), rank, connection.recv()))
    except (EOFError, BrokenPipeError):
        return


class Crew:
    """Four processes that wait for jobs."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(4)]
        self.connections = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=serve, args=(rank, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()

    def run(self, world: int, job: Job) -> list[Result]:
        """Let the first ``world`` processes do a job; what takes too long fails the test and ends them."""
        end = time.monotonic() + WAIT_S
        for connection in self.connections[:world]:
            connection.send(job)
            connection.send(world)
        results = []
        for rank, connection in enumerate(self.connections[:world]):
            if not connection.poll(max(0.0, end - time.monotonic())):
                self.end()
                pytest.fail(f"process {rank} of {world} hangs")
            results.append(connection.recv())
        return results

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.end()


def windows(folder: Path) -> list[dict[str, Any]]:
    """Return what the log says, but for the beginning of the training itself."""
    return [record for record in read_log(folder) if record.get("event") != "training"]


def assert_near(one: Result, other: Result) -> None:
    """Compare weights by the norm of their difference over their norm.

    In float64 each tensor must agree. In float32 all together must: there are weights that the loss
    does not depend on (an attention key's bias), whose gradient is rounding alone, of which Adam
    makes steps.
    """
    assert one.finished, one.error
    assert other.finished, other.error
    before = {name: value.ravel() for name, value in one.weights.items()}
    changed = {name: other.weights[name].ravel() - value for name, value in before.items()}
    if next(iter(before.values())).dtype == np.float32:
        before, changed = (
            {"all": np.concatenate(list(values.values()))} for values in (before, changed)
        )
    for name, value in before.items():
        limit = 1e-5 if value.dtype == np.float32 else 1e-10
        assert np.linalg.norm(changed[name]) <= limit * np.linalg.norm(value), name


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["vae", "hvae", "lsgan", "edm", "hvae-gan"])
def test_the_number_of_processes_changes_the_weights_by_rounding_alone(
    kind: str, precision: str, crew: Crew, tmp_path: Path
) -> None:
    job = Job(folder=tmp_path / "alone", kind=kind, double=precision == "float64")
    alone = perform(job)
    for world in (2, 4):
        results = crew.run(world, replace(job, folder=tmp_path / str(world)))
        assert_near(alone, results[0])
        assert len({result.digest for result in results}) == 1
        nats = 1e-5 if job.double else 1e-3
        assert results[0].terms == pytest.approx(alone.terms, rel=nats, abs=nats)
        assert [len(windows(tmp_path / str(world))), len(windows(job.folder))] == [1, 1]


def test_compiled_parts_and_recomputing_change_nothing_in_two_processes(
    crew: Crew, tmp_path: Path
) -> None:
    alone = perform(Job(folder=tmp_path / "alone", kind="hvae"))
    together = crew.run(2, Job(folder=tmp_path / "two", kind="hvae", compiled=True, recompute=True))
    assert together[0].finished, together[0].error
    assert_near(alone, together[0])
    assert len({result.digest for result in together}) == 1
    assert not [
        entry for entry in read_log(tmp_path / "two") if entry.get("event") == "compile_failed"
    ]


def test_batches_in_parts_change_nothing_in_two_processes(crew: Crew, tmp_path: Path) -> None:
    alone = perform(Job(folder=tmp_path / "alone", kind="hvae"))
    together = crew.run(
        2, Job(folder=tmp_path / "two", kind="hvae", micro_batch=1)
    )  # of two pairs each
    assert_near(alone, together[0])
    assert len({result.digest for result in together}) == 1


def test_what_one_process_cannot_hold_is_spared_in_all(crew: Crew, tmp_path: Path) -> None:
    asked = crew.run(2, Job(folder=tmp_path / "asked", kind="hvae", recompute=True))
    spared = crew.run(2, Job(folder=tmp_path / "spared", kind="hvae", short_of_memory=1))
    assert spared[0].finished, spared[0].error
    assert {result.digest for result in spared} == {asked[0].digest}
    [event] = [
        line for line in read_log(tmp_path / "spared") if line.get("event") == "memory_spared"
    ]
    assert event["recompute"] is True
    assert event["reason"] == "out of memory in another process"


def test_float16_skips_the_same_steps_in_all_processes(crew: Crew, tmp_path: Path) -> None:
    results = crew.run(
        2, Job(folder=tmp_path / "run", double=False, optim=replace(OPTIM, precision="fp16"))
    )
    assert results[0].finished, results[0].error
    assert results[0].digest == results[1].digest


def test_all_leave_when_one_is_asked_to_and_any_number_goes_on(crew: Crew, tmp_path: Path) -> None:
    job = Job(folder=tmp_path / "run", kind="hvae")
    undisturbed = crew.run(2, replace(job, folder=tmp_path / "undisturbed"))[0]
    left = crew.run(2, replace(job, stop_after={1: 3}))
    assert [(result.finished, result.error) for result in left] == [(False, ""), (False, "")]
    assert [path.name[11:23] for path in find_checkpoints(job.folder)] == ["000000000012"]
    by_one = shutil.copytree(job.folder, tmp_path / "by-one")
    again = crew.run(2, job)
    assert [result.digest for result in again] == [undisturbed.digest] * 2
    assert again[0].terms == undisturbed.terms
    assert [record["images_seen"] for record in windows(job.folder)] == [12, 32]
    assert_near(undisturbed, perform(replace(job, folder=by_one)))
    begun_by_one = replace(job, folder=tmp_path / "begun-by-one")
    assert not perform(replace(begun_by_one, stop_after={0: 3})).finished
    assert_near(undisturbed, crew.run(2, begun_by_one)[0])


def test_a_damaged_checkpoint_is_passed_over_by_all(crew: Crew, tmp_path: Path) -> None:
    job = Job(folder=tmp_path / "run", kind="lsgan")
    undisturbed = crew.run(2, replace(job, folder=tmp_path / "undisturbed"))[0]
    crew.run(2, replace(job, stop_after={0: 6}, checkpoint_every_s=0.0))
    newest, older = find_checkpoints(job.folder)
    newest.write_bytes(newest.read_bytes()[:-100])
    assert [result.digest for result in crew.run(2, job)] == [undisturbed.digest] * 2
    events = [
        (record["event"], record.get("file"))
        for record in read_log(job.folder)
        if record.get("event", "training") != "training"
    ]
    assert events == [("checkpoint_damaged", newest.name), ("resumed", None)]
    assert older.exists()


def test_a_term_that_is_not_finite_in_one_process_ends_all_alike(
    crew: Crew, tmp_path: Path
) -> None:
    results = crew.run(2, Job(folder=tmp_path / "run", kind="one-sided"))
    assert results[0].error.startswith("NonFiniteError: size became inf at images_seen = 16")
    assert results[1].error == results[0].error
    assert not find_checkpoints(tmp_path / "run")


@pytest.mark.parametrize("kind", ["a full disk", "a bug"])
def test_nobody_waits_for_a_process_that_is_gone(kind: str, crew: Crew, tmp_path: Path) -> None:
    job = Job(folder=tmp_path / "run", checkpoint_every_s=0.0)
    broken = (
        replace(job, full_disk=True) if kind == "a full disk" else replace(job, break_after={0: 3})
    )
    first, *others = crew.run(4, broken)
    assert first.error == (
        f"UserError: {DISK_IS_FULL}" if kind == "a full disk" else "ZeroDivisionError: a bug"
    )
    for other in others:
        assert other.error.startswith("UserError: process ")
        assert "lost touch with another of the run's 4" in other.error
    assert crew.run(4, job)[3].finished  # the same processes, and what the broken ones left


def test_the_first_process_writes_and_a_meeting_place_of_others_is_passed_over(
    crew: Crew, tmp_path: Path
) -> None:
    data, meeting = make_data_set(tmp_path), tmp_path / "run" / "meeting.json"
    others = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    meeting.parent.mkdir()
    write_json(meeting, {"host": "127.0.0.1", "port": others.port, "key": "another attempt's"})
    first, second = crew.run(2, Job(folder=tmp_path / "run", data=data))
    assert first.outcome is not None, first.error
    assert first.outcome == second.outcome
    assert first.outcome.notes == ("trained by 2 processes",)
    assert (tmp_path / "run" / SNAPSHOT).exists()
    assert not meeting.exists()
    assert len(windows(tmp_path / "run")) == 1


def test_the_processes_meet_on_one_interface_under_a_key_that_only_their_user_reads(
    tmp_path: Path,
) -> None:
    path = tmp_path / "meeting.json"
    place = Workplace(
        folder=tmp_path, data=tmp_path, parents={}, resources=Resources(), world=2, rendezvous=path
    )
    first = distributed._meet(place)
    second = distributed._meet(replace(place, rank=1))
    assert path.stat().st_mode & 0o777 == 0o600
    meeting = read_json(path)

    # /proc/net/tcp: address and port in hexadecimal; 0A is a socket that listens.
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    sockets = [row.split() for rows in tables for row in rows]
    listening = [row[1].split(":") for row in sockets if row[3] == "0A"]
    port = f"{meeting['port']:04X}"
    assert [address for address, at in listening if at == port] == ["0100007F"]  # 127.0.0.1

    stranger = dist.TCPStore("127.0.0.1", meeting["port"], wait_for_workers=False)
    stranger.set("where", b"here")
    assert not first.check(["where"])
    first.set("where", b"there")
    assert (second.get("where"), stranger.get("where")) == (b"there", b"here")


def test_a_batch_that_cannot_be_shared_equally_is_refused(tmp_path: Path) -> None:
    result = perform(Job(folder=tmp_path / "run"), rank=1, world=3)
    assert "optim.batch_size is 4, expected a multiple of the run's 3 processes" in result.error
    place = Workplace(
        folder=tmp_path, data=tmp_path, parents={}, resources=Resources(), rank=1, world=3
    )
    assert distributed.part_of_batch(12, place) == slice(4, 8)


def test_a_process_that_is_alone_meets_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("init_process_group", "all_reduce", "broadcast_object_list"):
        monkeypatch.setattr(dist, name, mock.Mock(side_effect=AssertionError(name)))
    assert perform(Job(folder=tmp_path / "run")).finished


def test_gloo_and_nccl_take_the_interface_that_leads_to_the_first_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(distributed.os, "environ", environment)
    distributed._choose_interface("127.0.0.1", 29500)
    assert environment == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


@pytest.mark.parametrize(
    ("visible", "local_rank", "index"), [(1, 0, 0), (1, 3, 0), (4, 0, 0), (4, 3, 3)]
)
def test_each_process_takes_its_own_gpu_whether_slurm_hides_the_others_or_not(
    visible: int, local_rank: int, index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    resources = Resources(gpus=4)
    place = Workplace(
        folder=tmp_path, data=tmp_path, parents={}, resources=resources, local_rank=local_rank
    )
    environment: dict[str, str] = {}
    monkeypatch.setattr(device.os, "environ", environment)
    assert device.choose_device(place) == torch.device("cuda", index)
    assert environment.pop("PYTORCH_CUDA_ALLOC_CONF") == "expandable_segments:True"
    environment["PYTORCH_ALLOC_CONF"] = "a user's own"
    device.choose_device(place)
    assert "PYTORCH_CUDA_ALLOC_CONF" not in environment
    if visible > 1:
        with pytest.raises(UserError, match=r"torch sees 4 GPUs on this node.*give gpus = 4"):
            device.choose_device(replace(place, local_rank=4, resources=Resources(gpus=8)))
