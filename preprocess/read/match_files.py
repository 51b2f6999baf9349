"""A pattern such as ``{case}/{case}_flair.nii*`` -> the files of a raw folder that fit it, by case.

Folders are walked by the pattern, one name at a time, so a huge tree costs only what the pattern
can reach. ``**`` follows no links, which may lead in a circle. A folder that cannot be listed is an
error, and never a data set with fewer cases.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.recipes.recipe import CASE, SLICE

_CASE_ID = r"[^/.][^/]*"
"""No case id begins with a dot: some systems leave ``._x.nii.gz`` beside x.nii.gz."""


def match_files(raw: Path, pattern: str, says: str = "") -> tuple[dict[str, list[Path]], set[str]]:
    """Find the files that fit a pattern.

    Args:
        raw: folder that the pattern starts from.
        pattern: of a recipe's layout.
        says: regular expression that a path must fit somewhere, too.

    Returns:
        Case id (in Unicode's form NFC), or "case/slice" where the pattern has a slice, to the files
        that fit, in the order of their names. And what was seen and does not fit: files, and
        folders as "name/".
    """
    regex = compile_pattern(pattern)  # of several ids that fit a name, it finds the longest
    files = defaultdict[str, list[Path]](list)
    beside = set()
    for relative, fits in sorted(set(_walk(raw, PurePosixPath(pattern).parts))):
        match = regex.fullmatch(unicodedata.normalize("NFC", relative)) if fits else None
        if match and re.search(says, relative):
            files["/".join(match.groupdict().values())].append(raw / relative)
        else:
            beside.add(relative)
    return dict(files), beside


@cache
def compile_pattern(pattern: str, case_id: str = _CASE_ID) -> re.Pattern[str]:
    """Turn a pattern into a regular expression; all its ``{case}`` stand for the same text.

    Args:
        pattern: of a recipe's layout.
        case_id: regular expression of the ids that fit.
    """
    # All but the markers is translated; an ending may be written in any case.
    stem = re.sub(r"(\.nii)?\.\w+\*?$", "", pattern, flags=re.IGNORECASE)
    ending = pattern[len(stem) :]
    regex = re.escape(stem).replace(r"\*\*/", "(?:[^/]+/)*").replace(r"\*", "[^/]*")
    any_zip = ending.lower() == ".nii*"
    regex += "(?i:" + (r"\.nii(\.gz)?" if any_zip else re.escape(ending)) + ")"
    for name, marker, text in (("case", CASE, case_id), ("slice", SLICE, r"\d+")):
        regex = regex.replace(re.escape(marker), f"(?P<{name}>{text})", 1)
        regex = regex.replace(re.escape(marker), f"(?P={name})")
    return re.compile(regex)


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Yield the paths below a folder, and whether their names fit the pattern's parts."""
    part, rest = parts[0], parts[1:]
    if part == "**":  # no folder at all
        yield from _walk(folder, rest)

    below = parts if part == "**" else rest
    regex = compile_pattern(part)
    for name, is_folder in _list(folder, follow_links=part != "**"):
        if name.startswith("."):
            continue
        if not regex.fullmatch(name) or is_folder != bool(below):
            yield name + "/" * is_folder, False
        elif is_folder:
            for path, fits in _walk(folder / name, below):
                yield f"{name}/{path}", fits
        else:
            yield name, True


def _list(folder: Path, *, follow_links: bool) -> list[tuple[str, bool]]:
    """Return the names in a folder, and whether they are folders."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, _is_folder(entry, follow_links)) for entry in entries]
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); give yourself access, or move it"
        ) from error


def _is_folder(entry: os.DirEntry[str], follow_links: bool) -> bool:
    if entry.is_symlink():
        return follow_links and Path(entry).is_dir()  # one that leads to itself is none
    return entry.is_dir()
