"""What each stage is asked: one frozen config per stage, all of it hashed into the run id.

Everything that would change a number we would publish stands here, with its unit and default, and
nothing else does (partition, GPUs, workers, compile: see ``hvae_hpc.config.resources``). The
classes live apart from the torch code that they configure, because planning a sweep must not import
torch.
"""

import math
from typing import Any, ClassVar, Literal

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.kinds import AugmentationConfig, GeneratorConfig, Sampler
from hvae_hpc.config.loader import added_later
from hvae_hpc.config.model import MovesConfig, OptimConfig, UNetConfig, require
from hvae_hpc.frozen import frozen

Stage = Literal["train", "likelihood", "generate", "augment", "quality", "segment"]

STAGE_VERSIONS: dict[Stage, int] = {
    "train": 2,
    "likelihood": 2,
    "generate": 1,
    "augment": 2,
    "quality": 3,
    "segment": 2,
}
"""Raised when a stage's numbers change, so that old results are not taken for new ones."""


@frozen
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
        require("more than 0", self, "train", "test")


@frozen
class StageConfig:
    """What every stage's config says: the data set, its split, and the seed of what is drawn.

    Attributes:
        data: name of the data set.
        image_px: side to which images are shrunk; 0 for as packed.
    """

    data: str
    split: SplitConfig
    image_px: int
    seed: int = 0


@frozen
class TrainConfig(StageConfig):
    """Train one generator on the split's training cases.

    Attributes:
        generator: the sweep's name for this generator.
        seed: of the weights, the order and the noise.
        n_cases: real cases to train on; 0 for the split's training cases.
    """

    generator: str
    model: GeneratorConfig
    optim: OptimConfig
    moves: AugmentationConfig = MovesConfig()
    n_cases: int = added_later(0)

    def __post_init__(self) -> None:
        self.model.check_training(self.optim)
        is_told = getattr(self.model, "is_told_moves", False)
        if is_told and not isinstance(self.moves, MovesConfig):
            raise ValueError(
                f"moves is {self.moves.label}, but {self.model.label} is told of moves alone: "
                "its pairs would be augmented ones; leave [moves] without a kind"
            )
        if not self.learned_cases:
            raise ValueError(
                f"model.held_out keeps all {self.split.train} training cases back; lower it"
            )

    @property
    def learned_cases(self) -> int:
        """Training cases that are trained on: the first so many; the others are held out."""
        held_out: float = getattr(self.model, "held_out", 0.0)
        cases = self.n_cases or self.split.train
        return cases - math.ceil(held_out * cases)


@frozen
class LikelihoodConfig(StageConfig):
    """How likely a trained generator with an encoder finds held-out pairs.

    A stochastic lower bound of log p(x, m), by annealed importance sampling of the integral of
    p(x, m|z) N(z; 0, I), at mask_weight 1, so that generators are compared and not their encoders
    or flows. Beside it stand the importance-weighted bound of the encoder's Gaussian and the ELBO
    without and with the flow, at mask_weight 1 as well.

    Attributes:
        cases: the first so many of the split's test cases (fewer where there are fewer), the first
            packed slice of each; 0 for all.
        start: "encoder" anneals from q(z|x, m), "prior" from N(0, I), which asks for more
            temperatures.
        chains: per pair.
        temperatures: of the first estimate, from the start to the posterior; one Metropolis
            proposal at each.
        leaps: of each proposal.
        step_size: the first one, in standard deviations of the start; a run of its own adapts it at
            each temperature.
        estimates: at most so many, each of twice the temperatures of the one before: one more
            takes as long as all before it.
        agree_nats: no further estimate where two in turn differ by no more than this on average.
        importance_samples: of the importance-weighted bound.
        seed: of all draws.
    """

    generator: str
    cases: int = 0
    start: Literal["encoder", "prior"] = "encoder"
    chains: int = 8
    temperatures: int = 100
    leaps: int = 2
    step_size: float = 0.3
    estimates: int = 3
    agree_nats: float = 1.0
    importance_samples: int = 1000

    def __post_init__(self) -> None:
        require("more than 0", self, "chains", "leaps", "step_size", "importance_samples")
        require("0 or more", self, "cases", "agree_nats")
        if min(self.estimates, self.temperatures) < 2:
            raise ValueError(
                f"estimates is {self.estimates} and temperatures {self.temperatures}, expected 2 "
                "or more of each: one alone does not say how far it is off"
            )


@frozen
class GenerateConfig(StageConfig):
    """Draw pairs from a trained generator's snapshot.

    Attributes:
        n_pairs: accepted pairs to make.
        sampler: where z comes from. "prior": N(0, I), as in the paper. The others need an encoder
            and its training cases. "aggregated": between two encoded pairs, plus posterior noise;
            "mixture": a Gaussian mixture of encodings; "hmc": the posterior around a real pair, by
            Hamiltonian Monte Carlo; "mask": the same given a real mask alone, so that the image is
            free; "riemannian": near encodings, by their geometry.
        posterior_noise: "aggregated": of the encodings' own standard deviation, this much is added.
        components: "mixture": Gaussians (diagonal).
        hmc_proposals, hmc_leaps: "hmc", "mask": Metropolis proposals from the start to the sample,
            leaps of each.
        hmc_step_size: at the start, in units of hmc_scale; the first half of the proposals adapts
            it.
        hmc_scale: the chains' unit of length: standard deviations of the "encoding", or of the
            "prior". A sweep gives the latter to "mask": given the mask alone, z is that free.
        threshold: mask probability above which a pixel is tumour.
        min_mask_px: smallest mask that is accepted, px.
        steps: of a diffusion model's sampler; each but the last asks the network twice.
        metric_floor: "riemannian": lambda, the inverse metric far from all encodings.
        mixing: pairs are real training pairs, mixed by this; None for a trained generator's.
        max_draws_per_pair: the run fails when so many draws per wanted pair were not enough.
        seed: of the draws.
    """

    generator: str
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
    hmc_scale: Literal["encoding", "prior"] = added_later("encoding")
    steps: int = added_later(18)
    mixing: AugmentationConfig | None = added_later(None)
    metric_floor: float = added_later(1e-3)

    def __post_init__(self) -> None:
        require("more than 0", self, "n_pairs", "max_draws_per_pair", "components")
        if self.steps < 2:
            raise ValueError(f"steps is {self.steps}, expected 2 or more")
        require("more than 0", self, "hmc_proposals", "hmc_leaps", "hmc_step_size", "metric_floor")
        require("0 or more", self, "posterior_noise")
        require("a probability in (0, 1)", self, "threshold")

    @property
    def source(self) -> str:
        """What tables and arms call these pairs: the generator, and a sampler but the prior."""
        return source_name(self.generator, self.sampler)


def source_name(generator: str, sampler: str) -> str:
    """Name a generator's pairs: "hvae", "hvae-aggregated"."""
    return generator if sampler == "prior" else f"{generator}-{sampler}"


@frozen
class AugmentConfig(StageConfig):
    """Make augmented copies of the real training pairs, once, and store them.

    A subclass is a kind of copies. All kinds but the standard ones have a field ``kind``.

    Attributes:
        copy_function: ``module:function`` that makes one copy; see
            :func:`hvae_hpc.evaluation.augment.move_pair`.
        n_pairs: copies to make; copy i is of real pair i modulo their number.
        seed: of the draws.
    """

    entry_points: ClassVar[str] = "hvae_hpc.copies"
    copy_function: ClassVar[str]

    n_pairs: int = 400

    def __post_init__(self) -> None:
        require("more than 0", self, "n_pairs")


@frozen
class StandardCopiesConfig(AugmentConfig):
    """Standard augmentation: copies moved at random with torchio.

    Attributes:
        flip: probability of a left-right flip.
        rotate_deg: largest rotation, degrees.
        crop_min: smallest side of the random crop that is resized to full size, as a share.
    """

    copy_function = "hvae_hpc.evaluation.augment:move_pair"

    flip: float = 0.5
    rotate_deg: float = 20.0
    crop_min: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        require("a share between 0 and 1", self, "flip")
        require("degrees between 0 and 180", self, "rotate_deg")
        require("a number in (0, 1]", self, "crop_min")


@frozen
class QualityConfig(StageConfig):
    """A set of images or pairs against the test cases.

    PSNR and SSIM are of images paired at random, as in the paper; set measures stand beside them.

    Attributes:
        source: a generator's name; "real" (training images) and "mean" (their mean image) are the
            two reference rows without which the numbers mean nothing.
        n_images: images of each set per draw, and of each set that set measures compare (fewer
            where there are fewer).
        draws: independent draws of the two sets, for PSNR and SSIM.
        features: measure the sets as well, in the features of the reference arm's first U-Net, the
            parent "judge".
        nearest: k, which nearest neighbour makes the radius of precision, recall, density and
            coverage.
    """

    source: str
    n_images: int = 100
    draws: int = 10
    features: bool = True
    nearest: int = 5

    def __post_init__(self) -> None:
        require("more than 0", self, "n_images", "draws", "nearest")
        if self.features and self.n_images < self.nearest + 2:
            raise ValueError(
                f"n_images is {self.n_images}, expected at least {self.nearest + 2} "
                f"for nearest = {self.nearest}"
            )


@frozen
class SegmentConfig(StageConfig):
    """Train a U-Net on one arm's pairs with one seed and measure it on the split's test cases.

    Attributes:
        loss: "dice+ce" is soft Dice plus cross-entropy, "dice" and "ce" are one of them alone.
        threshold: tumour probability above which a pixel is predicted tumour.
        keep_weights: leave ``snapshot.pt``, for quality runs to judge images by.
        seed: of the weights and the order of the images; with one seed, the real pairs come in one
            order in all arms.
    """

    arm: ArmConfig
    unet: UNetConfig
    optim: OptimConfig
    loss: Literal["dice+ce", "dice", "ce"] = "dice+ce"
    threshold: float = 0.5
    keep_weights: bool = False

    def __post_init__(self) -> None:
        require("a probability in (0, 1)", self, "threshold")
        share, batch_size = self.arm.synthetic_share, self.optim.batch_size
        if share and not 0 < round(share * batch_size) < batch_size:
            raise ValueError(
                f"arm.synthetic_share is {share}, expected at least one synthetic and one real "
                f"pair in each batch of {batch_size}"
            )


CONFIGS: dict[Stage, type[Any]] = {
    "train": TrainConfig,
    "likelihood": LikelihoodConfig,
    "generate": GenerateConfig,
    "augment": AugmentConfig,
    "segment": SegmentConfig,
    "quality": QualityConfig,
}
"""Stage to its config; stages of parents come first."""
