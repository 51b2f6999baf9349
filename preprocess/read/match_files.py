"""A pattern such as ``{case}/{case}_flair.nii*`` -> the files of a raw folder that fit it, by case.

Folders are walked by the pattern, one name at a time, so a huge tree costs only what the pattern
can reach. A folder that cannot be listed is an error, and never a data set with fewer cases.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.recipes.recipe import CASE

_CASE_ID = r"[^/.][^/]*"
"""No case id begins with a dot: some systems leave ``._x.nii.gz`` beside x.nii.gz."""
_DEEPEST = 12


def match_files(raw: Path, pattern: str) -> dict[str, list[Path]]:
    """Map case ids to the files that fit a pattern, in the order of their names."""
    regex = compile_pattern(pattern)  # of several ids that fit a name, it finds the longest
    files: defaultdict[str, list[Path]] = defaultdict(list)
    for relative in sorted(_walk(raw, PurePosixPath(pattern).parts)):
        if match := regex.fullmatch(relative):
            files[match["case"]].append(raw / relative)
    return dict(files)


@cache
def compile_pattern(pattern: str, case_id: str = _CASE_ID) -> re.Pattern[str]:
    """Turn a pattern into a regular expression; all its ``{case}`` stand for the same text.

    Args:
        pattern: of a recipe's layout.
        case_id: regular expression of the ids that fit.
    """
    marker = re.escape(CASE)
    regex = _translate(pattern).replace(marker, f"(?P<case>{case_id})", 1)
    return re.compile(regex.replace(marker, "(?P=case)"))


def _translate(pattern: str) -> str:
    stem = pattern.removesuffix(".nii*")
    regex = re.escape(stem).replace(r"\*\*/", "(?:[^/]+/)*").replace(r"\*", "[^/]*")
    return regex + (r"\.nii(\.gz)?" if stem != pattern else "")


def _walk(folder: Path, parts: tuple[str, ...], depth: int = 0) -> Iterator[str]:
    """Yield the paths below a folder whose names fit the pattern's parts one by one."""
    if depth > _DEEPEST:  # a link that leads back up
        return
    part, rest = parts[0], parts[1:]
    if part == "**":  # no folder at all
        yield from _walk(folder, rest, depth)

    below = parts if part == "**" else rest
    fits = re.compile(_translate(part).replace(re.escape(CASE), "[^/]*"))
    for name, is_folder in _list(folder):
        if name.startswith(".") or not fits.fullmatch(name):
            continue
        if below and is_folder:
            yield from (f"{name}/{path}" for path in _walk(folder / name, below, depth + 1))
        elif not below and not is_folder:
            yield name


def _list(folder: Path) -> list[tuple[str, bool]]:
    """Return the names in a folder, and whether they are folders."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); give yourself access, or move it"
        ) from error
