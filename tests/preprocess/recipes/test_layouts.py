"""Each recipe on a made-up folder in the layout that its project describes, not on what the recipe says."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvae_hpc.config.loader import read_json
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.recipes.recipe import LIBRARY, load_recipe
from hvae_hpc.preprocess.store.reader import DatasetReader
from hvae_hpc.preprocess.summary import SUMMARY
from tests.preprocess.scans import draw_case, save

TUMOUR_PX, CAVITY_PX = 22, 3
"""Of :func:`draw_case`, in its largest slice; the cavity is label 4."""
MASK_PX = 6 * 8
"""Of :func:`draw_picture`, at 40 x 40 px."""


def draw_picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return grey values of a bright block in noise, and the block."""
    pixels = np.random.default_rng(seed).integers(20, 90, (40, 40)).astype(np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:16, 20:28] = True
    pixels[mask] += 120
    return pixels, mask


def put(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def put_pair(image: Path, mask: Path, seed: int, **options: object) -> None:
    pixels, inside = draw_picture(seed)
    put(image, np.stack([pixels] * 3, axis=-1), **options)
    put(mask, (inside * 255).astype(np.uint8), **options)


def put_scan(image: Path, label: Path, seed: int, largest: int = 4, *, suv: bool = False) -> None:
    """Save a case; its label values are 1 to ``largest``."""
    pixels, values = draw_case(seed)
    save(image, (pixels / 100).astype(np.float32) if suv else pixels)
    save(label, np.minimum(values, largest).astype(np.uint8))


def brats(raw: Path) -> None:
    for seed, name in enumerate(("BraTS2021_00000", "BraTS2021_00002")):
        put_scan(raw / name / f"{name}_flair.nii.gz", raw / name / f"{name}_seg.nii.gz", seed)
        save(raw / name / f"{name}_t1ce.nii.gz", draw_case()[0])


def brats_dashed(raw: Path, largest: int) -> None:
    for seed, name in enumerate(
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-GLI-00006-100")
    ):
        put_scan(
            raw / name / f"{name}-t2f.nii.gz", raw / name / f"{name}-seg.nii.gz", seed, largest
        )
        save(raw / name / f"{name}-t1c.nii.gz", draw_case()[0])


def hecktor2022(raw: Path) -> None:
    for seed, name in enumerate(("CHUM-001", "MDA-201")):
        put_scan(
            raw / f"imagesTr/{name}__PT.nii.gz", raw / f"labelsTr/{name}.nii.gz", seed, 2, suv=True
        )
        save(raw / f"imagesTr/{name}__CT.nii.gz", draw_case()[0])


def hecktor2025(raw: Path) -> None:
    for seed, name in enumerate(("CHUM-001", "USZ-101")):
        folder = raw / "Task 1" / name
        put_scan(folder / f"{name}__PT.nii.gz", folder / f"{name}.nii.gz", seed, 2, suv=True)
        save(folder / f"{name}__CT.nii.gz", draw_case()[0])
        save(raw / "Task 2" / name / f"{name}__PT.nii.gz", draw_case()[0])
    (raw / "Task 1" / "HECKTOR_2025_Training_Task_1.csv").write_text("PatientID\n")


def indexed(raw: Path, image: str) -> None:
    for seed, name in enumerate(("ours_001", "ours_002")):
        put_scan(raw / image.format(name), raw / f"labelsTr/{name}.nii.gz", seed)
    content = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "core": 1, "oedema": 2, "enhancing": 4},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))


def decathlon(raw: Path) -> None:
    indexed(raw, "imagesTr/{}.nii.gz")
    for seed, path in enumerate((raw / "imagesTr").iterdir()):
        save(path, np.stack([draw_case(seed)[0]] * 4, axis=-1))


def bids(raw: Path) -> None:
    for seed, name in enumerate(("sub-01", "sub-02")):
        manual = raw / "derivatives/manual" / name / "anat" / f"{name}_label-lesion_mask.nii.gz"
        put_scan(raw / name / "anat" / f"{name}_FLAIR.nii.gz", manual, seed)
        brain = raw / "derivatives/fmriprep" / name / "anat" / f"{name}_desc-brain_mask.nii.gz"
        save(brain, np.ones((20, 18, 6), np.uint8))


def pictures(raw: Path) -> None:
    for seed, name in enumerate(("a1", "a10")):
        put_pair(raw / f"images/{name}.png", raw / f"masks/{name}.png", seed)


def busi(raw: Path) -> None:
    """The first benign picture has its mask in two files; the normal picture's is empty."""
    folder = raw / "benign"
    put_pair(folder / "benign (1).png", folder / "benign (1)_mask.png", 1)
    whole = np.asarray(Image.open(folder / "benign (1)_mask.png"))
    for ending, columns in (("_mask", slice(24)), ("_mask_1", slice(24, 40))):
        part = np.zeros_like(whole)
        part[:, columns] = whole[:, columns]
        put(folder / f"benign (1){ending}.png", part)
    put_pair(raw / "malignant/malignant (10).png", raw / "malignant/malignant (10)_mask.png", 2)
    put(raw / "normal/normal (1).png", draw_picture(3)[0])
    put(raw / "normal/normal (1)_mask.png", np.zeros((40, 40), np.uint8))


def isic(raw: Path) -> None:
    for seed, name in enumerate(("ISIC_0000000", "ISIC_0000001")):
        put_pair(
            raw / "ISIC2018_Task1-2_Training_Input" / f"{name}.jpg",
            raw / "ISIC2018_Task1_Training_GroundTruth" / f"{name}_segmentation.png",
            seed,
        )
    put(raw / "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg", draw_picture(3)[0])
    (raw / "ISIC2018_Task1-2_Training_Input" / "ATTRIBUTION.txt").write_text("CC-0\n")


def kvasir(raw: Path) -> None:
    for seed, name in enumerate(("cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4")):
        put_pair(raw / f"images/{name}.jpg", raw / f"masks/{name}.jpg", seed, quality=90)


def lgg_kaggle(raw: Path) -> None:
    """A patient's tumour is in slices 9 and 10 of 12, and larger in 10."""
    for patient, name in enumerate(("TCGA_CS_4941_19960909", "TCGA_HT_A61B_19991127")):
        for number in range(1, 13):
            pixels, mask = draw_picture(100 * patient + number)
            mask[:, 24:] &= number == 10
            mask &= number in (9, 10)
            stem = raw / name / f"{name}_{number}"
            put(stem.with_suffix(".tif"), np.stack([pixels // 2, pixels, pixels // 3], axis=-1))
            put(stem.with_name(f"{stem.name}_mask.tif"), (mask * 255).astype(np.uint8))
    for name in ("README.md", "data.csv"):
        (raw / name).write_text("x\n")


FOLDERS = {
    "brats2021": (brats, ["BraTS2021_00000", "BraTS2021_00002"], 2),
    "brats2023": (
        lambda raw: brats_dashed(raw, 3),
        ["BraTS-GLI-00005-100", "BraTS-GLI-00006-100"],
        3,
    ),
    "brats2024": (
        lambda raw: brats_dashed(raw, 4),
        ["BraTS-GLI-00005-100", "BraTS-GLI-00006-100"],
        3,
    ),
    "hecktor2022": (hecktor2022, ["CHUM-001", "MDA-201"], 2),
    "hecktor2025": (hecktor2025, ["CHUM-001", "USZ-101"], 4),
    "nnunet": (lambda raw: indexed(raw, "imagesTr/{}_0000.nii.gz"), ["ours_001", "ours_002"], 0),
    "msd": (decathlon, ["ours_001", "ours_002"], 0),
    "bids": (bids, ["01", "02"], 2),
    "pictures": (pictures, ["a1", "a10"], 0),
    "busi": (busi, ["benign (1)", "malignant (10)"], 1),
    "isic": (isic, ["ISIC_0000000", "ISIC_0000001"], 2),
    "kvasir": (kvasir, ["cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4"], 0),
    "lgg_kaggle": (lgg_kaggle, ["TCGA_CS_4941_19960909", "TCGA_HT_A61B_19991127"], 2),
}
"""Recipe -> who writes the folder, its cases, and how many files and folders are not for it."""


def test_every_recipe_of_the_library_has_its_folder_here():
    assert set(FOLDERS) == {path.stem for path in LIBRARY.glob("*.toml")}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_folder_as_it_is_downloaded_is_packed_whole_and_nothing_else(tmp_path, name):
    write, case_ids, n_unfit = FOLDERS[name]
    write(tmp_path / "raw")
    recipe = load_recipe(name)
    manifest = pack(recipe, tmp_path / "raw", tmp_path / "out", workers=1)
    assert [case.case_id for case in manifest.cases] == case_ids
    pairs = DatasetReader(tmp_path / "out").read_all()
    for image, mask in zip(pairs.images, pairs.masks, strict=True):
        if not recipe.layout.planar:
            assert mask.sum() == TUMOUR_PX - CAVITY_PX * (name == "brats2024")
        else:
            assert mask.mean() == pytest.approx(MASK_PX / 1600, rel=0.05)
            assert image[mask > 0].mean() > 2 * image[mask == 0].mean()
    notes = read_json(tmp_path / "out" / SUMMARY)["notes"]
    assert [note.partition(" file")[0] for note in notes] == [str(n_unfit)] * bool(n_unfit)


def test_a_patients_slices_are_numbered_by_their_files(tmp_path):
    lgg_kaggle(tmp_path / "raw")
    manifest = pack(load_recipe("lgg_kaggle"), tmp_path / "raw", tmp_path / "out", workers=1)
    assert [case.slices for case in manifest.cases] == [(9,), (9,)]  # slice 10, counted from 0
    assert len(manifest.cases[0].sources) == 24
    green = draw_picture(10)[0] / 255
    image = DatasetReader(tmp_path / "out").read_all().images[0]
    assert image[image > 0].mean() == pytest.approx(green.mean(), rel=0.02)
    assert read_json(tmp_path / "out" / SUMMARY)["shapes"] == {"40 x 40 x 12": 2}
