"""Python's garbage collector, kept out of the way of work that makes very many small objects."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep Python from looking through 100,000 small objects for garbage again and again while more are made.

    Nor does it look through them at once when it goes on: what was made is kept, so it counts as
        old from then on.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.unfreeze()  # all that there is now is of the oldest generation
            gc.enable()
