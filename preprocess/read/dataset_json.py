"""dataset.json, as nnU-Net (versions 1 and 2) and the Medical Segmentation Decathlon write it."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hvae_hpc.config.loader import read_json
from hvae_hpc.errors import UserError


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
            f"{path}: file_ending is {ending!r}, expected .nii.gz; "
            "convert, or write a recipe of your own"
        )
    count = data.get("numTraining")
    if type(count) not in (int, type(None)):  # True is an int too
        raise UserError(f"{path}: numTraining is {count!r}, expected a whole number; correct it")

    try:
        labels = data.get("labels", {})
        ignore = labels.get("ignore")
        training = [entry for entry in data.get("training", []) if isinstance(entry, dict)]
        return Index(
            path=path,
            labels=tuple(sorted(_label_values(labels))),
            ignore=ignore if isinstance(ignore, int) else None,
            channels=_channels(data.get("channel_names", data.get("modality", {}))),
            label_files=tuple(PurePosixPath(entry["label"]).as_posix() for entry in training),
            count=count,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: labels, channels or training make no sense ({error}); check the file"
        ) from error


def _label_values(labels: dict[str, Any]) -> set[int]:
    """Return all values that labels may have.

    Version 1 and the Decathlon map "1" to a name. Version 2 maps a name to 1 or, for a region, to
    [1, 2].
    """
    if all(isinstance(value, str) for value in labels.values()):
        return {int(value) for value in labels}
    lists = [value if isinstance(value, list) else [value] for value in labels.values()]
    return {int(value) for values in lists for value in values}


def _channels(names: Any) -> tuple[str, ...]:
    if isinstance(names, list):
        return tuple(map(str, names))
    return tuple(str(names[key]) for key in sorted(names, key=int))
