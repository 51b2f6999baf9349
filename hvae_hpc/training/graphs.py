"""What torch.compile made for a network, kept in one file for all later processes.

torch writes hundreds of small files, by itself into a folder of /tmp that all of a user's processes
share. Here they go to a folder of this process alone, on the node's own disk, which goes when the
process does. The first run that had to compile packs it into ``runs/caches/<key>.zip``, and later
ones unpack that. What is in it is executed, so only a file that nobody but ourselves can have
written is taken.
"""

import atexit
import contextlib
import hashlib
import io
import os
import platform
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch

from hvae_hpc.errors import UserError
from hvae_hpc.runs.folder import write_atomic_by
from hvae_hpc.runs.identity import code_sha
from hvae_hpc.runs.scratch import held, in_home, own_folder, remove_unused, scratch_folder
from hvae_hpc.runs.workplace import Workplace

FOLDER = "graphs"


class KeptGraphs:
    """A folder for all that torch compiles from now on, which has what an earlier process kept of the same kind.

    Args:
        network: what the graphs depend on beside code, torch and device; its ``repr`` is the same
            in all processes.
        device: on which they run.
        workplace: whose ``caches`` has the files; None to keep nothing.

    Attributes:
        folder: where torch puts them.
        path: the file in which they are kept; None for none.
        found: whether an earlier process's are used.
    """

    def __init__(self, network: Hashable, device: torch.device, workplace: Workplace) -> None:
        self.folder, self._remove = _make_folder(workplace.resources.scratch)
        if compiler := sys.modules.get("torch._inductor.utils"):
            compiler.clear_caches()  # in memory, of another folder's files
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder)
        os.environ["TRITON_CACHE_DIR"] = str(self.folder / "triton")
        self.path = workplace.caches and workplace.caches / f"{make_key(network, device)}.zip"
        self.found = self._unpack()
        _use_own_headers(workplace.resources.scratch)
        self._misses = _misses()

    def keep(self) -> None:
        """Write the file if torch had to compile; a disk that refuses is told of in a line."""
        if self.path is None or self._misses == _misses():
            return
        self._misses = _misses()
        try:
            write_atomic_by(self.path, self._pack)
        except UserError as error:
            print(f"what torch compiled is not kept: {error}", flush=True)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()

    def _pack(self, path: Path) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(self.folder.rglob("*")):
                if file.is_file() and file.parent.name != "locks":
                    archive.write(file, file.relative_to(self.folder))
        content = packed.getvalue()
        path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        path.chmod(0o600)

    def _unpack(self) -> bool:
        if self.path is None:
            return False
        try:
            with open(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                found = os.fstat(file.fileno())
                if (
                    not stat.S_ISREG(found.st_mode)
                    or found.st_uid != os.getuid()
                    or found.st_mode & 0o022
                ):
                    raise UserError("others may have written it")
                digest, _, content = file.read().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != digest:
                raise UserError("it is damaged")
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(self.folder)
        except FileNotFoundError:
            return False
        except (OSError, UserError) as error:
            for left in self.folder.iterdir():  # half of it, where the disk was full
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            print(
                f"{self.path}: not used, compiled anew: {getattr(error, 'strerror', None) or error}",
                flush=True,
            )
            return False
        return True


class Headers:
    """Has g++ read torch's C++ headers once for all kernels of a process: with each of them it takes longer than that.

    torch does so by itself, but into the folder that all of a user's processes share. Ours is made
    when a kernel is compiled, not when it is found, and it takes 150 MiB; where it cannot be, a
    line says so and kernels do without.

    Args:
        make: torch's function, which returns a header's path, and knows of those that it has made.
        scratch: as a site file has it.
    """

    def __init__(self, make: Callable[..., str], scratch: str) -> None:
        self.make, self.scratch, self.failed = make, scratch, False
        self.folder: Path | None = None

    def __call__(self, *what: Any, **how: Any) -> str:
        """Return the header's path, or "" for none."""
        if self.failed or _misses() == 0:
            return ""
        try:
            if self.folder is None:
                self.folder, _ = _make_folder(self.scratch)
                torch._inductor.codecache._HEADER_DIR = str(self.folder)
                torch._inductor.codecache._HEADER_LOCK_DIR = str(self.folder / "locks")
            path = self.make(*what, **how)
            return path if Path(path).exists() else ""  # somebody may have tidied up the disk
        except Exception as error:  # whatever it is: a disk that is full, or no openssl, which torch asks for a digest
            self.failed = True
            shutil.rmtree(self.folder or "", ignore_errors=True)
            print(
                f"torch's C++ headers are read with every kernel, slowly: {' '.join(str(error).split())[:200]}",
                flush=True,
            )
            return ""


def _use_own_headers(scratch: str) -> None:
    """Take the place of torch's function; a torch that has none of that name gets no headers at all."""
    from torch._inductor import codecache, config

    make, *folders = (
        "_precompile_header",
        "_HEADER_DIR",
        "_HEADER_LOCK_DIR",
    )  # of which torch promises nothing
    if not all(hasattr(codecache, name) for name in (make, *folders)):
        config.cpp_cache_precompile_headers = False
    elif not isinstance(getattr(codecache, make), Headers):
        setattr(codecache, make, Headers(getattr(codecache, make), scratch))


def make_key(network: Hashable, device: torch.device) -> str:
    """Return 24 digits of all that compiled code depends on, and of the user, who takes nobody else's code."""
    parts = [
        code_sha(),
        repr(network),
        torch.__version__,
        torch.version.cuda,
        str(Path(torch.__file__).parent),
    ]
    if device.type == "cuda":
        parts += [torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    # Compiled for this very processor: on another one it may not run, or give other numbers.
    parts += [
        sys.version,
        *platform.libc_ver(),
        platform.machine(),
        *_processor(),
        str(os.getuid()),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _processor() -> list[str]:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return sorted(
            {
                line
                for line in lines
                if line.split("\t")[0] in ("model name", "flags", "Features", "CPU part")
            }
        )
    return []


def _make_folder(scratch: str) -> tuple[Path, Callable[[], None]]:
    """Make a private folder on the node's own disk, and remove those of processes that were killed.

    Returns:
        The folder, and what removes it: by itself at the process's end, and never in a fork of the
            process.
    """
    temporary = Path(tempfile.gettempdir())
    if in_home(temporary):
        temporary = Path("/tmp")
    try:
        root = (scratch_folder(scratch) or own_folder(temporary)) / FOLDER
        root.mkdir(exist_ok=True)
        for left in root.iterdir():
            remove_unused(left)
    except (OSError, UserError) as error:
        print(f"torch compiles into a temporary folder: {error}", flush=True)
        root = temporary
    until, process = contextlib.ExitStack(), os.getpid()

    def remove() -> None:
        if os.getpid() == process:
            atexit.unregister(remove)
            until.close()

    atexit.register(remove)
    for _ in range(3):
        folder = Path(tempfile.mkdtemp(prefix="hvae_hpc-", dir=root))
        until.callback(shutil.rmtree, folder, ignore_errors=True)
        if until.enter_context(
            held(folder)
        ):  # else it was taken for one that was left, and is going
            break
    return folder, remove  # not held where the disk has no locks: then nobody removes it either


def _misses() -> int:
    """Return how many graphs this process had to compile."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["inductor"]["fxgraph_cache_miss"]) if dynamo else 0
