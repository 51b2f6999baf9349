"""Runs to elements and arrays: how many runs an element carries, what waits for what, what fits."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.submit.bundles import bundle, make_arrays
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.sweeps.costs import Seconds, add_up, expected_seconds, measure_rates
from hvae_hpc.runs.done import ResultSummary
from hvae_hpc.runs.plan import Plan
from hvae_hpc.sweep import read_sweep
from tests.jobs.sweeps.test_expand import PAPER


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The paper's sweep."""
    return expand.make_plan(read_sweep("table1"), PAPER, tmp_path, read_site(None).resources)


def seconds_of(plan: Plan, expected: float, high: float = math.inf) -> dict[str, Seconds]:
    return {run_id: Seconds(expected, high) for run_id in plan.runs}


def test_arrays_wait_for_just_the_arrays_of_their_parents(plan: Plan) -> None:
    arrays = make_arrays(plan, list(plan.runs), seconds_of(plan, 10), queued={})
    by_name = {array.name: array for array in arrays}
    made = [run_id for array in arrays for element in array.elements for run_id in element]
    assert sorted(made) == sorted(plan.runs)
    assert by_name["table1-segment-brats2021-reference"].after == ()
    for number, array in enumerate(arrays):
        assert all(before < number for before, _ in array.after)
    generate = arrays.index(by_name["table1-generate-brats2021-hvae"])
    assert by_name["table1-segment-brats2021-hvae"].after == ((generate, 0),)
    augment = arrays.index(by_name["table1-augment-hecktor2022"])
    assert by_name["table1-segment-hecktor2022-standard"].after == ((augment, 0),)


def test_whatever_part_is_missing_every_run_waits_for_its_parents(plan: Plan) -> None:
    random = Random(1)
    for _ in range(20):
        wanted = [
            run_id for run_id in plan.runs if random.random() < random.choice([0.1, 0.5, 0.9])
        ]
        random.shuffle(wanted)
        seconds = {run_id: Seconds(random.uniform(1, 2000)) for run_id in plan.runs}
        arrays = make_arrays(
            plan, wanted, seconds, queued={}, max_array_size=random.choice([3, 1001])
        )
        place_of = {
            i: (n, p)
            for n, a in enumerate(arrays)
            for p, element in enumerate(a.elements)
            for i in element
        }
        assert set(place_of) == set(wanted)
        for run_id, (number, _) in place_of.items():
            parents = {
                place_of[parent] for parent in plan.parents(run_id).values() if parent in place_of
            }
            assert parents <= set(arrays[number].after)
            assert all(before < number for before, _ in parents)


def test_what_waits_for_an_element_in_the_queue_names_it(plan: Plan) -> None:
    train = next(run_id for run_id, run in plan.runs.items() if run.stage == "train")
    wanted = [run_id for run_id in plan.runs if run_id != train]
    arrays = make_arrays(plan, wanted, seconds_of(plan, 10), queued={train: "77_3"})
    assert [array.name for array in arrays if array.after_jobs] == [
        "table1-generate-brats2021-lsgan"
    ]
    assert next(array for array in arrays if array.after_jobs).after_jobs == ("77_3",)


def test_a_bundle_is_as_full_as_asked_and_no_run_is_lost_or_moved() -> None:
    ids = [f"r{i}" for i in range(100)]
    seconds = {run_id: Seconds(60.0) for run_id in ids}
    elements = bundle(ids, seconds, 25 * 60)
    assert [run_id for element in elements for run_id in element] == ids
    assert [len(element) for element in elements] == [25] * 4
    seconds["r0"] = Seconds(7200.0)
    elements = bundle(ids, seconds, 25 * 60)
    assert elements[0] == ("r0",)
    assert (
        max(sum(seconds[run_id].expected for run_id in element) for element in elements[1:])
        <= 26 * 60
    )
    assert bundle(ids, seconds, 0.0) == [(run_id,) for run_id in ids]


def test_ten_short_seeds_are_one_element_and_a_training_of_hours_has_its_own(plan: Plan) -> None:
    seconds = {
        i: Seconds(120.0 if run.stage == "segment" else 4 * 3600.0) for i, run in plan.runs.items()
    }
    arrays = {array.name: array for array in make_arrays(plan, list(plan.runs), seconds, queued={})}
    assert len(arrays["table1-segment-brats2021-reference"].elements) == 1
    assert len(arrays["table1-segment-brats2021-hvae"].elements) == 4  # 40 runs of 2 minutes
    assert [len(element) for element in arrays["table1-train-brats2021-hvae"].elements] == [1]


def test_a_run_of_several_processes_is_an_element_of_its_own(plan: Plan) -> None:
    resources = {**plan.resources, "train": replace(plan.resources["train"], nodes=2)}
    plan = replace(plan, resources=resources)
    trains = [run_id for run_id, run in plan.runs.items() if run.stage == "train"]
    arrays = make_arrays(plan, trains, seconds_of(plan, 1.0), queued={})
    assert {len(element) for array in arrays for element in array.elements} == {1}


def test_no_index_reaches_max_array_size(plan: Plan) -> None:
    plan = replace(
        plan, resources={s: replace(r, element_minutes=0.01) for s, r in plan.resources.items()}
    )
    arrays = make_arrays(plan, list(plan.runs), seconds_of(plan, 60), queued={}, max_array_size=7)
    assert max(len(array.elements) for array in arrays) == 7
    assert sum(len(array.elements) for array in arrays) == len(plan.runs)


def test_a_time_limit_is_close_to_measured_times_and_the_site_s_without(plan: Plan) -> None:
    segment = [run_id for run_id, run in plan.runs.items() if run.stage == "segment"][:10]
    (unknown, *_) = make_arrays(plan, segment, seconds_of(plan, 60), queued={})
    assert unknown.minutes == plan.resources["segment"].minutes == 60
    (known,) = make_arrays(plan, segment[:1], seconds_of(plan, 60, 90), queued={})
    assert known.minutes == 6  # 90 s, 30 s to start, 90 s to save, and two minutes
    (capped,) = make_arrays(plan, segment[:1], seconds_of(plan, 60, 90_000), queued={})
    assert capped.minutes == 60


def test_estimates_grow_with_pixels_images_and_the_flow(plan: Plan) -> None:
    of = expected_seconds(plan, {}, list(plan.runs))
    named = {(run.stage, run.label): of[run_id].expected for run_id, run in plan.runs.items()}
    assert named["train", "brats2021-vae-s0"] < named["train", "brats2021-hvae-s0"]
    assert named["segment", "brats2021-reference-s0"] < named["segment", "brats2021-standard-x5-s0"]
    assert all(seconds.high == math.inf for seconds in of.values())


def test_measured_times_serve_other_splits_and_a_time_of_zero_serves_none(tmp_path: Path) -> None:
    sweep = replace(read_sweep("table1"), splits=2)
    plan = expand.make_plan(sweep, PAPER[:1], tmp_path, read_site(None).resources)
    first, last = (i for i, run in plan.runs.items() if (run.stage, run.source) == ("train", "vae"))
    assert plan.runs[first].config.split != plan.runs[last].config.split
    done = {first: ResultSummary(stamp="a", attempt=1, wall_s=100.0)}
    assert expected_seconds(plan, done, [last])[last].high < math.inf
    assert not measure_rates(plan, {first: replace(done[first], wall_s=0.0)})


def test_a_throttle_lowers_what_is_written_while_a_sweep_runs(plan: Plan) -> None:
    seconds = seconds_of(plan, 600)
    plan = replace(plan, arrays=tuple(make_arrays(plan, list(plan.runs), seconds, queued={})))
    few = {stage: replace(needs, array_parallelism=1) for stage, needs in plan.resources.items()}
    throttled = add_up(replace(plan, resources=few), seconds)
    assert throttled["bytes"] < throttled["bytes_peak"] < add_up(plan, seconds)["bytes_peak"]


def test_runs_that_ask_for_more_have_arrays_of_their_own_and_with_a_longer_limit_elements_too(
    plan: Plan,
) -> None:
    ids = [
        i
        for i, run in plan.runs.items()
        if run.label.startswith("brats2021-reference") and run.stage == "segment"
    ]
    changes = {
        ids[0]: {"memory_gb": 24.0},
        ids[1]: {"memory_gb": 24.0},
        ids[2]: {"minutes": 90},
        ids[3]: {"minutes": 90},
    }
    arrays = make_arrays(replace(plan, changes=changes), ids, seconds_of(plan, 10, 20), queued={})
    found = {
        frozenset(run_id for element in array.elements for run_id in element): array
        for array in arrays
    }
    more, longer, usual = (found[frozenset(part)] for part in (ids[:2], ids[2:4], ids[4:]))
    assert more.elements == (tuple(ids[:2]),)
    assert longer.elements == ((ids[2],), (ids[3],))
    assert longer.minutes == 90
    assert more.minutes < usual.minutes < 60
