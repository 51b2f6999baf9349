"""Copies near the GPU: what a run reads, on the node's own disk, copied once for all processes of a user there.

A copy is named by the hash of a data set's content, or by the making of the run that left the
pairs, so it is never stale; its pixels are verified when it is made, all else whenever a run begins
with it, and each row when it is read. Whatever stands in the way of a copy, the run reads the
shared one, and says why.
"""

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.store.manifest import MANIFEST, read_manifest, require_content
from hvae_hpc.runs.folder import PAIRS
from hvae_hpc.runs.lease import check, locked
from hvae_hpc.runs.scratch import held, remove_unused, scratch_folder
from hvae_hpc.runs.workplace import Outcome, Workplace

WAIT_S = 300.0
"""How long a process waits for another one that copies; then it reads the shared copy."""
MARGIN = 2**30
"""Bytes of the disk that stay free, or a twentieth of it where that is less."""
UNFINISHED = ".unfinished"
KINDS = ("data", "pairs")
ROWS = 64
"""Pairs that are verified at a time."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder of shards on the shared disk.

    Attributes:
        folder: where it lies.
        name: "data/<content hash>" or "pairs/<result stamp>": of its content, wherever it lies.
        shards: file to the hash of its content; None for its own.
        content_hash: of the manifest that belongs to them; "" where there is none.
    """

    folder: Path
    name: str
    shards: Mapping[str, str | None]
    content_hash: str = ""


def work_near(
    work: Callable[[Workplace], Outcome | None],
    workplace: Workplace,
    content_hash: str,
    stamps: Mapping[str, str],
) -> Outcome | None:
    """Do a stage's work with copies on this node where there can be any; the outcome notes where it read.

    A copy that turns out to be damaged is removed, and the work done again with the shared one.

    Args:
        work: what the stage does.
        workplace: with the shared folders.
        content_hash: of its data set.
        stamps: role to :func:`hvae_hpc.runs.folder.result_stamp` of the parents.
    """
    try:
        root = scratch_folder(workplace.resources.scratch)
    except UserError as error:
        return _noted(work(workplace), _say(workplace, f"read from the shared disk: {error}"))
    if root is None:
        return work(workplace)
    sources = _sources(workplace, content_hash, stamps)
    with contextlib.ExitStack() as stack:
        copies: dict[str, Path] = {}
        notes: list[str] = []
        for role, source in sources.items():
            try:
                copies[role] = _keep_copy(root, source, workplace.stopped, stack)
                notes.append(f"{role} read from the node's copy")
            except (OSError, UserError) as error:
                why = getattr(error, "strerror", None) or error
                notes.append(_say(workplace, f"{role} read from the shared disk: {why}"))
        parents = {role: copies.get(role, folder) for role, folder in workplace.parents.items()}
        try:
            return _noted(
                work(replace(workplace, data=copies.get("data", workplace.data), parents=parents)),
                *notes,
            )
        except UserError:
            damaged = [
                role
                for role, copy in copies.items()
                if not _is_whole(sources[role], copy, pixels=True)
            ]
            if not damaged:
                raise
    for role in damaged:
        remove_unused(copies[role])
    note = _say(
        workplace, f"read from the shared disk: the node's copy of {', '.join(damaged)} is damaged"
    )
    return _noted(work(workplace), note)


def _say(workplace: Workplace, note: str) -> str:
    print(f"{workplace.folder.name}: {note}", flush=True)
    return note


def _noted(outcome: Outcome | None, *notes: str) -> Outcome | None:
    return outcome and replace(outcome, notes=(*outcome.notes, *notes))


def _sources(
    workplace: Workplace, content_hash: str, stamps: Mapping[str, str]
) -> dict[str, Source]:
    """Return what can be copied, by role: the data set, and the pairs of those parents that have some."""
    shards = {shard.file: shard.content_sha256 for shard in read_manifest(workplace.data).shards}
    data = Source(
        folder=workplace.data, name=f"data/{content_hash}", shards=shards, content_hash=content_hash
    )
    pairs = {
        role: Source(folder=folder, name=f"pairs/{stamps[role]}", shards={PAIRS: None})
        for role, folder in workplace.parents.items()
        if (folder / PAIRS).is_file()
    }
    return {"data": data, **pairs}


def _keep_copy(
    root: Path, source: Source, stopped: Callable[[], bool], stack: contextlib.ExitStack
) -> Path:
    """Return this node's copy, made if need be, and held until the stack is left.

    Raises:
        UserError, OSError: there can be none.
    """
    copy, end = root / source.name, time.monotonic() + WAIT_S

    def keep() -> bool:
        with contextlib.ExitStack() as mine:
            if mine.enter_context(held(copy)) and _is_whole(source, copy):
                stack.push(mine.pop_all())
                return True
        return False

    while not keep():
        with locked(root) as alone:
            if alone:
                if not keep():  # nobody came first
                    _make_copy(root, source, stopped)
                    if not keep():
                        raise UserError(f"{copy}: was gone or damaged as soon as it was made")
                return copy
        if stopped() or time.monotonic() > end:
            raise UserError("another process is still copying to this node")
        time.sleep(0.1)
    return copy


def _is_whole(source: Source, copy: Path, pixels: bool = False) -> bool:
    try:
        _verify(source, copy, pixels)
    except (OSError, UserError):
        return False
    return True


def _verify(source: Source, copy: Path, pixels: bool) -> None:
    """Make sure of all of a copy, or of all but its pixels.

    Raises:
        UserError: it is not what it should be.
    """
    from hvae_hpc.preprocess.store.shards import Shard

    if source.content_hash:
        require_content(copy, source.content_hash)
    for name, digest in source.shards.items():
        with Shard(copy / name, digest) as shard:
            for first in range(0, len(shard), ROWS) if pixels else ():
                shard.read(range(first, min(first + ROWS, len(shard))))


def _make_copy(root: Path, source: Source, stopped: Callable[[], bool]) -> None:
    """Copy a source and verify all of it; only for the holder of the root's lock.

    Raises:
        UserError, OSError: there is no room, or what arrived is damaged; nothing is left of it.
    """
    for left in root.glob(f"*/*{UNFINISHED}"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    copy = root / source.name
    if copy.exists() and not remove_unused(copy):
        raise UserError(f"{copy}: is damaged, and other processes are at it")
    began, files = time.monotonic(), [*source.shards, *([MANIFEST] if source.content_hash else [])]
    needed = sum((source.folder / name).stat().st_size for name in files)
    _make_room(root, needed)
    unfinished = copy.with_name(f"{copy.name}-{secrets.token_hex(4)}{UNFINISHED}")
    try:
        unfinished.mkdir(parents=True)
        for name in files:
            if stopped():
                raise UserError("asked to leave while copying to this node")
            shutil.copyfile(source.folder / name, unfinished / name)
        _verify(source, unfinished, pixels=True)
        check(root)
        unfinished.rename(copy)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(
        f"copied {source.folder} to {copy} ({needed / 2**20:.1f} MiB, {time.monotonic() - began:.1f} s)",
        flush=True,
    )


def _make_room(root: Path, needed: int) -> None:
    """Remove copies that nobody uses, those used longest ago first, until there is room for another one.

    Raises:
        UserError: there is too little even without them all; then none is removed.
    """
    others = sorted(
        (path for kind in KINDS for path in root.glob(f"{kind}/*")),
        key=lambda path: path.stat().st_mtime,
    )
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}

    def lacking() -> int:
        disk = shutil.disk_usage(root)
        return needed + min(MARGIN, disk.total // 20) - disk.free

    if lacking() > sum(sizes.values()):
        raise UserError(
            f"{root}: has {shutil.disk_usage(root).free / 2**20:.0f} MiB free, {needed / 2**20:.0f} are needed"
        )
    for path in others:
        if lacking() <= 0:
            return
        if remove_unused(path):
            print(f"removed {path}, unused, to make room", flush=True)
    if lacking() > 0:
        raise UserError(f"{root}: its {len(others)} copies are in use and leave too little room")
