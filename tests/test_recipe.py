"""Recipes: what a data set is."""

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.recipe import LIBRARY, load_recipe


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
        ('[layout]\nlabel = "{case}.mha"', "expected an ending of .nii, .nii.gz, .nii\\*, .png"),
        ("[intensity]\nhigh = 101.0", "expected percentiles from 0 to 100"),
        ("[intensity]\nlow = 99.9", "expected low < high"),
        ("[slices]\ncount = 0", "expected 1 or more slices"),
        ("[slices]\nmin_px = 0", "min_px is 0"),
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
    with pytest.raises(
        UserError, match="'brats' is not one of bids, brats2021, brats2023, hecktor2022, msd, nnunet, pictures"
    ):
        load_recipe("brats")
