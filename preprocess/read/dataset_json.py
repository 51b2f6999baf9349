"""dataset.json, as nnU-Net (versions 1 and 2) and the Medical Segmentation Decathlon write it."""

import re
import unicodedata
from dataclasses import field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from hvae_hpc.config.loader import load, read_json
from hvae_hpc.errors import UserError
from hvae_hpc.frozen import frozen
from hvae_hpc.preprocess.read.match_files import compile_pattern
from hvae_hpc.preprocess.recipes.recipe import Recipe

_EXAMPLE = (
    '"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "FLAIR"}, '
    '"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}], "numTraining": 1'
)


@frozen
class TrainingFiles:
    """A training case's files, relative to the folder."""

    image: str
    label: str


@frozen
class DatasetFiles:
    """The same in version 2, whose images have a file for each channel."""

    images: tuple[str, ...]
    label: str


@frozen
class Index:
    """What a dataset.json says, under its own names.

    Attributes:
        path: the file.
        labels: name to the values that a label file may hold: one, or for a region several.
        channel_names, modality: the image's channels by number, in version 2 and before.
        training: the training cases; () where none are listed.
        dataset: the same in version 2, by case.
        numTraining: how many there are, or None.
        file_ending: of all files, or "".
    """

    path: str
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channel_names: dict[str, str] = field(default_factory=dict)
    modality: dict[str, str] = field(default_factory=dict)
    training: tuple[TrainingFiles, ...] = ()
    dataset: dict[str, DatasetFiles] = field(default_factory=dict)
    numTraining: int | None = None
    file_ending: str = ""

    @property
    def values(self) -> tuple[int, ...]:
        """All values that a label file may hold; () where it does not say."""
        return tuple(sorted({value for values in self.labels.values() for value in values}))


def read_index(path: Path) -> Index:
    """Read a dataset.json.

    Raises:
        UserError: it is missing, or a field in it is not what nnU-Net or the Decathlon writes.
    """
    if not path.is_file():
        raise UserError(f"{path}: is missing; give the folder that holds it as --raw")
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(
            f"{path}: got {type(data).__name__}, expected a table with labels; check the file"
        )
    known = {field.name: data[field.name] for field in fields(Index) if field.name in data}

    labels = known.get("labels")
    if isinstance(labels, dict):
        known["labels"] = {name: _list_values(name, value) for name, value in labels.items()}
    try:
        return load(Index, {**known, "path": str(path)}, str(path))
    except UserError as error:
        raise UserError(f"{error}; write it as {_EXAMPLE}") from error


def _list_values(name: str, value: Any) -> Any:
    """Return a label's values: version 1 has {"1": "tumour"}, version 2 {"tumour": 1 or [1, 2]}."""
    if isinstance(value, str) and name.isdecimal() and len(name) < 10:
        return [int(name)]
    return value if isinstance(value, list) else [value]


def follow_ending(recipe: Recipe, index: Index) -> Recipe:
    """Let a recipe's ``.nii*`` stand for dataset.json's file ending.

    Raises:
        UserError: such files are not read, or the recipe's patterns end otherwise.
    """
    if not index.file_ending:
        return recipe
    layout, ending = recipe.layout, index.file_ending
    image, label = (role.replace(".nii*", ending) for role in (layout.image, layout.label))
    try:
        for pattern in (image, label):
            if not pattern.lower().endswith(ending.lower()):
                raise ValueError(f"its pattern is {pattern!r}")
        return replace(recipe, layout=replace(layout, image=image, label=label))
    except ValueError as error:
        raise UserError(
            f"{index.path}.file_ending: got {ending!r}, which does not suit the recipe "
            f"({error}); convert the files, or write a recipe of your own"
        ) from error


def find_listed(index: Index, recipe: Recipe, n_images: int) -> set[str]:
    """Return the ids of the training cases that dataset.json lists; none where it has no list.

    Raises:
        UserError: it counts other cases than there are, or lists files that the recipe's patterns
            do not fit, or has a label that is no tumour.
    """
    if "ignore" in index.labels and recipe.label.tumour == "any":
        raise UserError(
            f"{index.path}: has an ignore label, which is no tumour; say label.tumour in the recipe"
        )
    layout = recipe.layout
    without_channel = re.sub(r"_\d{4}(?=\.)", "", layout.image)  # version 1 lists images without it
    listed = set()
    pairs = [(files.image, files.label) for files in index.training]
    pairs += [("".join(files.images[:1]), files.label) for files in index.dataset.values()]
    for pair in pairs:
        image, label = (
            unicodedata.normalize("NFC", PurePosixPath(path).as_posix()) for path in pair
        )
        match = compile_pattern(layout.label).fullmatch(label)
        either = re.escape(match["case"] if match else "") + r"(_\d{4})?"
        if not (match and compile_pattern(without_channel, either).fullmatch(image)):
            expected = f"a pair of {layout.image} and {layout.label}"
            raise UserError(
                f"{index.path}.training: got {image} and {label}, expected {expected}; correct it"
            )
        listed.add(match["case"])

    got = len(listed) or n_images
    if index.numTraining is not None and index.numTraining != got:
        raise UserError(
            f"{index.path}: numTraining is {index.numTraining}, but there are {got} cases; "
            "copy the rest, or correct it"
        )
    return listed
