"""The sides of benchmarks/preprocess.py: ours, torchio, unzipping alone, each in a process."""

import contextlib
import gzip
import importlib
import importlib.metadata
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvae_hpc.preprocess.read import gunzip
from hvae_hpc.preprocess.read.find_cases import CaseFiles, find_cases, known_labels
from hvae_hpc.preprocess.recipes.recipe import CASE, Recipe, load_recipe

CLOSEST = 1e-6
"""Two images in [0, 1] are the same up to this: float32 takes its steps in another order."""

Slice = tuple[NDArray[np.float32], NDArray[np.uint8], int]
"""Image, mask, and which slice of the volume they are."""
Cut = Callable[[CaseFiles], Slice]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is packed.

    Attributes:
        recipe: how.
        known: values that a label file may hold.
        cases: the files.
    """

    recipe: Recipe
    known: tuple[int, ...]
    cases: tuple[CaseFiles, ...]


def find_work(name: str, raw: Path, at_most: int) -> Work:
    """Find the cases to work on.

    Raises:
        SystemExit: the torchio pipeline below does not do what the recipe says.
    """
    # A cohort is made of links to few cases.
    recipe = replace(load_recipe(name), accept=("repeated",))
    simple = (
        not recipe.layout.planar
        and not recipe.layout.index
        and not any(
            "*" in pattern.removesuffix(".nii*")
            for pattern in (recipe.layout.image, recipe.layout.label)
        )
        and recipe.label.tumour != "any"
        and (recipe.grid.spacing_mm, recipe.grid.centre, recipe.intensity.rule)
        == (0, "image", "percentile")
        and (recipe.slices.choose, recipe.slices.count) == ("largest", 1)
    )
    if not simple:
        raise SystemExit(
            f"recipe {name}: expected one like brats2021: "
            "volumes on their own grid, listed labels, "
            "percentiles, the one largest slice"
        )
    listing = find_cases(recipe, raw)
    cases = tuple(case for case in listing.cases if not case.fault)[:at_most]
    return Work(recipe=recipe, known=known_labels(recipe, listing.index), cases=cases)


def make_ours(work: Work) -> Cut:
    """Return the packing of one case, as a worker does it."""
    from hvae_hpc.preprocess.case import pack_case
    from hvae_hpc.preprocess.parallel import keep_freed_memory

    keep_freed_memory()  # as a packing does it

    def cut(files: CaseFiles) -> Slice:
        case = pack_case(work.recipe, work.known, files)
        if case.pairs is None:
            raise SystemExit(f"{files.case_id} cannot be packed: {case.fault}")
        return case.pairs.images[0], case.pairs.masks[0], int(case.pairs.slice_index[0])

    return cut


def make_torchio(work: Work, join: str) -> Cut | None:
    """Return the same steps by torchio, on the whole volume, or None without torchio.

    Args:
        work: whose recipe is followed.
        join: "remap" joins labels by RemapLabels, torchio's own way, half of whose time goes to
            listing the label's values; "lambda" by a comparison.
    """
    tio = import_peer("torchio")
    if tio is None:
        return None
    recipe = work.recipe
    assert recipe.label.tumour != "any"
    tumour = recipe.label.tumour
    # A value that stays as it is would cost a look at every voxel.
    mapping = {value: int(value in tumour) for value in work.known if value != int(value in tumour)}
    joins = {
        "remap": tio.RemapLabels(mapping, copy=False),
        "lambda": tio.Lambda(
            (lambda label: label > 0)
            if set(work.known) <= {0, *tumour}
            else (lambda label: np.isin(label, tumour)),
            types_to_apply=[tio.LABEL],
            copy=False,
        ),
    }
    rows, columns = recipe.grid.size_px
    # copy=False: otherwise each transform first copies the whole subject, which is read from its
    # files for every case. Percentiles come before the crop: ours are of the whole volume too.
    # Background is clipped to the lowest foreground, then 0.
    transform = tio.Compose(
        [
            tio.ToOrientation(recipe.grid.orientation, copy=False),
            tio.RescaleIntensity(
                (0, 1),
                percentiles=(recipe.intensity.low, recipe.intensity.high),
                masking_method=lambda image: image > 0,
                copy=False,
            ),
            joins[join],
            tio.CropOrPad((columns, rows, None), copy=False),
        ],
        copy=False,
    )

    def cut(files: CaseFiles) -> Slice:
        image, label = tio.ScalarImage(files.images[0]), tio.LabelMap(files.labels[0][0])
        subject = transform(tio.Subject(image=image, label=label))
        mask = subject["label"].data[0].numpy()
        index = int(np.count_nonzero(mask, axis=(0, 1)).argmax())
        image = subject["image"].data[0, :, :, index].numpy()
        return (
            np.ascontiguousarray(image.T),
            np.ascontiguousarray(mask[:, :, index].T, dtype=np.uint8),
            index,
        )

    return cut


def make_unzip(unzip: Callable[[bytes], Any]) -> Callable[[CaseFiles], None]:
    """Return what any packing must do at least: read both files and unzip them."""

    def run(files: CaseFiles) -> None:
        for path in files.paths.values():
            content = path.read_bytes()
            if path.name.endswith(".gz"):
                unzip(content)

    return run


OURS, TORCHIO, LAMBDA = "ours", "torchio", "torchio, Lambda for RemapLabels"
GZIP, LIBDEFLATE = "unzip alone, Python's gzip", "unzip alone, libdeflate"
SIDES: dict[str, Callable[[Work], Callable[[CaseFiles], Any] | None]] = {
    OURS: make_ours,
    TORCHIO: partial(make_torchio, join="remap"),
    LAMBDA: partial(make_torchio, join="lambda"),
    GZIP: lambda work: make_unzip(gzip.decompress),
    LIBDEFLATE: lambda work: make_unzip(gunzip.deflate.gzip_decompress) if gunzip.deflate else None,
}


def import_peer(name: str) -> Any:
    """Import what may not be installed; None if it is not."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


class Side:
    """One side of the comparison at work in a process of its own.

    In one process a side would use the memory that another one left. glibc gives pages back to the
    system depending on the largest block so far: after torch's blocks, ours takes little more than
    half of its time.
    """

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with one_core():  # before it imports torch, which then takes one thread
            self._process = context.Process(target=serve, args=(theirs, name, work), daemon=True)
            self._process.start()
        theirs.close()
        self.is_installed: bool = self._receive()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(f"{self.name} failed") from None

    def cut(self, case: int) -> Slice:
        """Return the slice of one case."""
        self._connection.send(case)
        image, mask, index = self._receive()
        return image, mask, index

    def pass_over(self) -> None:
        """Work on all cases, and keep nothing."""
        self._connection.send("all")
        self._receive()

    def memory(self) -> tuple[float, float]:
        """Return the process's peak so far, and what it took before its first case, MiB."""
        self._connection.send("memory")
        peak, imports = self._receive()
        return peak, imports

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def serve(connection: Any, name: str, work: Work) -> None:
    """Answer what :class:`Side` asks, until it hangs up."""
    run = SIDES[name](work)
    imports = read_status(os.getpid()).get("VmRSS", 0.0)
    connection.send(run is not None)
    while run is not None:
        try:
            asked = connection.recv()
        except EOFError:
            return
        if asked == "all":
            for files in work.cases:
                run(files)
            connection.send(None)
        elif asked == "memory":
            # Not getrusage's ru_maxrss: on Linux that starts from the peak of the
            # process that started this one.
            connection.send((read_status(os.getpid()).get("VmHWM", 0.0), imports))
        else:
            connection.send(run(work.cases[asked]))


def check_same_slices(work: Work, ours: Side, others: Sequence[Side]) -> float:
    """Compare the slices of all cases and return the largest difference of two pixels.

    Raises:
        SystemExit: they are not the same.
    """
    largest = 0.0
    for place, files in enumerate(work.cases):
        image, mask, index = ours.cut(place)
        for other in others:
            other_image, other_mask, other_index = other.cut(place)
            case = f"{files.case_id}: ours and {other.name}"
            if index != other_index:
                raise SystemExit(f"{case} choose slices {index} and {other_index}")
            if (image.dtype, mask.dtype) != (other_image.dtype, other_mask.dtype):
                raise SystemExit(
                    f"{case} give {image.dtype}, {mask.dtype} "
                    f"and {other_image.dtype}, {other_mask.dtype}"
                )
            if not np.array_equal(mask, other_mask):
                raise SystemExit(f"{case} have different masks")
            if image.shape != other_image.shape:
                raise SystemExit(f"{case} have images of {image.shape} and {other_image.shape}")
            largest = max(largest, float(np.abs(image - other_image).max()))
            if not largest <= CLOSEST:
                raise SystemExit(
                    f"{case} have images up to {largest:g} apart, expected {CLOSEST:g} at most"
                )
    return largest


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process on one core: what a worker has."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def read_status(process: int) -> dict[str, float]:
    """Read a process's memory, MiB; nothing if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")
    }


def link_cases(work: Work, raw: Path, n: int) -> None:
    """Make n cases of few by symbolic links: equal files, distinct ids."""
    for number in range(n):
        source = work.cases[number % len(work.cases)]
        layout = work.recipe.layout
        for pattern, path in zip((layout.image, layout.label), source.paths.values(), strict=True):
            name = pattern.replace(CASE, f"CASE_{number:05d}")
            if name.endswith(".nii*"):
                name = name.removesuffix(".nii*") + (
                    ".nii.gz" if path.name.endswith(".gz") else ".nii"
                )
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            (raw / name).symlink_to(path.resolve())
