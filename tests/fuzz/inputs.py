"""The kinds of input: a good folder of each, and how one file in it is damaged.

The same kind and seed give the same input, on any machine.
"""

import contextlib
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from PIL import Image

from hvae_hpc.preprocess.journal import JOURNAL
from hvae_hpc.preprocess.store.manifest import MANIFEST
from hvae_hpc.preprocess.store.shards import SEAL_BYTES
from tests import ROOT
from tests.fuzz import damage
from tests.fuzz.damage import ANY, Change
from tests.jobs.hostile_runs import make_hostile_runs
from tests.preprocess.bad_input.command import run_quietly
from tests.preprocess.bad_input.folders import arguments, save_indexed, save_scans, write_recipes
from tests.preprocess.scans import LPS, draw_case, reseal, save

PICTURES = ("png", "tif", "jpg", "bmp", "gif")
ITK = ("mha", "mhd", "nrrd")
Commands = Sequence[tuple[str, ...]]
"""Command lines of ``hvae-hpc``, given one after the other in the input's folder."""


def pack(recipe: str) -> tuple[str, ...]:
    return ("preprocess", *arguments(recipe))


VERIFY = ("preprocess", "--verify", "out", "--workers", "1")
PLAN = ("sweep", "sweep.toml", "--plan", "--local", "--data", "scans=out")
SITE = (*PLAN, "--site", "site.toml")


def make_good_folders(folder: Path) -> None:
    """Make what all inputs are copies of, one folder for each kind."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        write_recipes(folder / kind)
    for number in range(2):
        image, label = draw_case(number)
        for kind, ending in (("nifti", "nii"), ("nifti_gz", "nii.gz")):
            case = folder / kind / "raw" / f"case{number}"
            case.mkdir(parents=True)
            for role, voxels in (("flair", image), ("seg", label)):
                nib.save(nib.Nifti1Image(voxels, LPS), case / f"case{number}_{role}.{ending}")
        for ending in ITK:
            _save_itk(folder / "itk" / ending / f"case{number}", ending, image, label)
        for ending in PICTURES:
            _save_picture(folder / "picture" / ending, f"case{number}.{ending}", number)

    for kind, text in (("picture", _PICTURE_RECIPE), ("itk", _ITK_RECIPE)):
        for ending in PICTURES + ITK:
            (folder / kind / f"{ending}.toml").write_text(text.replace("png", ending))
    save_indexed(folder / "dataset_json" / "raw", 2)
    for kind in ("shard", "manifest", "packing_log", "toml"):
        _save_packed(folder / kind)
    make_hostile_runs(folder / "runs" / "runs")


_PICTURE_RECIPE = """
extends = "pictures"
label = {tumour = "any", threshold = 128}
layout = {image = "images/{case}.png", label = "masks/{case}.png"}
grid = {size_px = [16, 16]}
"""
_ITK_RECIPE = """
extends = "scans.toml"
layout = {image = "{case}/{case}_flair.png", label = "{case}/{case}_seg.png"}
"""


def _save_picture(folder: Path, name: str, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (16, 12)).astype(np.uint8)
    mask = np.zeros((16, 12), np.uint8)
    mask[4:9, 3 : 7 + seed] = 255
    for role, pixels in (("images", values), ("masks", mask)):
        (folder / role).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / role / name)


def _save_itk(folder: Path, ending: str, image: np.ndarray, label: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for role, voxels in (("flair", image), ("seg", label)):
        scan = sitk.GetImageFromArray(voxels.transpose())
        sitk.WriteImage(scan, str(folder / f"{folder.name}_{role}.{ending}"), ending == "nrrd")


def _save_packed(folder: Path) -> None:
    """Pack scans as a person does; beside them lie a sweep and a site."""
    save_scans(folder / "raw")
    long = "a" * 60 + "b"  # what an expression that goes back and forth is slow on
    for role, voxels in zip(("flair", "seg"), draw_case(9), strict=True):
        save(folder / "raw" / long / f"{long}_{role}.nii", voxels)
    sweep = (ROOT / "jobs/sweeps/demo.toml").read_text()
    for change in (
        ("train = 20", "train = 2"),
        ("test = 20", "test = 2"),
        ("n_images = 20", "features = false\nn_images = 20"),
    ):
        sweep = sweep.replace(*change)
    (folder / "sweep.toml").write_text(sweep)
    (folder / "site.toml").write_text((ROOT / "jobs/sites/default.toml").read_text())
    recipe = folder / "scans.toml"
    lines = recipe.read_text().replace("[layout]", "[layout]\npatient = '(.*)'\nlabel_says = 'seg'")
    recipe.write_text(lines)
    with contextlib.chdir(folder):
        done = run_quietly(*arguments("scans"))
    assert done.code == 0, done.err


class Draw(Random):
    """The draw of one input; an intact one is left as it is, to see that its commands succeed."""

    def __init__(self, kind: str, seed: int, intact: bool = False) -> None:
        super().__init__(f"{kind} {seed}")
        self.intact = intact


def _change(path: Path, changes: Sequence[Change], draw: Draw) -> None:
    if not draw.intact:
        path.write_bytes(draw.choice(changes)(path.read_bytes(), draw))


def _pick(folder: Path, pattern: str, draw: Draw) -> Path:
    return draw.choice(sorted(path for path in folder.glob(pattern) if path.is_file()))


def spoil_nifti(here: Path, draw: Draw) -> Commands:
    path = _pick(here, "raw/case1/*", draw)
    _vary_scan(path, draw)
    _change(path, [*ANY, *[damage.change_nifti] * 12, damage.claim_more_voxels], draw)
    return [pack("scans")]


def _vary_scan(path: Path, draw: Draw) -> None:
    """Save the scan in another way that NIfTI allows, at times."""
    kind = draw.choice(["", "", "float", "double", "2", "big", *["4D"] * (not draw.intact)])
    scan = nib.load(path, mmap=False)
    voxels = np.asarray(scan.dataobj)
    if kind in ("float", "double"):
        voxels = voxels.astype(np.float32 if kind == "float" else np.float64)
    elif kind == "4D":
        voxels = np.stack([voxels, voxels], axis=3)
    image = (nib.Nifti2Image if kind == "2" else nib.Nifti1Image)(voxels, LPS)
    if kind == "big":
        image = nib.Nifti1Image(voxels, LPS, nib.Nifti1Header(endianness=">"))
    nib.save(image, path)


def spoil_nifti_gz(here: Path, draw: Draw) -> Commands:
    path = _pick(here, "raw/case1/*", draw)
    inside = [*ANY, *[damage.change_nifti] * 6, damage.claim_more_voxels, lambda same, _: same]

    def change_inside(content: bytes, draw: Random) -> bytes:
        return damage.zip_again(draw.choice(inside)(gzip.decompress(content), draw), draw)

    _change(path, [*ANY, *[change_inside] * 16], draw)
    return [pack("scans")]


def spoil_picture(here: Path, draw: Draw) -> Commands:
    ending = draw.choice([*PICTURES, "png", "tif", "tif"])
    (here / ending).rename(here / "raw")
    path = _pick(here, "raw/*/case1*", draw)
    _vary_picture(path, draw)
    own = {"png": [damage.change_chunk] * 7, "tif": [damage.change_tag] * 10}
    _change(path, [*ANY, *own.get(ending, [])], draw)
    if draw.random() < 0.1 and not draw.intact:  # another format under this name
        path.write_bytes(_pick(here, "*/images/*", draw).read_bytes())
    return [pack(ending)]


def _vary_picture(path: Path, draw: Draw) -> None:
    """Save the picture in another way that its format allows, at times."""
    modes = {
        ".png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
        ".tif": ["1", "L", "RGB", "RGBA", "I;16", "F", "CMYK"],
        ".jpg": ["L", "RGB", "CMYK"],
        ".bmp": ["1", "L", "P", "RGB", "RGBA"],
        ".gif": ["L", "P", "RGB"],
    }
    with Image.open(path) as picture:
        changed = picture.convert("L").convert(draw.choice(modes[path.suffix]))
    options: dict[str, object] = {}
    if path.suffix == ".tif":
        ways = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]
        options = {"compression": draw.choice(ways), "save_all": True}
        options["append_images"] = [changed] * (draw.random() < 0.2 and not draw.intact)
    changed.save(path, **options)


def spoil_itk(here: Path, draw: Draw) -> Commands:
    ending = draw.choice(ITK)
    (here / ending).rename(here / "raw")
    path = _pick(here, "raw/case1/*", draw)
    _change(path, [*ANY, *[damage.change_word] * 8], draw)
    return [pack(ending)]


def spoil_shard(here: Path, draw: Draw) -> Commands:
    """Damage the bytes of a shard; most often its seal is made to fit, so that libhdf5 sees them."""
    path = _pick(here, "out/shard-*.h5", draw)
    changes = [*ANY, *[damage.flip, damage.put_numbers] * 4]

    def change_body(content: bytes, draw: Random) -> bytes:
        return content[:SEAL_BYTES] + draw.choice(changes)(content[SEAL_BYTES:], draw)

    _change(path, [change_body], draw)
    if draw.random() < 0.85:
        reseal(path)
    return [VERIFY, pack("scans")]


def spoil_manifest(here: Path, draw: Draw) -> Commands:
    _change(here / "out" / MANIFEST, [*[damage.change_value] * 20, *ANY], draw)
    return [VERIFY, PLAN, pack("scans")]


def spoil_packing_log(here: Path, draw: Draw) -> Commands:
    _change(here / "out" / JOURNAL, [*[damage.change_value] * 20, *ANY], draw)
    return [pack("scans")]


def spoil_runs(here: Path, draw: Draw) -> Commands:
    """Damage a file of a runs folder, most often one of JSON lines."""
    files = sorted(path for path in (here / "runs").rglob("*") if path.is_file())
    path = draw.choice([*files, *[path for path in files if path.suffix == ".jsonl"] * 10])
    if draw.random() < 0.05 and not draw.intact:
        damage.become_other(path, draw)
    else:
        is_json = path.suffix in (".json", ".jsonl") or path.name.startswith(".lease")
        _change(path, [*ANY, *[damage.change_value] * 25 * is_json], draw)
    run = _pick_run(here, draw)
    return [
        ("status", "runs", "--costs"),
        ("logs", run, "--runs", "runs"),
        ("why", run, "--runs", "runs"),
    ]


def _pick_run(here: Path, draw: Draw) -> str:
    return draw.choice([path.name for path in sorted((here / "runs").glob("segment/*"))])


def spoil_toml(here: Path, draw: Draw) -> Commands:
    what = draw.choice(["scans", "sweep", "site"])
    _change(here / f"{what}.toml", [*[damage.change_setting] * 20, *ANY], draw)
    return {
        "scans": [pack("scans"), ("preprocess", "scans.toml", "--explain")],
        "sweep": [PLAN],
    }.get(what, [SITE])


def spoil_dataset_json(here: Path, draw: Draw) -> Commands:
    path = here / "raw" / "dataset.json"
    if draw.random() < 0.2:
        path.write_text(json.dumps({**json.loads(path.read_text()), "file_ending": ".nii.gz"}))
    _change(path, [*[damage.change_value] * 20, *ANY], draw)
    return [pack("msd")]


KINDS: dict[str, Callable[[Path, Draw], Commands]] = {
    "nifti": spoil_nifti,
    "nifti_gz": spoil_nifti_gz,
    "picture": spoil_picture,
    "itk": spoil_itk,
    "shard": spoil_shard,
    "manifest": spoil_manifest,
    "packing_log": spoil_packing_log,
    "runs": spoil_runs,
    "toml": spoil_toml,
    "dataset_json": spoil_dataset_json,
}
"""Kind -> spoils a copy of its good folder, and says which commands then see it."""
