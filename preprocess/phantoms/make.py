"""Made-up cases in the real layouts and names, for trying and testing without anybody's data.

``brats2021``: heads with a lesion in FLAIR. ``hecktor2022``: necks with tumours in PET, CT and
label, PET and CT each on a grid of their own. A threshold is not enough to find the tumours: there
are faint lesions, bright things that are none, a bias field, noise. A case is a function of (seed,
number) alone.
"""

import functools
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.parallel import map_in_order
from hvae_hpc.preprocess.phantoms.brain import draw_brain
from hvae_hpc.preprocess.phantoms.neck import draw_neck
from hvae_hpc.runs.folder import write_atomic


def write_phantoms(recipe_name: str, folder: Path, n: int, seed: int, workers: int = 1) -> int:
    """Write the first n phantom cases of a recipe; those that are there are not made again.

    Args:
        recipe_name: "brats2021" or "hecktor2022".
        folder: the raw folder to write to.
        n: number of cases.
        seed: which phantoms.
        workers: processes.

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
    cases = map_in_order(write, range(n), workers)
    return sum(tqdm(cases, total=n, unit="phantom"))


def _name_brats(number: int) -> list[str]:
    case = f"BraTS2021_{number:05d}"
    return [f"{case}/{case}_flair.nii.gz", f"{case}/{case}_seg.nii.gz"]


def _name_hecktor(number: int) -> list[str]:
    centres = ("CHUM", "CHUP", "CHUS", "CHUV")
    case = f"{centres[number % 4]}-{number // 4 + 1:03d}"
    return [f"imagesTr/{case}__PT.nii.gz", f"imagesTr/{case}__CT.nii.gz", f"labelsTr/{case}.nii.gz"]


KINDS = {
    "brats2021": (_name_brats, draw_brain),
    "hecktor2022": (_name_hecktor, draw_neck),
}
"""Recipe -> a case's number to its files below the raw folder, and what draws these files."""


def _write_case(recipe_name: str, folder: Path, seed: int, number: int) -> int:
    """Write a case's files unless all are there; return how many cases were made: 0 or 1."""
    name_files, draw = KINDS[recipe_name]
    mark = f"made-up phantom, seed {seed}"
    paths = [folder / name for name in name_files(number)]
    made_before = [_is_made(path, mark) for path in paths]  # none of them may be another's
    if all(made_before):
        return 0
    rng = np.random.default_rng([seed % 2**64, number])  # numpy's seeds are not below 0
    for path, (voxels, grid) in zip(paths, draw(rng), strict=True):
        image = nib.Nifti1Image(voxels, grid.affine)
        image.header["descrip"] = mark
        image.header.set_xyzt_units("mm")
        write_atomic(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return 1


def _is_made(path: Path, mark: str) -> bool:
    """Say whether a phantom of this seed is there.

    Raises:
        UserError: the file is another one; real data is never written over.
    """
    if not path.exists():
        return False
    try:
        words = nib.load(path).header["descrip"].item().decode(errors="replace")
    except Exception as error:  # whatever it is, it is not what we wrote
        raise UserError(f"{path}: is no phantom; give an empty folder as --raw") from error
    if words != mark:
        raise UserError(f"{path}: is {words!r}, expected {mark!r}; give an empty folder as --raw")
    return True
