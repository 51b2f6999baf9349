"""Pairs on the device, and which of them a step takes.

The clock is images seen. Which images a step takes, how they are augmented, and the noise are
functions of (seed, images_seen). So a training goes on from a checkpoint without anything of a
loader being saved.
"""

import hashlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hvae_hpc.config.kinds import AugmentationConfig
from hvae_hpc.config.model import ImageSize, OptimConfig
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.models.blocks import Batch, Tensors
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.reader import read_dataset

CPU = torch.device("cpu")
Rows = slice | Sequence[int] | Tensor


def generator_for(seed: int, purpose: str, index: int) -> torch.Generator:
    """Return a CPU generator that is a function of its arguments alone."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@lru_cache(maxsize=4)
def _permutation(n: int, added: int, seed: int, epoch: int) -> Tensor:
    """Return a random order of n pairs, the last ``added`` of which are not real.

    With one seed the real pairs come in the same order whatever is added to them.
    """
    real = torch.randperm(n - added, generator=generator_for(seed, "order", epoch))
    if not added:
        return real
    order_of_added = torch.randperm(added, generator=generator_for(seed, "order of added", epoch))
    is_real = torch.randperm(n, generator=generator_for(seed, "places", epoch)) < n - added
    order = torch.empty(n, dtype=torch.int64)
    order[is_real], order[~is_real] = real, n - added + order_of_added
    return order


def images_of_step(
    n: int, seed: int, images_seen: int, batch_size: int, added: int = 0, added_first: int = 0
) -> Tensor:
    """Return the indices (batch_size,) of the images after the first ``images_seen``.

    The stream is one random order of all n images after the other. So every image is seen equally
    often, to within one, at any time. A batch may cross from one order to the next.

    Args:
        n: pairs in all, real ones first.
        seed: of the orders.
        images_seen: before this step.
        batch_size: images of a step.
        added: the last so many are no real ones.
        added_first: for the first so many images, whole batches, the stream is of the added pairs
            alone, and after that of the real ones alone; 0 for a stream of all.
    """
    first = 0
    if added_first and images_seen < added_first:
        first, n, added = n - added, added, 0
    elif added_first:
        n, added, images_seen = n - added, 0, images_seen - added_first

    parts = []
    end = images_seen + batch_size
    for epoch in range(images_seen // n, (end - 1) // n + 1):
        start, stop = max(images_seen - epoch * n, 0), min(end - epoch * n, n)
        parts.append(_permutation(n, added, seed, epoch)[start:stop])
    return first + torch.cat(parts)


def shared_images_of_step(data: "PairTensors", seed: int, step: int, batch_size: int) -> Tensor:
    """Return the indices (batch_size,) of a step of which a share is synthetic.

    Real and synthetic pairs are two streams, each as :func:`images_of_step` has it. Their places in
    the batch are random, so that every process gets some of both.
    """
    n_synthetic = round(data.synthetic_share * batch_size)
    n_other, n_real = batch_size - n_synthetic, len(data) - data.synthetic
    real = images_of_step(n_real, seed, step * n_other, n_other, data.added - data.synthetic)
    synthetic = n_real + images_of_step(
        data.synthetic, seed, step * n_synthetic, n_synthetic, data.synthetic
    )
    places = torch.randperm(batch_size, generator=generator_for(seed, "shared places", step))
    return torch.cat([real, synthetic])[places]


@frozen
class PairTensors:
    """Pairs in memory.

    Attributes:
        images, masks: (N, 1, H, W) float32, in [0, 1] and {0, 1}; real pairs first.
        added: how many of the last ones are not real.
        added_first: images from the start of a training in which only the added ones are shown, and
            after which only the real ones are; 0 for all of them throughout.
        synthetic: how many of the last ones are synthetic.
        synthetic_share: share of every batch that is synthetic; 0 for all pairs equally often.
    """

    images: Tensor
    masks: Tensor
    added: int = 0
    added_first: int = 0
    synthetic: int = 0
    synthetic_share: float = 0.0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> ImageSize:
        """Height and width, px."""
        return int(self.images.shape[2]), int(self.images.shape[3])

    @cached_property
    def distances(self) -> Tensor:
        """How far each pixel is from the edge of the tumour, px, below 0 inside, (N, 1, H, W)."""
        # Only here: a training without CarveMix need not wait for scipy.
        from scipy.ndimage import distance_transform_edt

        masks = self.masks[: len(self) - self.added, 0].cpu().numpy() > 0.5
        nowhere = np.full(self.image_size, float(sum(self.image_size)))
        signed = [
            distance_transform_edt(~mask) - distance_transform_edt(mask) if mask.any() else nowhere
            for mask in masks
        ]
        return torch.from_numpy(np.stack(signed))[:, None].to(self.masks)

    def to(self, device: torch.device) -> "PairTensors":
        """Return them on a device."""
        return replace(self, images=self.images.to(device), masks=self.masks.to(device))

    def take(self, rows: Rows) -> "PairTensors":
        """Return some of them, by a slice or by their numbers."""
        return replace(self, images=self.images[rows], masks=self.masks[rows])


def to_tensors(pairs: Pairs, image_px: int) -> PairTensors:
    """Make tensors of packed pairs, shrunk by area averaging where asked.

    Args:
        pairs: as read from shards.
        image_px: side of the shrunk images; 0 for as packed.

    Raises:
        UserError: the packed images are not square, or smaller than asked, or shrinking empties
            all masks of a case.
    """
    images = torch.from_numpy(pairs.images)[:, None].float()
    masks = torch.from_numpy(pairs.masks)[:, None].float()
    height, width = images.shape[2:]
    if image_px and (height, width) != (image_px, image_px):
        if height != width or height < image_px:
            raise UserError(
                f"image_px is {image_px}, the packed images are {height}x{width}; "
                "only square, larger images are shrunk"
            )
        images = F.interpolate(images, (image_px, image_px), mode="area")
        shrunk = (F.interpolate(masks, (image_px, image_px), mode="area") >= 0.5).float()
        emptied = _find_tumours(pairs, masks) - _find_tumours(pairs, shrunk)
        if emptied:
            raise UserError(
                f"image_px is {image_px}, which empties the masks of {len(emptied)} of "
                f"{len(set(pairs.case_ids))} cases ({', '.join(sorted(emptied)[:3])}); "
                "raise it, or pack no small tumours (slices.min_px in the recipe)"
            )
        masks = shrunk
    return PairTensors(images=images.contiguous(), masks=masks.contiguous())


def _find_tumours(pairs: Pairs, masks: Tensor) -> set[str]:
    """Return the cases whose masks (N, 1, H, W) have tumour."""
    return set(compress(pairs.case_ids, masks.flatten(1).any(dim=1)))


def read_cases(
    data: Path, case_ids: Sequence[str], image_px: int, device: torch.device = CPU
) -> PairTensors:
    """Return these cases' pairs of a packed data set, in this order, on a device."""
    return to_tensors(read_dataset(data, case_ids), image_px).to(device)


def add(real: PairTensors, more: PairTensors) -> PairTensors:
    """Return the pairs with others added to them."""
    return replace(
        real,
        images=torch.cat([real.images, more.images]),
        masks=torch.cat([real.masks, more.masks]),
        added=real.added + len(more),
    )


def split_batch(batch: Batch, rows: int) -> list[Batch]:
    """Cut a batch into parts of at most so many pairs.

    Args:
        batch: tensors (B, ...) and scalars.
        rows: pairs of a part; 0 for the whole batch.
    """
    n = len(batch["image"])
    if not 0 < rows < n:
        return [batch]
    return [_cut(batch, slice(start, start + rows)) for start in range(0, n, rows)]


def _cut(batch: Batch, part: slice) -> Tensors:
    """Return a part of the rows of each tensor; scalars stay as they are."""
    return {name: value[part] if value.ndim else value for name, value in batch.items()}


def require_unseen(what: object, source_cases: Sequence[str], test_cases: Sequence[str]) -> None:
    """Refuse what was made from test cases, by case id.

    Args:
        what: pairs or a generator, for the message.
        source_cases: the cases that it was made from.
        test_cases: of the split.
    """
    shared = sorted(set(source_cases) & set(test_cases))
    if shared:
        raise UserError(
            f"{what}: was made from test cases ({', '.join(shared[:3])}, {len(shared)} in all); "
            "use a generator of the same split"
        )


def augment(
    rows: Tensor,
    data: PairTensors,
    moves: AugmentationConfig,
    seed: int,
    index: int,
    part: slice = slice(None),
) -> tuple[Tensor, Tensor, Tensors]:
    """Augment some pairs; all is drawn for the whole batch and then cut.

    Args:
        rows: of the batch's pairs, on the data's device.
        data: all pairs. The real ones are those that others are mixed with.
        moves: how.
        seed, index: what is drawn is a function of these.
        part: of the batch, which is made.

    Returns:
        Images, masks, and what was drawn for them.
    """
    augmentation = pkgutil.resolve_name(moves.augmentation_class)(moves)
    generator = generator_for(seed, "moves", index)
    drawn = augmentation.draw(len(rows), data.image_size, generator)
    drawn = _to_device(_cut(drawn, part), data.images)
    if moves.needs_donors:
        generator = generator_for(seed, "donors", index)
        # A real pair's donor is another one, where there are two.
        n_real = len(data) - data.added
        further = torch.randint(1, max(2, n_real), (len(rows),), generator=generator)[part]
        donors = (rows[part] + further.to(rows.device, non_blocking=True)) % n_real
        drawn["donor_images"], drawn["donor_masks"] = data.images[donors], data.masks[donors]
        drawn["donor_distances"] = data.distances[donors]

    rows = rows[part]
    return *augmentation.apply(data.images[rows], data.masks[rows], drawn), drawn


def _to_device(drawn: Batch, like: Tensor) -> Tensors:
    """Return tensors on the device of another one, and in its precision."""
    return {name: value.to(like, non_blocking=True) for name, value in drawn.items()}


def make_batch(
    model: nn.Module,
    data: PairTensors,
    optim: OptimConfig,
    seed: int,
    moves: AugmentationConfig | None,
    images_seen: int,
    part: slice,
) -> Tensors:
    """Return the pairs and the noise of the step after the first ``images_seen``.

    All is drawn for the whole batch and then cut, so that the number of processes changes nothing.

    Args:
        model: whose ``draw`` makes the noise.
        data: on the device.
        optim: its batch size and length.
        seed: of order, augmentation and noise.
        moves: augmentation of the pairs; None for none.
        images_seen: before this step.
        part: of the batch, which this process takes.

    Returns:
        ``image``, ``mask`` and the noise, each (B, ...) but for scalars, on the data's device and
        in its precision; ``maps`` too, for a model that ``sees_moves``.
    """
    n = optim.batch_size
    if data.synthetic_share:
        index = shared_images_of_step(data, seed, images_seen // n, n)
    else:
        index = images_of_step(len(data), seed, images_seen, n, data.added, data.added_first)
    index = index.to(data.images.device, non_blocking=True)

    batch: Tensors = {}
    if moves is None:
        batch["image"], batch["mask"] = data.images[index[part]], data.masks[index[part]]
    else:
        images, masks, drawn = augment(index, data, moves, seed, images_seen, part)
        batch |= {"image": images, "mask": masks}
        if getattr(model, "sees_moves", False) and "maps" in drawn:
            batch["maps"] = drawn["maps"]

    generator = generator_for(seed, "noise", images_seen)
    noise = model.draw(n, images_seen / optim.images, generator)  # type: ignore[operator]
    return batch | _to_device(_cut(noise, part), data.images)
