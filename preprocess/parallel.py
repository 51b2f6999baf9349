"""Work on many cases in several processes, with results in order and memory bounded."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from hvae_hpc.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""malloc.h"""
_SET_TO_ONE = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "PYTHONSAFEPATH",
)
"""Environment of the workers, who are the parallelism, and find no modules where they work."""


def map_in_order(function: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Apply a function to all items and yield the results in the items' order.

    At most two results per worker are held or under way, however slow their reader is.

    Args:
        function: a module's function, or a partial of one; its exceptions are raised here.
        items: can be pickled.
        workers: processes, of which no more start than there are items; 1 works in this one.

    Raises:
        UserError: a worker was killed from outside, by the system's memory limit most likely.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        keep_freed_memory()
        yield from map(function, items)
        return
    # spawn: a forked child inherits locks of threads (SimpleITK, OpenMP) that it does not have.
    context = multiprocessing.get_context("spawn")
    waiting = iter(items)
    with (
        _worker_environment(),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool,
    ):
        try:
            futures = deque(pool.submit(function, item) for item in islice(waiting, 2 * workers))
            while futures:
                yield futures.popleft().result()
                futures.extend(pool.submit(function, item) for item in islice(waiting, 1))
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?); use fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """Let the processes started meanwhile use one thread each, and look for no modules here."""
    before = dict(os.environ)
    os.environ.update(dict.fromkeys(_SET_TO_ONE, "1"))
    try:
        yield
    finally:
        for name in _SET_TO_ONE:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next volume.

    Giving 18 MB back and asking for it again takes 40 % of a case's time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 256 * 2**20)


def _start_worker() -> None:
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # A parent killed outright cannot tell its workers, and they would wait for work for ever.
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
