"""What the networks and their training are asked: parts that several stages' configs share.

All of it is hashed into run ids. The classes live apart from the torch code that they configure,
because planning a sweep must not import torch.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from hvae_hpc.config.kinds import AugmentationConfig, GeneratorConfig, Sampler
from hvae_hpc.config.loader import added_later
from hvae_hpc.frozen import frozen

ImageSize = tuple[int, int]
"""Height and width, px."""
RULES: dict[str, Callable[[Any], bool]] = {
    "more than 0": lambda value: value > 0,
    "0 or more": lambda value: value >= 0,
    "1 or more": lambda value: value >= 1,
    "a share between 0 and 1": lambda value: 0 <= value <= 1,
    "a number in [0, 1)": lambda value: 0 <= value < 1,
    "a number in (0, 1]": lambda value: 0 < value <= 1,
    "a probability in (0, 1)": lambda value: 0 < value < 1,
    "degrees between 0 and 180": lambda value: 0 <= value <= 180,
    "one positive number per level": lambda values: values and min(values) > 0,
    "one or more names": bool,
    "each once": lambda values: len(set(values)) == len(values),
    "numbers of 1 or more": lambda values: min(values, default=1) >= 1,
    "numbers of 2 or more": lambda values: min(values, default=2) >= 2,
}
"""What a field may be asked to be, in the words of the message, and the test for it."""


def require(rule: str, config: Any, *names: str) -> None:
    """Raise ValueError where one of a config's fields breaks one of the ``RULES``."""
    for name in names:
        value = getattr(config, name)
        if not RULES[rule](value):
            raise ValueError(f"{name} is {value}, expected {rule}")


def require_halvings(config_name: str, image_size: ImageSize, halvings: int) -> None:
    """Raise ValueError where an image (height, width) cannot be halved that often."""
    factor = 2 ** min(halvings, 20)  # no image is larger, and 2**halvings may not fit into memory
    if any(side % factor for side in image_size):
        raise ValueError(
            f"images of {image_size[0]}x{image_size[1]} px, expected multiples of {factor} "
            f"for {config_name}; change image_px, or have fewer levels"
        )


def require_heads(config: Any) -> None:
    """Raise ValueError where the channels of a level cannot be shared among attention heads."""
    require("more than 0", config, "attention_heads")
    require("one positive number per level", config, "channels")
    for channels in config.channels:
        if channels % config.attention_heads:
            raise ValueError(
                f"channels has {channels}, expected multiples of "
                f"attention_heads = {config.attention_heads}"
            )


@frozen
class NetworkConfig:
    """The encoder and the decoder, mirror images of each other.

    Attributes:
        channels: feature channels of each level; each level but the first halves the image.
        attention_levels: levels (0 is full resolution) with self-attention beside the bottleneck's.
        attention_heads: heads of every attention.
        latent_size: d, the number of latent variables.
        latent_map: the latent variables are a map of the lowest level's height and width, and
            ``latent_size`` is a multiple of its pixels. Else they are a vector.
    """

    channels: tuple[int, ...] = (32, 64, 128, 128, 128)
    attention_levels: tuple[int, ...] = (3, 4)
    attention_heads: int = 4
    latent_size: int = 128
    latent_map: bool = added_later(False)

    def __post_init__(self) -> None:
        require("more than 0", self, "latent_size")
        require_heads(self)
        for level in self.attention_levels:
            if not 0 <= level < len(self.channels):
                last = len(self.channels) - 1
                raise ValueError(f"attention_levels has {level}, expected levels from 0 to {last}")

    def check_image_size(self, name: str, image_size: ImageSize) -> None:
        """Raise ValueError where images (height, width) cannot be halved once per level."""
        levels = len(self.channels)
        require_halvings(f"{name}.network.channels of {levels} levels", image_size, levels - 1)
        pixels = math.prod(image_size) // 4 ** (levels - 1)
        if self.latent_map and self.latent_size % pixels:
            raise ValueError(
                f"{name}.network.latent_size is {self.latent_size}, expected with latent_map a "
                f"multiple of the lowest level's {pixels} pixels"
            )

    def operations_per_pixel(self) -> float:
        """Return the operations of a pass forward through encoder and decoder, per pixel."""
        per_level = (width**2 / 4**level for level, width in enumerate(self.channels))
        return 18.0 * 8 * sum(per_level)

    def weight_count(self) -> float:
        """Return about how many weights encoder and decoder have."""
        return 9.0 * 8 * sum(width**2 for width in self.channels)


@frozen
class HVAEConfig(GeneratorConfig):
    """The Hamiltonian VAE; with ``n_leapfrog = 0`` it is the VAE on the same network.

    Attributes:
        network: encoder and decoder.
        n_leapfrog: K, leapfrog steps of the flow.
        step_size: eps at the start, in units of the posterior's standard deviation for mass
            "posterior".
        learn_step_size: learn eps, between 0 and ``step_size_max``.
        step_size_max: upper bound of a learned eps.
        force_max: bound of the force's length, in sqrt(d). With mass "posterior" that is about its
            length where the encoder is exact; a steeper posterior would throw a pair far.
        mass: "posterior" leaps in whitened coordinates, "identity" in z itself (the paper's form).
        tempering: "none", "fixed" (quadratic in k) or "free" (alpha_k learned).
        sqrt_beta_0: square root of the initial inverse temperature, in (0, 1]; not used by "none".
        inner_gradient: "full" differentiates through the force, as the bound's gradient asks;
            "detached" takes the force as given, which is cheaper and is not the bound's gradient.
        metropolis: accept or reject each pair's path, as the paper says; needs tempering "none".
            What is maximised is then no bound, and is not called one.
        image_likelihood: "gaussian" with one sigma_x; "textured", a Gaussian whose deviation
            follows pixel and spatial frequency, so that drawn images have texture; or "bernoulli"
            (no density: such images have no likelihood).
        sigma_x: standard deviation of the image's Gaussian at the start, in units of the image
            range [0, 1]; of a "textured" one that is ``sigma_x_floor + sigma_x``.
        learn_sigma_x: learn sigma_x, above ``sigma_x_floor``.
        sigma_x_floor: lower bound of a learned sigma_x.
        mask_weight: lambda_m, the weight of the mask's log-likelihood; 1 is the true joint.
        kl_warm_up: share of the training during which the KL weight rises from 0 to 1, with K = 0.
        flow_from: share of the training after which the flow is on.
        adversarial_weight: how much a discriminator of the decoded pairs counts, in lengths of the
            likelihood's gradient by image and mask logits. With this or ``perceptual_weight`` the
            generator is an HVAE-GAN or a VAE-GAN, and what is minimised is no bound.
        adversarial_from: share of the training after which both count.
        perceptual_weight: of the distance between the spectra of decoded and real images.
    """

    label = "HVAE"
    samplers = get_args(Sampler)

    kind: Literal["hvae"] = "hvae"
    network: NetworkConfig = NetworkConfig()
    n_leapfrog: int = 3
    step_size: float = 0.3
    learn_step_size: bool = True
    step_size_max: float = 0.5
    force_max: float = 1.5
    mass: Literal["posterior", "identity"] = "posterior"
    tempering: Literal["none", "fixed", "free"] = "free"
    sqrt_beta_0: float = 0.9
    inner_gradient: Literal["full", "detached"] = "full"
    metropolis: bool = False
    image_likelihood: Literal["gaussian", "textured", "bernoulli"] = "gaussian"
    sigma_x: float = 0.1
    learn_sigma_x: bool = True
    sigma_x_floor: float = 0.03
    mask_weight: float = 1.0
    kl_warm_up: float = 0.1
    flow_from: float = 0.7
    adversarial_weight: float = added_later(0.0)
    adversarial_from: float = added_later(0.5)
    perceptual_weight: float = added_later(0.0)

    def __post_init__(self) -> None:
        require("0 or more", self, "n_leapfrog")
        require(
            "more than 0", self, "step_size", "force_max", "sigma_x", "sigma_x_floor", "mask_weight"
        )
        require("a share between 0 and 1", self, "kl_warm_up", "flow_from", "adversarial_from")
        require("0 or more", self, "adversarial_weight", "perceptual_weight")
        require("a number in (0, 1]", self, "sqrt_beta_0")

        # A learned value starts inside its bounds, or no gradient would move it.
        if self.n_leapfrog and self.learn_step_size and self.step_size >= self.step_size_max:
            raise ValueError(
                f"step_size is {self.step_size}, expected less than "
                f"step_size_max = {self.step_size_max}"
            )
        if self.learn_sigma_x and self.sigma_x <= self.sigma_x_floor:
            raise ValueError(
                f"sigma_x is {self.sigma_x}, expected more than "
                f"sigma_x_floor = {self.sigma_x_floor}"
            )

        if self.tempering == "free" and self.n_leapfrog and self.sqrt_beta_0 == 1:
            raise ValueError(
                'sqrt_beta_0 = 1 with tempering = "free" leaves nothing to learn from; '
                'use tempering = "none"'
            )
        if self.metropolis and self.tempering != "none":
            raise ValueError(
                f'metropolis with tempering = "{self.tempering}", expected "none": '
                "its test allows no tempering"
            )
        if self.adversarial_weight and self.image_likelihood == "bernoulli":
            raise ValueError(
                'adversarial_weight with image_likelihood = "bernoulli", expected "gaussian" or '
                '"textured": their gradients are by the image'
            )
        if self.n_leapfrog and self.flow_from < self.kl_warm_up:
            raise ValueError(
                f"flow_from is {self.flow_from}, expected at least kl_warm_up = {self.kl_warm_up}"
            )

    @property
    def is_hybrid(self) -> bool:
        """Whether more than the bound is learned from."""
        return self.adversarial_weight > 0 or self.perceptual_weight > 0

    @property
    def pairs_apart(self) -> bool:  # type: ignore[override]
        """Whether it has no discriminator, whose spectral normalisation takes a step by batch."""
        return not self.is_hybrid

    @property
    def network_class(self) -> str:  # type: ignore[override]
        """The (H)VAE, or the one with a discriminator."""
        return f"hvae_hpc.models.{'hybrid:HybridHVAE' if self.is_hybrid else 'hvae:HVAE'}"

    @property
    def has_density(self) -> bool:
        """Whether images have a density: a Gaussian one. A Bernoulli's is none; a GAN has none."""
        return self.image_likelihood != "bernoulli" and not self.is_hybrid

    def check_image_size(self, name: str, image_size: ImageSize) -> None:
        """Raise ValueError where the network cannot halve the images."""
        self.network.check_image_size(name, image_size)

    def check_training(self, optim: "OptimConfig") -> None:
        """Raise ValueError where a gradient would overflow, or what is asked for never be on."""
        if optim.precision == "fp16" and (self.n_leapfrog or self.is_hybrid):
            raise ValueError(
                'optim.precision is "fp16", expected "bf16" or "fp32": '
                "the flow's second derivatives and a discriminator's gradients overflow"
            )
        last_step = 1 - optim.batch_size / optim.images
        starts = {"flow_from": self.n_leapfrog, "adversarial_from": self.is_hybrid}
        for name, is_asked in starts.items():
            if is_asked and getattr(self, name) > last_step:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}, expected at most {last_step:.3g}, "
                    "where the last step begins; for a VAE give n_leapfrog = 0, "
                    "for a bound adversarial_weight = 0 and perceptual_weight = 0"
                )

    def operations_per_pixel(self) -> float:
        """Return a training step's operations per pixel; K leaps take K + 1 gradients twice."""
        passes = 1.0
        if self.n_leapfrog:
            with_flow = 0.5 + self.n_leapfrog + 1
            passes = self.flow_from + (1 - self.flow_from) * with_flow
        if self.is_hybrid:  # a decoding for either phase, and the discriminator
            passes += 1 - self.adversarial_from
        return 3 * self.network.operations_per_pixel() * passes


@frozen
class LSGANConfig(GeneratorConfig):
    """The least-squares GAN (Mao et al. 2017): the same decoder against a discriminator of pairs.

    Attributes:
        network: the generator is its decoder.
        discriminator_channels: feature channels of the discriminator's levels.
        spectral_norm: spectral normalisation of the discriminator.
        differentiable_augmentation: flips, small affine moves and (image only) brightness and
            contrast of real and generated pairs before the discriminator sees them.
    """

    network_class = "hvae_hpc.models.lsgan:LSGAN"
    label = "LSGAN"

    kind: Literal["lsgan"] = "lsgan"
    network: NetworkConfig = NetworkConfig()
    discriminator_channels: tuple[int, ...] = (32, 64, 128, 256)
    spectral_norm: bool = True
    differentiable_augmentation: bool = True

    def __post_init__(self) -> None:
        require("one positive number per level", self, "discriminator_channels")

    def check_image_size(self, name: str, image_size: ImageSize) -> None:
        """Raise ValueError where decoder or discriminator cannot halve the images."""
        self.network.check_image_size(name, image_size)
        halvings = len(self.discriminator_channels)
        if min(image_size) < 2**halvings:
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} px, expected at least {2**halvings} "
                f"for the {halvings} levels of {name}.discriminator_channels; have fewer levels"
            )

    def operations_per_pixel(self) -> float:
        """Return a training step's operations per pixel: two phases."""
        return 3 * self.network.operations_per_pixel() * 2


@frozen
class UNetConfig:
    """The classic U-Net (Ronneberger et al. 2015), padded, with batch normalisation.

    Attributes:
        base_channels: features of the first level; each level down doubles them.
        depth: number of halvings.
        encoder: "plain", or "residual" for nnU-Net's residual encoder U-Net (ResEnc) in 2D:
            residual blocks, instance normalisation, 512 features at most, twice the operations;
            not its initial weights.
    """

    base_channels: int = 64
    depth: int = 4
    encoder: Literal["plain", "residual"] = added_later("plain")

    def __post_init__(self) -> None:
        require("more than 0", self, "base_channels", "depth")


@frozen
class OptimConfig:
    """One training: how long, how big the steps, in which precision.

    Attributes:
        images: length of the training, in images seen; whole batches.
        batch_size: images per step over all processes.
        lr: learning rate after the warm-up.
        optimizer: AdamW, or stochastic gradient descent with Nesterov's momentum.
        beta_1, beta_2: Adam's decay rates; beta_1 is also the momentum.
        weight_decay: decoupled from AdamW's step, added to SGD's gradient.
        warm_up: share of the training during which lr rises linearly from 0.
        schedule: what lr does then: half a cosine to 0, nothing, or "poly", the 0.9th power of the
            share that is left.
        clip_norm: largest norm of the parameters' gradient; 0 for no clipping.
        ema_decay: decay per step of the moving average of the weights that the snapshot holds; 0
            for the last weights.
        precision: of the networks' matrix work; the flow and all losses are float32.
    """

    images: int
    batch_size: int = 32
    lr: float = 2e-4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    beta_1: float = 0.9
    beta_2: float = 0.999
    weight_decay: float = 1e-4
    warm_up: float = 0.02
    schedule: Literal["cosine", "constant", "poly"] = "cosine"
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"

    def __post_init__(self) -> None:
        require("more than 0", self, "images", "batch_size", "lr")
        if self.images % self.batch_size:
            raise ValueError(
                f"images is {self.images}, expected a multiple of batch_size = {self.batch_size}"
            )
        require("a number in [0, 1)", self, "warm_up", "beta_1", "beta_2", "ema_decay")
        require("0 or more", self, "weight_decay", "clip_norm")


@frozen
class MovesConfig(AugmentationConfig):
    """Random moves of image and mask together in every step of a training.

    Attributes:
        flip: probability of a left-right flip.
        rotate_deg: largest rotation, degrees.
        scale: largest relative change of size.
        shift: largest shift, as a share of the image's side.
        interpolation: of images. "bilinear" takes most of their fine detail away.
    """

    augmentation_class = "hvae_hpc.models.augmentations:Moves"
    label = "Moved in every step"

    flip: float = 0.5
    rotate_deg: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        require("a share between 0 and 1", self, "flip", "scale", "shift")
        require("degrees between 0 and 180", self, "rotate_deg")
