"""All figures: which files there are, that they are pictures, and the same ones from the same runs."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import collect
from hvae_hpc.results.figures import write as figures
from hvae_hpc.results.figures.write import DPI, write_figures
from hvae_hpc.results.scores import score_arms
from hvae_hpc.runs.plan import read_plan
from tests.results.made_up import SMALL_ARMS, write_samples, write_sweep

PX = 32
EVIL = "<img src=x>&$\\alpha$"


def write_all(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    plan = read_plan(folder / "plans/small.json")
    collected = collect(plan)
    return write_figures(plan, collected, score_arms(plan, collected), out)


pytestmark = pytest.mark.usefixtures("all_formats")


@pytest.fixture(scope="module")
def written(
    all_formats: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path], list[str]]:
    """A folder of done runs, the figures of it, and what was said of them."""
    folder = tmp_path_factory.mktemp("runs")
    write_samples(folder, write_sweep(folder, data=("hecktor2022",), seeds=2), PX)
    return folder, *write_all(folder, folder / "out")


def test_every_figure_is_written_whole_in_each_of_its_formats(
    written: tuple[Path, list[Path], list[str]],
) -> None:
    folder, paths, remarks = written
    assert remarks == []
    endings = {name: ("png", "svg", "pdf") for name in ("dice", "per-case", "cost")}
    endings = {"figure2": ("png", "pdf"), **endings, "cases": ("png", "pdf")}
    names = [
        f"{kind}-hecktor2022.{ending}" for kind, of_kind in endings.items() for ending in of_kind
    ]
    trained = [f"progress-hecktor2022-{name}-s0" for name in ("vae", "hvae", "lsgan")]
    assert [path.name for path in paths] == [
        *names,
        *(f"{name}.{e}" for name in trained for e in ("png", "svg")),
    ]
    assert sorted((folder / "out").iterdir()) == sorted(paths)  # no temporary file is left
    for path in paths:
        if path.suffix == ".png":
            image = matplotlib.image.imread(path)
            assert min(image.shape[:2]) > 2 * DPI
            assert image[..., :3].std() > 0.05
        elif path.suffix == ".svg":
            assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert path.read_bytes().startswith(b"%PDF-")
            assert path.read_bytes().rstrip().endswith(b"%%EOF")


def test_the_same_runs_give_the_same_bytes_in_every_format(
    written: tuple[Path, list[Path], list[str]],
) -> None:
    folder, first, _ = written
    second, _ = write_all(folder, folder / "again")
    assert {path.suffix for path in first} == {".png", ".svg", ".pdf"}
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_formats_that_are_not_asked_for_are_not_there(
    written: tuple[Path, list[Path], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = figures._list_figures
    monkeypatch.setattr(
        figures, "_list_figures", lambda *given: dict([list(wanted(*given).items())[-1]])
    )
    assert [path.suffix for path in write_all(written[0], tmp_path)[0]] == [".png", ".svg"]
    monkeypatch.setenv("HVAE_HPC_FIGURES", "pdf")
    assert [path.suffix for path in write_all(written[0], tmp_path)[0]] == [
        ".png"
    ]  # which the report shows
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]
    monkeypatch.setenv("HVAE_HPC_FIGURES", "png, gif")
    with pytest.raises(
        UserError, match=r"HVAE_HPC_FIGURES has 'gif', expected some of png, svg, pdf"
    ):
        write_all(written[0], tmp_path)


def test_letters_of_an_svg_are_letters_and_no_name_is_markup_or_a_formula(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=(*SMALL_ARMS[:3], ArmConfig(name=EVIL, n_copies=3)), seeds=1)
    paths, _ = write_all(tmp_path, tmp_path / "out")
    (cost,) = [path for path in paths if path.name == "cost-brats2021.svg"]
    texts = [
        "".join(element.itertext())
        for element in ET.parse(cost).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert EVIL in texts
    assert "Reference" in texts


def test_what_has_no_data_is_a_line_and_not_an_empty_picture(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=SMALL_ARMS[:2])
    paths, remarks = write_all(tmp_path, tmp_path / "out")
    assert {path.stem for path in paths} == {"per-case-brats2021", "cost-brats2021"}
    figure2, dice, cases = remarks
    assert figure2 == "figure2-brats2021.png is left out: the sweep has no generator for it"
    assert (
        dice
        == "dice-brats2021.png is left out: no arm that adds nothing but a number of synthetic pairs is done yet"
    )
    assert cases.startswith("cases-brats2021.png is left out: segment/brats2021-reference-s0-")


def test_arms_that_a_figure_does_not_show_are_named(tmp_path: Path) -> None:
    hvae: dict[str, Any] = {"generator": "hvae", "n_synthetic": 300}
    others = (
        ArmConfig(name="copies-x5", n_copies=80),
        ArmConfig(name="hvae-shuffled+300", shuffled=True, **hvae),
        ArmConfig(name="standard-x5+hvae+300", n_standard=80, **hvae),
        ArmConfig(name="hvae+300@epochs", **hvae),
        ArmConfig(name="reference@epochs"),
    )
    write_sweep(tmp_path, arms=(*SMALL_ARMS, *others), seeds=1)
    _, remarks = write_all(tmp_path, tmp_path / "out")
    lines = dict(remark.split(": not drawn: ") for remark in remarks if ": not drawn: " in remark)
    assert list(lines) == ["dice-brats2021.png"]
    named = set(lines["dice-brats2021.png"].split(", "))
    assert {arm.name for arm in others} == named
