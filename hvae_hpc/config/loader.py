"""The one strict loader: plain data (TOML, config.json, metrics.json) to dataclasses and back.

An unknown key is an error that names the nearest field, a value of the wrong type is an error that
names the field, and nothing is guessed. Config dataclasses check their own values in
``__post_init__`` by raising ``ValueError``; the loader adds where the value came from.
"""

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from hvae_hpc.config.kinds import choose_class
from hvae_hpc.errors import UserError
from hvae_hpc.runs.files import RECORD_BYTES, SETTINGS_BYTES, read_file

T = TypeVar("T")

_LARGEST = 1e100
"""No number of ours is near it, and products of numbers below it stay finite."""


def added_later(default: T) -> T:
    """Declare a field that came later: at its default it is not dumped, so old hashes hold."""
    return dataclasses.field(default=default, metadata={"only_when_set": True})


def load(cls: type[T], data: Any, where: str) -> T:
    """Build a dataclass from plain data, strictly.

    Args:
        cls: a dataclass; its fields may be int, float, bool, str, Literal, None, ``X | Y`` of
            those, ``tuple[X, ...]``, ``dict[str, X]`` and dataclasses. Of a class with kinds
            (:mod:`hvae_hpc.config.kinds`), the data's ``kind`` says which subclass is built.
        data: a mapping as TOML or JSON give it.
        where: the file and field that data came from, for messages.

    Raises:
        UserError: an unknown key, a missing key, a wrong type or a refused value, with its place.
    """
    if not isinstance(data, Mapping):
        names = ", ".join(_fields(cls)[0])  # type: ignore[arg-type]
        raise UserError(f"{where}: got {_shown(data)}, expected a table of {names or 'a kind'}")
    cls = choose_class(cls, data.get("kind"), where)
    hints, required = _fields(cls)  # type: ignore[arg-type]
    for key in data:
        if key not in hints:
            raise UserError(f"{where}: unknown key {key!r}; {_nearest(str(key), list(hints))}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    for name in required:
        if name not in values:
            raise UserError(f"{where}: {name!r} is missing; it has no default, please give it")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def dump(value: Any) -> Any:
    """Turn a dataclass into plain data that JSON can hold and :func:`load` reads back unchanged."""
    if isinstance(value, (str, int, float)):  # most values, and quickly: 10,000 runs have millions
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {
            field.name: dump(item)
            for field, item in fields
            if "only_when_set" not in field.metadata or item != field.default
        }
    if isinstance(value, Mapping):
        return {str(key): dump(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(item) for item in value]
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another: tables merge key by key, anything else is replaced.

    What is said about another name is not inherited, nor are the known values beside "any" tumour.
    """
    merged = dict(base)
    if "name" in over:
        merged.pop("about", None)
    if over.get("tumour") == "any":
        merged.pop("known", None)
    for key, value in over.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = merge(inner, value)
        merged[key] = value
    return merged


def read_toml(path: Path, library: Path, *, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a TOML file; ``extends = "NAME or PATH"`` lays it over another one.

    Args:
        path: the file.
        library: the folder in which a bare NAME of ``extends`` lies as ``NAME.toml``.
        below: the files that extend this one.

    Raises:
        UserError: the file is missing or is not TOML, or ``extends`` goes in a circle.
    """
    if path.resolve() in below:
        raise UserError(f"{path}: 'extends' goes in a circle; remove one of them")
    try:
        table = tomllib.loads(read_file(path, SETTINGS_BYTES).decode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error

    parent = table.pop("extends", None)
    if parent is None:
        return table
    parent_path = find_toml(str(parent), library, beside=path.parent)
    return merge(read_toml(parent_path, library, below=(*below, path.resolve())), table)


def find_toml(name: str, library: Path, beside: Path = Path()) -> Path:
    """Turn a bare name (a file of the library) or a path into a path.

    Raises:
        UserError: there is no such file; the library's names are listed.
    """
    if name.endswith(".toml"):
        return beside / name
    path = library / f"{name}.toml"
    if not path.is_file():
        known = sorted(file.stem for file in library.glob("*.toml"))
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "the path of your own file ends in .toml"
        raise UserError(f"{name!r} is not one of {', '.join(known)}; {hint}")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is missing, or not JSON (a truncated file, say).
    """
    try:
        return json.loads(read_file(path, RECORD_BYTES), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); it may be truncated, make it again"
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


@cache
def _fields(cls: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the types of a dataclass's fields by name, and which have no default."""
    hints = typing.get_type_hints(cls)
    fields, missing = dataclasses.fields(cls), dataclasses.MISSING
    required = tuple(
        field.name
        for field in fields
        if field.default is missing and field.default_factory is missing
    )
    return {field.name: hints[field.name] for field in fields}, required


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return a value as a type hint asks for it, or say that it does not fit."""
    # Most values, and quickly: 10,000 results hold millions of numbers.
    if hint is Any or (hint is type(value) and (hint is not float or abs(value) < _LARGEST)):
        return value

    origin, inner = _parts(hint)
    if origin in (types.UnionType, typing.Union):
        fitting = (option for option in inner if _fits(option, value))
        return _convert(next(fitting, inner[0]), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        if inner[-1] is not Ellipsis and len(inner) != len(value):
            raise UserError(f"{where}: got {_shown(value)}, expected {len(inner)} values")
        return tuple(_convert(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _convert(inner[1], item, f"{where}.{key}") for key, item in value.items()}

    if dataclasses.is_dataclass(hint):
        return load(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) < _LARGEST:
            raise UserError(f"{where}: got {_shown(value)}, expected a finite number")
        return float(value)
    if not _fits(hint, value):
        raise UserError(f"{where}: got {_shown(value)}, expected {_words(hint)}")
    return value


def _words(hint: Any) -> str:
    """Say what a type hint asks for."""
    origin, inner = _parts(hint)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin is tuple:
        return f"a list of {_words(inner[0])}"
    return "a table" if origin is dict else hint.__name__


def _fits(hint: Any, value: Any) -> bool:
    """Say whether a value is one of a Literal's, or of a plain type; a bool is no int."""
    origin, inner = _parts(hint)
    if origin is Literal:
        return value in inner and not isinstance(value, bool)
    if not isinstance(hint, type) or (hint is int and isinstance(value, bool)):
        return False
    return isinstance(value, hint)


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def _nearest(key: str, names: list[str]) -> str:
    close = get_close_matches(key, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(names)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
