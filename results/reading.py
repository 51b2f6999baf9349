"""A run's metrics.json as a row of plain numbers, decoded and checked in one pass; many of them by several processes.

Whatever that pass does not take is read by :func:`hvae_hpc.runs.folder.read_result`, which takes it
or says what is wrong.
"""

import dataclasses
import json
import os
import typing
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hvae_hpc.errors import UserError, printable
from hvae_hpc.runs.folder import (
    METRICS,
    RESULT_SCHEMA,
    Provenance,
    RunResult,
    read_result,
    result_stamp,
)

ORIGIN = ("attempt", "wall_s", "spent_s", "processes", "at_once", "peak_memory_mib", "energy_j")
CASE_NUMBERS = ("n_cases", "median_dice")
TEXTS = ("stamp", "parents", "unit", "device", "host", "torch", "code_sha")
PARALLEL_FROM = 4000
"""Fewer files are read sooner by one process than others have started."""
CHUNK = 500
LONGEST_TEXT = 100
LARGEST = 1e12
"""No measure of ours comes near it; the square of a larger one may leave the numbers."""
ROUNDING = 1e-6
"""Sums of the same numbers in another order differ by less."""
NOTHING = float("nan")
NO_STAMP = "-"
"""Of a run from which no other is made: to know its stamp would take as long as all the rest."""


class Asked(NamedTuple):
    """One file to read.

    Attributes:
        folder: the run's.
        run_id, stage: of the run.
        metrics: names of those that are kept.
        stamped: whether other runs are made from this one, so that its stamp is needed, which takes
            longer.
        parents: the plan's, role to id or data hash.
    """

    folder: str
    run_id: str
    stage: str
    metrics: tuple[str, ...]
    stamped: bool
    parents: Mapping[str, str]


class Row(NamedTuple):
    """What is kept of one file.

    Attributes:
        run_id: of the run.
        numbers: ORIGIN, CASE_NUMBERS, then the metrics that were asked for; NaN for what the file
            does not have.
        texts: TEXTS; parents by :func:`parents_text`.
        cases: ids of the test cases, sorted.
        dice: of each case, as bytes of float64.
    """

    run_id: str
    numbers: tuple[float, ...]
    texts: tuple[str, ...]
    cases: tuple[str, ...]
    dice: bytes


class _Case(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    dice: float
    hausdorff_95: float = NOTHING
    precision: float = NOTHING
    recall: float = NOTHING


class _Details(msgspec.Struct):
    hausdorff_95_unit: str = "px"


def _as_struct(kind: Any, **changed: Any) -> Any:
    """Return a dataclass's twin for the decoder, as strict as it; some fields of another type."""
    fields: list[Any] = []
    for name, hint in (typing.get_type_hints(kind) | changed).items():
        default, factory = (
            kind.__dataclass_fields__[name].default,
            kind.__dataclass_fields__[name].default_factory,
        )
        given = [] if default is dataclasses.MISSING else [default]
        given += (
            []
            if factory is dataclasses.MISSING
            else [msgspec.field(default_factory=changed.get(name, factory))]
        )
        fields.append((name, hint, *given))
    return msgspec.defstruct(kind.__name__, fields, forbid_unknown_fields=True, kw_only=True)


# What no table needs is looked at but not kept: its making would take half of the time.
_FastResult = _as_struct(
    RunResult,
    config=dict[str, msgspec.Raw],
    provenance=_as_struct(Provenance),
    per_case=dict[str, _Case],
    details=_Details,
)
_decoder = msgspec.json.Decoder(_FastResult)
_case_sets: dict[tuple[str, ...], tuple[str, ...]] = {}
"""Most runs have the same test cases: one object for all of them is sent between processes once."""


def read_row(asked: Asked) -> Row | str | None:
    """Return a file's row, why it cannot be believed, or None where there is none."""
    try:
        return _read_row(asked)
    except (ValueError, ArithmeticError, RecursionError) as error:
        # Whatever one file holds, the others are read.
        return f"{METRICS}: cannot be used ({type(error).__name__}: {error}); delete the folder"


def _read_row(asked: Asked) -> Row | str | None:
    try:
        with open(f"{asked.folder}/{METRICS}", "rb", buffering=0) as file:
            data = file.read()
        if not data.isascii():
            data.decode()  # what is not looked into is no less UTF-8
        result = _decoder.decode(data)
        if (result.schema, result.run_id, asked.stamped) == (RESULT_SCHEMA, asked.run_id, False):
            dice = [numbers.dice for numbers in result.per_case.values()]
            return _make_row(asked, result, dice, result.details.hausdorff_95_unit, NO_STAMP)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # the strict reader says it in words, or takes it: other stages have other numbers per case
    try:
        strict = read_result(Path(asked.folder), asked.run_id)
    except UserError as error:
        return str(error).removeprefix(f"{asked.folder}/")
    if strict is None:
        return None
    dice = [numbers["dice"] for numbers in strict.per_case.values() if "dice" in numbers]
    dice = dice if len(dice) == len(strict.per_case) else []
    unit = str(strict.details.get("hausdorff_95_unit", "px"))
    return _make_row(asked, strict, dice, unit, result_stamp(strict) if asked.stamped else NO_STAMP)


def _make_row(asked: Asked, result: Any, dice: Sequence[float], unit: str, stamp: str) -> Row | str:
    if result.stage != asked.stage:
        return (
            f"{METRICS}: is of stage {result.stage!r}, expected {asked.stage!r}; delete the folder"
        )
    if result.parents != asked.parents:
        return f"{METRICS}: says it was made from other runs or data than the plan names; delete the folder"
    made, metrics = result.provenance, result.metrics
    ordered = sorted(dice)
    if asked.stage == "segment" and not dice:
        return f"{METRICS}: per_case has no finite dice for every case; delete the folder"
    if dice and not 0 <= ordered[0] <= ordered[-1] <= 1:
        wrong = ordered[0] if ordered[0] < 0 else ordered[-1]
        return f"{METRICS}: per_case has a dice of {wrong:g}, expected 0 to 1; delete the folder"
    of_all = metrics.get("dice", NOTHING)
    if dice and 0 <= of_all <= 1 and abs(of_all - sum(dice) / len(dice)) > ROUNDING:
        return f"{METRICS}: dice is {of_all:g}, expected its cases' mean {sum(dice) / len(dice):g}; delete the folder"
    for name in (
        () if asked.stage == "segment" else asked.metrics
    ):  # a segment's are looked at all together, later
        if abs(metrics.get(name, 0.0)) > LARGEST:
            got = f"{name} is {metrics[name]:g}, expected at most {LARGEST:g} either way"
            return f"{METRICS}: {got}; delete the folder"
    origin = (
        made.attempt,
        made.wall_s,
        made.spent_s,
        made.processes,
        made.at_once,
        made.peak_memory_mib,
    )
    texts = (unit, made.device, made.host, made.versions.get("torch", ""), made.code_sha)
    cases = tuple(map(_clean, result.per_case)) if dice else ()
    if list(cases) != sorted(cases):  # the same cases are then the same tuple
        cases, dice = zip(*sorted(zip(cases, dice, strict=True)), strict=True)
    return Row(
        run_id=asked.run_id,
        numbers=(
            *map(float, (*origin, made.gpu.get("energy_j", NOTHING), len(dice), _median(ordered))),
            *[metrics.get(name, NOTHING) for name in asked.metrics],
        ),
        texts=(stamp, parents_text(result.parent_results), *map(_clean, texts)),
        cases=_case_sets.setdefault(cases, cases),
        dice=array("d", dice).tobytes(),
    )


def parents_text(stamps: Mapping[str, str]) -> str:
    """Return one text for the same role to stamp, in whatever order."""
    return json.dumps(stamps, sort_keys=True)


def _clean(text: str) -> str:
    """Return what may stand in a table and a figure: control characters escaped, and not without end."""
    return (text if text.isprintable() else printable(text))[:LONGEST_TEXT]


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2 if ordered else NOTHING


def read_rows(asked: Sequence[Asked]) -> Iterator[Row | str | None]:
    """Read many files, in order; on several cores where there are enough of them."""
    workers = min(len(os.sched_getaffinity(0)), 1 + len(asked) // PARALLEL_FROM)
    if workers < 2:
        yield from map(read_row, asked)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(read_row, asked, chunksize=CHUNK)
