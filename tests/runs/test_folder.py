"""Run folders: nothing half-written, nothing believed that should not be."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.loader import dump
from hvae_hpc.errors import UserError
from hvae_hpc.runs.folder import (
    METRICS,
    Provenance,
    RunResult,
    append_log,
    read_log,
    read_log_tail,
    read_result,
    result_stamp,
    write_atomic,
    write_atomic_by,
    write_config,
    write_result,
)
from hvae_hpc.runs.identity import canonical_json

PROVENANCE = Provenance(
    code_sha="c", versions={}, device="cpu", host="h", job_id="", attempt=1, started_at=1.0, wall_s=2.0,
    peak_memory_mib=3.0, threads=1,
)  # fmt: skip
RESULT = RunResult(
    schema=1, run_id="abc", stage="segment", config={"a": 1}, parents={"data": "d"}, parent_results={},
    metrics={"dice": 0.5}, per_case={"case": {"dice": 0.5}}, provenance=PROVENANCE,
)  # fmt: skip


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_result(tmp_path, "abc") is None
    write_result(tmp_path, RESULT)
    assert read_result(tmp_path, "abc") == RESULT


def test_another_making_has_another_stamp() -> None:
    again = replace(RESULT, provenance=replace(PROVENANCE, started_at=2.0))
    assert result_stamp(RESULT) == result_stamp(replace(RESULT))
    assert result_stamp(RESULT) != result_stamp(again)


def test_a_result_of_before_a_field_was_added_keeps_its_stamp(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT)
    data = json.loads((tmp_path / METRICS).read_text())
    del data["provenance"]["at_once"]  # as an earlier version of the package wrote it
    (tmp_path / METRICS).write_text(json.dumps(data))
    result = read_result(tmp_path, "abc")
    assert result == RESULT
    assert result_stamp(result) == hashlib.sha256(canonical_json(data).encode()).hexdigest()[:12]
    assert result_stamp(result) != result_stamp(RESULT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match="metric dice is"):
        write_result(tmp_path, replace(RESULT, metrics={"dice": value}))
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_believed_are_refused(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT)
    with pytest.raises(UserError, match="is run abc, expected xyz"):
        read_result(tmp_path, "xyz")
    text = (tmp_path / METRICS).read_text()
    (tmp_path / METRICS).write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match="may be truncated"):
        read_result(tmp_path, "abc")
    (tmp_path / METRICS).write_text(json.dumps({**dump(RESULT), "schema": 99}))
    with pytest.raises(UserError, match="schema 99, expected 1"):
        read_result(tmp_path, "abc")


def test_what_utf_8_cannot_say_is_written_escaped(tmp_path: Path) -> None:
    write_atomic(tmp_path / "report", "broke \udcff")
    assert (tmp_path / "report").read_text() == "broke \\udcff"


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        write_atomic_by(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = (
        "import sys; from pathlib import Path; from hvae_hpc.runs.folder import write_atomic\n"
        "i = 0\nwhile True:\n i += 1; write_atomic(Path(sys.argv[1]), str(i % 10) * 200_000)\n"
    )
    for attempt in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.03 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        content = path.read_text()
        assert len(content) == 200_000
        assert len(set(content)) == 1


def test_a_config_that_differs_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, {"lr": 2e-4})
    write_config(tmp_path, {"lr": 2e-4})
    with pytest.raises(
        UserError, match=r"config.json: is not the config of this run; delete the folder"
    ):
        write_config(tmp_path, {"lr": 1e-4})


def test_a_log_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    append_log(tmp_path, {"n": 1})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"n": 2, "cut')
    append_log(tmp_path, {"n": 3})
    assert [record["n"] for record in read_log(tmp_path)] == [1, 3]
    assert read_log(tmp_path / "nowhere") == []


def test_lines_that_a_full_disk_refused_come_with_the_next_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.jsonl"
    with monkeypatch.context() as full:
        full.setattr(
            "hvae_hpc.runs.folder.open_to_append", lambda path: io.FileIO("/dev/full", "a+")
        )
        append_log(tmp_path, {"n": 1})
        append_log(tmp_path, {"n": 2})
    said = f"{log}: cannot be written (No space left on device); what was there before is untouched; its next lines are"
    assert capsys.readouterr().err == f"{said} kept in memory until there is room\n"  # once
    assert [record["n"] for record in read_log(tmp_path)] == [
        1,
        2,
    ]  # who counts its attempts counts these
    append_log(tmp_path, {"n": 3})
    append_log(tmp_path, {"n": 4})
    assert [record["n"] for record in read_log(tmp_path)] == [1, 2, 3, 4]
    with pytest.raises(
        UserError, match="cannot be written"
    ):  # whatever else is wrong is no matter of room
        append_log(tmp_path / "nowhere", {"n": 1})


def test_lines_of_a_log_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('7\n[]\nnull\n{"time": 1.5, "x": []}\n"x"\n{"cut')
    assert read_log(tmp_path) == read_log_tail(tmp_path) == [{"time": 1.5, "x": []}]
