"""Whose files are whose: patterns, dataset.json, patients with several scans."""

import json
from dataclasses import replace

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
    assert "2 files fit as its image" in case.fault


def test_a_link_that_leads_back_up_does_not_hold_the_search(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_FLAIR.nii", "derivatives/d/sub-1/anat/sub-1_tumour_mask.nii")
    for number in range(6):
        (tmp_path / "sub-1" / f"loop{number}").symlink_to(tmp_path / "sub-1")
    (tmp_path / "sub-1" / "up").symlink_to("..")
    recipe = load_recipe("bids")
    (case,) = find_cases(recipe, tmp_path).cases
    assert case.fault == ""  # its files are found once, not once more by each link


def test_a_link_to_itself_is_its_own_case_s_fault_alone(tmp_path):
    touch(tmp_path, "a/i.nii", "a/l.nii", "b/l.nii")
    (tmp_path / "b" / "i.nii").symlink_to("i.nii")
    found = find_cases(layout("{case}/i.nii", "{case}/l.nii"), tmp_path)
    assert [(case.case_id, case.fault) for case in found.cases] == [("a", ""), ("b", "")]


def test_endings_fit_in_upper_and_lower_case(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.PNG", "masks/a.Png", "masks/b.png")
    touch(tmp_path, "nifti/c/c_flair.NII.GZ", "nifti/c/c_seg.Nii", "nifti/D/D_FLAIR.nii")
    assert list(files_of(load_recipe("pictures"), tmp_path)) == ["a", "b"]
    assert list(files_of(load_recipe("brats2021"), tmp_path / "nifti")) == ["c"]


def test_what_fits_nothing_is_counted_and_the_rarest_kind_is_named_first(tmp_path):
    for case in ("P01", "P02", "P03", "P04"):
        touch(tmp_path, *(f"{case}/{case}_{name}.nii.gz" for name in ("flair", "seg", "t1", "t2")))
    touch(tmp_path, "survival.csv", "P03/P03_flair_old.nii.gz", "P04/raw/x.nii.gz")
    (note,) = find_cases(load_recipe("brats2021"), tmp_path).notes
    assert note == ("11 files fit nothing: P03/P03_flair_old.nii.gz, P04/raw/, survival.csv ...")


def test_a_folder_where_everything_fits_has_no_notes(tmp_path):
    save_cases(tmp_path, 2)
    assert find_cases(tiny_recipe(), tmp_path).notes == ()


def test_a_bad_case_names_the_file_that_nearly_fits(tmp_path):
    touch(tmp_path, "images/c6.jpeg", "masks/c6.png", "images/c7.jpg", "masks/c7.png")
    recipe = layout("images/{case}.jpg", "masks/{case}.png")
    bad, good = find_cases(recipe, tmp_path).cases
    assert "no image (images/{case}.jpg; there is images/c6.jpeg); add it" in bad.fault
    (tmp_path / "images/c6.jpeg").rename(tmp_path / "images/c6.jpg")  # as the line hints
    assert [case.fault for case in find_cases(recipe, tmp_path).cases] == ["", good.fault]


def test_a_case_id_that_does_not_fit_patient_is_a_bad_case(tmp_path):
    for scan in ("MEN-0001-1", "MEN-0001-2", "x"):
        touch(tmp_path, f"{scan}/{scan}_i.nii", f"{scan}/{scan}_l.nii")
    recipe = layout("{case}/{case}_i.nii", "{case}/{case}_l.nii", patient=r"(MEN-\d+)-\d")
    first, other = find_cases(recipe, tmp_path).cases
    assert (first.case_id, first.fault) == ("MEN-0001-1", "")
    assert other.fault.startswith("case id does not fit layout.patient ((MEN-")


# BIDS: only masks that say lesion or tumour.


@pytest.mark.parametrize(
    ("mask", "is_taken"),
    [
        ("manual/sub-01/anat/sub-01_label-lesion_mask", True),
        ("manual/sub-01/anat/sub-01_space-T1w_label-L_desc-manual_mask", True),
        ("manual/sub-01/anat/sub-01_desc-wholeTumour_mask", True),
        ("manual/sub-01/anat/sub-01_label-tumor_desc-v2_mask", True),
        ("lesions/sub-01/anat/sub-01_space-orig_mask", True),
        ("lesions/sub-01/anat/sub-01_desc-brain_mask", False),
        ("lesions/sub-01/anat/sub-01_label-GM_mask", False),
        ("manual/sub-01/anat/sub-01_desc-nontumor_mask", False),
        ("manual/sub-01/anat/sub-01_label-periLesion_mask", False),
        ("fmriprep/sub-01/anat/sub-01_desc-brain_mask", False),
        ("fmriprep/sub-01/anat/sub-01_label-CSF_mask", False),
        ("manual/sub-01/anat/sub-01_run-1_mask", False),
    ],
)
def test_of_bids_masks_those_that_say_lesion_or_tumour_are_taken(tmp_path, mask, is_taken):
    touch(tmp_path, "sub-01/anat/sub-01_FLAIR.nii.gz", f"derivatives/{mask}.nii.gz")
    (case,) = find_cases(load_recipe("bids"), tmp_path).cases
    assert (case.fault == "") is is_taken
    if not is_taken:
        assert f"and layout.label_says; there is derivatives/{mask}" in case.fault


# Slices in files of their own.


def test_numbered_slices_are_one_case_in_the_order_of_their_numbers(tmp_path):
    touch(tmp_path, *(f"p1/p1_{n}{end}.tif" for n in (10, 9, 1) for end in ("", "_mask")))
    touch(tmp_path, "p2/p2_3.tif", "p2/p2_3_mask.tif", "p2/p2_4.tif", "p3/p3_x.tif")
    recipe = layout("{case}/{case}_{slice}.tif", "{case}/{case}_{slice}_mask.tif")
    found = find_cases(recipe, tmp_path)
    one, two = found.cases
    assert [path.name for path in one.images] == ["p1_1.tif", "p1_9.tif", "p1_10.tif"]
    assert [paths[0].name for paths in one.labels] == [
        "p1_1_mask.tif",
        "p1_9_mask.tif",
        "p1_10_mask.tif",
    ]
    assert "p2_4.tif has no label" in two.fault
    assert found.notes == ("1 file fits nothing: p3/p3_x.tif",)


def test_several_masks_of_a_numbered_slice_are_all_its_own(tmp_path):
    touch(tmp_path, "p_1.png", "p_10.png", "p_1_mask.png", "p_1_mask_2.png", "p_10_mask.png")
    recipe = layout("{case}_{slice}.png", "{case}_{slice}_mask*.png", several_labels=True)
    (case,) = find_cases(recipe, tmp_path).cases
    assert [[path.name for path in paths] for paths in case.labels] == [
        ["p_1_mask.png", "p_1_mask_2.png"],
        ["p_10_mask.png"],
    ]
    assert list(case.paths) == ["image", "image_2", "label", "label_2", "label_3"]


def test_pictures_of_one_patient_are_one_case(tmp_path):
    for name in ("TCGA_CS_1_2", "TCGA_CS_1_10", "TCGA_DU_2_1"):
        touch(tmp_path, f"{name}.tif", f"{name}_mask.tif")
    recipe = layout("{case}.tif", "{case}_mask.tif", patient=r"(TCGA_\w\w_\d+)_")
    one, two = find_cases(recipe, tmp_path).cases
    assert (one.case_id, two.case_id) == ("TCGA_CS_1", "TCGA_DU_2")
    assert [path.name for path in one.images] == ["TCGA_CS_1_2.tif", "TCGA_CS_1_10.tif"]


def test_pictures_that_look_like_slices_are_refused_and_one_picture_a_name_is_not(tmp_path):
    for name in ("A_1", "A_2", "B_1", "B_2", "C_1", "C_2"):
        touch(tmp_path, f"slices/{name}.png", f"slices/{name}_m.png")
        touch(tmp_path, f"before_a_word/{name}_flair.png", f"before_a_word/{name}_flair_m.png")
        touch(tmp_path, f"lesions/ISIC_{ord(name[0]) * 10 + int(name[2])}.png")
        touch(tmp_path, f"lesions/ISIC_{ord(name[0]) * 10 + int(name[2])}_m.png")
    recipe = layout("{case}.png", "{case}_m.png")
    with pytest.raises(UserError, match=r"^3 names with numbers would be 6 cases: A_1, A_2, B_1 "):
        find_cases(recipe, tmp_path / "slices")
    assert len(find_cases(recipe, tmp_path / "lesions").cases) == 6
    with pytest.raises(UserError, match=r"^3 names with numbers would be 6 cases: A_1_flair, "):
        find_cases(recipe, tmp_path / "before_a_word")
    accepted = replace(recipe, accept=("slices",))
    assert len(find_cases(accepted, tmp_path / "slices").cases) == 6
    # What the line says to do first: one case per name.
    found = find_cases(layout("{case}_{slice}.png", "{case}_{slice}_m.png"), tmp_path / "slices")
    assert ([case.case_id for case in found.cases], found.notes) == (["A", "B", "C"], ())


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


def test_a_pattern_of_many_folders_is_refused():
    layout("**/**/**/**/{case}.nii", "{case}.nii")
    with pytest.raises(ValueError, match=r"expected at most 4 \* in a name, and of \*\*"):
        layout("**/**/**/**/**/{case}.nii", "{case}.nii")


LISTED_2 = {
    "dataset": {
        c: {"images": [f"imagesTr/{c}_0000.nii.gz"], "label": f"labelsTr/{c}.nii.gz"}
        for c in ("c0", "c1")
    }
}


@pytest.mark.parametrize("content", [VERSION_2, VERSION_1, VERSION_2 | LISTED_2])
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
    with pytest.raises(UserError, match=r"c1: the entry in dataset.json has no image"):
        pack(load_recipe("nnunet"), tmp_path / "raw", tmp_path / "out", workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numTraining": 5}, "numTraining is 5, but there are 2 cases"),
        (
            {"dataset": {"c0": {"images": ["imagesTr/c0_0000.nii.gz"], "label": "labels/c0.nii"}}},
            "got imagesTr/c0_0000.nii.gz and labels/c0.nii, expected a pair of imagesTr/",
        ),
        ({"dataset": {"c0": {"images": [], "label": "x"}}}, "got . and x, expected a pair of"),
        ({"dataset": {"c0": {"images": "x"}}}, r"dataset.c0.images: got 'x', expected"),
        ({"file_ending": ".mnc"}, r"file_ending: got '.mnc', which does not suit the recipe"),
        (
            {"labels": {"tumour": "many"}},
            r"labels.tumour\[0\]: got 'many', expected int; write it as",
        ),
        ({"labels": {"tumour": "1"}}, r"labels.tumour\[0\]: got '1', expected int"),
        ({"labels": {"tumour": True}}, r"labels.tumour\[0\]: got True, expected int"),
        ({"channel_names": {"R": 0}}, r"channel_names.R: got 0, expected str"),
        ({"channel_names": "MRI"}, r"channel_names: got 'MRI', expected a table"),
        ({"file_ending": r"\g<9>"}, r"file_ending: got '.*g<9>', which does not suit the recipe"),
        ({"labels": {5000 * "9": "tumour"}}, r"\[0\]: got 'tumour', expected int"),
        ({"file_ending": 7}, r"file_ending: got 7, expected str"),
        ({"file_ending": ".png"}, r"nothing fits 'imagesTr/\{case\}_0000.png'"),
        ({"training": ["./imagesTr/c0.nii.gz"]}, r"training\[0\]: got './imagesTr/c0.nii.gz'"),
        (
            {"training": [{"image": "imagesTr/c0.nii.gz", "label": "labelsTr2/c0.nii.gz"}]},
            r"training: got imagesTr/c0.nii.gz and labelsTr2/c0.nii.gz, expected a pair of imagesTr/",
        ),
        (
            {"training": [{"image": "imagesTr/c1.nii.gz", "label": "labelsTr/c0.nii.gz"}]},
            r"training: got imagesTr/c1.nii.gz and labelsTr/c0.nii.gz, expected a pair of imagesTr/",
        ),
        (
            {"training": [{"image": "imagesTr/c0.nii.gz", "label": "labelsTr/c0.nii.gz"}]},
            r"numTraining is 2, but there are 1 cases",
        ),
        ({"labels": [0, 1]}, r"labels: got \[0, 1\], expected"),
    ],
)
def test_a_dataset_json_that_makes_no_sense_is_one_line(tmp_path, change, message):
    write_dataset(tmp_path / "raw", VERSION_2 | change)
    with pytest.raises(UserError, match=message) as caught:
        find_cases(load_recipe("nnunet"), tmp_path / "raw")
    assert "dataset.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_case_that_dataset_json_does_not_list_is_a_bad_case(tmp_path):
    write_dataset(tmp_path / "raw", VERSION_1, cases=("c0", "c1", "c2"))
    assert [case.fault for case in find_cases(load_recipe("nnunet"), tmp_path / "raw").cases] == [
        "",
        "",
        f"{tmp_path}/raw/imagesTr/c2_0000.nii.gz is not in dataset.json's training; "
        "add it, or remove its files",
    ]


def test_the_file_ending_of_dataset_json_is_followed(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png", "imagesTr/b_0000.nii.gz")
    content = {**VERSION_2, "file_ending": ".png", "numTraining": 1}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = find_cases(load_recipe("nnunet"), tmp_path)
    assert [case.case_id for case in found.cases] == ["a"]
    assert found.recipe.layout.planar
    assert found.notes == ("1 file fits nothing: imagesTr/b_0000.nii.gz",)


def test_the_modality_is_the_name_of_the_channel_in_the_pattern(tmp_path):
    write_dataset(tmp_path / "raw", VERSION_2, image="imagesTr/{}_0001.nii.gz")
    own = tmp_path / "own.toml"
    own.write_text('extends = "nnunet"\n[layout]\nimage = "imagesTr/{case}_0001.nii*"\n')
    assert pack(load_recipe(str(own)), tmp_path / "raw", tmp_path / "out", 1).modality == "T1"
    write_dataset(tmp_path / "raw", VERSION_2 | {"channel_names": {"0": "FLAIR"}})
    with pytest.raises(UserError, match=r"names no channel 1 \(0\); say the recipe's modality"):
        pack(load_recipe(str(own)), tmp_path / "raw", tmp_path / "out", 1)


def test_known_labels_come_from_the_recipe_first(tmp_path):
    write_dataset(tmp_path / "raw", VERSION_2)
    index = read_index(tmp_path / "raw" / "dataset.json")
    own = tiny_recipe(label=LabelConfig(tumour=(1,), known=(0, 1, 9)))
    assert known_labels(own, index) == (0, 1, 9)
    assert known_labels(tiny_recipe(label=LabelConfig(tumour=(2, 3))), None) == (0, 2, 3)
    assert known_labels(tiny_recipe(label=LabelConfig(tumour="any")), None) == ()


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

    def record(folder, **options):
        listed.append(folder)
        return list_folder(folder, **options)

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
    with pytest.raises(UserError, match=r"has an ignore label, which is no tumour"):
        find_cases(load_recipe("nnunet"), tmp_path / "raw")
    (tmp_path / "own.toml").write_text('extends = "nnunet"\n[label]\ntumour = [1]\n')
    assert len(find_cases(load_recipe(str(tmp_path / "own.toml")), tmp_path / "raw").cases) == 2
