"""Recipes: what a data set is."""

import dataclasses
import re
import textwrap
import typing

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.recipes.recipe import LIBRARY, Recipe, load_recipe
from tests import ROOT


@pytest.mark.parametrize("name", sorted(path.stem for path in LIBRARY.glob("*.toml")))
def test_every_recipe_of_the_library_loads_under_its_own_name(name):
    assert load_recipe(name).name == name


def test_a_recipe_of_ones_own_changes_what_it_says_and_keeps_the_rest(tmp_path):
    path = tmp_path / "primary.toml"
    path.write_text('extends = "hecktor2022"\nname = "primary"\n[label]\ntumour = [1]\n')
    recipe, parent = load_recipe(str(path)), load_recipe("hecktor2022")
    assert recipe.label.tumour == (1,)
    assert recipe.label.known == parent.label.known
    assert recipe.grid == parent.grid
    assert recipe.about == ""


def test_any_tumour_takes_no_known_values_from_another_recipe(tmp_path):
    path = tmp_path / "ours.toml"
    for more, known in (("", ()), ("known = [0, 255]\n", (0, 255))):
        path.write_text(f'extends = "brats2021"\n[label]\ntumour = "any"\n{more}')
        assert load_recipe(str(path)).label.known == known


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nspacings = 1.0", "unknown key 'spacings'; did you mean 'spacing'"),
        ('[grid]\norientation = "LPX"', "orientation is 'LPX'"),
        ('[grid]\norientation = "LRS"', "orientation is 'LRS'"),
        ("[grid]\nsize_px = [240]", r"size_px is \(240,\), expected \[rows, columns\]"),
        ("[grid]\nspacing_mm = -1.0", "spacing_mm is -1.0"),
        ('[grid]\ncentre = "brain"', r"grid.centre: got 'brain', expected image \| tumour"),
        ("[label]\ntumour = [1, 3]", r"known is \(0, 1, 2, 4\), expected 0 and all of tumour"),
        ("[label]\ntumour = [0, 1]", "all above 0"),
        ('[layout]\nimage = "flair.nii.gz"', "expected a path below the raw folder with {case}"),
        ('[layout]\nimage = "../{case}.nii.gz"', "expected a path below the raw folder"),
        ('[layout]\nlabel = "{case}.mgz"', "expected an ending of .nii, .nii.gz, .nii\\*, .mha"),
        ("[intensity]\nhigh = 101.0", "and percentiles from 0 to 100"),
        ("[intensity]\nlow = 99.9", "expected low < high"),
        ("[slices]\ncount = 0", "expected 1 or more"),
        ("[slices]\nmin_px = 0", "and min_px 0"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line_with_file_and_field(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "brats2021"\n{text}\n')
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    names = ", ".join(sorted(path.stem for path in LIBRARY.glob("*.toml")))
    with pytest.raises(UserError, match=f"'brats' is not one of {names}"):
        load_recipe("brats")


# The page about them.

PAGE = (ROOT / "docs" / "RECIPES.md").read_text()


def field_names(cls, prefix=""):
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from field_names(hints[field.name], f"{field.name}.")
        else:
            yield prefix + field.name


def test_the_page_tells_every_field_and_no_other():
    rows = [
        line.split("|")[1]
        for line in PAGE.split("## All fields")[1].split("\n\n")[1].splitlines()[2:]
    ]
    told = set()
    for row in rows:
        names = re.findall(r"`([^`]+)`", row)
        told |= {names[0].split(".")[0] + name if name.startswith(".") else name for name in names}
    assert told == {*field_names(Recipe), "extends"}


def test_the_page_names_every_recipe_of_the_library_and_its_labels():
    table = PAGE.split("## Recipes in the library")[1].split("##")[0]
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    assert set(rows) == {path.stem for path in LIBRARY.glob("*.toml")}
    for name, row in rows.items():
        label = load_recipe(name).label
        above = f"{label.threshold:g} and more" if label.threshold else "any above 0"
        values = above if label.tumour == "any" else ", ".join(map(str, label.tumour))
        assert row.endswith(f"| {values} |")


def test_the_recipe_on_the_page_loads(tmp_path):
    block = PAGE.split("## A recipe of your own")[1].split("Some data sets keep")[0]
    (tmp_path / "own.toml").write_text(textwrap.dedent(block))
    recipe = load_recipe(str(tmp_path / "own.toml"))
    assert (recipe.label.tumour, recipe.intensity.low, recipe.slices.count) == ((2,), -100.0, 3)
    assert recipe.layout == load_recipe("nnunet").layout


@pytest.mark.parametrize(
    ("base", "text", "message"),
    [
        ("brats2021", '[layout]\nlabel = "{case}.png"', "expected both volumes or both 2D"),
        ("brats2021", '[layout]\nimage = "{case}.dcm"', "convert DICOM with dcm2niix"),
        ("brats2021", "[layout]\nchannel = -1", "channel is -1"),
        ("brats2021", "[layout]\npatient = '('", "is no regular expression"),
        ("brats2021", "[layout]\npatient = 'P.*'", "expected a group in round brackets"),
        ("brats2021", "[layout]\npatient = '((a|a)+)$'", "may search for ever, expected at most 4"),
        ("bids", "[layout]\nlabel_says = '.*a.*a.*a.*a.*b'", "may search for ever"),
        (
            "brats2021",
            f"[layout]\nimage = '{{case}}{'*a' * 25}.nii'",
            "expected at most 4 * in a name",
        ),
        ("brats2021", '[grid]\nfit = "scale"', "is for 2D files"),
        ("brats2021", 'modality = ""', "modality is empty"),
        ("brats2021", '[label]\ntumour = "some"', "label.tumour: got 'some'"),
        ("hecktor2022", '[grid]\nspacing = "unknown"', "with a spacing that is known"),
        ("pictures", '[layout]\nlabel = "masks/{case}*.jpg"', "JPEG, which blurs label values"),
        ("pictures", "[label]\nthreshold = 0.0", "expected a value above 0"),
        (
            "brats2021",
            "[label]\nthreshold = 0.5",
            'threshold is 0.5, expected a value above 0, and tumour = "any"',
        ),
        ("pictures", "[label]\nchannel = 4", "label.channel is 4, expected 0 to 3"),
        ("pictures", "[layout]\nchannel = 3", "channel is 3"),
        ("pictures", '[grid]\ncentre = "tumour"', "which it keeps whole, with centre"),
        ("pictures", '[grid]\nspacing_mm = 1.0\nspacing = "header"', "2D files cannot be"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(tmp_path, base, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "{base}"\n{text}\n')
    with pytest.raises(UserError, match=re.escape(message)):
        load_recipe(str(path))
