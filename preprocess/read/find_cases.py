"""A raw folder and a recipe's layout -> its cases: which files belong to which patient's scan.

Folders are walked by the pattern, one name at a time, so a huge tree costs what the pattern can
reach; a folder that cannot be listed is an error, and never a data set with fewer cases.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.dataset_json import Index, read_index
from hvae_hpc.preprocess.recipes.recipe import CASE, LayoutConfig, Recipe

_NAME = r"[^/.][^/]*"
"""A case id: names that begin with a dot are none (some systems leave ``._x.nii.gz`` beside x.nii.gz)."""
_DEEPEST = 12


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """A case's files.

    Attributes:
        case_id: NFC-normalised.
        image: None where ``fault`` says why.
        labels: one, or several where the layout allows.
        fault: why the case cannot be packed, in one line, or "".
    """

    case_id: str
    image: Path | None
    labels: tuple[Path, ...]
    fault: str = ""

    @property
    def paths(self) -> dict[str, Path]:
        """Its files by role."""
        return by_role(self.image, self.labels) if self.image else {}


T = TypeVar("T")


def by_role(image: T, labels: Sequence[T]) -> dict[str, T]:
    """Name a case's files "image", "label", "label_2" and so on: their own names say nothing of the data."""
    return {"image": image} | {
        f"label_{place}" if place > 1 else "label": one for place, one in enumerate(labels, 1)
    }


@dataclass(frozen=True, kw_only=True)
class RawFolder:
    """What lies in a raw folder.

    Attributes:
        cases: sorted by id; those that cannot be packed have a ``fault``.
        further: case id -> why it is not among them though nothing is wrong with it.
        index: what dataset.json says, where the layout has one.
    """

    cases: tuple[CaseFiles, ...]
    further: dict[str, str]
    index: Index | None


def find_cases(recipe: Recipe, raw: Path) -> RawFolder:
    """Find all cases by the recipe's patterns.

    Raises:
        UserError: raw is no folder, or a folder in it cannot be listed, or nothing in it fits.
    """
    layout = recipe.layout
    if raw.is_file():
        raise UserError(
            f"{raw}: is a file, expected a folder; give the folder with the image files as --raw"
        )
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; give the folder with the image files as --raw")
    index = read_index(raw / layout.index) if layout.index else None
    if index and index.ignore is not None and recipe.label.tumour == "any":
        raise UserError(
            f"{index.path}: has an ignore label ({index.ignore}), which is no tumour; say label.tumour in the recipe"
        )
    labels = _match(raw, layout.label)
    images = _match(raw, layout.image)
    if layout.planar:  # masks beside the pictures fit the pictures' pattern too
        of_labels = {path for paths in labels.values() for path in paths}
        images = {
            case_id: keep
            for case_id, paths in images.items()
            if (keep := [p for p in paths if p not in of_labels])
        }
    labels = _regroup(labels, images, layout, raw)
    if not images:
        raise UserError(_nothing_fits(raw, layout))
    expected = index.case_ids(layout.label) if index else frozenset()
    if index and index.count is not None and not expected and index.count != len(images):
        raise UserError(
            f"{index.path}: numTraining is {index.count}, {len(images)} images fit; copy the rest, or correct it"
        )
    cases = [
        _make_case(case_id, images.get(case_id, []), labels.get(case_id, []), layout)
        for case_id in sorted({*images, *labels, *expected})
    ]
    return _one_scan_each(_without_twins(cases), layout.patient, index)


def known_labels(recipe: Recipe, index: Index | None) -> tuple[int, ...]:
    """Return the values that a label file may hold; () for any whole number from 0."""
    if recipe.label.known or recipe.label.tumour == "any":
        return recipe.label.known or (index.labels if index else ())
    return index.labels if index and index.labels else (0, *recipe.label.tumour)


def _make_case(
    case_id: str, images: list[Path], labels: list[Path], layout: LayoutConfig
) -> CaseFiles:
    fault = ""
    if not images:
        there = f"{labels[0]} has" if labels else f"{layout.index} lists it, but it has"
        fault = f"{there} no image ({layout.image}); add it" + (
            " or remove the label" if labels else ""
        )
    elif not labels:
        fault = f"{images[0]} has no label ({layout.label}); add it or remove the image"
    elif len(images) > 1:
        fault = _too_many("image", images)
    elif len(labels) > 1 and not layout.several_labels:
        fault = _too_many("label", labels) + ", or set layout.several_labels to join them"
    return CaseFiles(
        case_id=case_id, image=images[0] if images else None, labels=tuple(labels), fault=fault
    )


def _too_many(what: str, paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:3])
    return f"{paths[0].parent}: {len(paths)} files fit as its {what} ({names}), expected one; narrow the recipe's pattern"


def _without_twins(cases: list[CaseFiles]) -> list[CaseFiles]:
    """Mark cases whose ids differ only in how their letters are written: on some disks they are one."""
    seen: defaultdict[str, list[CaseFiles]] = defaultdict(list)
    for case in cases:
        seen[unicodedata.normalize("NFC", case.case_id)].append(case)
    found = []
    for case_id, twins in seen.items():
        fault = twins[0].fault
        if len(twins) > 1:
            paths = [path for twin in twins for path in (twin.image, *twin.labels) if path]
            fault = (
                f"{paths[0]}: case id is there twice, written in two ways of Unicode; rename one"
            )
        elif any(unicodedata.category(letter).startswith("C") for letter in case_id):
            fault = f"case id {case_id!r} has control characters; rename its files"
        found.append(replace(twins[0], case_id=case_id, fault=fault))
    return sorted(found, key=lambda case: case.case_id)


def _one_scan_each(cases: list[CaseFiles], pattern: str, index: Index | None) -> RawFolder:
    """Keep each patient's first scan that has its files."""
    if not pattern:
        return RawFolder(cases=tuple(cases), further={}, index=index)
    first: dict[str, str] = {}
    kept, further = [], {}
    for case in cases:
        match = re.match(pattern, case.case_id)
        patient = (match and match[1]) or case.case_id
        if case.fault or first.setdefault(patient, case.case_id) == case.case_id:
            kept.append(case)
        else:
            further[case.case_id] = f"a further scan of {first[patient]}'s patient (layout.patient)"
    return RawFolder(cases=tuple(kept), further=further, index=index)


def _match(raw: Path, pattern: str) -> dict[str, list[Path]]:
    """Map case ids to the files that fit a pattern."""
    regex = _compile(pattern, None)  # of several ids that fit a name, it finds the longest
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for relative in sorted(_walk(raw, PurePosixPath(pattern).parts)):
        match = regex.fullmatch(relative)
        if match:
            found[match["case"]].append(raw / relative)
    return dict(found)


def _regroup(
    labels: Mapping[str, list[Path]], images: Collection[str], layout: LayoutConfig, raw: Path
) -> dict[str, list[Path]]:
    """Give each label to the image with the longest id that fits: {case}*.png fits a10.png to a1 and to a10."""
    if "*" not in layout.label.removesuffix(".nii*"):
        return dict(labels)
    grouped: defaultdict[str, list[Path]] = defaultdict(list)
    for longest, paths in labels.items():
        # Never within a number or a word: a10.png is no mask of a1, also where a10 has no image.
        ends = [
            end
            for end in range(len(longest), 0, -1)
            if end == len(longest) or not longest[end].isalnum()
        ]
        shorter = [longest[:end] for end in ends if longest[:end] in images]
        for path in paths:
            relative = path.relative_to(raw).as_posix()
            fitting = (
                case_id
                for case_id in shorter
                if _compile(layout.label, case_id).fullmatch(relative)
            )
            grouped[next(fitting, longest)].append(path)
    return dict(grouped)


@cache
def _compile(pattern: str, case_id: str | None) -> re.Pattern[str]:
    """Turn a pattern into a regular expression; all its ``{case}`` stand for the same text."""
    case = f"(?P<case>{_NAME})" if case_id is None else f"(?P<case>{re.escape(case_id)})"
    stem = pattern.removesuffix(".nii*")
    wild = re.escape(stem).replace(r"\*\*/", "(?:[^/]+/)*").replace(r"\*", "[^/]*")
    wild = wild.replace(re.escape(CASE), case, 1).replace(re.escape(CASE), "(?P=case)")
    return re.compile(wild + (r"\.nii(\.gz)?" if stem != pattern else ""))


def _walk(folder: Path, parts: tuple[str, ...], prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Yield the paths, relative to the first folder, whose names fit the pattern's parts one by one."""
    if depth > _DEEPEST:  # a link that leads back up
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        yield from _walk(folder, rest, prefix, depth)
    fits = re.compile(_loosely(first), re.DOTALL)
    for name, is_folder in _list(folder):
        if name.startswith(".") or (first != "**" and not fits.fullmatch(name)):
            continue
        if first == "**":
            if is_folder:
                yield from _walk(folder / name, parts, f"{prefix}{name}/", depth + 1)
        elif rest and is_folder:
            yield from _walk(folder / name, rest, f"{prefix}{name}/", depth + 1)
        elif not rest and not is_folder:
            yield prefix + name


@cache
def _loosely(part: str) -> str:
    stem = part.removesuffix(".nii*")
    loose = re.escape(stem).replace(re.escape(CASE), ".*").replace(r"\*", ".*")
    return loose + (r"\.nii(\.gz)?" if stem != part else "")


def _list(folder: Path) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); give yourself access, or move it"
        ) from error


def _nothing_fits(raw: Path, layout: LayoutConfig) -> str:
    dicom = next((path for path in _some_files(raw) if _is_dicom(path)), None)
    if dicom is not None:
        return f"{raw}: holds DICOM files ({dicom.name}), expected NIfTI; convert with dcm2niix"
    names = ", ".join(sorted(path.relative_to(raw).as_posix() for path in _some_files(raw))[:3])
    there = f" (it holds {names} ...)" if names else " (it holds no files)"
    return f"{raw}: nothing fits {layout.image!r}{there}; check --raw, or the recipe's layout"


def _some_files(raw: Path) -> list[Path]:
    """Return up to 50 files, the way down to the first ones."""
    found: list[Path] = []
    for folder, folders, names in os.walk(raw):
        folders.sort()
        found += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
        if len(found) >= 50:
            break
    return found[:50]


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
