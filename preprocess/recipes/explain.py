"""A recipe in words: what packing will do with a folder."""

from hvae_hpc.preprocess.recipes.recipe import (
    CASE,
    SLICE,
    GridConfig,
    IntensityConfig,
    LabelConfig,
    LayoutConfig,
    Recipe,
    SlicesConfig,
)

_TOWARDS = {
    "L": "the patient's left",
    "R": "the patient's right",
    "P": "the back",
    "A": "the front",
    "S": "the head",
    "I": "the feet",
}
_CENTRE = {
    "image": "the image's middle",
    "tumour": "the middle of the tumour's bounding box (which uses the label)",
}


def explain(recipe: Recipe) -> str:
    """Say step by step what a recipe does."""
    modality = recipe.modality or f"the name of the channel in {recipe.layout.index}"
    explain_grid, grid = _explain_picture if recipe.layout.planar else _explain_volume, recipe.grid
    size = f"{grid.size_px[0]} x {grid.size_px[1]} px (rows x columns)"
    crop = f"cropped, or padded with black, to {size} around {_CENTRE[grid.centre]}"
    steps = {
        "modality": [modality],
        "files": _explain_layout(recipe.layout),
        "label": [_explain_label(recipe.label, recipe.layout)],
        "grid": [*explain_grid(grid), crop],
        "intensity": [_explain_intensity(recipe.intensity)],
        "slices": [_explain_slices(recipe.slices, recipe.layout)],
        "refused": _explain_refusals(recipe),
    }
    lines = [f"{recipe.name}: {recipe.about}" if recipe.about else recipe.name]
    for name, (first, *more) in steps.items():
        lines += [f"{name:<10} {first}", *(f"{'':<10} {sentence}" for sentence in more)]
    return "\n".join(lines)


def _explain_layout(layout: LayoutConfig) -> list[str]:
    lines = []
    for role, pattern in (("image", layout.image), ("label", layout.label)):
        name = (
            pattern.replace(CASE, "<case>")
            .replace(SLICE, "<slice>")
            .replace(".nii*", ".nii or .nii.gz")
        )
        lines.append(f"{role} of a case: RAW/{name}")
    if layout.sliced:
        lines.append("the slices of a case are files of their own, in the order of <slice>")
    if layout.label_says:
        lines.append(f"a label's path must fit {layout.label_says}")
    if layout.several_labels:
        lines.append("several label files of a case are joined")
    if layout.channel is not None:
        lines.append(f"of each image channel {layout.channel} (counted from 0)")
    elif layout.planar:
        lines.append("colours become grey")
    if layout.index:
        lines.append(
            f"{layout.index} lists the cases that must be there, "
            "and the label values that may occur"
        )
    if layout.patient:
        lines.append(
            f"one case per patient ({layout.patient}): of scans the first by name, "
            "with --skip-bad the first good one; 2D files are its slices"
        )
    return lines


def _explain_label(label: LabelConfig, layout: LayoutConfig) -> str:
    if label.tumour == "any":
        tumour, known = "every value above 0 is", "whole numbers from 0"
    else:
        tumour, known = f"{_listed(label.tumour)} joined are", _listed((0, *label.tumour))
    if label.known:
        known = _listed(label.known)
    elif layout.index:
        known = f"those of {layout.index}"
    if label.threshold is not None:
        tumour, known = f"every value from {label.threshold:g} on is", "all numbers"
    if label.channel is not None:
        tumour = f"of channel {label.channel} (counted from 0), {tumour}"
    return f"{tumour} tumour (1); values that may occur: {known}"


def _explain_volume(grid: GridConfig) -> list[str]:
    columns, rows, slices = (_TOWARDS[letter] for letter in grid.orientation)
    lines = [
        f"axes are turned to {grid.orientation}: "
        f"columns run to {columns}, rows to {rows}, slices to {slices}",
        "voxels as they are in the file; image and label must lie on one grid",
    ]
    if grid.spacing_mm:
        lines[1] = (
            f"resampled to {grid.spacing_mm:g} mm along the label's axes: "
            f"image by {grid.interpolation} interpolation, label by nearest voxel"
        )
    if grid.spacing == "unknown":
        lines.append("the header's spacing is not believed: recorded as unknown")
    return lines


def _explain_picture(grid: GridConfig) -> list[str]:
    lines = ["spacing is unknown; 255 is 65535 in pictures with values beyond 255"]
    if grid.fit == "scale":
        lines.append(
            f"scaled in proportion to fit {grid.size_px[0]} x {grid.size_px[1]} px whole, "
            "masks by nearest pixel"
        )
    return lines


def _explain_intensity(intensity: IntensityConfig) -> str:
    if intensity.rule == "window":
        return (
            f"{intensity.low:g} becomes 0 and {intensity.high:g} becomes 1, "
            "in the file's own unit; clipped beyond"
        )
    return (
        f"the {intensity.low:g}th percentile of all voxels above the background becomes 0, "
        f"the {intensity.high:g}th becomes 1; clipped beyond, background is 0"
    )


def _explain_slices(slices: SlicesConfig, layout: LayoutConfig) -> str:
    least = f"with at least {slices.min_px} tumour px inside the crop"
    if layout.planar and not layout.stacked:
        return f"a picture {least} is a pair"
    if slices.choose == "all":
        return f"every slice {least}, in order"
    return f"per case the slices with the largest tumour area, at most {slices.count}, {least}"


def _explain_refusals(recipe: Recipe) -> list[str]:
    accepted = f" (but for {', '.join(recipe.accept)}, which the recipe accepts)"
    return [
        "a file that is missing or damaged, or has a voxel that is no number; "
        "a label without tumour or with other values; "
        f"pairs that are implausible{accepted if recipe.accept else ''}",
        "such a case is named; the others are packed, and --skip-bad accepts the set without it",
    ]


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
