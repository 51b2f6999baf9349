"""Turns, medians and tables of benchmarks/preprocess.py."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def take_turns(
    sides: Mapping[str, Callable[[], Any] | None], repeats: int
) -> dict[str, list[float] | None]:
    """Time all sides one after the other, several times over; None for a side that is missing."""
    times: dict[str, list[float] | None] = {
        name: None if run is None else [] for name, run in sides.items()
    }
    for _ in range(repeats):
        for name, run in sides.items():
            taken = times[name]
            if run is not None and taken is not None:
                started = time.perf_counter()
                run()
                taken.append(time.perf_counter() - started)
    return times


def median(seconds: list[float] | None, scale: float = 1.0) -> float | None:
    """Return the median, multiplied."""
    return None if seconds is None else statistics.median(seconds) * scale


def rate(seconds: list[float] | None, count: int) -> float | None:
    """Return how many per second, at the median."""
    return None if seconds is None else count / statistics.median(seconds)


def ratio(theirs: list[float] | None, ours: list[float] | None) -> float | None:
    """Return how many times as fast ours is: the median over the repeats of both."""
    if theirs is None or ours is None:
        return None
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    texts = [list(head), *([_to_text(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    print(f"\n{title}")
    for first, *others in texts:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  " + "  ".join([first.ljust(widths[0]), *cells]))
    sys.stdout.flush()


def _to_text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if cell >= 100 else f"{cell:.3g}"
    return "null" if cell is None else str(cell)


def round_all(value: Any) -> Any:
    """Keep four digits of every figure."""
    if isinstance(value, dict):
        return {key: round_all(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
