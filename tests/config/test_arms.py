"""An arm's name says what its U-Net is trained on; what contradicts itself is refused."""

import pytest

from hvae_hpc.config.arms import ArmConfig, budget_of, parse_arm
from hvae_hpc.config.model import MovesConfig
from hvae_hpc.errors import UserError

SOURCES = ("lsgan", "hvae", "hvae-aggregated")
MOVES = MovesConfig(rotate_deg=7)


def parse(name: str) -> ArmConfig:
    return parse_arm(name, SOURCES, 100, {"moved": MOVES})


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("reference", {}),
        ("standard-x5", {"n_standard": 400}),
        ("copies-x3", {"n_copies": 200}),
        ("moved", {"moves": MOVES}),
        ("real-300", {"n_cases": 300}),
        ("hvae+100", {"generator": "hvae", "n_synthetic": 100}),
        ("hvae-aggregated+30", {"generator": "hvae-aggregated", "n_synthetic": 30}),
        ("hvae-shuffled+100", {"generator": "hvae", "n_synthetic": 100, "shuffled": True}),
        (
            "hvae-aggregated-only+9",
            {"generator": "hvae-aggregated", "n_synthetic": 9, "alone": True},
        ),
        ("lsgan-first+100", {"generator": "lsgan", "n_synthetic": 100, "first_share": 0.5}),
        ("standard-x5+hvae+300", {"n_standard": 400, "generator": "hvae", "n_synthetic": 300}),
        ("moved+hvae+300@steps", {"moves": MOVES, "generator": "hvae", "n_synthetic": 300}),
        ("real-300+lsgan+1", {"n_cases": 300, "generator": "lsgan", "n_synthetic": 1}),
    ],
)
def test_a_name_says_what_an_arm_is(name: str, asked: dict[str, object]) -> None:
    assert parse(name) == ArmConfig(name=name, **asked)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vae+100", "'vae': expected reference alone or, each once, moved"),
        ("hvae", "'hvae': expected reference"),
        ("hvae+", "'hvae': expected reference"),
        ("hvae+0", "'hvae': expected reference"),
        ("hvae+1e3", "'hvae': expected reference"),
        ("hvae-twice+100", "'hvae-twice': expected reference"),
        ("standard-x1", "a factor of 2 or more"),
        ("standard-x2+standard-x3", "each kind of pairs once"),
        ("hvae+100+lsgan+100", "each kind of pairs once"),
        ("standard-x2+hvae-only+100", "so no copies are added"),
        ("copies-x2+hvae-first+100", "so no copies are added"),
        ("real-300+standard-x2", "the split's training cases"),
        ("real-300+hvae-first+9", "the split's training cases"),
        ("reference+hvae+100", "'reference': expected reference alone"),
        ("hvae+100+reference", "'reference': expected reference alone"),
        ("standard-x05", "'standard-x05': expected reference"),
        ("", "'': expected reference"),
    ],
)
def test_a_name_that_says_nothing_or_contradicts_itself_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^arm {name!r}: .*{reason}".replace("+", r"\+")):
        parse(name)


def test_the_end_of_a_name_overrides_the_sweep_s_budget() -> None:
    assert budget_of("reference", "epochs") == "epochs"
    assert budget_of("reference@steps", "epochs") == budget_of("reference", "steps") == "steps"
    assert budget_of("hvae+100@epochs", "steps") == "epochs"
    with pytest.raises(UserError, match="ends in '@hours', expected @epochs or @steps"):
        budget_of("reference@hours", "steps")
