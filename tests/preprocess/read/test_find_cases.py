"""Whose files are whose: patterns, dataset.json, patients with several scans."""

import json

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.read.dataset_json import read_index
from hvae_hpc.preprocess.read.find_cases import find_cases, known_labels
from hvae_hpc.preprocess.recipes.recipe import LabelConfig, LayoutConfig, load_recipe
from hvae_hpc.preprocess.store.reader import read_dataset
from tests.preprocess.scans import draw_case, save, save_cases, tiny_recipe


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def layout(image, label, **more):
    return tiny_recipe(layout=LayoutConfig(image=image, label=label, **more))


def files_of(recipe, raw):
    """Map each case to the names of its files below raw, image first."""
    return {
        case.case_id: [path.relative_to(raw).as_posix() for path in case.paths.values()]
        for case in find_cases(recipe, raw).cases
    }


def test_masks_of_a_picture_are_those_that_begin_with_its_name_and_with_no_longer_one(tmp_path):
    touch(tmp_path, "images/a1.png", "images/a10.png", "images/b.png")
    touch(
        tmp_path,
        "masks/a1.png",
        "masks/a1_2.png",
        "masks/a10.png",
        "masks/a10_b.png",
        "masks/b_mask.png",
    )
    assert files_of(load_recipe("pictures"), tmp_path) == {
        "a1": ["images/a1.png", "masks/a1.png", "masks/a1_2.png"],
        "a10": ["images/a10.png", "masks/a10.png", "masks/a10_b.png"],
        "b": ["images/b.png", "masks/b_mask.png"],
    }


def test_masks_beside_the_pictures_are_no_pictures(tmp_path):
    touch(
        tmp_path, "x (1).png", "x (1)_mask.png", "x (1)_mask_1.png", "x (2).png", "x (2)_mask.png"
    )
    recipe = layout("{case}.png", "{case}_mask*.png", several_labels=True)
    assert files_of(recipe, tmp_path) == {
        "x (1)": ["x (1).png", "x (1)_mask.png", "x (1)_mask_1.png"],
        "x (2)": ["x (2).png", "x (2)_mask.png"],
    }


def test_a_mask_without_picture_is_named_whole(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png", "masks/other.png")
    found = {
        case.case_id: case.fault for case in find_cases(load_recipe("pictures"), tmp_path).cases
    }
    assert found["a"] == ""
    assert "has no image" in found["other"]


def test_bids_subjects_are_found_with_and_without_sessions_and_two_that_fit_are_too_many(tmp_path):
    touch(
        tmp_path, "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz"
    )
    touch(
        tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "derivatives/x/sub-03/anat/sub-03_FLAIR.nii.gz"
    )
    touch(tmp_path, "derivatives/lesions/sub-01/anat/sub-01_label-lesion_mask.nii.gz")
    touch(tmp_path, "derivatives/lesions/sub-02/ses-1/anat/sub-02_ses-1_space-orig_mask.nii.gz")
    recipe = load_recipe("bids")
    assert files_of(recipe, tmp_path) == {
        "01": [
            "sub-01/anat/sub-01_FLAIR.nii.gz",
            "derivatives/lesions/sub-01/anat/sub-01_label-lesion_mask.nii.gz",
        ],
        "02": [
            "sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz",
            "derivatives/lesions/sub-02/ses-1/anat/sub-02_ses-1_space-orig_mask.nii.gz",
        ],
    }
    touch(tmp_path, "sub-02/ses-2/anat/sub-02_ses-2_FLAIR.nii.gz")
    assert "2 files fit as its image" in find_cases(recipe, tmp_path).cases[1].fault


def test_nii_and_nii_gz_are_both_taken_and_both_at_once_are_not(tmp_path):
    touch(
        tmp_path,
        "a/a_flair.nii",
        "a/a_seg.nii.gz",
        "b/b_flair.nii.gz",
        "b/b_flair.nii",
        "b/b_seg.nii",
    )
    a, b = find_cases(load_recipe("brats2021"), tmp_path).cases
    assert a.fault == ""
    assert "2 files fit as its image (b_flair.nii, b_flair.nii.gz)" in b.fault


def test_of_a_patients_scans_the_first_with_its_files_is_taken(tmp_path):
    for scan in ("00001-000", "00001-001", "00002-000", "00002-001", "00003-000"):
        touch(tmp_path, f"BraTS-GLI-{scan}/BraTS-GLI-{scan}-t2f.nii.gz")
        if scan != "00002-000":
            touch(tmp_path, f"BraTS-GLI-{scan}/BraTS-GLI-{scan}-seg.nii.gz")
    found = find_cases(load_recipe("brats2023"), tmp_path)
    assert [case.case_id[-9:] for case in found.cases if not case.fault] == [
        "00001-000",
        "00002-001",
        "00003-000",
    ]
    assert [case.case_id[-9:] for case in found.cases if case.fault] == ["00002-000"]
    assert list(found.further) == ["BraTS-GLI-00001-001"]


def test_names_of_two_ways_of_unicode_are_one_case_id_and_both_at_once_are_refused(tmp_path):
    recipe = layout("{case}_i.nii", "{case}_l.nii")
    touch(
        tmp_path, "a\u0308_i.nii", "a\u0308_l.nii"
    )  # a and a combining diaeresis, as macOS writes it
    assert list(files_of(recipe, tmp_path)) == ["\u00e4"]
    touch(tmp_path, "\u00e4_i.nii", "\u00e4_l.nii")
    (case,) = find_cases(recipe, tmp_path).cases
    assert "two ways of Unicode" in case.fault


def test_a_link_that_leads_back_up_does_not_hold_the_search(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_FLAIR.nii", "derivatives/d/sub-1/anat/sub-1_x_mask.nii")
    (tmp_path / "sub-1" / "loop").symlink_to(tmp_path / "sub-1")
    recipe = load_recipe("bids")
    assert "files fit as its image" in find_cases(recipe, tmp_path).cases[0].fault


# dataset.json.


def write_dataset(folder, content, cases=("c0", "c1"), image="imagesTr/{}_0000.nii.gz"):
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    for number, case in enumerate(cases):
        pixels, label = draw_case(number)
        save(folder / image.format(case), pixels)
        save(folder / f"labelsTr/{case}.nii.gz", (label > 0).astype("uint8") * (1 + number))


VERSION_2 = {
    "channel_names": {"0": "FLAIR", "1": "T1"},
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
VERSION_1 = {
    "modality": {"0": "FLAIR"},
    "labels": {"0": "background", "1": "oedema", "2": "core"},
    "numTraining": 2,
    "training": [
        {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in ("c0", "c1")
    ],
}


@pytest.mark.parametrize("content", [VERSION_2, VERSION_1])
def test_both_versions_of_nnunet_give_labels_channels_and_pairs(tmp_path, content):
    write_dataset(tmp_path / "raw", content)
    recipe = load_recipe("nnunet")
    index = read_index(tmp_path / "raw" / "dataset.json")
    assert known_labels(recipe, index) == (0, 1, 2)
    manifest = pack(recipe, tmp_path / "raw", tmp_path / "out", workers=1)
    assert manifest.modality == "FLAIR"
    assert [case.case_id for case in manifest.cases] == ["c0", "c1"]
    assert manifest.cases[1].tumour_px == (22,)


def test_a_decathlon_task_gives_the_channel_asked_for(tmp_path):
    images = []
    write_dataset(tmp_path / "raw", VERSION_1, image="imagesTr/{}.nii.gz")
    for number, case in enumerate(("c0", "c1")):
        first, second = draw_case(number)[0], draw_case(number + 7)[0]
        images.append((first, second))
        both = first[..., None].repeat(2, axis=3)
        both[..., 1] = second
        save(tmp_path / "raw" / "imagesTr" / f"{case}.nii.gz", both)
    packed = {}
    for channel in (0, 1):
        (tmp_path / "own.toml").write_text(
            f'extends = "msd"\nmodality = "FLAIR"\n[layout]\nchannel = {channel}\n[grid]\nsize_px = [18, 20]\n'
        )
        pack(
            load_recipe(str(tmp_path / "own.toml")),
            tmp_path / "raw",
            tmp_path / f"out{channel}",
            workers=1,
        )
        packed[channel] = read_dataset(tmp_path / f"out{channel}", ["c0"])
    for channel in (0, 1):
        values = images[0][channel][:, :, packed[channel].slice_index[0]].T
        assert (
            (packed[channel].images[0] > 0)
            == (values > images[0][channel][images[0][channel] > 0].min())
        ).all()
    assert (packed[0].images != packed[1].images).any()


def test_a_case_that_dataset_json_lists_must_be_there(tmp_path):
    write_dataset(tmp_path / "raw", VERSION_1)
    for name in ("imagesTr/c1_0000.nii.gz", "labelsTr/c1.nii.gz"):
        (tmp_path / "raw" / name).unlink()
    with pytest.raises(UserError, match=r"c1: dataset.json lists it, but it has no image"):
        pack(load_recipe("nnunet"), tmp_path / "raw", tmp_path / "out", workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numTraining": 5}, "numTraining is 5, 2 images fit"),
        ({"file_ending": ".nrrd"}, "file_ending is '.nrrd'"),
        ({"labels": {"tumour": "many"}}, "make no sense"),
        ({"labels": [0, 1]}, "make no sense"),
    ],
)
def test_a_dataset_json_that_makes_no_sense_is_one_line(tmp_path, change, message):
    write_dataset(tmp_path / "raw", VERSION_2 | change)
    with pytest.raises(UserError, match=message) as caught:
        find_cases(load_recipe("nnunet"), tmp_path / "raw")
    assert "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_known_labels_come_from_the_recipe_first(tmp_path):
    write_dataset(tmp_path / "raw", VERSION_2)
    index = read_index(tmp_path / "raw" / "dataset.json")
    own = tiny_recipe(label=LabelConfig(tumour=(1,), known=(0, 1, 9)))
    assert known_labels(own, index) == (0, 1, 9)
    assert known_labels(tiny_recipe(label=LabelConfig(tumour=(2, 3))), None) == (0, 2, 3)
    assert known_labels(tiny_recipe(label=LabelConfig(tumour="any")), None) == ()


def test_every_recipe_of_the_library_packs_a_folder_in_its_layout(tmp_path):
    """The recipes' patterns are tried on folders as their projects describe them, not on what the recipe says."""
    for name in ("brats2021", "brats2023"):
        image, label = draw_case()
        case, modality, between = (
            ("BraTS2021_00000", "flair", "_")
            if name == "brats2021"
            else ("BraTS-GLI-00000-000", "t2f", "-")
        )
        save(tmp_path / name / case / f"{case}{between}{modality}.nii.gz", image)
        save(tmp_path / name / case / f"{case}{between}seg.nii.gz", (label > 0).astype("uint8"))
        manifest = pack(load_recipe(name), tmp_path / name, tmp_path / f"{name}-out", workers=1)
        assert [entry.case_id for entry in manifest.cases] == [case]


def test_a_huge_tree_beside_the_pattern_is_not_walked(tmp_path, monkeypatch):
    save_cases(tmp_path, 1)
    touch(tmp_path, *(f"other/deep/{number}/x.nii.gz" for number in range(5)))
    listed = []
    monkeypatch.setattr("hvae_hpc.preprocess.read.match_files._list", _recording(listed))
    assert len(find_cases(tiny_recipe(), tmp_path).cases) == 1
    assert not [folder for folder in listed if "deep" in str(folder)]


def _recording(listed):
    from hvae_hpc.preprocess.read import match_files

    list_folder = match_files._list

    def record(folder):
        listed.append(folder)
        return list_folder(folder)

    return record


def test_a_mask_whose_picture_is_missing_goes_to_no_other_picture(tmp_path):
    touch(
        tmp_path,
        "images/a1.png",
        "masks/a1.png",
        "masks/a1_2.png",
        "masks/a10.png",
        "masks/a1b.png",
    )
    cases = {case.case_id: case for case in find_cases(load_recipe("pictures"), tmp_path).cases}
    assert [path.name for path in cases["a1"].labels[0]] == ["a1.png", "a1_2.png"]
    assert cases["a1"].fault == ""
    assert "has no image" in cases["a10"].fault
    assert "has no image" in cases["a1b"].fault


def test_an_ignore_label_is_no_tumour_unless_the_recipe_says_what_is(tmp_path):
    write_dataset(
        tmp_path / "raw", VERSION_2 | {"labels": {"background": 0, "tumour": 1, "ignore": 2}}
    )
    with pytest.raises(UserError, match=r"has an ignore label \(2\), which is no tumour"):
        find_cases(load_recipe("nnunet"), tmp_path / "raw")
    (tmp_path / "own.toml").write_text('extends = "nnunet"\n[label]\ntumour = [1]\n')
    assert len(find_cases(load_recipe(str(tmp_path / "own.toml")), tmp_path / "raw").cases) == 2
