"""The augmentation with which nnU-Net v2 trains in 2D, for a whole batch on the device.

Order, probabilities and ranges are those of ``nnUNetTrainer.get_training_transforms`` (nnU-Net 2.5
and later) with batchgeneratorsv2. It has no elastic deformation. nnU-Net works on z-scored images,
we work in [0, 1]:

* the noise's standard deviation is in units of the image's own;
* brightness multiplies the distance to the image's mean, which is what multiplying a z-scored image
  does;
* what comes from outside is 0, background, in place of the mean;
* contrast, gamma, blur and low resolution do not depend on the scale.

An image may leave [0, 1] a little, as a z-scored one may leave its range.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hvae_hpc.models.augmentations import (
    Augmentation,
    Drawn,
    Pair,
    apply_moves,
    extremes,
    make_maps,
    per_pair,
)

CHANCES = {
    "rotation": 0.2,
    "scaling": 0.2,
    "noise": 0.1,
    "blur": 0.2 * 0.5,  # of the image, then of its one channel
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25 * 0.5,
    "inverted_gamma": 0.1,
    "gamma": 0.3,
}
MIRROR = 0.5  # along each axis
SCALES, NOISE, BLUR_PX = (0.7, 1.4), 0.1, (0.5, 1.0)
CONTRASTS, GAMMAS, RESOLUTIONS = (0.75, 1.25), (0.7, 1.5), (0.5, 1.0)
LONG_IMAGE = 1.5  # above this ratio of the sides nnU-Net turns by 15 degrees at most
BLUR_RADIUS = 4  # px, four of the largest standard deviations


class NNUNetAugmentation(Augmentation):
    """nnU-Net's augmentation of image and mask."""

    def draw(self, n: int, image_size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Draw what n pairs need: maps, factors that do nothing where chance says so, and noise."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, generator=generator)

        def happens(chance: float) -> Tensor:
            return torch.rand(n, generator=generator) < chance

        def either_side_of_1(low: float, high: float) -> Tensor:
            return torch.where(happens(0.5), uniform(low, 1), uniform(1, high))

        def factor(name: str, drawn: Tensor) -> Tensor:
            return torch.where(happens(CHANCES[name]), drawn, 1.0)

        # nnU-Net turns long images by less.
        largest = 15.0 if max(image_size) / min(image_size) > LONG_IMAGE else 180.0
        angle = torch.where(happens(CHANCES["rotation"]), uniform(-largest, largest), 0.0)
        scale = factor("scaling", uniform(*SCALES))
        flips = torch.stack([torch.where(happens(MIRROR), -1.0, 1.0) for _ in range(2)], dim=1)

        return {
            "maps": make_maps(angle.deg2rad(), scale, flips, image_size[0] / image_size[1]),
            "noise_sd": torch.where(happens(CHANCES["noise"]), uniform(0, NOISE), 0.0),
            "noise": torch.randn(n, 1, *image_size, generator=generator),
            "blurred": happens(CHANCES["blur"]).float(),
            "blur_px": torch.stack([uniform(*BLUR_PX), uniform(*BLUR_PX)], dim=1),
            "brightness": factor("brightness", either_side_of_1(*CONTRASTS)),
            "contrast": factor("contrast", either_side_of_1(*CONTRASTS)),
            "resolution": factor("low_resolution", uniform(*RESOLUTIONS)),
            "inverted_gamma": factor("inverted_gamma", either_side_of_1(*GAMMAS)),
            "gamma": factor("gamma", either_side_of_1(*GAMMAS)),
        }

    def apply(self, images: Tensor, masks: Tensor, drawn: Drawn) -> Pair:
        """Augment images and masks (B, 1, H, W); masks stay binary."""
        x = apply_moves(images, drawn["maps"])
        masks = apply_moves(masks, drawn["maps"], mode="nearest")

        x = x + per_pair(drawn["noise_sd"]) * x.std((2, 3), keepdim=True) * drawn["noise"]
        x = torch.where(per_pair(drawn["blurred"]) > 0, blur(x, drawn["blur_px"]), x)
        x = scale_about_mean(x, drawn["brightness"])
        low, high = extremes(x)
        x = scale_about_mean(x, drawn["contrast"]).clamp(low, high)
        x = lower_resolution(x, drawn["resolution"])
        x = -change_gamma(-x, drawn["inverted_gamma"])
        return change_gamma(x, drawn["gamma"]), masks


def scale_about_mean(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance to each image's mean by its factor, (B,)."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + per_pair(factor) * (x - mean)


def change_gamma(x: Tensor, gamma: Tensor) -> Tensor:
    """Raise images, scaled to [0, 1], to the power gamma (B,); mean and sd stay as they were."""
    low, high = extremes(x)
    extent = (high - low).clamp(min=1e-7)
    y = ((x - low) / extent) ** per_pair(gamma)
    sd, mean = torch.std_mean(x, (2, 3), keepdim=True)
    sd_now, mean_now = torch.std_mean(y, (2, 3), keepdim=True)
    y = (y - mean_now) * (sd / sd_now.clamp(min=1e-7)) + mean
    return torch.where(per_pair(gamma) == 1, x, y)


def blur(x: Tensor, sd_px: Tensor) -> Tensor:
    """Blur images by Gaussians of their own standard deviations in rows and columns, (B, 2)."""
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device)
    weights = torch.softmax(-0.5 * (offsets / sd_px[..., None]).square(), dim=2)
    for axis in (0, 1):
        size = x.shape[2 + axis]
        pad = [0, 0, BLUR_RADIUS, BLUR_RADIUS] if axis == 0 else [BLUR_RADIUS, BLUR_RADIUS, 0, 0]
        padded = F.pad(x, pad, mode="replicate")
        x = sum(  # type: ignore[assignment]
            per_pair(weights[:, axis, k]) * padded.narrow(2 + axis, k, size)
            for k in range(len(offsets))
        )
    return x


def lower_resolution(x: Tensor, scale: Tensor) -> Tensor:
    """Take every so-many-th pixel, by each image's scale (B,), and interpolate between them."""
    lower = _lower_along(_lower_along(x, scale, axis=2), scale, axis=3)
    return torch.where(per_pair(scale) == 1, x, lower)


def _lower_along(x: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Lower the resolution along the rows' axis (2) or the columns' (3)."""
    size = x.shape[axis]
    kept = (size * scale).round().clamp(min=1)[:, None]  # pixels of the small image
    place = (torch.arange(size, device=x.device) + 0.5) * kept / size - 0.5
    place = place.clamp(min=0).minimum(kept - 1)
    below = place.floor()

    def along_axis(values: Tensor) -> Tensor:
        return values[:, None, :, None] if axis == 2 else values[:, None, None, :]

    def take(small: Tensor) -> Tensor:
        pixels = ((small + 0.5) * size / kept).floor().long()
        return x.gather(axis, along_axis(pixels).expand_as(x))

    return torch.lerp(take(below), take((below + 1).minimum(kept - 1)), along_axis(place - below))
