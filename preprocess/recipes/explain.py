"""A recipe in words: what packing will do with a folder."""

from hvae_hpc.preprocess.recipes.recipe import (
    CASE,
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
} | {
    "S": "the head",
    "I": "the feet",
}


def explain(recipe: Recipe) -> str:
    """Say step by step what a recipe does."""
    steps = (
        ("files", _explain_layout(recipe.layout)),
        ("label", _explain_label(recipe.label, recipe.layout)),
        (
            "grid",
            _explain_planar(recipe.grid) if recipe.layout.planar else _explain_grid(recipe.grid),
        ),
        ("intensity", _explain_intensity(recipe.intensity)),
        ("slices", _explain_slices(recipe.slices, recipe.layout.planar)),
        ("refused", _explain_refusals(recipe)),
    )
    lines = [f"{recipe.name}: {recipe.about}" if recipe.about else recipe.name]
    lines.append(
        f"modality   {recipe.modality or 'the name of the channel in ' + recipe.layout.index}"
    )
    for name, sentences in steps:
        lines += [
            f"{name if first else '':<10} {sentence}" for first, sentence in _numbered(sentences)
        ]
    return "\n".join(lines)


def _numbered(sentences: list[str]) -> list[tuple[bool, str]]:
    return [(place == 0, sentence) for place, sentence in enumerate(sentences)]


def _explain_layout(layout: LayoutConfig) -> list[str]:
    lines = [f"image of a case: {_name(layout.image)}", f"label of a case: {_name(layout.label)}"]
    if layout.several_labels:
        lines.append("several label files of a case are joined")
    if layout.channel is not None:
        lines.append(f"of a 4D image, volume {layout.channel} (counted from 0)")
    if layout.index:
        lines.append(
            f"{layout.index} lists the cases that must be there, and the label values that may occur"
        )
    if layout.patient:
        lines.append(
            f"of several scans of one patient, the first by name (patient: {layout.patient})"
        )
    return lines


def _name(pattern: str) -> str:
    return f"RAW/{pattern.replace(CASE, '<case>').replace('.nii*', '.nii or .nii.gz')}"


def _explain_label(label: LabelConfig, layout: LayoutConfig) -> list[str]:
    which = (
        "every value above 0 is" if label.tumour == "any" else f"{_listed(label.tumour)} joined are"
    )
    if label.known or not layout.index:
        known = (
            _listed(label.known or ((0, *label.tumour) if label.tumour != "any" else ()))
            or "whole numbers from 0"
        )
    else:
        known = f"those of {layout.index}"
    return [f"{which} tumour (1); values that may occur: {known}"]


def _explain_grid(grid: GridConfig) -> list[str]:
    columns, rows, slices = (_TOWARDS[letter] for letter in grid.orientation)
    lines = [
        f"axes are turned to {grid.orientation}: columns run to {columns}, rows to {rows}, slices to {slices}"
    ]
    if grid.spacing_mm:
        lines.append(
            f"resampled to {grid.spacing_mm:g} mm along the label's axes: "
            f"image {_interpolation(grid)}, label by nearest voxel"
        )
    else:
        lines.append("voxels as they are in the file; image and label must lie on one grid")
    if grid.spacing == "unknown":
        lines.append("the header's spacing is not believed: recorded as unknown")
    return [*lines, _crop(grid)]


def _interpolation(grid: GridConfig) -> str:
    return {"linear": "by linear interpolation", "bspline": "by cubic B-splines"}[
        grid.interpolation
    ]


def _explain_planar(grid: GridConfig) -> list[str]:
    lines = ["colours become grey; spacing is unknown"]
    if grid.fit == "scale":
        lines.append(
            f"scaled in proportion to fit {grid.size_px[0]} x {grid.size_px[1]} px whole, masks by nearest pixel"
        )
    return [*lines, _crop(grid)]


def _crop(grid: GridConfig) -> str:
    where = {
        "image": "the image's middle",
        "tumour": "the middle of the tumour's bounding box (which uses the label)",
    }
    size = f"{grid.size_px[0]} x {grid.size_px[1]} px (rows x columns)"
    return f"cropped, or padded with black, to {size} around {where[grid.centre]}"


def _explain_intensity(intensity: IntensityConfig) -> list[str]:
    if intensity.rule == "window":
        return [
            f"{intensity.low:g} becomes 0 and {intensity.high:g} becomes 1, in the file's own unit; clipped beyond"
        ]
    low = "the least value" if intensity.low == 0 else f"the {intensity.low:g}th percentile"
    high = "the greatest" if intensity.high == 100 else f"the {intensity.high:g}th percentile"
    return [
        f"{low} of all voxels above 0 becomes 0, {high} becomes 1; clipped beyond, background stays 0"
    ]


def _explain_slices(slices: SlicesConfig, planar: bool) -> list[str]:
    least = f"with at least {slices.min_px} tumour px inside the crop"
    if planar:
        return [f"a picture {least} is a pair" if slices.min_px else "every picture is a pair"]
    if slices.choose == "all":
        return [f"every slice {least}, in order" if slices.min_px else "every slice, in order"]
    which = "the slice" if slices.count == 1 else f"the {slices.count} slices"
    return [f"per case {which} with the largest tumour area, {least}"]


def _explain_refusals(recipe: Recipe) -> list[str]:
    what = [
        "a file that is missing or damaged, or has a voxel that is no number",
        "a label without tumour or with other values",
    ]
    if not recipe.layout.planar and not recipe.grid.spacing_mm:
        what.append("image and label on different grids")
    return [
        "; ".join(what),
        "such a case is named; the others are packed, and --skip-bad accepts the set without it",
    ]


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
