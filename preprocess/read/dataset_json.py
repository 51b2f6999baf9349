"""dataset.json, as nnU-Net (versions 1 and 2) and the Medical Segmentation Decathlon write it."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hvae_hpc.config.loader import read_json
from hvae_hpc.errors import UserError
from hvae_hpc.preprocess.recipes.recipe import CASE


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a dataset.json says.

    Attributes:
        path: the file.
        labels: all values that a label file may hold; () where it does not say.
        ignore: nnU-Net's label of voxels that nobody judged, or None.
        channels: names of the image's channels, in their order.
        label_files: of the training cases, relative to the folder; () where none are listed.
        count: how many training cases there are, or None.
    """

    path: Path
    labels: tuple[int, ...]
    ignore: int | None
    channels: tuple[str, ...]
    label_files: tuple[str, ...]
    count: int | None

    def case_ids(self, label_pattern: str) -> frozenset[str]:
        """Return the ids of the cases that are listed."""
        stem = label_pattern.removesuffix(".nii*")
        ending = r"\.nii(\.gz)?" if stem != label_pattern else ""
        regex = re.compile(re.escape(stem).replace(re.escape(CASE), "(?P<case>[^/]+)", 1) + ending)
        matches = (regex.fullmatch(name) for name in self.label_files)
        return frozenset(match["case"] for match in matches if match)


def read_index(path: Path) -> Index:
    """Read a dataset.json.

    Raises:
        UserError: it is missing, or makes no sense.
    """
    if not path.is_file():
        raise UserError(f"{path}: is missing; give the folder that holds it as --raw")
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: got {type(data).__name__}, expected a table with labels; check the file"
        )
    ending = data.get("file_ending", ".nii.gz")
    if ending not in (".nii", ".nii.gz"):
        raise UserError(
            f"{path}: file_ending is {ending!r}, expected .nii.gz; convert, or write a recipe of your own"
        )
    count = data.get("numTraining")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
        raise UserError(f"{path}: numTraining is {count!r}, expected a whole number; correct it")
    try:
        return Index(
            path=path,
            labels=tuple(sorted(_label_values(data.get("labels", {})))),
            ignore=_ignored(data.get("labels", {})),
            channels=_channels(data.get("channel_names", data.get("modality", {}))),
            label_files=tuple(
                PurePosixPath(entry["label"]).as_posix()
                for entry in data.get("training", [])
                if isinstance(entry, dict)
            ),
            count=count,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: labels, channels or training make no sense ({error}); check the file"
        ) from error


def _label_values(labels: dict[str, Any]) -> set[int]:
    """Version 1 and the Decathlon map "1" to a name, version 2 a name to 1 or, for a region, to [1, 2]."""
    if all(isinstance(value, str) for value in labels.values()):
        return {int(value) for value in labels}
    values: set[int] = set()
    for value in labels.values():
        values |= set(map(int, value)) if isinstance(value, list) else {int(value)}
    return values


def _ignored(labels: dict[str, Any]) -> int | None:
    value = labels.get("ignore")
    return value if isinstance(value, int) else None


def _channels(names: Any) -> tuple[str, ...]:
    if isinstance(names, list):
        return tuple(map(str, names))
    return tuple(str(names[key]) for key in sorted(names, key=int))
