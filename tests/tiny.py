"""A tiny packed data set for tests of everything behind packing: bright discs on noise, the disc is the tumour."""

import re
from pathlib import Path

import numpy as np

from hvae_hpc.preprocess.store.manifest import (
    MANIFEST_SCHEMA,
    CaseEntry,
    Manifest,
    ShardEntry,
    compute_content_hash,
    write_manifest,
)
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.shards import write_pairs


def make_pairs(n: int, side: int, seed: int = 0) -> Pairs:
    """Make n pairs of side x side px."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    images, masks = [], []
    for _ in range(n):
        centre, radius = random.uniform(0.3, 0.7, 2) * side, random.uniform(0.12, 0.25) * side
        mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        image = 0.3 + 0.4 * mask + random.normal(0, 0.05, (side, side))
        images.append(np.clip(image, 0, 1).astype(np.float32))
        masks.append(mask.astype(np.uint8))
    return Pairs(
        images=np.stack(images),
        masks=np.stack(masks),
        case_ids=tuple(f"case-{i:03d}" for i in range(n)),
        slice_index=np.arange(n, dtype=np.int32),
        spacing_mm=np.ones((n, 2)),
        source_sha256=("",) * n,
    )


def make_data_set(
    folder: Path, name: str = "tiny", n: int = 12, side: int = 16, seed: int = 0
) -> Path:
    """Pack n tiny cases into folder / name and return it."""
    folder = folder / name
    pairs = make_pairs(n, side, seed)
    sha = write_pairs(folder / "shard-0.h5", pairs, {})
    shards = (ShardEntry(file="shard-0.h5", pairs=n, content_sha256=sha),)
    cases = tuple(
        CaseEntry(
            case_id=case,
            shard="shard-0.h5",
            first_row=i,
            pairs=1,
            slices=(i,),
            tumour_px=(int(pairs.masks[i].sum()),),
            spacing_mm=(1.0, 1.0),
            sources={},
        )
        for i, case in enumerate(pairs.case_ids)
    )
    recipe = {"name": name}
    write_manifest(
        folder,
        Manifest(
            schema=MANIFEST_SCHEMA,
            name=name,
            modality="discs",
            recipe=recipe,
            size_px=(side, side),
            shards=shards,
            cases=cases,
            skipped=(),
            content_hash=compute_content_hash(recipe, shards, cases),
        ),
    )
    return folder


SWEEP = """
name = "tiny"
data = ["tiny", "tiny2"]
image_px = 0
seeds = 2
doses = [4, 8]
factors = [2, 3]
[split]
train = 6
test = 5
[segment]
epochs = 10
unet = {base_channels = 4, depth = 2}
optim = {batch_size = 4, lr = 1e-2, precision = "fp32"}
[generate]
n_pairs = 8
min_mask_px = 1
threshold = 0.3
max_draws_per_pair = 2000
[quality]
n_images = 5
nearest = 2
draws = 3
[generators.vae]
model = {kind = "hvae", n_leapfrog = 0, network = {channels = [4, 8], attention_levels = [1], latent_size = 4, attention_heads = 2}}
optim = {images = 160, batch_size = 4, lr = 1e-2, precision = "fp32", ema_decay = 0.9}
[generators.hvae]
model = {kind = "hvae", n_leapfrog = 2, flow_from = 0.3, network = {channels = [4, 8], attention_levels = [1], latent_size = 4, attention_heads = 2}}
optim = {images = 160, batch_size = 4, lr = 1e-2, precision = "fp32", ema_decay = 0.9}
[generators.lsgan]
model = {kind = "lsgan", discriminator_channels = [4, 8], network = {channels = [4, 8], attention_levels = [1], latent_size = 4, attention_heads = 2}}
optim = {images = 160, batch_size = 4, lr = 1e-3, precision = "fp32", ema_decay = 0.9, beta_1 = 0.5}
"""
"""A sweep of all stages on two tiny data sets, seconds long."""


def make_project(folder: Path) -> Path:
    """Write a project folder: shards of two data sets and sweep.toml; returns it."""
    make_data_set(folder / "shards", "tiny", seed=0)
    make_data_set(folder / "shards", "tiny2", seed=1)
    (folder / "sweep.toml").write_text(SWEEP)
    return folder


def keep_generators(sweep: str, *names: str) -> str:
    """Return the text of a sweep file with some of its generators only."""
    head, *generators = re.split(r"(?m)^(?=\[generators\.)", sweep)
    return head + "".join(text for text in generators if text[12:].startswith(names))
