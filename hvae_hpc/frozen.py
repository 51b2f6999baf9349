"""The project's dataclasses: their fields are given by keyword, and never changed."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a class a dataclass that is frozen and keyword-only, to Python and to type checkers."""
    return dataclass(frozen=True, kw_only=True)(cls)
