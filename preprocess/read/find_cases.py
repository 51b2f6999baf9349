"""A raw folder and a recipe's layout -> its cases: which files belong to which patient's scan."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.read.dataset_json import Index, read_index
from hvae_hpc.preprocess.read.match_files import compile_pattern, match_files
from hvae_hpc.preprocess.recipes.recipe import LayoutConfig, Recipe
from hvae_hpc.runs.files import IMAGE_BYTES, open_file

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """A case's files.

    Attributes:
        case_id: NFC-normalised.
        images: one, or one per slice where slices are files of their own.
        labels: of each image: one, or several where the layout allows.
        fault: why the case cannot be packed, in one line, or "".
    """

    case_id: str
    images: tuple[Path, ...]
    labels: tuple[tuple[Path, ...], ...]
    fault: str = ""

    @property
    def paths(self) -> dict[str, Path]:
        """Its files by role."""
        return by_role(self.images, [path for paths in self.labels for path in paths])


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


def by_role(images: Sequence[T], labels: Sequence[T]) -> dict[str, T]:
    """Name a case's files by their roles: "image", "label", "label_2" and so on."""
    return {
        role if number == 1 else f"{role}_{number}": item
        for role, items in (("image", images), ("label", labels))
        for number, item in enumerate(items, start=1)
    }


def find_cases(recipe: Recipe, raw: Path) -> RawFolder:
    """Find all cases by the recipe's patterns.

    Raises:
        UserError: raw is no folder, or a folder in it cannot be listed, or nothing in it fits.
    """
    if not raw.is_dir():
        what = "is a file, expected a folder" if raw.is_file() else "no such folder"
        raise UserError(f"{raw}: {what}; give the folder with the image files as --raw")
    layout = recipe.layout
    index = read_index(raw / layout.index) if layout.index else None

    labels = match_files(raw, layout.label)
    images = match_files(raw, layout.image)
    if layout.planar:
        images = _without_labels(images, labels)
    if not images:
        raise UserError(_explain_no_fit(raw, layout))
    labels = _assign_labels(labels, images, layout, raw)

    listed = _find_listed(index, recipe, len(images)) if index else set()
    cases = [
        _make_case(case_id, images.get(case_id, []), labels.get(case_id, []), layout)
        for case_id in sorted({*images, *labels, *listed})
    ]
    kept, further = _keep_first_scans(_join_twins(cases), layout.patient)
    return RawFolder(cases=tuple(kept), further=further, index=index)


def known_labels(recipe: Recipe, index: Index | None) -> tuple[int, ...]:
    """Return the values that a label file may hold; () for any whole number from 0."""
    if recipe.label.known:
        return recipe.label.known
    if index and index.labels:
        return index.labels
    return () if recipe.label.tumour == "any" else (0, *recipe.label.tumour)


def _without_labels(
    images: Mapping[str, list[Path]], labels: Mapping[str, list[Path]]
) -> dict[str, list[Path]]:
    """Leave out masks that lie beside the pictures: they fit the pictures' pattern too."""
    masks = {path for paths in labels.values() for path in paths}
    pictures = {
        case_id: [path for path in paths if path not in masks] for case_id, paths in images.items()
    }
    return {case_id: paths for case_id, paths in pictures.items() if paths}


def _assign_labels(
    labels: dict[str, list[Path]], images: Collection[str], layout: LayoutConfig, raw: Path
) -> dict[str, list[Path]]:
    """Give each label to the image with the longest id that fits.

    ``{case}*.png`` fits a10.png both for a1 and for a10.
    """
    if "*" not in layout.label.removesuffix(".nii*"):
        return labels
    assigned: defaultdict[str, list[Path]] = defaultdict(list)
    for longest, paths in labels.items():
        # An id never ends within a number or a word: a10.png is no mask of a1, even without a10.
        ids = [
            longest[:end]
            for end in range(len(longest), 0, -1)
            if longest[:end] in images and not longest[end : end + 1].isalnum()
        ]
        for path in paths:
            relative = path.relative_to(raw).as_posix()
            fitting = (
                case_id
                for case_id in ids
                if compile_pattern(layout.label, re.escape(case_id)).fullmatch(relative)
            )
            assigned[next(fitting, longest)].append(path)
    return dict(assigned)


def _find_listed(index: Index, recipe: Recipe, n_images: int) -> set[str]:
    """Return the ids of the cases that dataset.json lists, after checking that it fits the recipe.

    Raises:
        UserError: it counts other cases than there are, or has a label that is no tumour.
    """
    if index.ignore is not None and recipe.label.tumour == "any":
        raise UserError(
            f"{index.path}: has an ignore label ({index.ignore}), which is no tumour; "
            "say label.tumour in the recipe"
        )
    regex = compile_pattern(recipe.layout.label)
    matches = (regex.fullmatch(name) for name in index.label_files)
    listed = {match["case"] for match in matches if match}
    if index.count is not None and not listed and index.count != n_images:
        raise UserError(
            f"{index.path}: numTraining is {index.count}, {n_images} images fit; "
            "copy the rest, or correct it"
        )
    return listed


def _make_case(
    case_id: str, images: list[Path], labels: list[Path], layout: LayoutConfig
) -> CaseFiles:
    fault = ""
    if not images and labels:
        fault = f"{labels[0]} has no image ({layout.image}); add it or remove the label"
    elif not images:
        fault = f"{layout.index} lists it, but it has no image ({layout.image}); add it"
    elif not labels:
        fault = f"{images[0]} has no label ({layout.label}); add it or remove the image"
    elif len(images) > 1:
        fault = _too_many("image", images)
    elif len(labels) > 1 and not layout.several_labels:
        fault = _too_many("label", labels) + ", or set layout.several_labels to join them"
    return CaseFiles(
        case_id=case_id, images=tuple(images[:1]), labels=(tuple(labels),), fault=fault
    )


def _too_many(role: str, paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:3])
    return (
        f"{paths[0].parent}: {len(paths)} files fit as its {role} ({names}), expected one; "
        "narrow the recipe's pattern"
    )


def _join_twins(cases: list[CaseFiles]) -> list[CaseFiles]:
    """Normalise case ids, and mark those that differ in their Unicode alone.

    On some disks the files of two such ids are the same.
    """
    twins: defaultdict[str, list[CaseFiles]] = defaultdict(list)
    for case in cases:
        twins[unicodedata.normalize("NFC", case.case_id)].append(case)

    joined = []
    for case_id, (first, *others) in sorted(twins.items()):
        fault = first.fault
        if others:
            path = next(iter(first.paths.values()))
            fault = f"{path}: case id is there twice, written in two ways of Unicode; rename one"
        elif any(unicodedata.category(letter).startswith("C") for letter in case_id):
            fault = f"case id {case_id!r} has control characters; rename its files"
        joined.append(replace(first, case_id=case_id, fault=fault))
    return joined


def _keep_first_scans(
    cases: list[CaseFiles], pattern: str
) -> tuple[list[CaseFiles], dict[str, str]]:
    """Keep each patient's first scan that has its files; return the further ones beside them."""
    if not pattern:
        return cases, {}
    first: dict[str, str] = {}
    kept, further = [], {}
    for case in cases:
        match = re.match(pattern, case.case_id)
        patient = (match and match[1]) or case.case_id
        if case.fault or first.setdefault(patient, case.case_id) == case.case_id:
            kept.append(case)
        else:
            further[case.case_id] = f"a further scan of {first[patient]}'s patient (layout.patient)"
    return kept, further


def _explain_no_fit(raw: Path, layout: LayoutConfig) -> str:
    every = (
        Path(folder, name)
        for folder, _, names in os.walk(raw)
        for name in names
        if not name.startswith(".")
    )
    files = sorted(islice(every, 50))  # enough to see what lies there
    dicom = next((path for path in files if _is_dicom(path)), None)
    if dicom is not None:
        return f"{raw}: holds DICOM files ({dicom.name}), expected NIfTI; convert with dcm2niix"
    names = ", ".join(path.relative_to(raw).as_posix() for path in files[:3])
    content = f"it holds {names} ..." if names else "it holds no files"
    return f"{raw}: nothing fits {layout.image!r} ({content}); check --raw, or the recipe's layout"


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with open_file(path, IMAGE_BYTES) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
