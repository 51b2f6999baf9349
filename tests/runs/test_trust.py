"""Folders that others made: their names are of a form, and no link leads a writer out of them."""

import json
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.worker.run import execute
from hvae_hpc.preprocess.store.manifest import MANIFEST, read_manifest
from hvae_hpc.results.write import write_results
from hvae_hpc.runs.folder import append_log, read_log, remove_temporaries
from hvae_hpc.runs.identity import content_hash
from hvae_hpc.runs.lease import is_held, locked
from hvae_hpc.runs.plan import plan_path, read_plan
from tests.results.made_up import SMALL_ARMS, make_runs, write_plan, write_sweep
from tests.tiny import make_data_set


@pytest.mark.parametrize(
    "change",
    [
        {"content_hash": "../../../home/study"},
        {"shards": [{"file": "../../.bashrc", "pairs": 12, "content_sha256": "0" * 64}]},
        {"shards": [{"file": "shard-0.h5", "pairs": 12, "content_sha256": "../x"}]},
        {"shards": [{"file": "shard-0.h5", "pairs": 5, "content_sha256": "0" * 64}]},
    ],
)
def test_a_manifest_of_odd_names_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    path = make_data_set(tmp_path) / MANIFEST
    plain = {**json.loads(path.read_text()), **change}
    del plain["checksum"]
    path.write_text(json.dumps({**plain, "checksum": content_hash(plain)}))
    with pytest.raises(
        UserError, match=r"expected|rows that its shard does not have|those of their shards"
    ):
        read_manifest(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        {"sweep": "../../home/conf.d/x"},
        {"data": {"brats2021": {"folder": "", "content_hash": "../x"}}},
        {"arrays": [{"name": "../x", "stage": "train"}]},
        {"arrays": [{"name": "x", "stage": "train", "elements": [["0" * 12]]}]},
        {"changes": {"0" * 12: {"minutes": 5}}},
    ],
)
def test_a_plan_of_odd_names_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    runs = make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=())
    path = write_plan(tmp_path, runs, changes=change)
    with pytest.raises(UserError, match=r"expected|does not hold"):
        read_plan(path)


def test_a_lease_that_never_ends_is_not_believed(tmp_path: Path) -> None:
    lease = {"token": "x", "host": "far", "machine": "", "pid": 1, "every_s": 1e18}
    for name, change in {".lease-1": {}, ".lease-2": {"every_s": 20.0, "pid": 10**20}}.items():
        (tmp_path / name).write_text(json.dumps({**lease, **change}))
    (tmp_path / ".lease-²").write_text("{}")
    assert is_held(tmp_path)  # for as long as a lease of ours would be
    (tmp_path / ".lease-999999999").write_text(json.dumps({**lease, "every_s": 1e-9}))
    (tmp_path / ".lease-1").unlink()
    (tmp_path / ".lease-2").unlink()
    with pytest.raises(UserError, match="999999999 is none of ours, delete it"), locked(tmp_path):
        pass


def test_results_are_not_written_or_removed_through_a_link(tmp_path: Path) -> None:
    runs, study = tmp_path / "runs", tmp_path / "study"
    write_sweep(runs, arms=SMALL_ARMS[:1], sources=())
    study.mkdir()
    (study / "patients.csv").write_text("a,b")
    (runs / "results/small").mkdir(parents=True)
    (runs / "results/small/rows").symlink_to(study)
    with pytest.raises(UserError, match="rows: is a link, and nothing is written through links"):
        write_results(runs, "small")
    assert (study / "patients.csv").read_text() == "a,b"


def test_a_run_is_not_made_and_not_logged_in_a_folder_behind_a_link(tmp_path: Path) -> None:
    runs, home = make_runs(arms=SMALL_ARMS[:1], seeds=1, sources=()), tmp_path / "home"
    plan = read_plan(write_plan(tmp_path / "runs", runs))
    home.mkdir()
    plan.folder(runs[0].run_id).parent.symlink_to(home)
    report = execute(plan, runs[0].run_id)
    assert report.state == "failed"
    assert "segment: is a link" in report.message
    assert list(home.iterdir()) == []
    assert plan_path(plan.runs_folder, plan.sweep).is_file()


def test_only_temporary_files_of_our_names_are_removed(tmp_path: Path) -> None:
    ours = [".metrics.json.12-0123abcd.tmp", ".lease-0123456789abcdef.tmp", ".here-7_1-0.tmp"]
    for name in (*ours, ".notes.tmp", "thesis.tmp"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".notes.tmp", "thesis.tmp"}


def test_lines_that_are_no_records_are_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append_log(tmp_path, {"event": "started", "job_id": "7_1"})
    with open(tmp_path / "log.jsonl", "a") as file:
        for bad in ({"time": "x"}, {"time": 1e300}, {"time": 1, "job_id": "../*"}, {"at": 1}, [1]):
            file.write(json.dumps(bad) + "\n")
    assert [record["event"] for record in read_log(tmp_path)] == ["started"]
    assert read_log(tmp_path)
    said = capsys.readouterr().err
    assert (
        said == f"{tmp_path}/log.jsonl: 5 of 6 lines are no records of ours; they count as none\n"
    )
