"""docs/SETTINGS.md is made of docstrings; ``python -m tests.jobs.sweeps.test_settings_page`` writes it."""

import dataclasses
import inspect
import pkgutil
import re
import types
import typing
from typing import Any, Literal

from hvae_hpc.config.kinds import BUILT_IN
from hvae_hpc.config.model import (
    MovesConfig,
    NetworkConfig,
    OptimConfig,
    UNetConfig,
)
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import (
    CONFIGS,
    SegmentConfig,
    SplitConfig,
    StandardCopiesConfig,
    TrainConfig,
)
from hvae_hpc.jobs.sites.retry_policy import FAILURES, Rule
from hvae_hpc.jobs.sites.site import Caps
from hvae_hpc.jobs.sweeps.config import (
    SET_BY_THE_PLANNER,
    GeneratorSettings,
    SegmentSettings,
    SweepConfig,
)
from tests import ROOT

PAGE = ROOT / "docs" / "SETTINGS.md"
OF_ALL_STAGES = ("data", "split", "image_px", "seed")
MADE = "`python -m tests.jobs.sweeps.test_settings_page` makes this page from the docstrings of the code."

INTRO = f"""\
# Settings

All fields of a sweep file and of a site file. Recipes are explained in [RECIPES.md](RECIPES.md).
A sweep file says what is run. Each of its fields may change results, so most are part of the run
ids. A site file says how it is run. Its fields change no result.

{MADE}
"""
SITE = """\
## A site file

`--site FILE`, or the administrator's `/etc/hvae_hpc/site.toml`. There is a table for each stage:
`[train]`, `[likelihood]`, `[generate]`, `[augment]`, `[quality]`, `[segment]`, `[pack]` and
`[tables]`. A table `[all]` is for every stage. `jobs/sites/default.toml` has the defaults of each
stage.
"""


def told_fields(cls: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of their fields."""
    told: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        text = inspect.getdoc(owner) or ""
        _, _, attributes = text.partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", attributes.rstrip()):
            names, _, words = " ".join(entry.split()).partition(": ")
            if re.fullmatch(r"\w+(, \w+)*", names):
                told |= dict.fromkeys(names.split(", "), words)
    return told


def type_in_words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_in_words(each) for each in inner)
    if origin is tuple:
        return f"list of {type_in_words(inner[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "table"
    return {types.NoneType: "none", Any: "any"}.get(hint) or hint.__name__


def default_in_words(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "" if field.default_factory is not dataclasses.MISSING else "**to be given**"
    if dataclasses.is_dataclass(value) or value is None or value in ("", ()):
        return ""
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return f"`{text or (list(value) if isinstance(value, tuple) else repr(value))}`".replace(
        "'", '"'
    )


def table(cls: type, without: tuple[str, ...] = (), beside: type | None = None) -> list[str]:
    """Return a class's fields as a Markdown table; ``beside`` explains what the class does not."""
    hints, told = typing.get_type_hints(cls), told_fields(cls)
    told = (told_fields(beside) if beside else {}) | told
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name in (*without, "kind"):
            continue
        meaning = plain(told.get(field.name, "a table of its own, see below."))
        cells = (f"`{field.name}`", type_in_words(hints[field.name]), default_in_words(field))
        lines.append("| " + " | ".join((*cells, meaning.replace("|", "\\|"))) + " |")
    return [*lines, ""] if len(lines) > 2 else ["It has no fields.", ""]


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring, in one line."""
    first = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    return plain(re.sub(r"; see :class:.*", ".", first))


def plain(text: str) -> str:
    """Turn the marks of docstrings into those of Markdown."""
    return re.sub(r"``([^`]*)``|:\w+:`~?([\w.]+)`", r"`\1\2`", text)


def render() -> str:
    """Return the text of docs/SETTINGS.md."""
    optim = "[segment.optim] and [generators.NAME.optim]"
    lines = [INTRO, "## A sweep file", "", *table(SweepConfig)]
    for name, cls, beside in (
        ("[split]", SplitConfig, None),
        ("[segment]", SegmentSettings, SegmentConfig),
        ("[segment.unet]", UNetConfig, None),
        (optim, OptimConfig, None),
        ("[generators.NAME]", GeneratorSettings, TrainConfig),
    ):
        lines += [f"## {name}", "", summary(cls), "", *table(cls, (), beside)]

    for kind, place in BUILT_IN["hvae_hpc.generators"].items():
        cls = pkgutil.resolve_name(place)
        lines += [f'## [generators.NAME.model], kind = "{kind}"', "", summary(cls), "", *table(cls)]
    network = "## [generators.NAME.model.network], of an LSGAN or an HVAE"
    lines += [network, "", summary(NetworkConfig), "", *table(NetworkConfig)]

    lines += ["## [segment.moves] and [generators.NAME.moves]", "", summary(MovesConfig), ""]
    lines += table(MovesConfig)
    for kind, place in BUILT_IN["hvae_hpc.augmentations"].items():
        if kind:
            cls = pkgutil.resolve_name(place)
            lines += [f'## [segment.augmentations.NAME], kind = "{kind}"', "", summary(cls), ""]
            lines += table(cls)
    configs: dict[str, type] = {**CONFIGS, "augment": StandardCopiesConfig}
    for stage, given in SET_BY_THE_PLANNER.items():
        cls = configs[stage]
        lines += [f"## [{stage}]", "", summary(cls), "", *table(cls, (*given, *OF_ALL_STAGES))]

    lines += [SITE, *table(Resources), "## [caps], in the administrator's file alone", ""]
    lines += [summary(Caps), "", *table(Caps)]
    lines += ["## [retry] of a site file", "", summary(Rule), "", *table(Rule)]
    lines += ["There is one table for each class:", ""]
    lines += [f'* `[retry."{name}"]`' for name in FAILURES]
    return "\n".join(lines) + "\n"


def test_the_page_says_what_the_docstrings_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "write it again: python -m tests.jobs.sweeps.test_settings_page"
    )


def test_every_field_has_a_meaning() -> None:
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    hints = [row.split(" | ")[1] for row in rows if row.endswith("its own, see below. |")]
    assert set(hints) <= {"table", "list of table"}


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
