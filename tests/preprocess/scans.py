"""Tiny NIfTI files and recipes for the tests of packing."""

import re
import tomllib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hvae_hpc.config.loader import load
from hvae_hpc.preprocess.read.find_cases import CaseFiles, known_labels
from hvae_hpc.preprocess.read.volume import Volume, read_volume
from hvae_hpc.preprocess.recipes.recipe import (
    GridConfig,
    IntensityConfig,
    LabelConfig,
    LayoutConfig,
    Recipe,
    SlicesConfig,
)
from hvae_hpc.preprocess.store.shards import SEAL_BYTES, _seal

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Affine of voxels of 1 mm whose indices rise to the left, the back and the head."""


def save(
    path: Path, data: NDArray[Any], affine: NDArray[np.float64] = LPS, kind: type = nib.Nifti1Image
) -> Path:
    """Write a NIfTI file with a stated orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(kind(data, affine), path)
    return path


def draw_case(
    seed: int = 0, shape: tuple[int, int, int] = (20, 18, 6)
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return an image with a foreground block, and a label with values 0, 1, 2, 4 in a few slices."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.int16)
    image[2:-2, 2:-2] = rng.integers(1, 1000, (shape[0] - 4, shape[1] - 4, shape[2]))
    label = np.zeros(shape, np.uint8)
    label[6:10, 5:9, 2:5] = 2
    label[7:9, 6:8, 3] = 4
    label[7, 6, 3] = 1
    label[6:12, 9, 3] = 2
    return image, label


def save_cases(folder: Path, count: int, first: int = 0) -> None:
    """Write tiny cases in the layout of BraTS."""
    for number in range(first, first + count):
        image, label = draw_case(number)
        save(folder / f"case{number}" / f"case{number}_flair.nii.gz", image)
        save(folder / f"case{number}" / f"case{number}_seg.nii.gz", label)


def tiny_recipe(**changes: Any) -> Recipe:
    """Return a recipe for them; ``grid``, ``slices`` and so on replace its parts."""
    parts: dict[str, Any] = {
        "name": "tiny",
        "modality": "FLAIR",
        "layout": LayoutConfig(
            image="{case}/{case}_flair.nii.gz", label="{case}/{case}_seg.nii.gz"
        ),
        "label": LabelConfig(tumour=(1, 2, 4), known=(0, 1, 2, 4)),
        "grid": GridConfig(size_px=(16, 16), centre="image"),
        "intensity": IntensityConfig(rule="percentile", low=0.0, high=99.5),
        "slices": SlicesConfig(choose="largest"),
    }
    return Recipe(**{**parts, **changes})


def read_case(recipe: Recipe, image: Path, *labels: Path) -> Volume:
    """Read one case as packing does."""
    files = CaseFiles(case_id="c", patient="c", images=(image,), labels=(labels,))
    return read_volume(recipe, files, known_labels(recipe, None))


def read_remedy(fields: str) -> LabelConfig:
    """Read what a message says of [label]: fields with commas between them."""
    table = tomllib.loads(re.sub(r", (?=\w+ = )", "\n", fields))
    return load(LabelConfig, table, "the printed remedy")


def whole_image(volume: Volume) -> NDArray[Any]:
    """Return the image on all of the volume's slices."""
    return volume.take(range(volume.tumour.shape[2]))


def reseal(path):
    """Give a shard that was changed on purpose the hash of its bytes."""
    content = path.read_bytes()[SEAL_BYTES:]
    path.write_bytes(_seal(content) + content)
