"""The command: what it prints and writes, and what it says of a person's mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.errors import run_command
from hvae_hpc.results.__main__ import main
from hvae_hpc.results.collect import collect
from hvae_hpc.results.write import ask_jobs, write_results
from hvae_hpc.runs.run import Run
from tests import ROOT
from tests.jobs.queues import log, make_plan, submit
from tests.results.made_up import (
    SMALL_ARMS,
    fake_metrics,
    finish,
    folder_of,
    make_runs,
    segments,
    write_plan,
    write_samples,
    write_sweep,
)

ENDINGS = ("md", "csv", "tex")
TABLES = [
    f"{name}.{ending}"
    for name in (
        *("table1", "arms", "measures", "variance"),
        *("table2", "quality", "likelihoods", "claims"),
    )
    for ending in ENDINGS
]
VERDICT = ["verdict.txt"]
REPORT = ["report.html"]
PLOTS = [
    f"{kind}-brats2021.{ending}"
    for kind in ("dice", "per-case", "cost")
    for ending in ("png", "svg", "pdf")
]
PICTURES = [
    *(f"figure2-brats2021.{ending}" for ending in ("png", "pdf")),
    *PLOTS,
    *(f"cases-brats2021.{ending}" for ending in ("png", "pdf")),
]
ROWS = [
    *(
        f"rows/{name}.{ending}"
        for name in ("segment", "quality", "likelihood", "costs")
        for ending in ("csv", "parquet")
    ),
    "rows/cases.parquet",
]
PROGRESS = [
    f"progress-brats2021-{name}-s0.{e}" for name in ("vae", "hvae", "lsgan") for e in ("png", "svg")
]


def run_main(*argv: object) -> int:
    return run_command(main, [str(argument) for argument in argv])


def test_tables_are_printed_and_all_files_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HVAE_HPC_FIGURES")
    write_samples(tmp_path, write_sweep(tmp_path, likelihoods=True), px=32)
    assert run_main(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "Table 1 (small): Dice" in printed
    assert "Table 2 (small): images" in printed
    assert "Verdict\n\nbrats2021: No need: none of the pairs tried raises Dice by 0.02" in printed
    folder = tmp_path / "results/small"
    assert printed.splitlines()[-2] == f"54 files are in {folder}"
    there = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert sorted(there) == sorted(TABLES + VERDICT + PICTURES + PROGRESS + ROWS + REPORT)


def test_a_second_run_writes_the_same_bytes(tmp_path: Path) -> None:
    write_sweep(tmp_path, likelihoods=True)
    first = [
        path.read_bytes()
        for path in write_results(tmp_path, "small")
        if path.suffix in (".csv", ".md")
    ]
    second = write_results(tmp_path, "small", out=tmp_path / "again")
    assert first == [path.read_bytes() for path in second if path.suffix in (".csv", ".md")]
    assert [path.name for path in second[: len(TABLES)]] == TABLES
    assert second[0].parent == tmp_path / "again/small"


def test_missing_seeds_are_refused_and_partial_shows_7_of_10(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {run.run_id for run in segments(make_runs(seeds=10), "hvae+100")[:3]}
    write_sweep(tmp_path, seeds=10, skip=lambda run: run.run_id in lost)
    assert run_main(tmp_path) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 of" in err.splitlines()[0]
    assert err.count("segment/brats2021-hvae+100-s") == 3
    listed = tmp_path / "results/small/missing.txt"
    assert err.splitlines()[-1] == f"all of them are listed in {listed}"
    assert [path for path in (tmp_path / "results").rglob("*") if path.is_file()] == [listed]
    folders = [folder_of(run) for run in make_runs(seeds=10) if run.run_id in lost]
    assert listed.read_text().splitlines() == [
        f"{folder}: no metrics.json yet" for folder in folders
    ]
    assert run_main(tmp_path, "--partial") == 0
    out = capsys.readouterr().out
    assert "(7/10)" in out
    assert out.count("no metrics.json yet") == 3
    assert listed.exists()
    for run in make_runs(seeds=10):
        if run.run_id in lost:
            finish(tmp_path, run, fake_metrics(run))
    assert run_main(tmp_path) == 0
    assert not listed.exists()


def test_partial_of_a_sweep_with_no_done_run_says_so_and_prints_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path, make_runs(seeds=1))
    assert run_main(tmp_path, "--partial") == 0
    out = capsys.readouterr().out
    assert out.startswith("sweep small: no run is done yet\n  ")
    assert "Dice" not in out


def test_a_run_that_was_killed_without_a_word_is_lost_and_its_time_does_not_grow(
    tmp_path: Path,
) -> None:
    plan = make_plan(tmp_path, segments(make_runs(seeds=2), "reference"))
    killed, waiting = plan.runs
    submit(plan, [[killed], [waiting]])
    log(plan, killed, {"event": "started", "job_id": "12_0", "at": 0, "time": -36000.0})
    log(plan, killed, {"images_seen": 10, "time": -32400.0})
    collected, spent = ask_jobs(plan, collect(plan))
    assert collected.missing == (
        f"{plan.folder_name(killed)}: lost: ended without a result",
        f"{plan.folder_name(waiting)}: no metrics.json yet",
    )
    assert spent
    assert spent.columns[2:] == ("interrupted",)
    assert spent.rows[0][2] == "1.00"


def test_hours_are_those_of_the_devices_that_made_the_runs(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, segments(make_runs(seeds=1), "reference"))
    assert plan.resources["segment"].gpus
    for run in plan.runs.values():
        finish(plan.runs_folder, run, fake_metrics(run), device="cpu")
    _, device_hours = ask_jobs(plan, collect(plan))
    assert device_hours
    assert device_hours.rows[0][:2] == ("segment", "CPU")


def test_a_sweep_that_is_refused_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path, make_runs(seeds=1), "all-missing")
    write_sweep(tmp_path, "done", arms=make_arms())
    assert run_main(tmp_path) == 2
    out, err = capsys.readouterr()
    assert "Table 1 (done)" in out
    assert err.startswith("error: sweep all-missing: ")
    assert run_main(tmp_path, "--sweep", "done") == 0


def make_arms() -> tuple[object, ...]:
    return tuple(run.config.arm for run in segments(make_runs(seeds=1), "reference"))


def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path / "runs", make_runs())
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut/plans").mkdir(parents=True)
    (tmp_path / "cut/plans/small.json").write_text('{"schema": 1, "runs": [')
    mistakes = {
        (tmp_path / "nowhere",): "no such folder",
        (tmp_path / "empty",): "no plan of a sweep in it",
        (tmp_path / "cut",): "not valid JSON",
        (tmp_path / "runs", "--sweep", "smal"): "has no sweep 'smal', expected one of small",
    }
    for argv, message in mistakes.items():
        assert run_main(*argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_a_sweep_without_quality_runs_has_no_table_2(tmp_path: Path) -> None:
    write_sweep(tmp_path, sources=())
    names = [
        str(path.relative_to(tmp_path / "results/small"))
        for path in write_results(tmp_path, "small")
    ]
    rows = [name for name in ROWS if not name.startswith(("rows/quality", "rows/likelihood"))]
    pictures = [name for name in (*PLOTS, *PROGRESS) if name.endswith(".png")]
    assert names == [*TABLES[:12], *TABLES[-3:], *VERDICT, *pictures, *rows, *REPORT]


def test_tables_of_an_earlier_time_do_not_lie_beside_those_of_now(tmp_path: Path) -> None:
    write_sweep(tmp_path, seeds=1, arms=SMALL_ARMS[:2], sources=("real",))
    write_results(tmp_path, "small")
    folder = tmp_path / "results/small"
    (folder / "spent.csv").write_text("of an earlier time\n")
    assert (folder / "table2.md").exists()
    write_sweep(tmp_path, seeds=1, arms=SMALL_ARMS[:2], sources=())
    write_results(tmp_path, "small")
    assert sorted(
        path.name for path in folder.iterdir() if path.suffix in (".md", ".csv", ".tex")
    ) == sorted(TABLES[:9] + TABLES[-3:])


def test_no_name_reaches_the_terminal_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = ArmConfig(name="a\x1b[2Jb", generator="hvae", n_synthetic=300)
    write_sweep(tmp_path, seeds=1, arms=(SMALL_ARMS[0], arm, SMALL_ARMS[3]))
    write_results(tmp_path, "small")
    printed = capsys.readouterr().out
    assert "pairs on a\\x1b[2Jb look best" in printed
    assert "not drawn: a\\x1b[2Jb" in printed
    assert "\x1b" not in printed + (tmp_path / "results/small/verdict.txt").read_text()


def test_a_remark_is_printed_for_every_picture_that_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def is_segment(run: Run) -> bool:
        return run.stage == "segment"

    write_sweep(tmp_path, skip=is_segment)
    write_results(tmp_path, "small", partial=True)
    out = capsys.readouterr().out
    for name in PICTURES:
        if name.endswith(".png"):
            assert f"{name} is left out: " in out


def test_help_fits_a_screen_and_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main("--help")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert "  python -m hvae_hpc.results runs --sweep table1 --partial" in lines


def test_neither_torch_nor_h5py_nor_submitit_is_imported(tmp_path: Path) -> None:
    write_sweep(tmp_path, arms=())
    code = (
        "import sys; from pathlib import Path; import hvae_hpc.results.__main__; "
        "early = 'pandas' in sys.modules; from hvae_hpc.results.write import write_results; "
        "write_results(Path(sys.argv[1]), 'small'); "
        "print(early, sorted({'torch', 'h5py', 'submitit', 'torchio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False []"
