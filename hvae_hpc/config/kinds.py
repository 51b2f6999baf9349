"""Kinds of generators and augmentations: which config class a ``kind`` in a sweep file stands for.

A new kind is a line in :data:`BUILT_IN`. A package outside this one adds a kind by an entry point:
its group is a key of :data:`BUILT_IN`, its name the kind, its value ``module:ConfigClass``. Entry
points belong to installed packages, so worker processes know the same kinds, and nothing that a
runs folder holds is ever imported. docs/DEVELOP.md has a worked example.
"""

import pkgutil
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen

BUILT_IN = {
    "hvae_hpc.generators": {
        "hvae": "hvae_hpc.config.model:HVAEConfig",
        "lsgan": "hvae_hpc.config.model:LSGANConfig",
        "edm": "hvae_hpc.config.diffusion:EDMConfig",
    },
    "hvae_hpc.augmentations": {
        "": "hvae_hpc.config.model:MovesConfig",
        "nnunet": "hvae_hpc.config.augmentations:NNUNetConfig",
        "cutmix": "hvae_hpc.config.augmentations:CutMixConfig",
        "mixup": "hvae_hpc.config.augmentations:MixupConfig",
        "carvemix": "hvae_hpc.config.augmentations:CarveMixConfig",
        "tumorcp": "hvae_hpc.config.augmentations:TumorCPConfig",
        "joined": "hvae_hpc.config.augmentations:JoinedConfig",
    },
    "hvae_hpc.copies": {"": "hvae_hpc.config.stages:StandardCopiesConfig"},
}
"""Group to kind to config class. The kind "" is meant where a config names none."""

Sampler = Literal["prior", "aggregated", "mixture", "hmc", "mask", "riemannian"]


@frozen
class GeneratorConfig:
    """What the project asks of every generator's config.

    A subclass is a frozen dataclass with a field ``kind: Literal["its name"] = "its name"``. It
    must not import torch: planning a sweep reads it.

    Attributes:
        network_class: ``module:class`` of the network, which is called with the config and the
            image size (height, width). It is a torch module that has:
            ``latent_size``, d, how many standard normal numbers a pair is made of;
            ``phases()``, the optimisations of a step, in their order;
            ``draw(n, share, generator)``, tensors by name that a forward of n pairs needs, on the
            CPU, when this share of the training is done;
            ``forward(batch, phase)``, a phase's Loss of a batch, which draws nothing;
            ``decode(z)``, images and mask probabilities in [0, 1], (B, 1, H, W) each, of z (B, d).
            With an encoder it has ``encode(batch)``, the mean and standard deviation of z. The
            samplers "hmc" and "mask" ask for ``log_likelihood(z, batch)``, nats of image and mask.
            It may have ``measure(images, masks)``, which sees the training pairs once before the
            training; ``sees_moves = True``, and its batches tell ``maps``, how pairs were moved;
            ``draw_latent(n, masks, generator)``, z (n, d) of its own making, from real masks where
            its config's ``needs_pairs`` is true.
        label: the name in tables and figures.
        samplers: those that the network can draw by. All but "prior" need an encoder.
        pairs_apart: no pair of a batch knows of another, so a batch may be trained on in parts.
        has_density: held-out pairs have a likelihood that the likelihood stage can estimate.
    """

    entry_points: ClassVar[str] = "hvae_hpc.generators"
    network_class: ClassVar[str]
    label: ClassVar[str]
    samplers: ClassVar[tuple[Sampler, ...]] = ("prior",)
    pairs_apart: ClassVar[bool] = False

    @property
    def has_density(self) -> bool:
        """Whether the likelihood stage can judge the generator."""
        return False

    @property
    def needs_pairs(self) -> bool:
        """Whether drawing from the prior starts from real pairs."""
        return False

    def check_image_size(self, name: str, image_size: tuple[int, int]) -> None:
        """Raise ValueError where images (height, width) do not suit the network called ``name``."""

    def check_training(self, optim: Any) -> None:
        """Raise ValueError where an OptimConfig does not suit the generator."""

    def operations_per_pixel(self) -> float:
        """Return the multiplications and additions of a training step, per pixel of an image."""
        return 1.5e6


@frozen
class AugmentationConfig:
    """What the project asks of the config of an augmentation in every step of a training.

    A subclass is a frozen dataclass. All kinds but the built-in moves have a field ``kind``.

    Attributes:
        augmentation_class: ``module:class``, called with the config. It has
            ``draw(n, image_size, generator)``, tensors (n, ...) by name that n pairs need, on the
            CPU; and ``apply(images, masks, drawn)``, which augments images and masks
            (B, 1, H, W) by the B rows of what was drawn.
        label: the name in tables and figures.
        needs_donors: what was drawn is joined by other real pairs, see
            :mod:`hvae_hpc.models.mixing`.
    """

    entry_points: ClassVar[str] = "hvae_hpc.augmentations"
    augmentation_class: ClassVar[str]
    label: ClassVar[str]

    @property
    def needs_donors(self) -> bool:
        """Whether pairs are mixed with other real pairs."""
        return False


def choose_class(cls: Any, kind: Any, where: str) -> Any:
    """Return the config class that a kind stands for; a class without kinds is returned as it is.

    Args:
        cls: the class that a field asks for.
        kind: what the config gives; None where it names none.
        where: the file and field, for messages.

    Raises:
        UserError: no such kind; the message names those that there are.
    """
    group = vars(cls).get("entry_points")
    if group is None:
        return cls

    name = "" if kind is None else str(kind)
    classes = BUILT_IN[group]
    if name not in classes:
        classes = {**classes, **_installed_kinds(group)}
    if name not in classes:
        known = " | ".join(known or "no kind" for known in classes)
        raise UserError(f"{where}.kind: got {kind!r:.60}, expected {known}")
    return pkgutil.resolve_name(classes[name])


def generator_labels() -> dict[str, str]:
    """Return the kinds of generators that were loaded so far, with their names in tables."""
    classes: list[Any] = GeneratorConfig.__subclasses__()
    for config_class in classes:
        classes += config_class.__subclasses__()
    return {of.kind: of.label for of in classes if "kind" in vars(of)}


@cache
def _installed_kinds(group: str) -> dict[str, str]:
    """Return the kinds of installed packages; those that lie in the working folder do not count."""
    working_folder = Path.cwd()
    places = [place for place in sys.path if place and Path(place).resolve() != working_folder]
    return {
        entry.name: entry.value
        for distribution in metadata.distributions(path=places)
        for entry in distribution.entry_points
        if entry.group == group
    }
