"""The strict loader: what it reads back, and what it says about what it refuses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from hvae_hpc.config.kinds import GeneratorConfig, generator_labels
from hvae_hpc.config.loader import (
    added_later,
    dump,
    find_toml,
    load,
    merge,
    read_json,
    read_toml,
)
from hvae_hpc.config.model import HVAEConfig, LSGANConfig, OptimConfig
from hvae_hpc.config.stages import SplitConfig, TrainConfig
from hvae_hpc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    rate: float = 0.5
    on: bool = False
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()
    table: dict[str, float] = field(default_factory=dict)
    maybe: int | None = None
    later: tuple[str, ...] = added_later(())


FULL = {
    "name": "x", "rate": 2, "on": True, "mode": "b", "sizes": [3], "inner": {"size": 4}, "table": {"k": 1}, "maybe": None,
}  # fmt: skip


def test_what_is_dumped_is_loaded_unchanged() -> None:
    value = load(Outer, FULL, "test")
    assert load(Outer, dump(value), "test") == value
    assert isinstance(value.rate, float)
    assert value.sizes == (3,)
    config = TrainConfig(
        data="d",
        generator="g",
        split=SplitConfig(),
        image_px=0,
        model=LSGANConfig(),
        optim=OptimConfig(images=32),
    )
    assert load(TrainConfig, dump(config), "test") == config


def test_a_field_that_came_later_is_dumped_only_when_set() -> None:
    assert "later" not in dump(Outer(name="x"))
    value = Outer(name="x", later=("a",))
    assert dump(value)["later"] == ["a"]
    assert load(Outer, dump(value), "test") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "rat": 1.0}, "test: unknown key 'rat'; did you mean 'rate'?"),
        ({"rate": 1.0}, "test: 'name' is missing"),
        ({"name": 3}, "test.name: got 3, expected str"),
        ({"name": "x", "rate": "fast"}, "test.rate: got 'fast', expected float"),
        ({"name": "x", "rate": True}, "test.rate: got True, expected float"),
        ({"name": "x", "on": 1}, "test.on: got 1, expected bool"),
        ({"name": "x", "mode": "c"}, "test.mode: got 'c', expected a | b"),
        ({"name": "x", "sizes": [1, "2"]}, "test.sizes[1]: got '2', expected int"),
        ({"name": "x", "sizes": 1}, "test.sizes: got 1, expected a list of int"),
        ({"name": "x", "table": 1}, "test.table: got 1, expected a table"),
        (
            {"name": "x", "inner": {"sise": 1}},
            "test.inner: unknown key 'sise'; did you mean 'size'?",
        ),
        ({"name": "x", "inner": 3}, "test.inner: got 3, expected a table of size"),
        ({"name": "x", "maybe": 1.5}, "test.maybe: got 1.5, expected int"),
        ([1], "test: got [1], expected a table of name"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(data: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(Outer, data, "test")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_union_of_configs_is_told_apart_by_its_kind() -> None:
    base = {"data": "d", "generator": "g", "split": {}, "image_px": 0, "optim": {"images": 320}}
    loaded = load(TrainConfig, {**base, "model": {"kind": "hvae", "n_leapfrog": 5}}, "test")
    assert isinstance(loaded.model, HVAEConfig)
    assert loaded.model.n_leapfrog == 5
    with pytest.raises(UserError, match=r"test\.model\.kind: got 'gan', expected hvae \| lsgan"):
        load(TrainConfig, {**base, "model": {"kind": "gan"}}, "test")
    with pytest.raises(UserError, match="unknown key 'n_leapfrg'; did you mean 'n_leapfrog'"):
        load(TrainConfig, {**base, "model": {"kind": "hvae", "n_leapfrg": 5}}, "test")


def test_a_base_class_of_plug_ins_has_no_label_and_a_kind_below_it_has() -> None:
    class Plain(GeneratorConfig):
        pass

    class Own(Plain):
        kind, label = "own", "Own"

    assert generator_labels()["own"] == "Own"
    assert generator_labels()["hvae"] == "HVAE"
    del Own.kind  # it is known to all tests


def test_refused_values_say_where_they_came_from() -> None:
    with pytest.raises(
        UserError, match=r"site: images is 33, expected a multiple of batch_size = 32"
    ):
        load(OptimConfig, {"images": 33}, "site")


def test_a_file_that_extends_another_lies_over_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("a = 1\n[t]\nx = 1\ny = 2\nlist = [1, 2]\n")
    (tmp_path / "own.toml").write_text('extends = "base"\nb = 2\n[t]\ny = 3\nlist = [9]\n')
    assert read_toml(tmp_path / "own.toml", tmp_path) == {
        "a": 1,
        "b": 2,
        "t": {"x": 1, "y": 3, "list": [9]},
    }
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


def test_what_is_said_of_another_name_is_not_inherited() -> None:
    base = {"name": "a", "about": "of a", "label": {"tumour": [1], "known": [0, 1]}}
    assert "about" not in merge(base, {"name": "b"})
    assert merge(base, {"name": "b", "about": "of b"})["about"] == "of b"
    assert merge(base, {"modality": "CT"})["about"] == "of a"


def test_bad_files_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("a = = 1")
    (tmp_path / "deep.toml").write_text("a = " + 3000 * "[")
    (tmp_path / "long.toml").write_text("a = " + 5000 * "9")
    (tmp_path / "round.toml").write_text('extends = "round"')
    (tmp_path / "cut.json").write_text('{"a": [1, 2')
    for call, message in [
        (lambda: read_toml(tmp_path / "none.toml", tmp_path), "cannot be read"),
        (lambda: read_toml(tmp_path / "bad.toml", tmp_path), "not valid TOML"),
        (lambda: read_toml(tmp_path / "deep.toml", tmp_path), "not valid TOML"),
        (lambda: read_toml(tmp_path / "long.toml", tmp_path), "not valid TOML"),
        (lambda: read_toml(tmp_path / "round.toml", tmp_path), "goes in a circle"),
        (lambda: read_json(tmp_path / "cut.json"), "may be truncated"),
        (lambda: find_toml("nothing", tmp_path), "'nothing' is not one of bad, deep, long, round"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
