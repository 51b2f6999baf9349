"""The sweep's command line: what it says to people, above all when something is wrong."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import hvae_hpc
from hvae_hpc import cli, sweep
from hvae_hpc.errors import run_command
from hvae_hpc.jobs.sweeps.config import SweepConfig
from tests.tiny import make_data_set, make_project


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    return run_command(sweep.main, arguments)


def assert_refused(message: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Make sure that one line said it, and that nothing was made."""
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing"],
            "'nothing' is not one of ablation, beyond, curve, demo, samplers, table1, table1-literal; the path",
        ),
        (["tabel1"], "table1-literal; did you mean 'table1'?"),
        (["tiny"], "'tiny' is a data set, and no sweep; give --data tiny"),
        (
            ["--data", "tiny", "table1"],
            "--data takes 'table1' too, which is a sweep; give it before",
        ),
        (["--data", "tiny", "sweep.toml"], "--data takes 'sweep.toml' too, which is a sweep"),
        (["--data", "../shards/tiny"], "--data is '../shards/tiny', expected NAME or NAME=DIR"),
        (["--data", "a b=shards/tiny"], "--data and sweep.toml: 'a b' cannot be a name"),
        (["--time", "3", "--nice", "4"], "--time, --nice: for SLURM; add --partition P, or leave"),
        (["--retries", "2", "--after", "4711"], "--retries, --after: for SLURM; add --partition"),
        (["none.toml"], "none.toml: cannot be read"),
        (
            ["--data", "tiny3=x", "--plan"],
            "data set tiny3: no manifest.json in x; pack yours with: python -m hvae_hpc.preprocess"
            " tiny3.toml --out x --local --raw DIR; or take what is packed: --data tiny tiny2",
        ),
        (["--data", "tiny", "tiny=x"], "data is ('tiny', 'tiny'), expected each once"),
        (
            ["--data", "tiny=nowhere", "--plan"],
            "data set tiny: no manifest.json in nowhere; pack yours with",
        ),
        (["--workers", "0"], "--workers is 0, expected 1 or more"),
        (["--site", "none.toml", "--plan"], "none.toml: cannot be read"),
        (
            ["table1", "--plan"],
            "python -m hvae_hpc.preprocess brats2021 --out shards/brats2021 --local --raw DIR",
        ),
    ],
)
def test_a_wrong_call_gets_one_clear_line_and_makes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_project(tmp_path)
    assert call(monkeypatch, tmp_path, "--local", *arguments) == 2
    assert_refused(message, tmp_path, capsys)


def test_an_unknown_key_names_the_nearest_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    with open(tmp_path / "sweep.toml", "a") as file:
        file.write("\n[splitt]\ntrain = 3\n")
    assert call(monkeypatch, tmp_path, "--local") == 2
    assert "sweep.toml: unknown key 'splitt'; did you mean 'split'?" in capsys.readouterr().err


def test_sweep_toml_of_the_working_folder_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    assert call(monkeypatch, tmp_path, "--plan") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("sweep tiny from sweep.toml")
    assert said[-1].startswith("nothing was done (--plan); --partition P shows the cost")


def test_where_sbatch_is_the_command_asks_where_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    assert call(monkeypatch, tmp_path) == 2
    assert "give --partition P to submit, or --local to run here" in capsys.readouterr().err
    assert call(monkeypatch, tmp_path, "--plan", "--data", "new") == 2
    assert "new.toml --out shards/new --partition P --raw DIR" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_help_fits_a_screen_and_shows_an_example() -> None:
    for module in ("hvae_hpc.sweep", "hvae_hpc.preprocess", "hvae_hpc.results"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True,
            env={**os.environ, "COLUMNS": "100"},
        )  # fmt: skip
        lines = done.stdout.splitlines()
        assert len(lines) <= 50, module
        assert max(map(len, lines)) <= 100
        assert "example" in done.stdout
        about = "  samplers       Table 1 with every way of drawing latent variables\n"
        assert (about in done.stdout) == (module == "hvae_hpc.sweep")
        assert f"python -m {module}" in done.stdout


def test_the_console_script_knows_its_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hvae-hpc", "stats"])
    assert cli.main() == 2
    assert (
        "unknown command 'stats'; expected one of preprocess, sweep, results, export, status, why, logs, cancel, throttle"
        in capsys.readouterr().err
    )
    module = [sys.executable, "-m", "hvae_hpc", "--version"]
    assert subprocess.check_output(module, text=True) == f"hvae_hpc {hvae_hpc.__version__}\n"
    monkeypatch.setattr(sys, "argv", ["hvae-hpc", "status", "/nowhere"])
    assert cli.main() == 2
    assert "/nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "tiny"', 'name = "../out"'), "'../out' cannot be a name"),
        (('data = ["tiny", "tiny2"]', "data = []"), "data is (), expected one or more names"),
        (('data = ["tiny", "tiny2"]', 'data = ["tiny", "tiny"]'), "expected each once"),
        (("image_px = 0", "image_px = -8"), "image_px is -8"),
        (("doses = [4, 8]", "doses = [4, 4]"), "doses is (4, 4), expected each once"),
        (
            ("[generators.vae]", "[generators.real]"),
            "no generator or augmentation can be called 'real'",
        ),
        (
            ("n_leapfrog = 2,", "n_leapfrog = 2, adversarial_weight = 0.1,"),
            "call it hvae-gan",
        ),
        (
            (
                "[generators.hvae]\nmodel = {",
                "[generators.hvae-gan]\nmodel = {perceptual_weight = 0.1, adversarial_from = 0.99, ",
            ),
            "adversarial_from is 0.99, expected at most 0.975, where the last step begins; for a VAE "
            "give n_leapfrog = 0, for a bound adversarial_weight = 0 and perceptual_weight = 0",
        ),
        (("[quality]", "[quality]\nseed = 3"), "quality.seed follows from the rest of the sweep"),
        (
            ("[generate]", "[generate]\nsplit = {train = 3}"),
            "generate.split follows from the rest of the sweep",
        ),
        (("n_pairs = 8", 'n_pairs = "x"'), "generate.n_pairs: got 'x', expected int"),
        (("draws = 3", "draws = 0"), "draws is 0, expected more than 0"),
        (("nearest = 2", 'nearest = "x"'), "quality.nearest: got 'x', expected int"),
        (
            ("doses = [4, 8]", 'doses = []\narms = ["hvae-twice+4"]'),
            "arm 'hvae-twice+4': 'hvae-twice': expected reference alone",
        ),
        (
            ("batch_size = 4, lr = 1e-2, precision", "batch_size = 0, lr = 1e-2, precision"),
            "batch_size: got 0",
        ),
        (("lr = 1e-2", "lr = inf"), "got inf, expected a finite number"),
        (("lr = 1e-3", "clip_norm = -1.0"), "clip_norm is -1.0, expected 0 or more"),
        (("lr = 1e-3", "beta_2 = 3.0"), "beta_2 is 3.0, expected a number in [0, 1)"),
        (
            ("discriminator_channels = [4, 8]", "discriminator_channels = []"),
            "expected one positive number per level",
        ),
        (
            ("epochs = 10", "epochs = 10\nthreshold = 5.0"),
            "threshold is 5.0, expected a probability",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused_before_anything_runs(
    change: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_project(tmp_path)
    text = (tmp_path / "sweep.toml").read_text()
    assert change[0] in text
    (tmp_path / "sweep.toml").write_text(text.replace(*change, 1))
    assert call(monkeypatch, tmp_path, "--local") == 2
    assert_refused(message, tmp_path, capsys)


def test_every_data_option_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    (tmp_path / "shards" / "tiny").rename(tmp_path / "one")
    (tmp_path / "shards" / "tiny2").rename(tmp_path / "two")
    assert call(monkeypatch, tmp_path, "--plan", "--data", "tiny=one", "--data", "tiny2=two") == 0
    out = capsys.readouterr().out
    assert f"data tiny: {tmp_path}/one" in out
    assert f"data tiny2: {tmp_path}/two" in out


def test_a_sweep_that_makes_its_own_phantoms_says_so_in_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, tmp_path, "demo", "--plan") == 2
    assert "this sweep makes phantoms of it first" in capsys.readouterr().err


def test_data_takes_these_data_sets_alone_and_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    assert call(monkeypatch, tmp_path, "--plan") == 0
    both = capsys.readouterr().out
    assert call(monkeypatch, tmp_path, "--plan", "--data", "tiny2") == 0
    one = capsys.readouterr().out
    assert "data tiny2: " in one
    assert "data tiny: " not in one
    monkeypatch.setattr(sweep, "_run_here", lambda *_: 0)
    assert call(monkeypatch, tmp_path, "--local") == 0
    assert "goes without" not in capsys.readouterr().out
    assert call(monkeypatch, tmp_path, "--plan", "--data", "tiny2") == 0
    assert "goes without data tiny, which it had; name it too" in capsys.readouterr().out
    assert "segment       36 runs" in both
    assert "segment       18 runs" in one

    (tmp_path / "shards" / "tiny").rename(tmp_path / "one of mine")
    assert call(monkeypatch, tmp_path, "--plan", "--data", "ours=one of mine") == 0
    assert f"data ours: {tmp_path}/one of mine" in capsys.readouterr().out


def test_a_file_without_a_name_changes_the_experiment_of_the_paper(tmp_path: Path) -> None:
    folder = tmp_path / "our first try!"
    folder.mkdir()
    for name in ("sweep.toml", "doses.toml"):
        (folder / name).write_text('data = ["ours"]\n')
    paper, ours = (sweep.read_sweep(name) for name in ("table1", str(folder / "sweep.toml")))
    assert ours == replace(paper, data=("ours",), name="our-first-try", about="")
    assert sweep.read_sweep(str(folder / "doses.toml")).name == "doses"

    # A file with a name stands for itself, as ever.
    (folder / "sweep.toml").write_text('name = "own"\ndata = ["ours"]\n')
    assert sweep.read_sweep(str(folder / "sweep.toml")) == SweepConfig(name="own", data=("ours",))


def test_a_split_that_is_too_large_is_answered_by_one_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data_set(tmp_path / "shards", "ours", n=20, side=16)
    (tmp_path / "sweep.toml").write_text('data = ["ours"]\n')
    assert call(monkeypatch, tmp_path, "--plan") == 2
    offered = "split = {train = 10, test = 10}"
    message = "has 20 cases, the split asks for 200 (100 to train, 100 to test); pack more"
    assert_refused(f"{message} cases, or give {offered} in the sweep file", tmp_path, capsys)
    with open(tmp_path / "sweep.toml", "a") as file:
        file.write(f"{offered}\n")
    assert call(monkeypatch, tmp_path, "--plan") == 0

    # What the library's sweeps say is followed as well.
    assert call(monkeypatch, tmp_path, "beyond", "--data", "ours", "--plan") == 2
    assert 'in the sweep file (a sweep.toml with extends = "beyond")' in capsys.readouterr().err
    (tmp_path / "sweep.toml").write_text(f'extends = "beyond"\n{offered}\n')
    assert call(monkeypatch, tmp_path, "--data", "ours", "--plan") == 0


@pytest.mark.parametrize(
    ("n", "remedy"),
    [
        (12, "pack more cases, 14 at least, and give split = {train = 7, test = 7}"),
        (14, "pack more cases, or give split = {train = 7, test = 7}"),
    ],
)
def test_the_smallest_split_that_is_offered_can_be_planned(
    n: int,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_data_set(tmp_path / "shards", "ours", n=n, side=16)
    assert call(monkeypatch, tmp_path, "beyond", "--data", "ours", "--plan") == 2
    assert_refused(remedy, tmp_path, capsys)
    make_data_set(tmp_path / "shards", "ours", n=14, side=16)
    (tmp_path / "sweep.toml").write_text(
        'extends = "beyond"\nsplit = {train = 7, test = 7}\nimage_px = 16\n'
    )
    assert call(monkeypatch, tmp_path, "--data", "ours", "--plan") == 0


def test_a_list_is_asked_for_in_words_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.toml").write_text("doses = 50\n")
    assert call(monkeypatch, tmp_path, "t.toml", "--data", "ours", "--plan") == 2
    assert_refused("--data and t.toml.doses: got 50, expected a list of int", tmp_path, capsys)
