"""A recipe in words: what packing will do with a folder."""

from collections.abc import Iterable, Iterator

from hvae_hpc.preprocess.recipes.recipe import CASE, SLICE, Recipe

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
    accepted = f" (but for {', '.join(recipe.accept)}, which the recipe accepts)"
    steps: dict[str, Iterable[str]] = {
        "modality": [recipe.modality or f"the name of the channel in {recipe.layout.index}"],
        "files": _explain_files(recipe),
        "label": _explain_label(recipe),
        "grid": _explain_grid(recipe),
        "intensity": _explain_intensity(recipe),
        "slices": _explain_slices(recipe),
        "refused": [
            "a file that is missing or damaged, or has a voxel that is no number; "
            "a label without tumour or with other values; "
            f"pairs that are implausible{accepted if recipe.accept else ''}",
            "such a case is named; the others are packed, "
            "and --skip-bad accepts the set without it",
        ],
    }
    lines = [f"{recipe.name}: {recipe.about}" if recipe.about else recipe.name]
    for name, sentences in steps.items():
        first, *more = sentences
        lines += [f"{name:<10} {first}", *(f"{'':<10} {sentence}" for sentence in more)]
    return "\n".join(lines)


def _explain_files(recipe: Recipe) -> Iterator[str]:
    layout = recipe.layout
    for role, pattern in (("image", layout.image), ("label", layout.label)):
        path = pattern.replace(CASE, "<case>").replace(SLICE, "<slice>")
        yield f"{role} of a case: RAW/{path.replace('.nii*', '.nii or .nii.gz')}"
    if layout.sliced:
        yield "the slices of a case are files of their own, in the order of <slice>"
    if layout.label_says:
        yield f"a label's path must fit {layout.label_says}"
    if layout.several_labels:
        yield "several label files of a case are joined"
    if layout.channel is not None:
        yield f"of each image channel {layout.channel} (counted from 0)"
    elif layout.planar:
        yield "colours become grey"
    if layout.index:
        yield (
            f"{layout.index} lists the cases that must be there, "
            "and the label values that may occur"
        )
    if layout.patient:
        yield (
            f"one case per patient ({layout.patient}): of scans the first by name, "
            "with --skip-bad the first good one; 2D files are its slices"
        )


def _explain_label(recipe: Recipe) -> Iterator[str]:
    label = recipe.label
    if label.tumour == "any":
        tumour, known = "every value above 0 is", "whole numbers from 0"
    else:
        tumour, known = f"{_listed(label.tumour)} joined are", _listed((0, *label.tumour))
    if label.known:
        known = _listed(label.known)
    elif recipe.layout.index:
        known = f"those of {recipe.layout.index}"
    if label.threshold is not None:
        tumour, known = f"every value from {label.threshold:g} on is", "all numbers"
    if label.channel is not None:
        tumour = f"of channel {label.channel} (counted from 0), {tumour}"
    yield f"{tumour} tumour (1); values that may occur: {known}"


def _explain_grid(recipe: Recipe) -> Iterator[str]:
    grid = recipe.grid
    size = f"{grid.size_px[0]} x {grid.size_px[1]} px"
    if recipe.layout.planar:
        yield "spacing is unknown; 255 is 65535 in pictures with values beyond 255"
        if grid.fit == "scale":
            yield f"scaled in proportion to fit {size} whole, masks by nearest pixel"
    else:
        columns, rows, slices = (_TOWARDS[letter] for letter in grid.orientation)
        yield (
            f"axes are turned to {grid.orientation}: "
            f"columns run to {columns}, rows to {rows}, slices to {slices}"
        )
        yield (
            f"resampled to {grid.spacing_mm:g} mm along the label's axes: "
            f"image by {grid.interpolation} interpolation, label by nearest voxel"
            if grid.spacing_mm
            else "voxels as they are in the file; image and label must lie on one grid"
        )
        if grid.spacing == "unknown":
            yield "the header's spacing is not believed: recorded as unknown"
    yield f"cropped, or padded with black, to {size} (rows x columns) around {_CENTRE[grid.centre]}"


def _explain_intensity(recipe: Recipe) -> Iterator[str]:
    low, high = recipe.intensity.low, recipe.intensity.high
    if recipe.intensity.rule == "window":
        yield f"{low:g} becomes 0 and {high:g} becomes 1, in the file's own unit; clipped beyond"
    else:
        yield (
            f"the {low:g}th percentile of all voxels above the background becomes 0, "
            f"the {high:g}th becomes 1; clipped beyond, background is 0"
        )


def _explain_slices(recipe: Recipe) -> Iterator[str]:
    slices, layout = recipe.slices, recipe.layout
    least = f"with at least {slices.min_px} tumour px inside the crop"
    if layout.planar and not layout.stacked:
        yield f"a picture {least} is a pair"
    elif slices.choose == "all":
        yield f"every slice {least}, in order"
    else:
        yield f"per case the slices with the largest tumour area, at most {slices.count}, {least}"


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
