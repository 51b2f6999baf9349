"""Where torch.compile keeps what it compiled: a folder of this user alone, on the node's own disk.

What lies there is executed. By itself torch takes a folder of /tmp whose name everybody can guess,
so another user could put code there first.
"""

import atexit
import os
import platform
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

from hvae_hpc.errors import UserError, say


@cache
def use_private_cache() -> Path:
    """Point torch's caches at a folder that nobody else can write, and return that folder.

    Later processes of the user on this node find there what earlier ones compiled. Where there can
    be no such folder, a line says so, and the cache is a new one that goes with this process.
    """
    try:
        # A disk that several machines share may hold code of another machine's processor.
        folder = private_folder(Path(tempfile.gettempdir())) / f"compiled-{platform.node()}"
    except UserError as error:
        say(f"what torch compiles is not kept: {error}")
        folder = Path(tempfile.mkdtemp(prefix="hvae_hpc-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")

    # Imported only now: torch's compiler makes its folder at its import. Its C++ headers, compiled
    # once for all kernels, would still go to the folder of /tmp. Their digest needs openssl.
    from torch._inductor import codecache, config

    if shutil.which("openssl") and hasattr(codecache, "_HEADER_DIR"):
        codecache._HEADER_DIR = str(folder / "headers")
        codecache._HEADER_LOCK_DIR = str(folder / "headers" / "locks")
    else:
        config.cpp_cache_precompile_headers = False
    return folder


def private_folder(parent: Path) -> Path:
    """Return this user's own folder in a folder that may be open to all; it is made if need be.

    Raises:
        UserError: it cannot be made, or others may read or write it, or it is a link.
    """
    folder = parent / f"hvae_hpc-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from error
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_ours or status.st_mode & 0o077:
        raise UserError(f"{folder}: is not a folder of this user alone (mode 700); remove it")
    return folder
