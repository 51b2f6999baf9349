"""What each stage is asked: one frozen config per stage, all of it hashed into the run id.

Everything that would change a number we would publish stands here, with its unit and default, and
nothing else does (partition, GPUs, workers, compile: see ``hvae_hpc.resources``). The classes live apart
from the torch code that they configure, because planning a sweep must not import torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from hvae_hpc.config import dump
from hvae_hpc.identity import make_run_id
from hvae_hpc.model_configs import (
    HVAEConfig,
    LSGANConfig,
    MovesConfig,
    OptimConfig,
    UNetConfig,
    require_positive,
    require_share,
)

Sampler = Literal["prior", "aggregated", "mixture", "hmc", "mask"]
Stage = Literal["train", "generate", "augment", "quality", "segment"]

STAGE_VERSIONS: dict[Stage, int] = {"train": 1, "generate": 1, "augment": 1, "quality": 1, "segment": 1}
"""Raised when a stage's numbers change, so that old results are not taken for new ones."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """A seeded draw of cases (patients); no case is in both parts.

    Attributes:
        train, test: number of cases.
        seed: which draw.
    """

    train: int = 100
    test: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "train", "test")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train one generator on the split's training cases.

    Attributes:
        data: name of the data set.
        generator: the sweep's name for this generator.
        image_px: side to which images are shrunk; 0 for as packed.
        seed: of the weights, the order and the noise.
    """

    data: str
    generator: str
    split: SplitConfig
    image_px: int
    model: HVAEConfig | LSGANConfig
    optim: OptimConfig
    moves: MovesConfig = field(default_factory=MovesConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        flow = isinstance(self.model, HVAEConfig) and self.model.n_leapfrog > 0
        if flow and self.optim.precision == "fp16":
            raise ValueError(
                'optim.precision is "fp16", expected "bf16" or "fp32": the flow\'s second derivatives overflow'
            )


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Draw pairs from a trained generator's snapshot.

    Attributes:
        n_pairs: accepted pairs to make.
        sampler: where z comes from. "prior": N(0, I), as in the paper. The others need an encoder and its training
            cases. "aggregated": between two encoded pairs, plus posterior noise; "mixture": a Gaussian mixture of
            encodings; "hmc": the posterior around a real pair, by Hamiltonian Monte Carlo; "mask": the same given a
            real mask alone, so that the image is free.
        posterior_noise: "aggregated": of the encodings' own standard deviation, this much is added.
        components: "mixture": Gaussians (diagonal).
        hmc_proposals, hmc_leaps: "hmc", "mask": Metropolis proposals from the start to the sample, leaps of each.
        hmc_step_size: at the start, in standard deviations of the encoding; the first half of the proposals adapts it.
        threshold: mask probability above which a pixel is tumour.
        min_mask_px: smallest mask that is accepted, px.
        max_draws_per_pair: the run fails when so many draws per wanted pair were not enough.
        seed: of the draws.
    """

    data: str
    generator: str
    split: SplitConfig
    image_px: int
    n_pairs: int = 500
    sampler: Sampler = "prior"
    posterior_noise: float = 1.0
    components: int = 8
    hmc_proposals: int = 20
    hmc_leaps: int = 5
    hmc_step_size: float = 0.2
    threshold: float = 0.5
    min_mask_px: int = 8
    max_draws_per_pair: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "n_pairs", "max_draws_per_pair", "components")
        require_positive(self, "hmc_proposals", "hmc_leaps", "hmc_step_size")
        if self.posterior_noise < 0:
            raise ValueError(f"posterior_noise is {self.posterior_noise}, expected 0 or more")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}, expected a probability in (0, 1)")

    @property
    def source(self) -> str:
        """What tables and arms call these pairs: the generator, and its sampler unless it is the prior."""
        return source_name(self.generator, self.sampler)


def source_name(generator: str, sampler: str) -> str:
    """Name a generator's pairs: "hvae", "hvae-aggregated"."""
    return generator if sampler == "prior" else f"{generator}-{sampler}"


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Standard augmentation: moved copies of the real training pairs, made once with torchio.

    Attributes:
        n_pairs: copies to make; copy i is of real pair i modulo their number.
        flip: probability of a left-right flip.
        rotate_deg: largest rotation, degrees.
        crop_min: smallest side of the random crop that is resized to full size, as a share.
        seed: of the draws.
    """

    data: str
    split: SplitConfig
    image_px: int
    n_pairs: int = 400
    flip: float = 0.5
    rotate_deg: float = 20.0
    crop_min: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "n_pairs")
        require_share(self, "flip")
        if not 0 <= self.rotate_deg <= 180:
            raise ValueError(f"rotate_deg is {self.rotate_deg}, expected degrees between 0 and 180")
        if not 0 < self.crop_min <= 1:
            raise ValueError(f"crop_min is {self.crop_min}, expected a share in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """PSNR and SSIM between a set of images and the test images, paired at random as in the paper.

    Attributes:
        source: a generator's name; "real" (training images) and "mean" (their mean image) are the two
            reference rows without which the numbers mean nothing.
        n_images: images of each set per draw (fewer where there are fewer).
        draws: independent draws of the two sets.
    """

    data: str
    split: SplitConfig
    image_px: int
    source: str
    n_images: int = 100
    draws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "n_images", "draws")


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One row of Table 1: what the segmentation network is trained on.

    Attributes:
        name: "reference", "standard-x5", "hvae+100".
        generator: who made the synthetic pairs; "" where there are none.
        n_synthetic: synthetic pairs added to the real ones.
        n_standard: moved copies added to the real ones.
        generator_seed: which training of the generator.
    """

    name: str
    generator: str = ""
    n_synthetic: int = 0
    n_standard: int = 0
    generator_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Train a U-Net on one arm's pairs with one seed and measure Dice on the split's test cases.

    Attributes:
        loss: "dice+ce" is soft Dice plus cross-entropy, "ce" cross-entropy alone.
        threshold: tumour probability above which a pixel is predicted tumour.
        seed: of the weights and the order of the images.
    """

    data: str
    split: SplitConfig
    image_px: int
    arm: ArmConfig
    unet: UNetConfig
    optim: OptimConfig
    loss: Literal["dice+ce", "ce"] = "dice+ce"
    threshold: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}, expected a probability in (0, 1)")


StageConfig = TrainConfig | GenerateConfig | AugmentConfig | QualityConfig | SegmentConfig

CONFIGS: dict[Stage, type[Any]] = {
    "train": TrainConfig,
    "generate": GenerateConfig,
    "augment": AugmentConfig,
    "quality": QualityConfig,
    "segment": SegmentConfig,
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A stage with its config and parents; what it makes lies in the folder named after it.

    Attributes:
        parents: role to run id; the role "data" holds the data set's content hash.
    """

    stage: Stage
    config: StageConfig
    parents: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def run_id(self) -> str:
        """The 12 hexadecimal digits that follow from all of the above."""
        return make_run_id(self.stage, STAGE_VERSIONS[self.stage], dump(self.config), dict(self.parents))

    @cached_property
    def label(self) -> str:
        """What the run is, for people: "brats2021-hvae+100-s3"."""
        config = self.config
        if isinstance(config, SegmentConfig):
            what = config.arm.name
        elif isinstance(config, QualityConfig):
            what = config.source
        elif isinstance(config, AugmentConfig):
            what = "standard"
        elif isinstance(config, GenerateConfig):
            what = config.source
        else:
            what = config.generator
        split = f"-d{config.split.seed}" if config.split.seed else ""
        return re.sub(r"[^A-Za-z0-9+._-]", "_", f"{config.data}-{what}{split}-s{config.seed}")

    @property
    def folder(self) -> str:
        """The run's folder below the runs folder."""
        return f"{self.stage}/{self.label}-{self.run_id}"
