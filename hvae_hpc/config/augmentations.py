"""Augmentations in every step that cost no training: nnU-Net's own, and mixing of real pairs.

All of it is hashed into run ids. They are what synthetic pairs have to be better than.
"""

from collections.abc import Sequence
from typing import Literal

from hvae_hpc.config.kinds import AugmentationConfig
from hvae_hpc.config.model import require
from hvae_hpc.frozen import frozen


@frozen
class NNUNetConfig(AugmentationConfig):
    """The augmentation with which nnU-Net v2 trains in 2D; its probabilities are in the module."""

    augmentation_class = "hvae_hpc.models.nnunet_augmentation:NNUNetAugmentation"
    label = "nnU-Net's augmentation"

    kind: Literal["nnunet"] = "nnunet"


@frozen
class MixingConfig(AugmentationConfig):
    """What the mixing of a pair with another real pair is asked.

    Attributes:
        share: of the pairs that are mixed, in every step.
    """

    share: float = 0.5

    @property
    def needs_donors(self) -> bool:
        """It mixes pairs."""
        return True

    def __post_init__(self) -> None:
        require("a share between 0 and 1", self, "share")


@frozen
class CutMixConfig(MixingConfig):
    """CutMix (Yun et al. 2019): a rectangle of a pair is replaced by another pair's."""

    augmentation_class = "hvae_hpc.models.mixing:CutMix"
    label = "CutMix"

    kind: Literal["cutmix"] = "cutmix"


@frozen
class MixupConfig(MixingConfig):
    """Mixup (Zhang et al. 2018): images and masks are averaged; the masks become soft.

    Attributes:
        alpha: the average's weight is drawn from Beta(alpha, alpha).
    """

    augmentation_class = "hvae_hpc.models.mixing:Mixup"
    label = "Mixup"

    kind: Literal["mixup"] = "mixup"
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require("more than 0", self, "alpha")


@frozen
class CarveMixConfig(MixingConfig):
    """CarveMix (Zhang et al. 2021): a lesion and a margin are carved out of another pair."""

    augmentation_class = "hvae_hpc.models.mixing:CarveMix"
    label = "CarveMix"

    kind: Literal["carvemix"] = "carvemix"


@frozen
class TumorCPConfig(MixingConfig):
    """TumorCP (Yang et al. 2021): a lesion of another pair is turned, scaled and pasted.

    Attributes:
        elsewhere: share of the lesions that are pasted at a random place inside the body; the
            others keep their place.
    """

    augmentation_class = "hvae_hpc.models.mixing:TumorCP"
    label = "TumorCP"

    kind: Literal["tumorcp"] = "tumorcp"
    elsewhere: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("a share between 0 and 1", self, "elsewhere")


@frozen
class JoinedConfig(AugmentationConfig):
    """Several augmentations, one after the other."""

    augmentation_class = "hvae_hpc.models.augmentations:Joined"
    label = "Joined augmentations"

    kind: Literal["joined"] = "joined"
    parts: tuple[AugmentationConfig, ...]

    @property
    def needs_donors(self) -> bool:
        """Whether one of them mixes pairs."""
        return any(part.needs_donors for part in self.parts)


FREE = {
    "nnunet": NNUNetConfig(),
    "cutmix": CutMixConfig(),
    "mixup": MixupConfig(),
    "carvemix": CarveMixConfig(),
    "tumorcp": TumorCPConfig(),
}
"""Augmentations that every sweep knows by name."""


def join(parts: Sequence[AugmentationConfig]) -> AugmentationConfig:
    """Return one augmentation that does what several do; pairs are mixed before they are moved."""
    if len(parts) == 1:
        return parts[0]
    return JoinedConfig(parts=tuple(sorted(parts, key=lambda part: not part.needs_donors)))
