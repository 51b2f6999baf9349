"""What a data set is: where its files lie, which labels are tumour, and how a scan becomes 2D pairs.

A recipe is a TOML file, one of ``recipes/`` by its bare name or a file of the user's own (which may say
``extends = "brats2021"``). All of it but its words is hashed into the data set's identity.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from hvae_hpc.config import find_toml, load, read_toml

LIBRARY = Path(__file__).resolve().parent / "recipes"
CASE = "{case}"


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Where a case's two files lie below the raw folder; ``{case}`` stands for the case id.

    Attributes:
        image: "{case}/{case}_flair.nii.gz"
        label: "{case}/{case}_seg.nii.gz"
    """

    image: str
    label: str

    def __post_init__(self) -> None:
        for pattern in (self.image, self.label):
            parts = PurePosixPath(pattern).parts
            if CASE not in pattern or pattern.startswith("/") or ".." in parts:
                raise ValueError(f"pattern {pattern!r}, expected a path below the raw folder with {CASE}")
            if not pattern.endswith((".nii", ".nii.gz")):
                raise ValueError(f"pattern {pattern!r}, expected one that ends in .nii or .nii.gz")


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Which label values are joined to the one tumour mask.

    Attributes:
        tumour: values that are tumour.
        known: all values that a label file may hold; any other one is an error that names it.
    """

    tumour: tuple[int, ...]
    known: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.tumour or 0 in self.tumour:
            raise ValueError(f"tumour is {self.tumour}, expected at least one value, and not 0")
        if not {0, *self.tumour} <= set(self.known):
            raise ValueError(f"known is {self.known}, expected 0 and all of tumour = {self.tumour} in it")


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """The pixels of a pair.

    Attributes:
        orientation: what rising column, row and slice indices point to; "LPS" is the radiological view
            of axial slices, "LIP" that of coronal ones.
        spacing_mm: side of the cubic voxels to resample to; 0 keeps the file's own grid, and image and
            label must then share it.
        size_px: rows and columns.
        centre: of the crop, in plane: the image's middle, or the middle of the tumour's bounding box
            (which uses the label, of test cases too).
        interpolation: of the image; labels take the nearest voxel.
    """

    orientation: str = "LPS"
    spacing_mm: float = 0.0
    size_px: tuple[int, ...]
    centre: Literal["image", "tumour"]
    interpolation: Literal["linear", "bspline"] = "linear"

    def __post_init__(self) -> None:
        axes = dict(zip("LRAPIS", "xxyyzz", strict=True))
        if sorted(axes.get(letter, "") for letter in self.orientation) != ["x", "y", "z"]:
            raise ValueError(f"orientation is {self.orientation!r}, expected three letters such as 'LPS'")
        if self.spacing_mm < 0:
            raise ValueError(f"spacing_mm is {self.spacing_mm}, expected mm, or 0 for the file's own grid")
        if len(self.size_px) != 2 or min(self.size_px) < 1:
            raise ValueError(f"size_px is {self.size_px}, expected [rows, columns]")


@dataclass(frozen=True, kw_only=True)
class IntensityConfig:
    """How intensities become [0, 1]: (value - low) / (high - low), clipped.

    Attributes:
        rule: "percentile": low and high are percentiles over the foreground (voxels > 0) of the whole
            volume, and background stays 0. "window": low and high are in the image's own unit (SUV, HU).
        low, high: become 0 and 1.
    """

    rule: Literal["percentile", "window"]
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low}, high {self.high}, expected low < high")
        if self.rule == "percentile" and not (self.low >= 0 and self.high <= 100):
            raise ValueError(f"low is {self.low}, high {self.high}, expected percentiles from 0 to 100")


@dataclass(frozen=True, kw_only=True)
class SlicesConfig:
    """Which slices of a volume become pairs.

    Attributes:
        choose: "largest": those with the largest tumour area, largest first; "all": every slice in order.
        count: how many of the largest, at most; not used by "all".
        min_px: smallest tumour area inside the crop; 0 with "all" takes slices without tumour too.
    """

    choose: Literal["largest", "all"]
    count: int = 1
    min_px: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}, expected 1 or more slices per case")
        if self.min_px < (0 if self.choose == "all" else 1):
            raise ValueError(f'min_px is {self.min_px}, expected 1 or more (0 only with choose = "all")')


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set's recipe.

    Attributes:
        name: of the data set; its default folder is ``shards/<name>``.
        about: one sentence for people.
        modality: "FLAIR", "PET".
    """

    name: str
    about: str = ""
    modality: str
    layout: LayoutConfig
    label: LabelConfig
    grid: GridConfig
    intensity: IntensityConfig
    slices: SlicesConfig


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe of the library by its name, or a TOML file by its path.

    Raises:
        UserError: no such recipe, or a key or value in it that makes no sense.
    """
    path = find_toml(name_or_path, LIBRARY)
    return load(Recipe, read_toml(path, LIBRARY), str(path))
