"""Made-up cases in the real layouts and names, for trying and testing without anybody's data.

``brats2021``: heads with a lesion in FLAIR. ``hecktor2022``: necks with tumours in PET, CT and
label, PET and CT each on a grid of their own. They are drawn so that a threshold is not enough:
faint lesions, bright things that are none, bias field, noise. A case is a function of (seed,
number) alone.
"""

import functools
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.parallel import map_in_order
from hvae_hpc.preprocess.phantoms.brain import draw_brain
from hvae_hpc.preprocess.phantoms.neck import draw_neck
from hvae_hpc.preprocess.phantoms.shapes import Grid
from hvae_hpc.runs.folder import write_atomic

Drawing = list[tuple[NDArray[Any], Grid]]
"""The voxels of each of a case's files, and their grid."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of phantom.

    Attributes:
        name_files: a case's number -> its files' names below the raw folder.
        draw: the voxels of these files, in the same order.
    """

    name_files: Callable[[int], list[str]]
    draw: Callable[[np.random.Generator], Drawing]


def write_phantoms(
    recipe_name: str,
    folder: Path,
    n: int,
    seed: int,
    workers: int = 1,
    report: Callable[[str], None] | None = None,
) -> int:
    """Write the first n phantom cases of a recipe; those that are there are not made again.

    Args:
        recipe_name: "brats2021" or "hecktor2022".
        folder: the raw folder to write to.
        n: number of cases.
        seed: which phantoms.
        workers: processes.
        report: is called with lines of progress.

    Returns:
        How many were made now.

    Raises:
        UserError: no phantoms for this recipe, or a file of another origin is in the way.
    """
    if recipe_name not in KINDS:
        raise UserError(
            f"no phantoms for recipe {recipe_name!r}, expected one of {', '.join(KINDS)}"
        )
    write = functools.partial(_write_case, recipe_name, folder, seed)
    made = 0
    for done, new in enumerate(map_in_order(write, range(n), min(workers, n)), start=1):
        made += new
        if report and (done % max(1, n // 5) == 0 or done == n):
            report(f"phantom {done} of {n}")
    return made


def write_brats(folder: Path, n: int, seed: int) -> int:
    """Write n heads: ``BraTS2021_00000/BraTS2021_00000_flair.nii.gz`` and ``_seg.nii.gz``."""
    return write_phantoms("brats2021", folder, n, seed)


def write_hecktor(folder: Path, n: int, seed: int) -> int:
    """Write n necks: ``imagesTr/CHUM-001__PT.nii.gz``, ``__CT.nii.gz``, ``labelsTr/CHUM-001.nii.gz``."""
    return write_phantoms("hecktor2022", folder, n, seed)


def _write_case(recipe_name: str, folder: Path, seed: int, number: int) -> int:
    """Write a case's files unless all are there; return how many cases were made: 0 or 1."""
    kind, mark = KINDS[recipe_name], f"made-up phantom, seed {seed}"
    paths = [folder / name for name in kind.name_files(number)]
    there = [_is_there(path, mark) for path in paths]  # looks at all of them: none may be another's
    if all(there):
        return 0
    rng = np.random.default_rng([seed % 2**64, number])  # numpy's seeds are not below 0
    for path, (voxels, grid) in zip(paths, kind.draw(rng), strict=True):
        image = nib.Nifti1Image(voxels, grid.affine)
        image.header["descrip"] = mark
        image.header.set_xyzt_units("mm")
        write_atomic(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return 1


def _is_there(path: Path, mark: str) -> bool:
    """Say whether a phantom of this seed is there.

    Raises:
        UserError: the file is another one; real data is never written over.
    """
    if not path.exists():
        return False
    try:
        header = nib.load(path).header
        there = header["descrip"].item().decode(errors="replace")
    except Exception as error:  # whatever it is, it is not what we wrote
        raise UserError(f"{path}: is no phantom; give an empty folder as --raw") from error
    if there != mark:
        raise UserError(f"{path}: is {there!r}, expected {mark!r}; give an empty folder as --raw")
    return True


def _name_brats(number: int) -> list[str]:
    case = f"BraTS2021_{number:05d}"
    return [f"{case}/{case}_flair.nii.gz", f"{case}/{case}_seg.nii.gz"]


def _name_hecktor(number: int) -> list[str]:
    centres = ("CHUM", "CHUP", "CHUS", "CHUV")
    case = f"{centres[number % 4]}-{number // 4 + 1:03d}"
    return [f"imagesTr/{case}__PT.nii.gz", f"imagesTr/{case}__CT.nii.gz", f"labelsTr/{case}.nii.gz"]


KINDS = {
    "brats2021": Kind(name_files=_name_brats, draw=draw_brain),
    "hecktor2022": Kind(name_files=_name_hecktor, draw=draw_neck),
}
