"""What the diffusion model of image and mask is asked; all of it is hashed into run ids."""

from typing import Literal

from hvae_hpc.config.kinds import GeneratorConfig
from hvae_hpc.config.model import ImageSize, require, require_halvings, require_heads
from hvae_hpc.frozen import frozen


@frozen
class EDMConfig(GeneratorConfig):
    """The diffusion model of Karras et al. (2022), of image and mask together or given the mask.

    Attributes:
        given_mask: False: image and mask are drawn together. True: the mask is an input, and pairs
            are made of real masks that are moved and warped at random.
        channels: feature channels of each level; each level but the first halves the image.
        attention_levels: so many of the coarsest levels have self-attention.
        attention_heads: heads of every attention.
        fold: squares of so many px a side become channels first; 2 suits 240 px.
        dropout: share of each block's feature maps that a step of the training leaves out.
        noise_mean, noise_sd: of the normal law of ln(sigma) in training. sigma is the noise's
            standard deviation, for images in [-1, 1].
        mask_dropout: share of the training pairs whose mask is not shown, where it is given.
        held_out: share of the training cases that is kept back. The averaged weights with the
            lowest denoising loss on these cases' pairs are used, of those that do not copy. 0 keeps
            none back and uses the last weights.
        checks: how often that loss is measured, at equal distances.
    """

    network_class = "hvae_hpc.models.edm:EDM"
    label = "EDM"
    pairs_apart = True
    is_told_moves = True

    kind: Literal["edm"] = "edm"
    given_mask: bool = False
    channels: tuple[int, ...] = (64, 128, 192, 256)
    attention_levels: int = 2
    attention_heads: int = 4
    fold: int = 1
    dropout: float = 0.1
    noise_mean: float = -0.8
    noise_sd: float = 1.2
    mask_dropout: float = 0.15
    held_out: float = 0.0
    checks: int = 10

    def __post_init__(self) -> None:
        require_heads(self)
        require("more than 0", self, "fold", "noise_sd", "checks")
        require("0 or more", self, "attention_levels")
        require("a number in [0, 1)", self, "dropout", "mask_dropout", "held_out")

    @property
    def needs_pairs(self) -> bool:
        """Whether drawing starts from real pairs: from their masks, where these are given."""
        return self.given_mask

    def check_image_size(self, name: str, image_size: ImageSize) -> None:
        """Raise ValueError where images (height, width) cannot be folded and halved so often."""
        folded = (image_size[0] // self.fold, image_size[1] // self.fold)
        if any(side % self.fold for side in image_size):
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} px, expected multiples of "
                f"{name}.fold = {self.fold}; change image_px or fold"
            )
        levels = len(self.channels)
        require_halvings(f"{name}.channels of {levels} levels", folded, levels - 1)

    def operations_per_pixel(self) -> float:
        """Return a training step's operations per pixel of an image."""
        # A block has two 3x3 convolutions; on the way up the first one has twice the inputs.
        per_level = (18.0 * 5 * width**2 / 4**level for level, width in enumerate(self.channels))
        return 3 * sum(per_level) / self.fold**2
