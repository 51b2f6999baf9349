"""What a data set is: where its files lie, which labels are tumour, how a scan becomes 2D pairs.

A recipe is a TOML file, one of ``recipes/`` by its bare name or a file of the user's own (which may
say ``extends = "brats2021"``). All of it but its words is hashed into the data set's identity.
docs/RECIPES.md shows every field at work.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Literal

from hvae_hpc.config.loader import added_later, find_toml, load, read_toml
from hvae_hpc.frozen import frozen

LIBRARY = Path(__file__).resolve().parent
CASE, SLICE = "{case}", "{slice}"
VOLUMES = (".nii", ".nii.gz", ".nii*", ".mha", ".mhd", ".nrrd")
"""Endings of patterns for volumes; ``.nii*`` takes .nii and .nii.gz."""
PICTURES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg")
"""Endings of patterns for 2D files."""
_MOST_REPEATS = 4
"""More of them in a name can search for hours, in a recipe that somebody else wrote."""
Finding = Literal[
    "clipped",
    "faint",
    "hounsfield",
    "levels",
    "mask",
    "outside",
    "same",
    "repeated",
    "empty",
    "slices",
]
"""What a recipe may accept; see ``preprocess/plausible.py``."""


@frozen
class LayoutConfig:
    """Where a case's files lie below the raw folder.

    In a pattern ``{case}`` stands for the case id (the same text wherever it stands), ``*`` for any
    text within a name, ``**`` for any number of folders that are no links. ``{slice}`` stands for a
    number: each slice of a case is a 2D file of its own. Endings fit in upper and lower case.

    Attributes:
        image: "{case}/{case}_flair.nii*", "images/{case}.png"
        label: "{case}/{case}_seg.nii*", "masks/{case}*.png"
        several_labels: a case may have several label files, which are joined; without it a second
            one is an error.
        channel: which volume of a 4D image to take, from 0; of a picture its red (0), green or
            blue. None: a 4D image is an error, and colours become grey.
        label_says: regular expression that a label's path must fit somewhere; "": any label.
        patient: regular expression whose first group in the case id names the patient; of several
            scans of a patient the first good one by id is packed, so that no patient trains and
            tests. Pictures of a patient are the slices of one case. "": every case is a patient.
        index: "dataset.json": the raw folder has one (nnU-Net, Medical Segmentation Decathlon). The
            cases that it lists must be there, and its labels are the known ones.
    """

    image: str
    label: str
    label_says: str = added_later("")
    several_labels: bool = False
    channel: int | None = None
    patient: str = ""
    index: Literal["", "dataset.json"] = ""

    def __post_init__(self) -> None:
        for pattern in (self.image, self.label):
            parts = PurePosixPath(pattern).parts
            if CASE not in pattern or pattern.startswith("/") or ".." in parts:
                raise ValueError(
                    f"pattern {pattern!r}, expected a path below the raw folder with {CASE}"
                )
            if max(pattern.count("**"), *(part.count("*") for part in parts)) > _MOST_REPEATS:
                raise ValueError(
                    f"pattern {pattern!r}, expected at most {_MOST_REPEATS} * in a name, and of **"
                )
            if not pattern.lower().endswith(VOLUMES + PICTURES):
                raise ValueError(
                    f"pattern {pattern!r}, expected an ending of {', '.join(VOLUMES + PICTURES)}; "
                    "convert DICOM with dcm2niix"
                )
        if self.planar != self.label.lower().endswith(PICTURES):
            raise ValueError(
                f"image {self.image!r}, label {self.label!r}, "
                "expected both volumes or both 2D files"
            )
        if (SLICE in self.image) != (SLICE in self.label) or (self.sliced and not self.planar):
            raise ValueError(f"{SLICE} is for 2D files, and in both of image and label or in none")
        try:
            groups = re.compile(self.patient).groups
            re.compile(self.label_says)
        except re.error as error:
            raise ValueError(
                f"{error.pattern!r} of patient or label_says is no regular expression ({error})"
            ) from error
        for expression in (self.patient, self.label_says):
            repeats = re.findall(r"[*+{]", expression)
            if len(repeats) > _MOST_REPEATS or re.search(r"\)[*+{]", expression):
                raise ValueError(
                    f"{expression!r} may search for ever, expected at most {_MOST_REPEATS} "
                    "of * + {}, and none after a group"
                )
        if self.patient and not groups:
            raise ValueError(
                f"patient {self.patient!r}, "
                "expected a group in round brackets around the patient's part"
            )

    @property
    def planar(self) -> bool:
        """Whether the files are 2D pictures."""
        return self.image.lower().endswith(PICTURES)

    @property
    def sliced(self) -> bool:
        """Whether the patterns number a case's slices."""
        return SLICE in self.image

    @property
    def stacked(self) -> bool:
        """Whether a case's slices are files of their own: numbered, or a patient's pictures."""
        return self.planar and bool(self.sliced or self.patient)


@frozen
class LabelConfig:
    """Which label values are joined to the one tumour mask.

    Attributes:
        tumour: values that are tumour; "any" for all above 0.
        known: all values that a label file may hold; any other one is an error that names it.
            Empty: those of dataset.json, or else 0 and ``tumour``, or with "any" every whole number
                from 0.
        threshold: of a mask in grey: values from here on are tumour, and no value is unknown. None:
            every value is a class.
        channel: which volume of a 4D label, from 0; of a picture its red (0), green, blue or, where
            it is transparent in parts, alpha (3). None: a 4D label is an error, and so is a picture
            in several colours, or transparent in parts.
    """

    tumour: tuple[int, ...] | Literal["any"]
    known: tuple[int, ...] = ()
    threshold: float | None = added_later(None)
    channel: int | None = added_later(None)

    def __post_init__(self) -> None:
        if self.threshold is not None and (self.threshold <= 0 or self.tumour != "any"):
            raise ValueError(
                f'threshold is {self.threshold:g}, expected a value above 0, and tumour = "any"'
            )
        if self.tumour != "any":
            if not self.tumour or min(self.tumour) < 1:
                raise ValueError(
                    f"tumour is {self.tumour}, expected at least one value, all above 0"
                )
            if self.known and not {0, *self.tumour} <= set(self.known):
                raise ValueError(
                    f"known is {self.known}, expected 0 and all of tumour = {self.tumour} in it"
                )


@frozen
class GridConfig:
    """The pixels of a pair.

    Attributes:
        orientation: what rising column, row and slice indices point to; "LPS" is the radiological
            view of axial slices, "LIP" that of coronal ones.
        spacing_mm: side of the cubic voxels to resample to; 0 keeps the file's own grid, and image
            and label must then share it.
        size_px: rows and columns.
        centre: of the crop, in plane: the image's middle, or the middle of the tumour's bounding
            box (which uses the label, of test cases too).
        interpolation: of the image; labels take the nearest voxel.
        fit: "crop" crops or pads at the file's own scale; "scale" (2D files only) first scales the
            picture, its sides in proportion, to the largest that fits.
        spacing: "header" believes the file's spacing; "unknown" records none (2D pictures never
            have one).
    """

    orientation: str = "LPS"
    spacing_mm: float = 0.0
    size_px: tuple[int, ...]
    centre: Literal["image", "tumour"]
    interpolation: Literal["linear", "bspline"] = "linear"
    fit: Literal["crop", "scale"] = "crop"
    spacing: Literal["header", "unknown"] = "header"

    def __post_init__(self) -> None:
        axes = dict(zip("LRAPIS", "xxyyzz", strict=True))
        if sorted(axes.get(letter, "") for letter in self.orientation) != ["x", "y", "z"]:
            raise ValueError(
                f"orientation is {self.orientation!r}, expected three letters such as 'LPS'"
            )
        if self.spacing_mm < 0 or (self.spacing_mm and self.spacing == "unknown"):
            raise ValueError(
                f"spacing_mm is {self.spacing_mm}, expected mm (with a spacing that is known), "
                "or 0 for the file's own grid"
            )
        if len(self.size_px) != 2 or min(self.size_px) < 1:
            raise ValueError(f"size_px is {self.size_px}, expected [rows, columns]")


@frozen
class IntensityConfig:
    """How intensities become [0, 1]: (value - low) / (high - low), clipped.

    Attributes:
        rule: "percentile": low and high are percentiles over the whole volume's foreground (voxels
            above 0, or, of a signed image, above its lowest), and background is 0. "window": low
            and high are in the image's own unit (SUV, HU). Of 2D files whose values go beyond
            255, and at most to 65535, a high of 255 is 65535.
        low, high: become 0 and 1.
    """

    rule: Literal["percentile", "window"]
    low: float
    high: float

    def __post_init__(self) -> None:
        within = self.rule == "window" or 0 <= self.low < self.high <= 100
        if not (self.low < self.high and within):
            raise ValueError(
                f"low is {self.low}, high {self.high}, "
                "expected low < high, and percentiles from 0 to 100"
            )


@frozen
class SlicesConfig:
    """Which slices of a volume become pairs.

    Attributes:
        choose: "largest": those with the largest tumour area, largest first; "all": every slice in
            order.
        count: how many of the largest, at most; not used by "all".
        min_px: smallest tumour area inside the crop; 0 with "all" takes slices without tumour too.
    """

    choose: Literal["largest", "all"]
    count: int = 1
    min_px: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.min_px < (0 if self.choose == "all" else 1):
            raise ValueError(
                f"count is {self.count} and min_px {self.min_px}, "
                'expected 1 or more (min_px 0 only with choose = "all")'
            )


@frozen
class Recipe:
    """A data set's recipe.

    Attributes:
        name: of the data set; its default folder is ``shards/<name>``.
        about: one sentence for people.
        modality: "FLAIR", "PET"; "" takes the channel's name from dataset.json.
        accept: names of what would be refused as implausible (docs/RECIPES.md).
    """

    name: str
    about: str = ""
    modality: str = ""
    accept: tuple[Finding, ...] = added_later(())
    layout: LayoutConfig
    label: LabelConfig
    grid: GridConfig
    intensity: IntensityConfig
    slices: SlicesConfig

    def __post_init__(self) -> None:
        if not self.modality and not self.layout.index:
            raise ValueError('modality is empty, expected a name such as "FLAIR"')
        if self.layout.planar and self.grid.spacing_mm:
            raise ValueError(
                "grid.spacing_mm asks to resample, which 2D files cannot be: they say no spacing"
            )
        for role, of_picture in (("layout", 2), ("label", 3)):
            channel, most = getattr(self, role).channel, of_picture if self.layout.planar else 999
            if not 0 <= (channel or 0) <= most:
                raise ValueError(f"{role}.channel is {channel}, expected 0 to {most}")
        if self.layout.label.lower().endswith((".jpg", ".jpeg")) and self.label.threshold is None:
            raise ValueError(
                "layout.label is JPEG, which blurs label values; "
                'say [label] tumour = "any", threshold = 128'
            )
        if self.grid.fit == "scale" and not (self.layout.planar and self.grid.centre == "image"):
            raise ValueError(
                'grid.fit = "scale" is for 2D files, which it keeps whole, with centre = "image"; '
                "volumes are resampled by grid.spacing_mm"
            )


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe of the library by its name, or a TOML file by its path.

    Raises:
        UserError: no such recipe, or a key or value in it that makes no sense.
    """
    path = find_toml(name_or_path, LIBRARY)
    return load(Recipe, read_toml(path, LIBRARY), str(path))
