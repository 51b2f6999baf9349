"""A raw folder and a recipe's layout -> its cases: which files belong to which patient's scan."""

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.preprocess.read.dataset_json import Index, find_listed, follow_ending, read_index
from hvae_hpc.preprocess.read.match_files import compile_pattern, match_files
from hvae_hpc.preprocess.read.scan import source_files
from hvae_hpc.preprocess.recipes.recipe import SLICE, LayoutConfig, Recipe
from hvae_hpc.runs.files import IMAGE_BYTES, open_file

T = TypeVar("T")


@frozen
class CaseFiles:
    """A case's files.

    Attributes:
        case_id: NFC-normalised.
        patient: whose scan it is.
        images: one, or one per slice where slices are files of their own.
        labels: of each image: one, or several where the layout allows.
        fault: why the case cannot be packed, in one line, or "".
    """

    case_id: str
    patient: str
    images: tuple[Path, ...]
    labels: tuple[tuple[Path, ...], ...]
    fault: str = ""

    @property
    def paths(self) -> dict[str, Path]:
        """Its files by role."""
        return by_role(self.images, [path for paths in self.labels for path in paths])


@frozen
class RawFolder:
    """What lies in a raw folder.

    Attributes:
        recipe: with the file ending of dataset.json, where the layout has one.
        index: what that file says.
        scans: all of them, sorted by id; those that cannot be packed have a ``fault``.
        notes: what looks odd, a line each.
    """

    recipe: Recipe
    index: Index | None
    scans: tuple[CaseFiles, ...]
    notes: tuple[str, ...]

    @cached_property
    def cases(self) -> tuple[CaseFiles, ...]:
        """Each patient's first scan without a fault, and all scans with one."""
        return tuple(scan for scan in self.scans if scan.case_id not in self.further)

    @cached_property
    def further(self) -> dict[str, str]:
        """Case id -> why it is not among the cases though nothing is wrong with it."""
        first = dict[str, str]()
        further = {}
        for scan in self.scans:
            if scan.fault:
                continue
            taken = first.setdefault(scan.patient, scan.case_id)
            if taken != scan.case_id:
                further[scan.case_id] = f"a further scan of {taken}'s patient (layout.patient)"
        return further

    def mark_bad(self, reasons: Mapping[str, str]) -> "RawFolder":
        """Mark scans as bad, by id: the patients' next scans become cases."""
        scans = (
            replace(scan, fault=scan.fault or reasons.get(scan.case_id, "")) for scan in self.scans
        )
        return replace(self, scans=tuple(scans))


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
        UserError: raw is no folder, or a folder in it cannot be listed, or nothing in it fits, or
            dataset.json does not fit what is there, or slices of patients look like cases.
    """
    if not raw.is_dir():
        raise UserError(f"{raw}: is no folder; give the folder with the image files as --raw")
    index = read_index(raw / recipe.layout.index) if recipe.layout.index else None
    recipe = follow_ending(recipe, index) if index else recipe
    layout = recipe.layout

    labels, beside_labels = match_files(raw, layout.label, layout.label_says)
    images, beside_images = match_files(raw, layout.image)
    fit = {
        file.relative_to(raw).as_posix()
        for path in chain(*labels.values(), *images.values())
        for file in source_files(path)
    }
    # What another pattern takes fits, and so does a folder that was entered.
    beside = (beside_labels | beside_images) - {layout.index}
    entered = {f"{folder}/" for path in fit | beside for folder in PurePosixPath(path).parents}
    unfit = sorted(beside - fit - entered)
    # Masks that lie beside the images may fit the images' pattern too.
    masks = set(chain(*labels.values()))
    images = {
        case_id: others
        for case_id, paths in images.items()
        if (others := [path for path in paths if path not in masks])
    }
    if not images:
        raise UserError(_explain_no_fit(raw, layout))
    labels = _assign_labels(labels, images, layout, raw)

    listed = find_listed(index, recipe, len(images)) if index else set()
    scans = [
        _make_case(case_id, images.get(case_id, []), labels.get(case_id, []), layout, unfit, listed)
        for case_id in sorted({*images, *labels, *listed})
    ]
    if layout.planar:
        scans = _join_slices(scans, layout.sliced)
    if layout.planar and not layout.stacked and "slices" not in recipe.accept:
        _refuse_slices([scan.case_id for scan in scans])
    notes = (_note_unfit(unfit),) if unfit else ()
    return RawFolder(recipe=recipe, index=index, scans=tuple(scans), notes=notes)


def known_labels(recipe: Recipe, index: Index | None) -> tuple[int, ...]:
    """Return the values that a label file may hold; () for any whole number from 0."""
    if recipe.label.known:
        return recipe.label.known
    if index and index.values:
        return index.values
    return () if recipe.label.tumour == "any" else (0, *recipe.label.tumour)


def _assign_labels(
    labels: dict[str, list[Path]], images: Collection[str], layout: LayoutConfig, raw: Path
) -> dict[str, list[Path]]:
    """Give each label to the image with the longest id that fits.

    ``{case}*.png`` fits a10.png both for a1 and for a10.
    """
    if "*" not in layout.label.removesuffix(".nii*"):
        return labels
    assigned = defaultdict[str, list[Path]](list)
    for longest, paths in labels.items():
        for path in paths:
            relative = unicodedata.normalize("NFC", path.relative_to(raw).as_posix())
            # An id never ends within a number or a word: a10.png is no mask of a1.
            fitting = (
                longest[:end]
                for end in range(len(longest), 0, -1)
                if longest[:end] in images
                and not longest[end : end + 1].isalnum()
                and compile_pattern(layout.label, re.escape(longest[:end])).fullmatch(relative)
            )
            assigned[next(fitting, longest)].append(path)
    return dict(assigned)


def _make_case(
    case_id: str,
    images: list[Path],
    labels: list[Path],
    layout: LayoutConfig,
    unfit: Sequence[str],
    listed: Collection[str],
) -> CaseFiles:
    match = re.match(layout.patient or "(.*)", case_id.split("/")[0], re.DOTALL)
    patient = match[1] if match else ""
    fault = ""
    if any(unicodedata.category(letter).startswith("C") for letter in case_id):
        fault = f"case id {case_id!r} has control characters; rename its files"
    elif not patient:
        fault = f"case id does not fit layout.patient ({layout.patient}); correct it in the recipe"
    elif not (images and labels):
        role, pattern = ("label", layout.label) if images else ("image", layout.image)
        says = " and layout.label_says" if images and layout.label_says else ""
        of_case = [path for path in unfit if case_id.split("/")[0] in path]
        nearest = difflib.get_close_matches(pattern, of_case, 1, cutoff=0)
        near = f"; there is {nearest[0]}" if nearest else ""
        known = [*images, *labels, f"the entry in {layout.index}"][0]
        fault = f"{known} has no {role} ({pattern}{says}{near}); add it, or remove the case"
    elif len(images) > 1:
        fault = _too_many("image", images)
    elif len(labels) > 1 and not layout.several_labels:
        fault = _too_many("label", labels) + ", or set layout.several_labels to join them"
    elif listed and case_id not in listed:
        fault = f"{images[0]} is not in {layout.index}'s training; add it, or remove its files"
    return CaseFiles(
        case_id=case_id,
        patient=patient or case_id,
        images=tuple(images[:1]),
        labels=(tuple(labels),),
        fault=fault,
    )


def _too_many(role: str, paths: list[Path]) -> str:
    names = ", ".join(path.name for path in paths[:3])
    return (
        f"{paths[0].parent}: {len(paths)} files fit as its {role} ({names}), expected one; "
        "remove the others, or narrow the recipe's pattern"
    )


def _join_slices(pictures: list[CaseFiles], sliced: bool) -> list[CaseFiles]:
    """Make one case of a scan's numbered slices, or else of a patient's pictures, in order."""
    cases = defaultdict[str, list[CaseFiles]](list)
    for picture in sorted(pictures, key=lambda picture: _split_numbers(picture.case_id)):
        cases[picture.case_id.split("/")[0] if sliced else picture.patient].append(picture)
    return [
        replace(
            slices[0],
            case_id=case_id,
            images=tuple(chain.from_iterable(piece.images for piece in slices)),
            labels=tuple(chain.from_iterable(piece.labels for piece in slices)),
            fault=next((piece.fault for piece in slices if piece.fault), ""),
        )
        for case_id, slices in sorted(cases.items())
    ]


def _split_numbers(name: str) -> list[str | int]:
    """Return what sorts "a2" before "a10"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _note_unfit(unfit: Sequence[str]) -> str:
    """Count what fits nothing, and name the rarest kinds first: they are the likely oversights."""
    kinds = {path: re.sub(r"\d+", "#", path.rstrip("/").rsplit("/")[-1]) for path in unfit}
    counts = Counter(kinds.values())
    rarest = sorted(unfit, key=lambda path: (counts[kinds[path]], path))
    plural = "s fit" if len(unfit) > 1 else " fits"
    return f"{len(unfit)} file{plural} nothing: {_name_first(rarest)}"


def _refuse_slices(case_ids: Sequence[str]) -> None:
    """Refuse names that look like slices of patients: many names, each with several numbers."""
    names = {re.sub(r"\W*_?\d+([\W_]+[A-Za-z]+)?$", "", case_id) for case_id in case_ids}
    if 3 <= len(names) <= len(case_ids) / 2:
        raise UserError(
            f"{len(names)} names with numbers would be {len(case_ids)} cases: "
            f"{_name_first(case_ids)}; if the number is a slice of a patient, write {SLICE} for it "
            'in the recipe\'s patterns, else say accept = ["slices"] at the head of the recipe'
        )


def _name_first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _explain_no_fit(raw: Path, layout: LayoutConfig) -> str:
    every = (path for path in raw.rglob("[!.]*") if path.is_file())
    files = sorted(islice(every, 50))  # enough to see what lies there
    dicom = next((path for path in files if _is_dicom(path)), None)
    if dicom is not None:
        return f"{raw}: holds DICOM files ({dicom.name}), expected NIfTI; convert with dcm2niix"
    names = ", ".join(path.relative_to(raw).as_posix() for path in files[:3])
    content = f"it holds {names} ..." if names else "it holds no files"
    return f"{raw}: nothing fits {layout.image!r} ({content}); check --raw, or the recipe's layout"


def _is_dicom(path: Path) -> bool:
    try:
        with open_file(path, IMAGE_BYTES) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
