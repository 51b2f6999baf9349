"""Progress figures show what the log says, and no more."""

import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from hvae_hpc.config.stages import TrainConfig
from hvae_hpc.errors import UserError
from hvae_hpc.results.collect import collect
from hvae_hpc.results.figures import write
from hvae_hpc.results.figures.training import draw_progress
from hvae_hpc.results.figures.write import write_figures
from hvae_hpc.runs.folder import LOG, append_log
from hvae_hpc.runs.plan import read_plan
from tests.results.made_up import folder_of, write_sweep


def log_windows(folder: Path, seen: tuple[int, ...], **terms: float) -> None:
    for at in seen:
        append_log(
            folder,
            {"images_seen": at, "lr": 0.1, **{name: value + at for name, value in terms.items()}},
        )


def lines_of(folder: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    figure, _ = draw_progress(folder, "a training")
    return {
        axes.get_title(loc="left"): {
            str(line.get_label()): [tuple(point) for point in line.get_xydata().tolist()]
            for line in axes.lines
        }
        for axes in figure.axes
    }


def test_a_panel_has_the_terms_that_were_logged_and_a_term_that_began_later_begins_later(
    tmp_path: Path,
) -> None:
    log_windows(tmp_path, (1000,), elbo=-50.0, sigma_x=0.1)
    log_windows(tmp_path, (2000,), elbo=-40.0, sigma_x=0.1, elbo_gain=3.0, acceptance=0.9)
    lines = lines_of(tmp_path)
    assert lines["bound, nats per pair"] == {"ELBO": [(1.0, 950.0), (2.0, 1960.0)]}
    assert lines["gain of the flow over K = 0, nats"] == {"same batch": [(2.0, 2003.0)]}
    assert lines["what the flow does"] == {"acceptance": [(2.0, 2000.9)]}
    assert "losses" not in lines


def test_losses_of_an_edm_and_of_an_hvae_gan_are_shown(tmp_path: Path) -> None:
    log_windows(tmp_path, (1000,), denoising=0.0, loss_discriminator=1.0, adversarial=2.0)
    assert set(lines_of(tmp_path)["losses"]) == {"denoising", "discriminator", "adversarial"}


def test_what_was_logged_twice_is_shown_as_logged_last_and_going_back_is_marked(
    tmp_path: Path,
) -> None:
    log_windows(tmp_path, (1000, 2000, 3000), elbo=0.0)
    append_log(tmp_path, {"event": "rolled_back", "images_seen": 1000, "reason": "elbo became nan"})
    log_windows(tmp_path, (2000,), elbo=0.5)
    lines = lines_of(tmp_path)["bound, nats per pair"]
    assert lines.pop("ELBO") == [(1.0, 1000.0), (2.0, 2000.5)]
    assert [points[0][0] for points in lines.values()] == [1.0]  # the mark


def test_an_empty_log_is_said(tmp_path: Path) -> None:
    append_log(tmp_path, {"event": "started"})
    with pytest.raises(UserError, match="logged nothing yet"):
        draw_progress(tmp_path, "a training")


@pytest.mark.parametrize(
    "line",
    [
        '{"images_seen": 1%s, "elbo": 1.0}' % ("0" * 400),
        '{"images_seen": "many", "elbo": 1.0}',
        '{"images_seen": 2000, "elbo": 1%s}' % ("0" * 400),
        '{"event": "rolled_back"}',
        '{"event": "rolled_back", "images_seen": "many"}',
    ],
)
def test_a_line_that_says_no_number_that_can_be_drawn_is_passed_over(
    tmp_path: Path, line: str
) -> None:
    log_windows(tmp_path, (1000,), elbo=0.0)
    with open(tmp_path / LOG, "a") as file:
        file.write(f"{line}\n")
    assert lines_of(tmp_path)["bound, nats per pair"] == {"ELBO": [(1.0, 1000.0)]}


def test_a_training_of_no_image_has_a_figure(tmp_path: Path) -> None:
    log_windows(tmp_path, (0,), elbo=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lines_of(tmp_path)["bound, nats per pair"] == {"ELBO": [(0.0, 0.0)]}


def test_every_done_training_of_a_sweep_has_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HVAE_HPC_FIGURES")
    runs = write_sweep(tmp_path)
    trained = [run for run in runs if isinstance(run.config, TrainConfig)]
    (tmp_path / folder_of(trained[2]) / LOG).unlink()
    plan = read_plan(tmp_path / "plans/small.json")
    paths, remarks = write_figures(plan, collect(plan), [], tmp_path / "out")
    drawn = [path.name for path in paths if path.name.startswith("progress-")]
    assert drawn == [
        f"progress-{run.label}.{ending}" for run in trained[:2] for ending in ("png", "svg")
    ]
    assert all((tmp_path / "out" / name).stat().st_size > 5000 for name in drawn)
    assert (
        f"progress-{trained[2].label}.png is left out: its training has logged nothing yet"
        in remarks
    )


def test_figures_that_are_drawn_anew_are_never_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sweeps that end at once draw them both, and the other one's report shows them."""
    write_sweep(tmp_path)
    plan, out = read_plan(tmp_path / "plans/small.json"), tmp_path / "out"
    paths, _ = write_figures(plan, collect(plan), [], out)
    (out / "progress-brats2021-vae-s0.pdf").touch()  # of a time when it had one
    draw = write.draw_progress
    seen: list[bool] = []

    def look_and_draw(folder: Path, label: str) -> tuple[Figure, list[str]]:
        seen.append(all(path.exists() for path in paths))
        return draw(folder, label)

    monkeypatch.setattr(write, "draw_progress", look_and_draw)
    assert write_figures(plan, collect(plan), [], out)[0] == paths
    assert seen == [True] * 3
    assert sorted(out.iterdir()) == sorted(paths)
