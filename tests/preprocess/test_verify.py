"""A packed folder held against its manifest and its sources; its summary; its contact sheets."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hvae_hpc.config.loader import read_json
from hvae_hpc.errors import UserError, run_command
from hvae_hpc.preprocess.__main__ import main
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.recipes.recipe import GridConfig, SlicesConfig
from hvae_hpc.preprocess.summary import SUMMARY, to_text
from hvae_hpc.preprocess.verify import verify
from hvae_hpc.results.figures.contact_sheet import write_contact_sheets
from tests.preprocess.scans import draw_case, save, save_cases, tiny_recipe


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 2)
    save_cases(tmp_path / "raw", 5)
    pack(tiny_recipe(), tmp_path / "raw", tmp_path / "out", workers=1)
    return tmp_path / "out"


def test_a_sound_folder_is_told_so_with_and_without_its_sources(packed, tmp_path, capsys):
    assert run_command(main, ["--verify", str(packed)]) == 0
    assert "3 shards, 5 cases, 5 pairs: all as in the manifest" in capsys.readouterr().out
    assert run_command(main, ["--verify", str(packed), "--raw", str(tmp_path / "raw")]) == 0
    assert "the files of all 5 cases are those that were packed" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [1, 2])
def test_every_bad_shard_is_named(packed, workers):
    first, second, third = sorted(packed.glob("*.h5"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(UserError, match="2 of 3 shards are bad") as caught:
        verify(packed, None, workers, print)
    text = str(caught.value)
    assert first.name in text
    assert second.name in text
    assert third.name not in text


def test_changed_and_missing_sources_are_named_by_case(packed, tmp_path):
    raw = tmp_path / "raw"
    save(raw / "case1" / "case1_flair.nii.gz", draw_case(50)[0])
    shutil.rmtree(raw / "case3")
    with pytest.raises(UserError, match="2 cases differ from what was packed") as caught:
        verify(packed, raw, 1, print)
    lines = str(caught.value).splitlines()[1:]
    assert "case1: " in lines[0]
    assert "case1_flair.nii.gz changed" in lines[0]
    assert "case3: has no files" in lines[1]


def test_the_command_takes_a_recipe_or_a_folder_to_verify(packed, capsys):
    assert run_command(main, ["brats2021", "--verify", str(packed)]) == 2
    assert "takes no recipe" in capsys.readouterr().err
    assert run_command(main, []) == 2
    assert "no recipe; give one of " in capsys.readouterr().err
    assert run_command(main, ["brats2021", "--local", "--account", "a", "--time", "3"]) == 2
    assert "--account, --time: for SLURM; add --partition P, or" in capsys.readouterr().err


# The summary.


def test_the_summary_counts_what_is_there(tmp_path):
    raw = tmp_path / "raw"
    save_cases(raw, 4)
    image, label = draw_case(9)
    save(
        raw / "case8" / "case8_flair.nii.gz", image * 3, np.diag([-2.0, 0.5, 3.0, 1.0])
    )  # LAS, in the file
    save(raw / "case8" / "case8_seg.nii.gz", label, np.diag([-2.0, 0.5, 3.0, 1.0]))
    (raw / "case2" / "case2_seg.nii.gz").unlink()
    save(raw / "case3" / "case3_seg.nii.gz", label * 0)
    recipe = tiny_recipe(
        grid=GridConfig(size_px=(16, 6), centre="image"), slices=SlicesConfig(choose="all")
    )
    pack(recipe, raw, tmp_path / "out", workers=1, skip_bad=True)
    summary = read_json(tmp_path / "out" / "summary.json")
    assert (summary["found"], summary["labelled"], summary["packed"], len(summary["skipped"])) == (
        5,
        4,
        3,
        2,
    )
    assert summary["pairs"] == 9
    assert summary["pairs_per_case"] == {"3": 3}
    assert summary["orientations"] == {"LPS": 2, "LAS": 1}
    assert summary["spacings"] == {"1 x 1 x 1 mm": 2, "2 x 0.5 x 3 mm": 1}
    assert summary["shapes"] == {"20 x 18 x 6": 3}
    # Of columns 6 to 11 of the tumour a crop of 6 in 20 columns keeps those from 7 to 12.
    areas = (3 * 4, 3 * 4 + 5, 3 * 4)
    assert summary["tumour_px"]["greatest"] == max(areas)
    assert summary["tumour_mm2"] is not None
    assert summary["tumour_mm2"]["greatest"] == max(areas)
    assert summary["tumour_mm2"]["least"] == min(areas)
    assert summary["cut"] == {case: 4 + 4 + 5 for case in ("case0", "case1", "case8")}
    assert summary["highest"]["greatest"] == image.max() * 3
    text = to_text(tmp_path / "out")
    assert "5 found, 4 with image and label, 3 packed, 2 skipped" in text
    assert "skipped case2: " in text
    assert "cut by the crop: 3 cases (case0 13 px" in text
    assert "LPS (2), LAS (1)" in text


def test_an_unknown_spacing_is_unknown_everywhere(tmp_path):
    save_cases(tmp_path / "raw", 2)
    recipe = tiny_recipe(grid=GridConfig(size_px=(16, 16), centre="image", spacing="unknown"))
    manifest = pack(recipe, tmp_path / "raw", tmp_path / "out", workers=1)
    assert manifest.cases[0].spacing_mm == ()
    summary = read_json(tmp_path / "out" / SUMMARY)
    assert summary["tumour_mm2"] is None
    assert summary["spacings"] == {"spacing unknown": 2}
    assert "(spacing unknown)" in to_text(tmp_path / "out")


# The contact sheets.


def test_the_sheet_shows_each_pair_with_its_outline(packed, tmp_path):
    images = np.zeros((3, 40, 40))
    images[:, 10:20, 10:20] = 0.5
    masks = np.zeros((3, 40, 40), np.uint8)
    masks[1, 25:35, 25:35] = 1
    (path,) = write_contact_sheets(
        tmp_path,
        ["a", "b", "c"],
        lambda rows: SimpleNamespace(images=images[rows], masks=masks[rows]),
    )
    assert path.name == "contact.png"
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    yellow = (pixels[..., 0] > 180) & (pixels[..., 1] > 180) & (pixels[..., 2] < 120)
    columns = np.flatnonzero(yellow.any(axis=0))
    width = pixels.shape[1]
    assert yellow.sum() > 50
    assert (
        width / 3 < columns.min() < columns.max() < 2 * width / 3
    )  # the second of three alone has a tumour
    assert packed.exists()


@pytest.mark.usefixtures("no_slurm")
def test_the_command_draws_the_sheet_unless_none_is_asked_for(tmp_path, capsys):
    save_cases(tmp_path / "raw", 3)
    argv = [
        "brats2021",
        "--raw",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    assert run_command(main, argv) == 0
    sheet = tmp_path / "out" / "contact.png"
    assert f"look at:     {sheet}" in capsys.readouterr().out
    assert Image.open(sheet).width > 300
    assert run_command(main, [*argv, "--sheet", "0"]) == 0
    assert not sheet.exists()


@pytest.fixture
def no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")


def test_pages_spread_over_all_pairs_and_old_pages_go(tmp_path):
    shown = []

    def read(rows):
        shown.append(list(rows))
        images = np.random.default_rng(0).random((len(rows), 8, 8))
        return SimpleNamespace(images=images, masks=np.zeros((len(rows), 8, 8)))

    titles = [f"case {number}" for number in range(100)]
    assert [path.name for path in write_contact_sheets(tmp_path, titles, read, 60)] == [
        "contact-1.png",
        "contact-2.png",
    ]
    rows = [row for page in shown for row in page]
    assert (len(rows), rows[0], rows[-1]) == (60, 0, 99)
    assert len(set(rows)) == 60
    assert [path.name for path in write_contact_sheets(tmp_path, titles, read, 5)] == [
        "contact.png"
    ]
    assert [path.name for path in sorted(tmp_path.glob("contact*"))] == ["contact.png"]
    assert write_contact_sheets(tmp_path, titles, read, 0) == []
    assert not list(tmp_path.glob("contact*"))
