"""What arms, generators and image sources are called, and in which order they are shown."""

import re
from typing import get_args

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.augmentations import FREE, JoinedConfig
from hvae_hpc.config.kinds import Sampler, generator_labels
from hvae_hpc.config.stages import GenerateConfig, QualityConfig, SegmentConfig
from hvae_hpc.runs.plan import Plan

REFERENCE = "reference"
KNOWN_GENERATORS = ("lsgan", "vae", "hvae")
"""The paper's generators in the order of its tables; others follow in the plan's order."""
IMAGE_SOURCES = {"real": "Real (training images)", "mean": "Mean training image"}
PART_LABELS = {
    "reference": "Reference",
    r"standard-x(\d+)": "Standard aug. ×{}",
    r"copies-x(\d+)": "Copies ×{}",
    r"real-(\d+)": "Real, {} cases",
    r"(\d+)": "{}",
}
"""Pattern of a part of an arm's name to what it is called."""
USE_LABELS = {
    "": "{}",
    "-shuffled": "{}, masks shuffled",
    "-nearest": "{}, nearest real pairs",
    "-only": "only {}",
    "-first": "first {}",
}
"""Ending of a generator in an arm's name to what its pairs are called."""


def generators_of(plan: Plan) -> tuple[str, ...]:
    """Return what makes pairs (generators, and their samplers).

    LSGAN, VAE and HVAE come first, others in the plan's order.
    """
    named = dict.fromkeys(config.source for config in plan.configs(GenerateConfig))
    named |= dict.fromkeys(config.arm.generator for config in plan.configs(SegmentConfig))
    known = [name for name in KNOWN_GENERATORS if name in named]
    return (*known, *(name for name in named if name and name not in known))


def ordered_arms(plan: Plan) -> list[ArmConfig]:
    """Return the plan's arms: reference, standard, generators by dose, anything else."""
    arms = {config.arm.name: config.arm for config in plan.configs(SegmentConfig)}
    methods = [REFERENCE, "standard", *generators_of(plan)]

    def place(arm: ArmConfig) -> tuple[int, int]:
        method, amount = method_of(arm)
        row = methods.index(method) if method in methods else len(methods)
        return row, int(amount.strip("x+") or 0)  # sorting is stable: others keep the plan's order

    return sorted(arms.values(), key=place)


def method_of(arm: ArmConfig) -> tuple[str, str]:
    """Return an arm's method and amount as results/published has them, or its own name and ""."""
    if arm.generator and arm.name == f"{arm.generator}+{arm.n_synthetic}" and not arm.n_standard:
        return arm.generator, f"+{arm.n_synthetic}"
    factor = re.fullmatch(r"standard-(x\d+)", arm.name)
    if factor and not arm.n_synthetic:
        return "standard", factor[1]
    return arm.name, ""


def arm_label(arm: ArmConfig) -> str:
    """Return what an arm is called: "Reference", "Standard aug. ×5 + HVAE aggregated + 100".

    A name with a part that says nothing, in a plan made by hand, stays as it is.
    """
    name, _, budget = arm.name.partition("@")
    labels = [_label_part(arm, part) for part in name.split("+")]
    if not all(labels):
        return arm.name
    label = " + ".join(labels)
    if not label.startswith("nnU-Net"):
        label = label[0].upper() + label[1:]
    return label + (f", equal {budget}" if budget else "")


def _label_part(arm: ArmConfig, part: str) -> str:
    """Return what a part of an arm's name is called; "" where it says nothing."""
    for pattern, label in PART_LABELS.items():
        if match := re.fullmatch(pattern, part):
            return label.format(*match.groups())
    if arm.generator and part.startswith(arm.generator):
        use = part.removeprefix(arm.generator)
        return USE_LABELS.get(use, "").format(name_label(arm.generator))
    if part in FREE:
        return FREE[part].label
    joined = arm.moves.parts if isinstance(arm.moves, JoinedConfig) else (arm.moves,)
    own = [moves.label for moves in joined if moves and moves not in FREE.values()]
    return own[0] if own else ""


def name_label(name: str) -> str:
    """Return what a generator, a method or an image source is called.

    It is LSGAN, HVAE aggregated, "Standard aug.", or as the sweep has it.
    """
    generator, _, sampler = name.rpartition("-")
    if sampler not in get_args(Sampler):
        generator, sampler = name, ""
    labels = {
        **generator_labels(),
        **{name: kind.label for name, kind in FREE.items()},
        **{name: name.upper() for name in (*KNOWN_GENERATORS, "vae-gan", "hvae-gan")},
        **IMAGE_SOURCES,
        REFERENCE: "Reference",
        "standard": "Standard aug.",
        "edm-given": "EDM given masks",
    }
    return f"{labels.get(generator, generator)} {sampler}".strip()


def ordered_sources(plan: Plan, data: str) -> list[str]:
    """Return what is compared with a data set's test images: generators, real and mean images."""
    planned = dict.fromkeys(c.source for c in plan.configs(QualityConfig) if c.data == data)
    order = [
        *generators_of(plan),
        *(name for name in planned if name not in IMAGE_SOURCES),
        *IMAGE_SOURCES,
    ]
    return sorted(planned, key=order.index)
