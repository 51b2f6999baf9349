"""Rows of metrics.json files: quick and strict reading agree, and hostile files get one line each."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from hvae_hpc.metrics.segmentation import MaskScores
from hvae_hpc.results import reading
from hvae_hpc.results.collect import METRICS
from hvae_hpc.results.reading import NO_STAMP, Asked, Row, read_row, read_rows
from hvae_hpc.runs.folder import read_result, result_stamp
from tests.results.made_up import segments, write_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> list[Asked]:
    runs = write_sweep(tmp_path)
    return [
        Asked(
            str(tmp_path / run.folder),
            run.run_id,
            run.stage,
            METRICS.get(run.stage, ()),
            False,
            run.parents,
        )
        for run in runs
    ]


def test_quick_and_strict_reading_agree_on_every_run(
    sweep: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked in sweep:
        with monkeypatch.context() as patch:
            patch.setattr(reading, "read_result", None)  # the quick way goes without it
            quick = read_row(asked)
        strict = read_row(asked._replace(stamped=True))
        assert isinstance(quick, Row)
        assert isinstance(strict, Row)
        result = read_result(Path(asked.folder), asked.run_id)
        assert result is not None
        assert (quick.texts[0], strict.texts[0]) == (NO_STAMP, result_stamp(result))
        assert quick.texts[1:] == strict.texts[1:]
        assert (quick.cases, quick.dice) == (strict.cases, strict.dice)
        np.testing.assert_array_equal(quick.numbers, strict.numbers)


def test_the_numbers_are_those_of_the_file(sweep: list[Asked]) -> None:
    asked = next(one for one in sweep if one.stage == "segment")
    data = json.loads(Path(asked.folder, "metrics.json").read_text())
    row = read_row(asked)
    assert isinstance(row, Row)
    dice = [numbers["dice"] for numbers in data["per_case"].values()]
    assert np.frombuffer(row.dice).tolist() == dice
    assert row.cases == tuple(data["per_case"])
    named = dict(
        zip((*reading.ORIGIN, *reading.CASE_NUMBERS, *asked.metrics), row.numbers, strict=True)
    )
    assert named["wall_s"] == 12.5
    assert named["dice"] == data["metrics"]["dice"]
    assert named["median_dice"] == np.median(dice)
    assert named["n_cases"] == 12
    assert np.isnan(named["energy_j"])


def test_the_quick_way_knows_the_numbers_that_evaluation_leaves_per_case() -> None:
    assert reading._Case.__struct_fields__ == (
        "dice",
        *sorted({field.name for field in fields(MaskScores)} - {"dice"}),
    )


def test_the_median_of_any_number_of_cases_is_numpys() -> None:
    for n in range(1, 9):
        values = sorted(np.random.default_rng(n).random(n).tolist())
        assert reading._median(values) == pytest.approx(np.median(values), abs=0)


def test_several_processes_read_what_one_reads(
    sweep: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = sweep[-1]
    Path(broken.folder, "metrics.json").write_text("{")
    Path(sweep[-2].folder, "metrics.json").unlink()
    alone = list(read_rows(sweep))
    assert alone[-2] is None
    assert isinstance(alone[-1], str)
    monkeypatch.setattr(reading, "PARALLEL_FROM", 4)
    monkeypatch.setattr(reading, "CHUNK", 3)
    monkeypatch.setattr(reading.os, "sched_getaffinity", lambda _: {0, 1})
    pool = mock.Mock(wraps=reading.ProcessPoolExecutor)
    monkeypatch.setattr(reading, "ProcessPoolExecutor", pool)
    several = list(read_rows(sweep))
    assert pool.call_args.args == (2,)
    assert repr(several) == repr(alone)  # nan is not itself, but looks like it


@pytest.fixture
def one(tmp_path: Path) -> tuple[Path, Asked]:
    """A segment run's metrics.json, and how it is asked for."""
    run = segments(write_sweep(tmp_path), "reference")[0]
    path = tmp_path / run.folder / "metrics.json"
    return path, Asked(
        str(path.parent), run.run_id, "segment", METRICS["segment"], False, run.parents
    )


def _with(**changes: Any) -> Callable[[str], str]:
    """Return what replaces values of a metrics.json, by "outer__inner" names."""

    def spoil(text: str) -> str:
        data = json.loads(text)
        for name, value in changes.items():
            place, names = data, name.split("__")
            for outer in names[:-1]:
                place = place[outer]
            place[names[-1]] = value
        return json.dumps(data)

    return spoil


HOSTILE: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "empty": (lambda text: "", "not valid JSON"),
    "cut short": (lambda text: text[: len(text) // 2], "not valid JSON"),
    "two of them": (lambda text: text + text, "not valid JSON"),
    "not text": (lambda text: b"\xff\xfe" + text.encode(), "not valid JSON"),
    "a list": (lambda text: f"[{text}]", "expected a table"),
    "only a number": (lambda text: "7", "expected a table"),
    "deeply nested": (lambda text: "[" * 100_000, "not valid JSON"),
    "another schema": (_with(schema=9), "schema 9, expected 1"),
    "no schema": (lambda text: text.replace('"schema": 1,', ""), "schema None, expected 1"),
    "another run": (_with(run_id="0" * 12), "is run 000000000000"),
    "another stage": (_with(stage="train"), "is of stage 'train', expected 'segment'"),
    "other data": (
        _with(parents__data="0" * 64),
        "made from other runs or data than the plan names",
    ),
    "another parent": (
        _with(parents__generate="0" * 12),
        "made from other runs or data than the plan names",
    ),
    "an unknown key": (_with(extra=1), "unknown key 'extra'"),
    "a missing key": (
        lambda text: text.replace('"metrics":', '"metric":'),
        "did you mean 'metrics'?",
    ),
    "NaN": (_with(metrics__dice=float("nan")), "NaN is not a number"),
    "infinity": (_with(metrics__dice=float("inf")), "Infinity is not a number"),
    "a number too large for a double": (
        lambda text: text.replace('"wall_s": 12.5', '"wall_s": 1e999'),
        "got inf",
    ),
    "a word for a number": (_with(metrics__dice="0.5"), "got '0.5', expected float"),
    "true for a number": (_with(metrics__dice=True), "got True, expected float"),
    "a case that is a number": (_with(per_case__case00=0.5), "got 0.5, expected dict"),
    "a case without Dice": (
        _with(per_case__case00={"precision": 0.5}),
        "no finite dice for every case",
    ),
    "a huge Dice of a case": (
        _with(per_case__case00={"dice": 1e300}),
        "a dice of 1e+300, expected 0 to 1",
    ),
    "a negative Dice of a case": (
        _with(per_case__case00={"dice": -0.1}),
        "a dice of -0.1, expected 0 to 1",
    ),
    "a Dice that is not its cases'": (
        _with(metrics__dice=0.123),
        "dice is 0.123, expected its cases' mean",
    ),
    "half a surrogate pair": (_with(run_id="\ud800"), "expected"),
    "an integer too large for a double": (
        lambda text: text.replace('"wall_s": 12.5', '"wall_s": 1' + "0" * 400),
        "expected a finite number",
    ),
    "a count too large for a double": (
        lambda text: text.replace('"attempt": 1', '"attempt": 1' + "0" * 400),
        "cannot be used",
    ),
    "nested just so deeply that it is read": (
        lambda text: text.replace(
            '"details": {', '"details": {"a": ' + "[" * 960 + "]" * 960 + ", "
        ),
        "",
    ),
    "bytes that are no text, where nobody looks": (
        lambda text: text.encode().replace(b'"data": "brats2021"', b'"data": "brats\xff"'),
        "not valid JSON",
    ),
    "a config that is a number": (_with(config=7), "got 7, expected dict"),
    "no cases": (_with(per_case={}), "no finite dice for every case"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_gets_one_line(one: tuple[Path, Asked], what: str) -> None:
    (path, asked), (spoil, reason) = one, HOSTILE[what]
    spoilt = spoil(path.read_text())
    path.write_bytes(spoilt if isinstance(spoilt, bytes) else spoilt.encode())
    for stamped in (False, True):
        line = read_row(asked._replace(stamped=stamped))
        if not reason and isinstance(line, Row):  # it may be read, or not, but nothing breaks
            continue
        assert isinstance(line, str)
        assert line.startswith("metrics.json")
        assert reason in line
        assert "\n" not in line
        assert len(line) < 300


@pytest.mark.parametrize(
    ("stage", "name"), [("quality", "psnr_mean"), ("quality", "kid"), ("likelihood", "elbo")]
)
@pytest.mark.parametrize("value", [1e300, -1e13])
def test_a_measure_that_no_set_of_images_has_gets_one_line(
    tmp_path: Path, stage: str, name: str, value: float
) -> None:
    run = next(
        run for run in write_sweep(tmp_path, seeds=1, likelihoods=True) if run.stage == stage
    )
    path = tmp_path / run.folder / "metrics.json"
    path.write_text(_with(**{f"metrics__{name}": value})(path.read_text()))
    line = read_row(Asked(str(path.parent), run.run_id, stage, METRICS[stage], False, run.parents))
    assert (
        line
        == f"metrics.json: {name} is {value:g}, expected at most 1e+12 either way; delete the folder"
    )


def test_control_characters_of_a_file_do_not_reach_a_table(one: tuple[Path, Asked]) -> None:
    path, asked = one
    path.write_text(_with(provenance__device="GPU \x1b[2J\ud800" + 200 * "x")(path.read_text()))
    row = read_row(asked)
    assert isinstance(row, Row)
    device = row.texts[reading.TEXTS.index("device")]
    assert device.startswith("GPU \\x1b[2J\\ud800xxx")
    assert len(device) == reading.LONGEST_TEXT


def test_cases_in_another_order_are_the_same_cases(one: tuple[Path, Asked]) -> None:
    path, asked = one
    before = read_row(asked)
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "per_case": dict(reversed(data["per_case"].items()))}))
    assert repr(read_row(asked)) == repr(before)


def test_other_numbers_per_case_are_taken(one: tuple[Path, Asked]) -> None:
    path, asked = one
    before = read_row(asked)
    data = json.loads(path.read_text())
    for numbers in data["per_case"].values():
        numbers["surface_dice"] = 0.25
    path.write_text(json.dumps(data))
    assert repr(read_row(asked)) == repr(before)


def test_a_folder_in_the_file_s_place_is_said(one: tuple[Path, Asked]) -> None:
    path, asked = one
    path.unlink()
    path.mkdir()
    line = read_row(asked)
    assert line == "metrics.json: cannot be read (Is a directory); check the path"
