"""A recipe in words says what packing does."""

import pytest

from hvae_hpc.errors import run_command
from hvae_hpc.preprocess.__main__ import main
from hvae_hpc.preprocess.recipes.explain import explain
from hvae_hpc.preprocess.recipes.recipe import LIBRARY, load_recipe

OWN = """
extends = "hecktor2022"
[layout]
channel = 1
patient = '^(P\\d+)'
[label]
tumour = "any"
[grid]
orientation = "RAS"
spacing_mm = 0.5
centre = "image"
interpolation = "bspline"
[intensity]
rule = "percentile"
low = 2.0
high = 100.0
[slices]
choose = "largest"
count = 3
min_px = 40
"""


def test_each_field_is_told_with_its_value_and_unit(tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    text = explain(load_recipe(str(tmp_path / "own.toml")))
    for words in (
        "of each image channel 1 (counted from 0)",
        "one case per patient (^(P\\d+)): of scans the first by name",
        "every value above 0 is tumour (1); values that may occur: whole numbers from 0",
        "columns run to the patient's right, rows to the front, slices to the head",
        "resampled to 0.5 mm along the label's axes: image by bspline interpolation, label by nearest voxel",
        "to 256 x 256 px (rows x columns) around the image's middle",
        "the 2th percentile of all voxels above the background becomes 0, the 100th becomes 1",
        "the slices with the largest tumour area, at most 3, with at least 40 tumour px",
    ):
        assert words in text


@pytest.mark.parametrize("name", sorted(path.stem for path in LIBRARY.glob("*.toml")))
def test_every_recipe_of_the_library_is_told_and_nothing_is_done(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["--explain", name]) == 0
    out = capsys.readouterr().out
    recipe = load_recipe(name)
    assert out.startswith(f"{name}: {recipe.about}\n")
    assert recipe.layout.image.replace("{", "<").replace("}", ">").removesuffix("*") in out
    assert f"{recipe.grid.size_px[0]} x {recipe.grid.size_px[1]} px" in out
    assert not list(tmp_path.iterdir())
