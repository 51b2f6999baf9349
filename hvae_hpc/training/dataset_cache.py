"""What the runs of a process read again stays in its memory: ten seeds of an arm share their pairs.

What was read is known by the hash of its content, so repacked data is read again. Nobody may change
what is kept.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch

from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.store.shards import Shard
from hvae_hpc.training.batches import PairTensors, to_tensors

LIMIT = 2**30
"""Bytes that are kept, on host and device together; what was used longest ago goes first."""
CPU = torch.device("cpu")
Read = TypeVar("Read", Pairs, PairTensors)
_kept: OrderedDict[Hashable, Any] = OrderedDict()


def read_cases(
    data: Path, case_ids: tuple[str, ...], image_px: int, device: torch.device = CPU
) -> PairTensors:
    """Return these cases' pairs of a packed data set, in this order, on a device."""
    key = (data, read_manifest(data).content_hash, case_ids, image_px, device)
    return _once(key, lambda: to_tensors(read_dataset(data, case_ids), image_px).to(device))


def read_packed(data: Path, case_ids: tuple[str, ...]) -> Pairs:
    """Return these cases' pairs of a packed data set, in this order, as they are packed."""
    return _once(
        (data, read_manifest(data).content_hash, case_ids), lambda: read_dataset(data, case_ids)
    )


def read_first(shard: Shard, n: int, device: torch.device = CPU) -> PairTensors:
    """Return the first n pairs of an open shard, on a device."""
    return _once(
        (shard.path, shard.content_sha256, n, device),
        lambda: to_tensors(shard.read(range(n)), 0).to(device),
    )


def _once(key: Hashable, read: Callable[[], Read]) -> Read:
    pairs: Read = _kept.pop(key) if key in _kept else read()
    _kept[key] = pairs  # the one used last
    while sum(kept.images.nbytes + kept.masks.nbytes for kept in _kept.values()) > LIMIT:
        _kept.popitem(last=False)
    return pairs
