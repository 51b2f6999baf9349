"""A run's folder: the names of all files in it, atomic writes, checked reads.

``runs/<stage>/<label>-<run_id>/`` holds config.json. Once the run is done it holds metrics.json,
which alone says so. Files are written under a temporary name in the same folder, flushed to the
disk and renamed, so nobody sees one that is half written.
"""

import io
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

from hvae_hpc.config.loader import dump, load, read_json
from hvae_hpc.errors import NO_ROOM, NonFiniteError, UserError, say
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.files import RECORD_BYTES, open_to_append, read_last_lines, refuse_links
from hvae_hpc.runs.identity import JOB, content_hash, require_form
from hvae_hpc.runs.lease import check

CONFIG = "config.json"
METRICS = "metrics.json"
LOG = "log.jsonl"
SNAPSHOT = "snapshot.pt"
PAIRS = "pairs.h5"
SAMPLES = "samples.npz"
INPUTS = "inputs.json"
RESULT_SCHEMA = 1
REMAKE = "delete the folder to make it again"
KEPT_LINES = 1000
CHECKPOINT = re.compile(r"checkpoint-(\d{12})-([0-9a-f]{16})\.pt", re.ASCII)
"""Images seen, and the beginning of the SHA-256 of its bytes."""
TEMPORARY = re.compile(r"\.(.+\.\d+-[0-9a-f]{8}|(lease|here|over)-[\w-]*)\.tmp", re.ASCII)
LOG_TEXTS = ("event", "reason", "job_id", "host", "signal")
LOG_NUMBERS = ("images_seen", "at", "attempt", "at_once", "errno", "exit_code", "oom_kills")
"""Fields of log.jsonl's records that our code reads; beside these it has a "time"."""
_EMPTY: dict[str, Any] = {**dict.fromkeys(LOG_TEXTS, ""), "errors": ()}
_UNWRITTEN: dict[Path, list[str]] = {}
"""By run folder: lines of its log for which the disk had no room yet."""
NO_RECORD = (
    *(ArithmeticError, AttributeError, LookupError, ValueError, TypeError, RecursionError),
    UserError,
)
"""What says that a line is no record."""
_TOLD: set[Path] = set()
"""Files of which was said that some of their lines count as none."""
T = TypeVar("T")
Record = dict[str, Any]
"""Plain data by name."""


@frozen
class Provenance:
    """Where, when and with what a run was made: recorded, never hashed.

    Attributes:
        code_sha: hash of the package's own files (:func:`hvae_hpc.runs.identity.code_sha`).
        versions: library name to version.
        device: "cpu" or the GPU's name.
        host: the node's name.
        job_id: SLURM's ``<array>_<element>``; "" for a local process.
        attempt: 1 for the first start, more after interruptions.
        started_at: seconds since 1970 of this attempt's start.
        wall_s: seconds this attempt took.
        peak_memory_mib: largest resident set of the process so far, MiB.
        threads: CPU threads that torch was pinned to.
        notes: what else a reader must know ("torch.compile failed, ran eager: ...").
        spent_s: seconds that all attempts took together, as far as their logs tell.
        processes: how many trained this run together.
        at_once: how many runs shared the device when this one began.
        slurm: cluster, partition, account, nodes, restarts, visible GPUs, as SLURM names them.
        gpu: energy_j of the first GPU, where NVML tells it.
    """

    code_sha: str
    versions: dict[str, str]
    device: str
    host: str
    job_id: str
    attempt: int
    started_at: float
    wall_s: float
    peak_memory_mib: float
    threads: int
    notes: tuple[str, ...] = ()
    spent_s: float = 0.0
    processes: int = 1
    at_once: int = 1
    slurm: dict[str, str] = field(default_factory=dict)
    gpu: dict[str, float] = field(default_factory=dict)


@frozen
class RunResult:
    """What metrics.json holds.

    Attributes:
        schema: version of this format.
        run_id, stage, config: what was asked.
        parents: role to run id; the role "data" holds the data set's content hash.
        parent_results: role to :func:`result_stamp` of each parent run that was read. A parent that
            is made again has another stamp; then this run is made again as well.
        metrics: name to number, for the whole run.
        per_case: case id to name to number.
        provenance: see there.
        details: other plain data (lists of case ids, counts by name).
    """

    schema: int
    run_id: str
    stage: str
    config: Record
    parents: dict[str, str]
    parent_results: dict[str, str]
    metrics: dict[str, float]
    per_case: dict[str, dict[str, float]]
    provenance: Provenance
    details: Record = field(default_factory=dict)


class LogRecord(dict[str, Any]):
    """A record of log.jsonl. A field that it does not have is empty: "", no errors, or 0."""

    def __missing__(self, name: str) -> Any:
        return _EMPTY.get(name, 0)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that readers see all of it or nothing, also after a crash."""
    content = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    write_atomic_by(path, lambda temporary: temporary.write_bytes(content))


def write_atomic_by(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file under a temporary name, then give it its final one.

    Args:
        path: the final name; its folder is made if need be.
        write: is called with the temporary name, in the same folder.

    Raises:
        UserError: the disk refused (full, quota, no permission), or this process lost the folder to
            another one. The file of the final name is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open_to_append(temporary) as file:
            os.fsync(file.fileno())
        check(path.parent)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        check(path.parent)  # a process that takes over removes temporary files
        raise refused(path, error) from error
    finally:
        with suppress(OSError):  # a file system that is read-only refuses this as well
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refused(path: Path, error: OSError) -> UserError:
    """Return what a person is told where the disk refuses a file."""
    why = error.strerror or error
    return UserError(f"{path}: cannot be written ({why}); what was there before is untouched")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; a last line that was cut short is closed off first.

    Args:
        path: in a folder that exists.
        line: one or several, without the end of the last one.

    Raises:
        UserError: the disk refused, and nothing of the line stays; or this process lost the folder
            to another one.
    """
    check(path.parent)
    try:
        with open_to_append(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            is_cut = size > 0 and file.read(1) != b"\n"
            _append(file, size, (b"\n" if is_cut else b"") + f"{line}\n".encode())
    except OSError as error:
        raise refused(path, error) from error


def _append(file: io.FileIO, size: int, content: bytes) -> None:
    """Write at the end of a file of such a size; nothing of it stays where the disk is full."""
    written = 0
    try:
        while written < len(content):
            written += file.write(content[written:])
    except OSError:
        with suppress(OSError):
            if os.fstat(file.fileno()).st_size == size + written:  # nobody else has written since
                file.truncate(size)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON, atomically.

    Raises:
        ValueError: a NaN or an infinity is in it.
    """
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_result(folder: Path, result: RunResult) -> None:
    """Write metrics.json: from now on the run is done.

    Raises:
        NonFiniteError: a metric is not finite; it names the metric.
    """
    for name, value in result.metrics.items():
        if not abs(value) < float("inf"):
            raise NonFiniteError(
                f"{folder}: metric {name} is {value}; a run with a non-finite metric is not done"
            )
    write_json(folder / METRICS, dump(result))


def read_result(folder: Path, run_id: str) -> RunResult | None:
    """Read a run's metrics.json; None where there is none.

    Raises:
        UserError: it cannot be believed: it is truncated, of another schema, or another run's.
    """
    path = folder / METRICS
    if not path.exists():
        return None
    data = read_json(path)
    if isinstance(data, dict) and data.get("schema") != RESULT_SCHEMA:
        raise UserError(f"{path}: schema {data.get('schema')}, expected {RESULT_SCHEMA}; {REMAKE}")
    result = load(RunResult, data, str(path))
    if result.run_id != run_id:
        raise UserError(f"{path}: is run {result.run_id}, expected {run_id}; {REMAKE}")
    # The stamp is of what the file says, without the defaults of fields that it does not have.
    object.__setattr__(result, "_stamp", content_hash(data)[:12])
    return result


def result_stamp(result: RunResult) -> str:
    """Return 12 digits that name this making of a run; a second making has another stamp.

    It follows from metrics.json as it was written: a later version of the package, whose RunResult
    has more fields, finds the same stamp.
    """
    return getattr(result, "_stamp", "") or content_hash(dump(result))[:12]


def write_config(folder: Path, config: Record) -> None:
    """Write config.json, or check that the one on the disk says the same.

    Raises:
        UserError: it says something else, which a run id never allows.
    """
    path = folder / CONFIG
    if not path.exists():
        write_json(path, config)
    elif read_json(path) != config:
        raise UserError(f"{path}: is not the config of this run; {REMAKE}")


def append_log(folder: Path, record: Record) -> None:
    """Add one line to log.jsonl.

    Where the disk is full, the line is kept and written with the next one that fits. No run ends
    for a line: what it makes needs room as well, and then it says so.
    """
    refuse_links(folder, folder.parent.parent)
    kept = _UNWRITTEN.pop(folder, [])
    lines = [*kept, json.dumps({"time": round(time.time(), 3), **record})]
    try:
        append_line(folder / LOG, "\n".join(lines))
    except UserError as error:
        if getattr(error.__cause__, "errno", None) not in NO_ROOM:
            raise
        _UNWRITTEN[folder] = lines[-KEPT_LINES:]
        if not kept:
            note = f"{error}; its next lines are kept in memory until there is room"
            say(note, to=sys.stderr)


def read_log(folder: Path) -> list[LogRecord]:
    """Read log.jsonl with this process's lines that wait for room."""
    unwritten = [LogRecord(json.loads(line)) for line in _UNWRITTEN.get(folder, [])]
    return [*read_records(folder / LOG, _check_log_record), *unwritten]


def read_log_tail(folder: Path, n_bytes: int = 8192) -> list[LogRecord]:
    """Read the last whole lines of log.jsonl, of which there may be thousands."""
    with suppress(OSError):
        return _parse(read_last_lines(folder / LOG, n_bytes), _check_log_record)
    return []


def read_records(path: Path, make_record: Callable[[Any], T]) -> list[T]:
    """Read a file of one JSON record a line; a line that is no record of ours counts as none.

    A crash may have cut a line short, or somebody else wrote it. How many there are is said once.

    Args:
        path: of the file; a missing one has no records.
        make_record: makes a record of plain data, or raises one of ``NO_RECORD``.
    """
    records, trouble = list[T](), ""
    try:
        lines = read_last_lines(path, RECORD_BYTES)
        records = _parse(lines, make_record)
        if len(records) < len(lines):
            trouble = f"{len(lines) - len(records)} of {len(lines)} lines are no records of ours"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        trouble = f"cannot be read ({error.strerror})"
    if trouble and path not in _TOLD:
        _TOLD.add(path)
        say(f"{path}: {trouble}; they count as none", to=sys.stderr)
    return records


def _parse(lines: Iterable[bytes], make_record: Callable[[Any], T]) -> list[T]:
    records = []
    for line in lines:
        with suppress(*NO_RECORD):
            records.append(make_record(json.loads(line)))
    return records


def _check_log_record(content: Any) -> LogRecord:
    """Return a record of log.jsonl whose fields, where our code reads them, are of their type."""
    if not isinstance(content, dict):
        raise TypeError("no table")
    record = LogRecord(content)
    texts = [*(record[name] for name in LOG_TEXTS), *record["errors"]]
    numbers = [content["time"], *(record[name] for name in LOG_NUMBERS)]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is none")
    if not all(type(number) in (int, float) and 0 <= number < 1e12 for number in numbers):
        raise ValueError("a number is none, or can never be")
    if record["job_id"]:
        require_form("job_id", record["job_id"], JOB)
    return record


def find_checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the newest first."""
    return sorted(_find(folder, CHECKPOINT), reverse=True)


def remove_checkpoints(folder: Path, beyond: int = -1) -> None:
    """Remove all checkpoints of more images seen than this; by default all of them."""
    for path in find_checkpoints(folder):
        if int(path.name.split("-")[1]) > beyond:
            path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed writer left; only for the holder of the folder."""
    for path in _find(folder, TEMPORARY):
        path.unlink(missing_ok=True)


def _find(folder: Path, name: re.Pattern[str]) -> list[Path]:
    with suppress(FileNotFoundError, NotADirectoryError):
        return [path for path in folder.iterdir() if name.fullmatch(path.name)]
    return []
