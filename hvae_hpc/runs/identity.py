"""Names that follow from content: canonical JSON, run ids, and the hash of the package's own code.

A run id follows from all that would change a number we publish, and from nothing else: the stage,
its version, the fully resolved config, and the ids of the parents. A data set's id as a parent is
its manifest's content hash. Paths, resources and machines never enter.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hvae_hpc.runs.files import WEIGHT_BYTES, open_file


def canonical_json(value: Any) -> str:
    """Serialise plain data so that equal values give equal text: sorted keys, no spaces, no NaN.

    Raises:
        ValueError: value holds a NaN or an infinity, which JSON cannot say.
        TypeError: value is not plain data.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def content_hash(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def make_run_id(
    stage: str, version: int, config: Mapping[str, Any], parents: Mapping[str, str]
) -> str:
    """Return the 12 hexadecimal digits that name a run."""
    return content_hash([stage, version, config, parents])[:12]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open_file(path, WEIGHT_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_sha() -> str:
    """Return 12 digits that change with any Python or TOML file of the imported package.

    The files are hashed, not a commit's name: an edited checkout gets other digits, a commit that
    touches only documents does not.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    # Three folders hang in the package by symbolic links, which rglob does not follow.
    roots = [package, *(package / name for name in ("jobs", "preprocess", "results"))]
    files = {
        path.relative_to(root.parent).as_posix(): path
        for root in map(Path.resolve, roots)
        for path in root.rglob("*")
        if path.suffix in (".py", ".toml")
    }
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    return digest.hexdigest()[:12]
