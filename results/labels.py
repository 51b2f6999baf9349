"""What arms, generators and image sources are called, and in which order tables and figures show them."""

import re

from hvae_hpc.arms import ArmConfig
from hvae_hpc.plan import Plan
from hvae_hpc.results.collect import KNOWN_GENERATORS, generators_of
from hvae_hpc.stages import QualityConfig, SegmentConfig

REFERENCE = "reference"
IMAGE_SOURCES = {"real": "Real (training images)", "mean": "Mean training image"}


def ordered_arms(plan: Plan) -> list[ArmConfig]:
    """Return the plan's arms in the paper's order: reference, standard, generators by dose, anything else."""
    arms: dict[str, ArmConfig] = {}
    for config in plan.configs(SegmentConfig):
        arms.setdefault(config.arm.name, config.arm)

    def place(arm: ArmConfig) -> tuple[int, int, int]:
        method, _ = method_of(arm)
        if method in (REFERENCE, "standard"):
            return (REFERENCE, "standard").index(method), 0, arm.n_standard
        if method == arm.generator:
            return 2, generators_of(plan).index(method), arm.n_synthetic
        return 3, 0, 0  # arms that the paper does not have keep the plan's order (sorting is stable)

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
    """Return what an arm is called: "Reference", "Standard aug. ×5", "HVAE + 100"."""
    method, amount = method_of(arm)
    if method == REFERENCE:
        return "Reference"
    if method == "standard":
        return f"Standard aug. ×{amount[1:]}"
    return f"{generator_label(method)} + {amount[1:]}" if amount else arm.name


def generator_label(name: str) -> str:
    """Return a generator's name as printed: LSGAN, VAE, HVAE, or as the sweep has it."""
    return name.upper() if name in KNOWN_GENERATORS else name


def ordered_sources(plan: Plan, data: str) -> list[str]:
    """Return what the plan compares with a data set's test images: generators, then real and mean images."""
    planned = dict.fromkeys(c.source for c in plan.configs(QualityConfig) if c.data == data)
    order = [*generators_of(plan), *(name for name in planned if name not in IMAGE_SOURCES), *IMAGE_SOURCES]
    return sorted(planned, key=order.index)


def source_label(source: str) -> str:
    """Return the name of a row of Table 2."""
    return IMAGE_SOURCES.get(source) or generator_label(source)
