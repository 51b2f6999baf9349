"""What a retry changes, by class of failure; what site files may say of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.resources import Resources
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.failures.retry import change, in_words
from hvae_hpc.jobs.sites.retry_policy import FAILURES, Rule, read_rules
from hvae_hpc.jobs.sites.site import read_site
from hvae_hpc.jobs.slurm.limits import Cluster, Partition
from hvae_hpc.runs.run import Run
from tests.results.made_up import SMALL_ARMS, make_runs

TRAIN, *_, SEGMENT = make_runs(arms=SMALL_ARMS[2:3], seeds=1, sources=())
HAD = Resources(partition="gpu", memory_gb=16.0, minutes=60)


def changed(
    rule: Rule, run: Run = SEGMENT, had: Resources = HAD, minutes: int = 60, **caps: object
) -> object:
    site = read_site(None)
    cluster = Cluster(partitions={"gpu": Partition(minutes=100, grace_s=0)})
    site = replace(site, caps=replace(site.caps, **caps), cluster=cluster)
    return change(rule, run, had, {**vars(had), "minutes": minutes}, site)


def test_every_class_has_a_rule_and_what_would_end_in_the_same_way_is_never_retried() -> None:
    rules = read_rules({})
    assert tuple(rules) == FAILURES
    never = {failure for failure, rule in rules.items() if rule.times == 0}
    assert never == {"non-finite loss", "bad input", "code error", "blocked by parent"}


def test_memory_and_time_grow_up_to_what_may_be_asked_for() -> None:
    assert changed(Rule(times=1, memory=1.5)) == {"memory_gb": 24.0}
    assert changed(Rule(times=1, memory=1.5), memory_gb=20.0) == {"memory_gb": 20.0}
    assert changed(Rule(times=1, minutes=2.0), minutes=5) == {
        "minutes": 10
    }  # of the limit that was reached
    assert changed(Rule(times=1, minutes=2.0)) == {"minutes": 100}  # the partition's
    assert changed(Rule(times=1)) == {}


def test_where_nothing_can_change_no_retry_is_made() -> None:
    assert changed(Rule(times=1, memory=1.5), memory_gb=16.0) is None
    assert changed(Rule(times=1, minutes=2.0), minutes=100) is None


def test_fewer_pairs_at_once_only_where_that_changes_no_number() -> None:
    rule = Rule(times=1, micro_batch=0.5)
    batch = TRAIN.config.optim.batch_size
    assert changed(rule, TRAIN) == {"micro_batch": batch // 2}
    assert changed(rule, TRAIN, replace(HAD, micro_batch=3)) == {"micro_batch": 1}
    assert changed(rule, TRAIN, replace(HAD, micro_batch=1)) is None
    assert changed(rule, SEGMENT) is None


def test_changes_are_told_in_words() -> None:
    assert in_words(
        {"memory_gb": 24.0, "minutes": 10, "micro_batch": 4}, {**vars(HAD), "minutes": 5}
    ) == ("memory_gb 16 -> 24, minutes 5 -> 10, micro_batch 4")
    assert in_words({}, {**vars(HAD), "minutes": 5}) == "as it was"


def test_site_files_lay_their_rules_over_the_library_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "admin.toml").write_text(
        '[retry.lost]\ntimes = 0\n[retry."out of memory (host)"]\nmemory = 2.0\n'
    )
    (tmp_path / "user.toml").write_text(
        '[retry."out of memory (host)"]\ntimes = 7\n[segment]\ncpus = 2\n'
    )
    monkeypatch.setenv("HVAE_HPC_SITE", str(tmp_path / "admin.toml"))
    rules = read_site(tmp_path / "user.toml").rules
    assert rules["lost"].times == 0
    assert rules["out of memory (host)"] == Rule(times=7, memory=2.0)
    assert rules["node failure"].exclude_hours == 24


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[retry."lots"]\ntimes = 1',
            "retry: unknown table 'lots'; expected one of out of memory (host), ",
        ),
        ("[retry]\nlost = 3", "retry: lost: got 3, expected a table [lost]"),
        ("retry = 3", "site.toml: retry: got 3, expected a table [retry]"),
        ("[retry.lost]\ntime = 3", "unknown key 'time'; did you mean 'times'?"),
        ("[retry.lost]\nmemory = 0.5", "expected 1 or more"),
    ],
)
def test_an_odd_rule_is_one_line_that_names_its_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_site(tmp_path / "site.toml")
    assert said in str(caught.value)
    assert "site.toml" in str(caught.value)
