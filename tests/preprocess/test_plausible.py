"""What is implausible is refused with a likely reason, and what is printed as a remedy works."""

import re

import numpy as np
import pytest
from PIL import Image

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.recipes.recipe import load_recipe
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.shards import read_pairs
from hvae_hpc.preprocess.summary import to_text
from tests.preprocess.scans import LPS, save

SHAPE = (24, 20, 5)
LESION = np.s_[8:14, 7:12, 1:4]
COARSE = np.diag([-4.0, -4.0, 3.0, 1.0])


def draw(seed, tissue=400, lesion=800):
    """Return a body on a background of 0 and its lesion; noise of a tenth."""
    noise = np.random.default_rng(seed).normal(1, 0.1, SHAPE)
    image, label = np.zeros(SHAPE), np.zeros(SHAPE, np.uint8)
    image[3:-3, 3:-3] = (tissue * noise)[3:-3, 3:-3]
    label[LESION] = 1
    label = np.roll(label, seed % 3, axis=1)
    return np.where(label, lesion * noise, image), label


def save_brats(raw, image_of, label_of=lambda label: label, count=2):
    for number in range(count):
        image, label = draw(number)
        save(raw / f"c{number}" / f"c{number}_flair.nii", image_of(image).astype(np.float32))
        save(raw / f"c{number}" / f"c{number}_seg.nii", label_of(label))
    return "brats2021"


def save_pet(raw, factor):
    for number in range(2):
        image, label = draw(number, tissue=1.5, lesion=6)
        pet = (image * factor).astype(np.float32)
        save(raw / "imagesTr" / f"p{number}__PT.nii", pet, COARSE)
        save(raw / "labelsTr" / f"p{number}.nii", label, COARSE)
    return "hecktor2022"


def save_pictures(raw, picture_of, kind):
    for folder in ("images", "masks"):
        (raw / folder).mkdir(parents=True)
    for number in range(2):
        image, label = draw(number, tissue=0.3, lesion=0.6)
        picture = picture_of(image[:, :, 2].clip(0, 1)).astype(kind)
        Image.fromarray(picture).save(raw / "images" / f"x{number}.tif")
        Image.fromarray(label[:, :, 2] * np.uint8(255)).save(raw / "masks" / f"x{number}.png")
    return 'pictures"\n[layout]\nimage = "images/{case}.tif"\nlabel = "masks/{case}.png'


def pack_with(tmp_path, raw, extends, head="", end=""):
    """Pack with a recipe file of the user's own: top-level fields, ``extends``, tables."""
    path = tmp_path / "ours.toml"
    path.write_text(f'{head}\nextends = "{extends}"\n{end}\n')
    return pack(load_recipe(str(path)), raw, tmp_path / "out", workers=1)


def refusal_of(tmp_path, raw, extends):
    with pytest.raises(UserError) as refused:
        pack_with(tmp_path, raw, extends)
    return str(refused.value).splitlines()[1]


CASES = {
    "PET in Bq/ml": (
        lambda raw: save_pet(raw, 5000),
        "100% of the image lies above the intensity window 0 to 10, 0% of the tumour below: "
        "PET looks like Bq/ml, SUV expected",
    ),
    "PET in [0, 1]": (lambda raw: save_pet(raw, 1 / 8), "PET looks normalised, SUV expected"),
    "CT by percentiles": (
        lambda raw: save_brats(raw, lambda image: np.where(image > 0, image / 10 - 20, -1000)),
        "the image's lowest value is -1000: CT in HU?",
    ),
    "CT that is stored from 0 on, by percentiles": (
        lambda raw: save_brats(raw, lambda image: np.where(image > 0, image / 10 + 1004, 24)) + CT,
        'CT in HU + 1024? Say [intensity] rule = "window", low = 924, high = 1324 (soft tissue)',
    ),
    "12 bits in a window of 8": (
        lambda raw: save_pictures(raw, lambda image: image * 3000 + 400, np.uint16),
        "say [intensity] high = 4095",
    ),
    "floats in a window of 8 bits": (
        lambda raw: save_pictures(raw, lambda image: image, np.float32),
        "say [intensity] high = 1 ",
    ),
    "floats beyond 16 bits": (
        lambda raw: save_pictures(raw, lambda image: image * 3e5 + 300, np.float32),
        "100% of the image lies above the intensity window 0 to 255",
    ),
    "an image cut across its tumour": (
        lambda raw: save_brats(raw, cut_across_lesion),
        "% of the tumour lies outside the image's field of view; are both of one patient?",
    ),
    "a tumour below the window": (
        lambda raw: save_brats(raw, lambda image: np.where(image > 600, -50, image + 1)) + W,
        "above the intensity window 0 to 800, 100% of the tumour below: values are -50 to ",
    ),
    "an inverted mask": (
        lambda raw: save_brats(raw, lambda image: image, lambda label: 1 - label),
        ", or all four corners; is it inverted",
    ),
    "a mask of the whole body": (
        lambda raw: save_brats(raw, lambda image: image + (image > 0) * 200, cover_body),
        "the mask covers 100% of the image, or all four corners; is it inverted, or of the body?",
    ),
    "a label in the image's place": (
        lambda raw: save_brats(raw, lambda image: np.digitize(image, [200, 600])),
        "a slice with tumour has 2 grey value(s) in the intensity window 1 to 2: "
        "values are 0 to 2; set [intensity] in the recipe, or is it a label?",
    ),
    "the label, blurred by its format": (
        lambda raw: save_brats(raw, lambda image: (image > 600) * 255 + image / 100),
        "image and label are the same picture",
    ),
}
CT = '"\nmodality = "CT'
W = '"\n[intensity]\nrule = "window"\nhigh = 800.0\n#'


def cut_across_lesion(image):
    image[12:] = 0  # two of the lesion's six columns
    return image


def cover_body(label):
    label[3:-3, 3:-3] = 1
    return label


@pytest.mark.parametrize("name", CASES)
def test_what_is_implausible_is_named_with_its_reason_and_can_be_accepted(tmp_path, name):
    make, message = CASES[name]
    extends = make(tmp_path / "raw")
    line = refusal_of(tmp_path, tmp_path / "raw", extends)
    assert message in line

    accept = re.search(r"or say (accept = .*) at the head of the recipe", line)[1]
    head = accept.replace("]", ', "repeated"]')  # two pictures of nothing but white are equal
    assert len(pack_with(tmp_path, tmp_path / "raw", extends, head=head).cases) == 2
    first = re.search(r'"(\w+)"', accept)[1]
    assert f"implausible, but accepted: {first} (2 cases)" in to_text(tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "CT by percentiles",
        "CT that is stored from 0 on, by percentiles",
        "12 bits in a window of 8",
        "floats in a window of 8 bits",
    ],
)
def test_the_remedy_that_is_printed_packs_the_data(tmp_path, name):
    extends = CASES[name][0](tmp_path / "raw")
    line = refusal_of(tmp_path, tmp_path / "raw", extends)
    fields = re.search(r"[sS]ay \[intensity\] (.*?) (?:\(soft tissue\) )?in the recipe", line)[1]
    table = "[intensity]\n" + fields.replace(", ", "\n")
    manifest = pack_with(tmp_path, tmp_path / "raw", extends, end=table)
    pairs, _ = read_pairs(tmp_path / "out" / manifest.shards[0].file)
    inside = pairs.images[pairs.masks == 1]
    assert 0.2 < inside.mean() < 0.95
    assert len(np.unique(inside)) > 20


def test_a_recipe_that_accepts_nothing_is_hashed_as_before(tmp_path):
    extends = save_brats(tmp_path / "raw", lambda image: image)
    plain = pack_with(tmp_path, tmp_path / "raw", extends)
    assert "accept" not in plain.recipe
    accepting = pack_with(tmp_path, tmp_path / "raw", extends, head='accept = ["mask"]')
    assert accepting.content_hash != plain.content_hash
    assert read_manifest(tmp_path / "out").recipe["accept"] == ["mask"]


def test_a_tumour_that_the_image_shows_in_part_only_is_refused(tmp_path):
    raw = tmp_path / "raw"
    image, label = draw(0, tissue=1.5, lesion=6)
    save(raw / "imagesTr" / "p__PT.nii", image.astype(np.float32)[:12], COARSE)  # half the lesion
    save(raw / "labelsTr" / "p.nii", label, COARSE)
    line = refusal_of(tmp_path, raw, "hecktor2022")
    assert "of the tumour lies outside the image's field of view" in line
    assert 0.2 < int(re.search(r"(\d+)%", line)[1]) / 100 < 0.5


def test_two_cases_of_one_image_are_refused(tmp_path):
    extends = save_brats(tmp_path / "raw", lambda image: image)
    image, label = draw(0)
    save(tmp_path / "raw" / "d" / "d_flair.nii.gz", image.astype(np.float32), LPS)
    save(tmp_path / "raw" / "d" / "d_seg.nii.gz", label, LPS)
    line = refusal_of(tmp_path, tmp_path / "raw", extends)
    assert "d: its images are those of c0" in line
    accepted = pack_with(tmp_path, tmp_path / "raw", extends, head='accept = ["repeated"]')
    assert len(accepted.cases) == 3


def test_a_signed_image_keeps_its_lesion_and_a_black_background(tmp_path):
    def standardise(image):
        body = image > 0
        scores = (image - image[body].mean()) / image[body].std()
        return np.where(image > 600, image / 1000 - 3, scores) * body  # a dark lesion

    extends = save_brats(tmp_path / "raw", standardise)
    manifest = pack_with(tmp_path, tmp_path / "raw", extends, end="[grid]\nsize_px = [20, 24]")
    pairs, _ = read_pairs(tmp_path / "out" / manifest.shards[0].file)
    for image, mask in zip(pairs.images, pairs.masks, strict=True):
        assert image[0, 0] == 0
        assert (image > 0).sum() >= 14 * 18 - 36  # the body, but for a lesion at its lowest value
        assert image[mask == 0].max() > 0.9


def test_a_case_without_tumour_is_packed_where_the_recipe_says_so(tmp_path):
    extends = save_brats(
        tmp_path / "raw", lambda image: image, lambda label: label * (label.sum() > 10**6)
    )
    assert "no tumour voxel" in refusal_of(tmp_path, tmp_path / "raw", extends)
    every = '[slices]\nchoose = "all"\nmin_px = 0'
    head = 'accept = ["empty"]'
    manifest = pack_with(tmp_path, tmp_path / "raw", extends, head=head, end=every)
    assert [case.tumour_px for case in manifest.cases] == [(0,) * SHAPE[2]] * 2
