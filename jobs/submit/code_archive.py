"""The code of a submission: the package as it was imported, in one file from which its jobs import.

Whoever edits or deletes the checkout changes nothing in what waits. Others may be able to write in
a runs folder. So the sbatch text, which SLURM keeps, has the file's hash. A process of a job reads
the file once, compares, and imports from an unpacked copy that is its own.
"""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

from hvae_hpc.runs.files import refuse_links
from hvae_hpc.runs.folder import write_atomic
from hvae_hpc.runs.identity import code_sha, read_package

START = """
import hashlib, io, os, runpy, sys, tempfile, zipfile
path, sha256, module, *options = sys.argv[1:]
try:
    content = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb").read(2**26)
except OSError:
    content = b""
if hashlib.sha256(content).hexdigest() != sha256:
    sys.exit(f"error: {path}: is not the submitted code; give the sweep command again")
with tempfile.TemporaryDirectory(prefix="hvae_hpc-") as folder:
    zipfile.ZipFile(io.BytesIO(content)).extractall(folder)
    sys.argv, sys.path = [module, *options], [folder, *sys.path]
    places = filter(None, (folder, os.environ.get("PYTHONPATH")))
    os.environ["PYTHONPATH"] = os.pathsep.join(places)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""What a process of a job runs first. It stands in sbatch texts, and imports nothing of ours."""


class CodeArchive(NamedTuple):
    """The package in one file.

    Attributes:
        path: in a runs folder's submissions, named by the hashes of the code and of the file.
        content: the file's bytes.
    """

    path: Path
    content: bytes

    @property
    def start(self) -> list[str]:
        """What follows after Python, before a module's name and its options."""
        return ["-c", START, str(self.path), hashlib.sha256(self.content).hexdigest()]

    def write(self) -> None:
        """Write the file, also where there is one that should be the same."""
        refuse_links(self.path, self.path.parents[1])
        write_atomic(self.path, self.content)


def pack_code(folder: Path) -> CodeArchive:
    """Return the imported package as a file of a folder; equal code gives equal bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in read_package().items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)  # of no date
    content = file.getvalue()
    name = f"code-{code_sha()}-{hashlib.sha256(content).hexdigest()[:12]}.zip"
    return CodeArchive(folder / name, content)
