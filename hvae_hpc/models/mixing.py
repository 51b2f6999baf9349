"""Mixing of real pairs in every step: CutMix, Mixup, CarveMix and TumorCP, on the device.

The other pair, the donor, is a real training pair as it was packed. What is drawn holds
``donor_images`` and ``donor_masks`` (B, 1, H, W), and ``donor_distances``: how far each pixel is
from the edge of the donor's tumour, px, below 0 inside. The training loop adds these three.
"""

import math

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from hvae_hpc.config.augmentations import MixupConfig, TumorCPConfig
from hvae_hpc.config.model import ImageSize
from hvae_hpc.models.augmentations import Augmentation, Drawn, Pair, per_pair

LESION_SCALES, LESION_GAMMAS = (0.85, 1.25), (0.7, 1.5)  # Yang et al. 2021
BODY = 0.05
"""A pixel brighter than this share of the brightest belongs to the body."""


class Mixing(Augmentation):
    """What the kinds of mixing share."""

    def _draw_use(self, n: int, generator: Generator) -> Tensor:
        """Draw which of n pairs are mixed, 1 or 0."""
        return (torch.rand(n, generator=generator) < self.config.share).float()


def _replace(images: Tensor, masks: Tensor, drawn: Drawn, region: Tensor) -> Pair:
    """Return the pairs with the donors' pixels where a region (B, 1, H, W) is true."""
    region = region & (per_pair(drawn["used"]) > 0)
    return (
        torch.where(region, drawn["donor_images"], images),
        torch.where(region, drawn["donor_masks"], masks),
    )


class CutMix(Mixing):
    """A rectangle of a pair is replaced by another pair's."""

    def draw(self, n: int, image_size: ImageSize, generator: Generator) -> Drawn:
        """Draw rectangles: shares of the sides, and centres; they may be cut by the border."""
        area = torch.rand(n, generator=generator)
        centre = torch.rand(n, 2, generator=generator)
        half = 0.5 * area.sqrt()[:, None]
        box = torch.cat([centre - half, centre + half], dim=1)  # top, left, bottom, right
        return {"used": self._draw_use(n, generator), "box": box}

    def apply(self, images: Tensor, masks: Tensor, drawn: Drawn) -> Pair:
        """Mix images and masks (B, 1, H, W)."""
        height, width = images.shape[2:]
        top, left, bottom, right = (per_pair(side) for side in drawn["box"].unbind(1))
        rows, columns = _pixel_grid(images)
        rows, columns = (rows + 0.5) / height, (columns + 0.5) / width
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        return _replace(images, masks, drawn, inside)


class Mixup(Mixing):
    """Images and masks are averaged."""

    config: MixupConfig

    def draw(self, n: int, image_size: ImageSize, generator: Generator) -> Drawn:
        """Draw the weight of each donor, at most a half: the pair itself counts more."""
        seed = int(torch.randint(2**62, (), generator=generator))
        share = np.random.default_rng(seed).beta(self.config.alpha, self.config.alpha, n)
        donor = torch.from_numpy(np.minimum(share, 1 - share)).float()
        return {"share": donor * self._draw_use(n, generator)}

    def apply(self, images: Tensor, masks: Tensor, drawn: Drawn) -> Pair:
        """Mix images and masks (B, 1, H, W); the masks become soft."""
        share = per_pair(drawn["share"])
        return (
            torch.lerp(images, drawn["donor_images"], share),
            torch.lerp(masks, drawn["donor_masks"], share),
        )


class CarveMix(Mixing):
    """A lesion with less or more than itself is carved out of another pair."""

    def draw(self, n: int, image_size: ImageSize, generator: Generator) -> Drawn:
        """Draw c, from -1 to 1: how much less or more than the lesion is carved out."""
        c = torch.rand(n, generator=generator) * 2 - 1
        return {"used": self._draw_use(n, generator), "margin": c}

    def apply(self, images: Tensor, masks: Tensor, drawn: Drawn) -> Pair:
        """Mix images and masks (B, 1, H, W).

        With d the signed distance, what is nearer than lambda is carved out: c min(d) / 2, inside
        the lesion, for c above 0, and c min(d), outside it, for c below 0.
        """
        distances, c = drawn["donor_distances"], per_pair(drawn["margin"])
        deepest = distances.amin((1, 2, 3), keepdim=True)
        threshold = torch.where(c > 0, c * deepest / 2, c * deepest)
        region = (distances < threshold) & (deepest < 0)  # a donor without a tumour gives nothing
        return _replace(images, masks, drawn, region)


class TumorCP(Mixing):
    """A lesion of another pair is turned, scaled, made brighter or darker, and pasted."""

    config: TumorCPConfig

    def draw(self, n: int, image_size: ImageSize, generator: Generator) -> Drawn:
        """Draw turns, scales, gammas, and which pixel of the body is the lesion's new centre."""
        angle, scale, gamma, place, elsewhere = torch.rand(5, n, generator=generator)
        low, high = LESION_SCALES
        darkest, brightest = LESION_GAMMAS
        return {
            "used": self._draw_use(n, generator),
            "angle": angle * 2 * math.pi,
            "scale": low + (high - low) * scale,
            "gamma": darkest + (brightest - darkest) * gamma,
            "place": place,
            "elsewhere": (elsewhere < self.config.elsewhere).float(),
        }

    def apply(self, images: Tensor, masks: Tensor, drawn: Drawn) -> Pair:
        """Mix images and masks (B, 1, H, W); the lesion's edge is soft in the image."""
        donor_images, donor_masks = drawn["donor_images"], drawn["donor_masks"]
        rows, columns = _pixel_grid(images)
        area = donor_masks.sum((1, 2, 3)).clamp(min=1)
        sums = [(donor_masks * places).sum((1, 2, 3)) for places in (columns, rows)]
        centre = torch.stack(sums, dim=1) / area[:, None]  # x, y in px

        # Where the lesion goes: to a pixel of the body, or where it was.
        target = torch.where(
            drawn["elsewhere"][:, None] > 0, _pixel_of_body(images, drawn["place"]), centre
        )

        # For each output pixel, where it comes from: turned and scaled about the lesion's centre.
        x, y = columns - per_pair(target[:, 0]), rows - per_pair(target[:, 1])
        cos, sin = per_pair(drawn["angle"].cos()), per_pair(drawn["angle"].sin())
        scale = per_pair(drawn["scale"])
        from_x = (cos * x + sin * y) / scale + per_pair(centre[:, 0])
        from_y = (cos * y - sin * x) / scale + per_pair(centre[:, 1])
        height, width = images.shape[2:]
        grid = torch.cat([(2 * from_x + 1) / width - 1, (2 * from_y + 1) / height - 1], dim=1)
        grid = grid.permute(0, 2, 3, 1)

        lesion = F.grid_sample(donor_images, grid, align_corners=False).clamp(0, 1)
        lesion = lesion ** per_pair(drawn["gamma"])
        soft = F.grid_sample(donor_masks, grid, align_corners=False) * per_pair(drawn["used"])
        kept_its_place = per_pair(drawn["elsewhere"]) == 0
        soft = soft * (kept_its_place | _is_body(images))
        return torch.lerp(images, lesion, soft), torch.maximum(masks, (soft > 0.5).to(masks))


def _pixel_grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of rows and columns, (H, 1) and (W,)."""
    rows, columns = (
        torch.arange(side, device=images.device, dtype=images.dtype) for side in images.shape[2:]
    )
    return rows[:, None], columns


def _is_body(images: Tensor) -> Tensor:
    """Return which pixels are no air."""
    return images > BODY * images.amax((2, 3), keepdim=True)


def _pixel_of_body(images: Tensor, place: Tensor) -> Tensor:
    """Return a pixel of each image's body, x and y, (B, 2): the one at a share of all, (B,)."""
    width = images.shape[3]
    inside = _is_body(images).flatten(1).to(images.dtype).cumsum(1)
    number = torch.searchsorted(inside, (place * inside[:, -1])[:, None], right=True)[:, 0]
    number = number.clamp(max=inside.shape[1] - 1)
    return torch.stack([number % width, number // width], dim=1).to(images.dtype)
