"""Names that follow from content: canonical JSON, run ids, and the hash of the package's own code.

A run id follows from all that would change a number we publish, and from nothing else: the stage,
its version, the fully resolved config, and the ids of the parents. A data set's id as a parent is
its manifest's content hash. Paths, resources and machines never enter.
"""

import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hvae_hpc.runs.files import WEIGHT_BYTES, open_file


class Form(NamedTuple):
    """What an identifier must be, as a regular expression and in words."""

    pattern: str
    words: str


NAME = Form(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}", "letters, digits, '.', '_', '+' and '-'")
"""Of sweeps, data sets, arrays and shards: it leads to no other folder."""
RUN_ID = Form(r"[0-9a-f]{12}", "12 hexadecimal digits")
SHA256 = Form(r"[0-9a-f]{64}", "64 hexadecimal digits")
JOB = Form(r"[0-9]{1,18}(_[0-9]{1,9})?", "the id of a SLURM job or of an array's element")
PACKAGE_SUFFIXES = (".py", ".toml", ".csv", ".html")
"""Of the package's files that do or say something; others, such as compiled code, are left out."""


def require_form(what: str, value: str, form: Form) -> None:
    """Refuse an identifier that is not of its form, as it may become a path or a command.

    Raises:
        ValueError: it is not; the message names it by ``what``.
    """
    if not re.fullmatch(form.pattern, value):
        raise ValueError(f"{what} is {value[:60]!r}, expected {form.words}")


def canonical_json(value: Any) -> str:
    """Serialise plain data so that equal values give equal text: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: value holds a NaN or an infinity, which JSON cannot say.
        TypeError: value is not plain data.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open_file(path, WEIGHT_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def read_package() -> dict[str, bytes]:
    """Return the content of the imported package's files by their places in it, in this order.

    In a checkout three of its folders are links; they count as what they lead to, as in a wheel.
    """
    package = Path(__file__).parents[1]
    contents = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for folder, _, names in os.walk(package, followlinks=True)
        for path in map(Path(folder).joinpath, names)
        if path.suffix in PACKAGE_SUFFIXES
    }
    return dict(sorted(contents.items()))


@cache
def code_sha() -> str:
    """Return 12 digits that change with any file of the imported package.

    The files are hashed, not a commit's name: an edited checkout gets other digits, a commit that
    touches only documents does not.
    """
    digest = hashlib.sha256()
    for name, content in read_package().items():
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:12]
