"""Packing NIfTI volumes to shards against a plain torchio pipeline, against unzipping alone, and reading them back.

    python benchmarks/preprocess.py [--quick] [--raw DIR --recipe NAME] [--repeats 5]
    python benchmarks/preprocess.py --cohort 1000 [--workers 8] [--raw DIR --recipe NAME]

Without --raw the cases are phantoms of BraTS's size. Both sides must first give the same slices of all cases, or
nothing is measured. Each side has a process of its own on the same one core, and they take turns within each repeat;
starting and importing do not count. Every figure is the median over the repeats, and every file is in the page cache.
A peer that is not installed has no figure. --cohort packs many links to few cases by the command as users type it, and
watches its memory.
"""

import argparse
import contextlib
import gzip
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Modules that bring h5py or nibabel are imported where they are used: torchio's process must not carry them.
from hvae_hpc.errors import UserError
from hvae_hpc.preprocess import codec
from hvae_hpc.preprocess.layouts import CaseFiles, find_cases, known_labels
from hvae_hpc.preprocess.manifest import read_manifest
from hvae_hpc.preprocess.pairs import Pairs
from hvae_hpc.preprocess.recipe import CASE, Recipe, load_recipe

CLOSEST = 1e-6
"""Two images in [0, 1] are the same up to this: float32 takes its steps in another order."""
SAMPLE_S = 0.5
GREY = 65535
"""White of a 16-bit PNG."""

Slice = tuple[NDArray[np.float32], NDArray[np.uint8], int]
"""Image, mask, and which slice of the volume they are."""
Cut = Callable[[CaseFiles], Slice]
Read = Callable[[int], tuple[NDArray[Any], NDArray[Any]]]


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
    recipe = load_recipe(name)
    simple = (
        not recipe.layout.planar
        and not recipe.layout.index
        and not any("*" in pattern.removesuffix(".nii*") for pattern in (recipe.layout.image, recipe.layout.label))
        and recipe.label.tumour != "any"
        and (recipe.grid.spacing_mm, recipe.grid.centre, recipe.intensity.rule) == (0, "image", "percentile")
        and (recipe.slices.choose, recipe.slices.count) == ("largest", 1)
    )
    if not simple:
        raise SystemExit(
            f"recipe {name}: expected one like brats2021: volumes on their own grid, listed labels, "
            "percentiles, the one largest slice"
        )
    found = find_cases(recipe, raw)
    cases = tuple(case for case in found.cases if not case.fault)[:at_most]
    return Work(recipe=recipe, known=known_labels(recipe, found.index), cases=cases)


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
        join: "remap" joins labels by RemapLabels, torchio's own way, half of whose time goes to listing the values
            that are there; "lambda" by a comparison.
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
            (lambda label: label > 0) if set(work.known) <= {0, *tumour} else (lambda label: np.isin(label, tumour)),
            types_to_apply=[tio.LABEL],
            copy=False,
        ),
    }
    rows, columns = recipe.grid.size_px
    # copy=False: each transform would else copy the whole subject first, and the files are read anew anyway.
    # Percentiles before the crop: ours are of the whole volume. Background is clipped to the lowest foreground, then 0.
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
        subject = transform(tio.Subject(image=tio.ScalarImage(files.image), label=tio.LabelMap(files.labels[0])))
        mask = subject["label"].data[0].numpy()
        index = int(np.count_nonzero(mask, axis=(0, 1)).argmax())
        image = subject["image"].data[0, :, :, index].numpy()
        return np.ascontiguousarray(image.T), np.ascontiguousarray(mask[:, :, index].T, dtype=np.uint8), index

    return cut


def make_unzip(unzip: Callable[[bytes], Any]) -> Callable[[CaseFiles], None]:
    """Return what any packing must do at least: read both files and unzip them."""

    def run(files: CaseFiles) -> None:
        for path in files.paths.values():
            content = path.read_bytes()
            if path.name.endswith(".gz"):
                unzip(content)

    return run


def import_peer(name: str) -> Any:
    """Import what may not be installed; None if it is not."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


class Side:
    """One side of the comparison at work in a process of its own.

    In one process a side would work in the memory that another left: glibc gives pages back to the system depending on
    the largest block so far, and after torch's blocks ours takes little more than half of its time.
    """

    def __init__(self, name: str, work: Work) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with one_core():  # before it imports torch, which then takes one thread
            self._process = context.Process(target=serve, args=(theirs, name, work), daemon=True)
            self._process.start()
        theirs.close()
        self.is_there: bool = self._receive()

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
            # Not getrusage's ru_maxrss: on Linux that starts from the peak of the process that started this one.
            connection.send((read_status(os.getpid()).get("VmHWM", 0.0), imports))
        else:
            connection.send(run(work.cases[asked]))


OURS, TORCHIO, LAMBDA = "ours", "torchio", "torchio, Lambda for RemapLabels"
GZIP, LIBDEFLATE = "unzip alone, Python's gzip", "unzip alone, libdeflate"
SIDES: dict[str, Callable[[Work], Callable[[CaseFiles], Any] | None]] = {
    OURS: make_ours,
    TORCHIO: partial(make_torchio, join="remap"),
    LAMBDA: partial(make_torchio, join="lambda"),
    GZIP: lambda work: make_unzip(gzip.decompress),
    LIBDEFLATE: lambda work: make_unzip(codec.gunzip) if codec.libdeflate is not None else None,
}


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
                raise SystemExit(f"{case} give {image.dtype}, {mask.dtype} and {other_image.dtype}, {other_mask.dtype}")
            if not np.array_equal(mask, other_mask):
                raise SystemExit(f"{case} have different masks")
            if image.shape != other_image.shape:
                raise SystemExit(f"{case} have images of {image.shape} and {other_image.shape}")
            largest = max(largest, float(np.abs(image - other_image).max()))
            if not largest <= CLOSEST:
                raise SystemExit(f"{case} have images up to {largest:g} apart, expected {CLOSEST:g} at most")
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


def take_turns(sides: Mapping[str, Callable[[], Any] | None], repeats: int) -> dict[str, list[float] | None]:
    """Time all sides one after the other, several times over; None for a side that is not there."""
    times: dict[str, list[float] | None] = {name: None if run is None else [] for name, run in sides.items()}
    for _ in range(repeats):
        for name, run in sides.items():
            found = times[name]
            if run is not None and found is not None:
                started = time.perf_counter()
                run()
                found.append(time.perf_counter() - started)
    return times


def median(seconds: list[float] | None, scale: float = 1.0) -> float | None:
    """Return the median, multiplied."""
    return None if seconds is None else statistics.median(seconds) * scale


def rate(seconds: list[float] | None, count: int) -> float | None:
    """Return how many per second, at the median."""
    return None if seconds is None else count / statistics.median(seconds)


def ratio(theirs: list[float] | None, ours: list[float] | None) -> float | None:
    """Return how many times as fast ours is: the median over the repeats, in each of which both took their turn."""
    if theirs is None or ours is None:
        return None
    return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def measure_cases(work: Work, repeats: int) -> dict[str, Any]:
    """Cases per second and peak memory of one process."""
    count = len(work.cases)
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(contextlib.closing(Side(name, work))) for name in SIDES}
        there = {name: side for name, side in sides.items() if side.is_there}
        print("".join(f"{name}: not installed, no figure\n" for name in sides if name not in there), end="")
        peers = [there[name] for name in (TORCHIO, LAMBDA) if name in there]
        apart = check_same_slices(work, there[OURS], peers)
        if peers:
            print(f"ours and torchio: the same {count} slices and masks, pixels at most {apart:g} apart", flush=True)
        for side in there.values():
            side.pass_over()
        times = take_turns({name: side.pass_over if side.is_there else None for name, side in sides.items()}, repeats)
        memory = {name: side.memory() for name, side in there.items()}
    versus = {name: ratio(found, times[OURS]) for name, found in times.items()}
    show(
        f"one process, one core: {count} cases, image and label",
        ("", "cases/s", "ms/case", "ours is x times as fast", "MiB peak", "of that imports"),
        [
            (name, rate(found, count), median(found, 1000 / count), versus[name], *memory.get(name, (None, None)))
            for name, found in times.items()
        ],
    )
    return {
        "cases_per_s_vs_torchio": versus[TORCHIO],
        "cases_per_s_vs_torchio_lambda": versus[LAMBDA],
        "cases_per_s_vs_gzip_alone": versus[GZIP],
        "cases_per_s_vs_libdeflate_alone": versus[LIBDEFLATE],
        "cases_per_s": rate(times[OURS], count),
        "cases_per_s_torchio": rate(times[TORCHIO], count),
        "largest_difference": apart if peers else None,
        "peak_mib_per_worker": memory[OURS][0],
        "peak_mib_torchio": memory[TORCHIO][0] if TORCHIO in memory else None,
    }


def read_status(process: int) -> dict[str, float]:
    """Read a process's memory, MiB; nothing if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")}


def link_cases(work: Work, raw: Path, n: int) -> None:
    """Make n cases of few by symbolic links: equal files, distinct ids."""
    for number in range(n):
        source = work.cases[number % len(work.cases)]
        layout = work.recipe.layout
        for pattern, path in zip((layout.image, layout.label), source.paths.values(), strict=True):
            name = pattern.replace(CASE, f"CASE_{number:05d}")
            if name.endswith(".nii*"):
                name = name.removesuffix(".nii*") + (".nii.gz" if path.name.endswith(".gz") else ".nii")
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            (raw / name).symlink_to(path.resolve())


def measure_workers(work: Work, scratch: Path, n: int, repeats: int) -> tuple[dict[str, Any], Path]:
    """Whole packings of n linked cases with more and more workers, and the folder of the last one."""
    from hvae_hpc.preprocess.pack import pack

    cores = len(os.sched_getaffinity(0))
    counts = sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})
    raw, out = scratch / "linked", scratch / "packed"
    link_cases(work, raw, n)
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            shutil.rmtree(out, ignore_errors=True)
            started = time.perf_counter()
            pack(work.recipe, raw, out, count)
            times[count].append(time.perf_counter() - started)
    show(
        f"pack() of {n} cases, links to {len(work.cases)}; workers' start and writing to disk included",
        ("workers", "cases/s", "s", "x times as fast as 1"),
        [(count, rate(found, n), median(found), ratio(times[1], found)) for count, found in times.items()],
    )
    return {"cases_per_s_by_workers": {str(count): rate(found, n) for count, found in times.items()}}, out


def measure_reading(folder: Path, scratch: Path, repeats: int) -> dict[str, Any]:
    """Single slices in random order, from shards and from other files, and then the whole data set."""
    import h5py

    from hvae_hpc.preprocess.reader import DatasetReader

    manifest = read_manifest(folder)
    whole = DatasetReader(folder).read_all()
    pictures = import_peer("PIL.Image")
    sizes = write_peers(whole, scratch, pictures)
    sizes["shards"] = sum((folder / shard.file).stat().st_size for shard in manifest.shards)
    places = [(case.shard, case.first_row + row) for case in manifest.cases for row in range(case.pairs)]
    order = [int(row) for row in np.random.default_rng(0).permutation(len(whole))]
    images = np.memmap(scratch / "images.raw", "<f4", "r", shape=whole.images.shape)
    masks = np.memmap(scratch / "masks.raw", np.uint8, "r", shape=whole.masks.shape)
    readers = [DatasetReader(folder)]

    def from_shards(row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        pairs = readers[0].read([row])
        return pairs.images[0], pairs.masks[0]

    def from_h5py(row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        shard, place = places[row]
        return files[shard]["images"][place], files[shard]["masks"][place]

    def from_memmap(row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.array(images[row]), np.array(masks[row])

    def from_png(row: int) -> tuple[NDArray[Any], NDArray[Any]]:
        with pictures.open(scratch / f"image-{row}.png") as image, pictures.open(scratch / f"mask-{row}.png") as mask:
            return np.asarray(image, dtype=np.float32) / np.float32(GREY), np.asarray(mask, dtype=np.uint8)

    def first_time() -> None:
        readers[0] = DatasetReader(folder, manifest=manifest)
        for row in order:
            from_shards(row)

    def in_order(read: Read) -> Callable[[], None]:
        def read_each() -> None:
            for row in order:
                read(row)

        return read_each

    with contextlib.ExitStack() as stack:
        names = {shard for shard, _ in places}
        # Without locks, as our reader: HDF5 refuses to open a file in one process in both ways.
        files = {name: stack.enter_context(h5py.File(folder / name, "r", locking=False)) for name in names}
        for read, tolerance in ((from_shards, 0.0), (from_h5py, 0.0), (from_memmap, 0.0), (from_png, 0.51 / GREY)):
            if read is not from_png or pictures is not None:
                check_same_content(whole, read, tolerance)
        with one_core():
            slices = take_turns(
                {
                    "shards, first time": first_time,
                    "shards, verified": in_order(from_shards),
                    "h5py on the shards": in_order(from_h5py),
                    "memmap": in_order(from_memmap),
                    "PNG": in_order(from_png) if pictures is not None else None,
                },
                repeats,
            )
            everything = take_turns(
                {
                    "shards, read_all": lambda: DatasetReader(folder, manifest=manifest).read_all(),
                    "np.load": lambda: (np.load(scratch / "images.npy"), np.load(scratch / "masks.npy")),
                    "memmap, copied": lambda: (np.array(images), np.array(masks)),
                },
                repeats,
            )
    n = len(whole)
    size_of = {"shards, first time": "shards", "shards, verified": "shards", "h5py on the shards": "shards"}
    disk = {name: sizes.get(size_of.get(name, name)) for name in slices}
    if pictures is None:
        print("Pillow is not installed: no figures of PNG")
    show(
        f"one slice of {n} at a time, in random order, from the page cache; PNG rounds to 16 bits",
        ("", "ms/slice", "bytes/slice"),
        [(name, median(found, 1000 / n), (size := disk[name]) and size // n) for name, found in slices.items()],
    )
    show(
        f"all {n} slices to memory, from the page cache",
        ("", "pairs/s"),
        [(name, rate(found, n)) for name, found in everything.items()],
    )
    return {
        "slice_read_vs_memmap": ratio(slices["memmap"], slices["shards, verified"]),
        "slice_read_vs_h5py": ratio(slices["h5py on the shards"], slices["shards, verified"]),
        "slice_read_vs_png": ratio(slices["PNG"], slices["shards, verified"]),
        "slice_ms": {name: median(found, 1000 / n) for name, found in slices.items()},
        "slice_bytes": {name: size and size // n for name, size in disk.items()},
        "read_all_pairs_per_s": {name: rate(found, n) for name, found in everything.items()},
    }


def write_peers(pairs: Pairs, scratch: Path, pictures: Any) -> dict[str, int]:
    """Write the pairs as raw files, .npy and PNG, and return bytes on disk."""
    for name, values in (("images", pairs.images), ("masks", pairs.masks)):
        values.tofile(scratch / f"{name}.raw")
        np.save(scratch / f"{name}.npy", values)
    sizes = {"memmap": pairs.images.nbytes + pairs.masks.nbytes}
    if pictures is not None:
        for row in range(len(pairs)):
            grey = np.rint(pairs.images[row].astype(np.float64) * GREY).astype(np.uint16)
            pictures.fromarray(grey).save(scratch / f"image-{row}.png")
            pictures.fromarray(pairs.masks[row]).save(scratch / f"mask-{row}.png")
        sizes["PNG"] = sum(path.stat().st_size for path in scratch.glob("*.png"))
    return sizes


def check_same_content(pairs: Pairs, read: Read, tolerance: float) -> None:
    """Compare all slices.

    Raises:
        SystemExit: they are not the same.
    """
    for row in range(len(pairs)):
        image, mask = read(row)
        if image.dtype != np.float32 or not np.array_equal(mask, pairs.masks[row]):
            raise SystemExit(f"{read.__name__}: row {row} has another mask, or is {image.dtype}, expected float32")
        apart = float(np.abs(image.astype(np.float64) - pairs.images[row]).max())
        if not apart <= tolerance:
            raise SystemExit(f"{read.__name__}: row {row} is {apart:g} off, expected {tolerance:g} at most")


def measure_storage(folder: Path, scratch: Path, at_most: int, repeats: int) -> dict[str, Any]:
    """The shards' compression beside HDF5's own filters, on the first pairs."""
    from hvae_hpc.preprocess.reader import DatasetReader

    reader = DatasetReader(folder)
    pairs = reader.read(range(min(at_most, len(reader))))
    n, raw = len(pairs), pairs.images.nbytes + pairs.masks.nbytes
    forms: dict[str, dict[str, Any] | None] = {
        "none": {},
        "gzip 1, HDF5's": {"compression": "gzip", "compression_opts": 1},
        "gzip 4, HDF5's": {"compression": "gzip", "compression_opts": 4},
        "gzip 1, shuffled": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
        "lzf": {"compression": "lzf"},
        "ours": None,
    }
    path = {name: scratch / f"form-{place}.h5" for place, name in enumerate(forms)}
    order = [int(row) for row in np.random.default_rng(0).permutation(n)]
    taken: dict[str, float] = {}
    for name, form in forms.items():
        taken[name] = write_form(path[name], pairs, form) / raw
        read_form(path[name], order, form, pairs)
    with one_core():
        writing = take_turns({name: partial(write_form, path[name], pairs, forms[name]) for name in forms}, repeats)
        reading = take_turns({name: partial(read_form, path[name], order, forms[name]) for name in forms}, repeats)
    rows = [(name, taken[name], median(writing[name], 1000 / n), median(reading[name], 1000 / n)) for name in forms]
    how = "libdeflate" if codec.libdeflate is not None else "zlib: deflate is not installed"
    show(
        f"storage of {n} slices, a chunk each (ours: gzip 1 by {how})",
        ("", "of raw size", "ms/slice write", "ms/slice read"),
        rows,
    )
    return {
        "storage": {
            name: {"of_raw": size, "write_ms": writing_ms, "read_ms": reading_ms}
            for name, size, writing_ms, reading_ms in rows
        }
    }


def write_form(path: Path, pairs: Pairs, form: Mapping[str, Any] | None) -> int:
    """Write pairs to an HDF5 file in one form and return the bytes of their chunks; None: as shards do."""
    import h5py

    size = 0
    with h5py.File(path, "w") as file:
        for name, values in (("images", pairs.images), ("masks", pairs.masks)):
            filters = {"compression": "gzip", "compression_opts": 1} if form is None else form
            dataset = file.create_dataset(name, values.shape, values.dtype, chunks=(1, *values.shape[1:]), **filters)
            for row, plane in enumerate(values):
                if form is None:
                    dataset.id.write_direct_chunk((row, 0, 0), codec.compress(plane.tobytes()))
                else:
                    dataset[row] = plane
            file.flush()
            size += dataset.id.get_storage_size()
    return size


def read_form(path: Path, order: Sequence[int], form: Mapping[str, Any] | None, expected: Pairs | None = None) -> None:
    """Read the slices one at a time.

    Raises:
        SystemExit: they are not the expected ones.
    """
    import h5py

    with h5py.File(path, "r") as file:
        images, masks = file["images"], file["masks"]
        for row in order:
            image, mask = (_read_plane(dataset, row, form) for dataset in (images, masks))
            if expected is None:
                continue
            if not (np.array_equal(image, expected.images[row]) and np.array_equal(mask, expected.masks[row])):
                raise SystemExit(f"row {row} comes back changed from HDF5 with {form}")


def _read_plane(dataset: Any, row: int, form: Mapping[str, Any] | None) -> NDArray[Any]:
    if form is not None:
        return np.asarray(dataset[row])
    plane = np.empty(dataset.shape[1:], dataset.dtype)
    stream = dataset.id.read_direct_chunk((row, 0, 0))[1]
    plane.reshape(-1)[:] = np.frombuffer(codec.decompress(stream, plane.nbytes), plane.dtype)
    return plane


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory of a packing at one time, MiB.

    Attributes:
        parent: of the process that the user started.
        workers: of each worker process.
        highest: peak of any worker so far.
    """

    parent: float
    workers: tuple[float, ...]
    highest: float


def pack_cohort(work: Work, scratch: Path, n: int, workers: int) -> dict[str, Any]:
    """Pack n linked cases by the command, watch its memory, and give the same command again.

    Raises:
        SystemExit: the command failed, or the second time changed the data set.
    """
    raw, out = scratch / "linked", scratch / "packed"
    link_cases(work, raw, n)
    command = [sys.executable, "-m", "hvae_hpc.preprocess", work.recipe.name, "--raw", str(raw), "--out", str(out)]
    command += ["--workers", str(workers), "--sheet", "0", "--local"]
    seconds, samples = watch(command)
    before = read_manifest(out)
    again, _ = watch(command)
    after = read_manifest(out)
    if len(before.cases) != n or before.content_hash != after.content_hash:
        raise SystemExit(
            f"{len(before.cases)} of {n} cases packed, content {before.content_hash[:12]}; "
            f"the same command again gave {after.content_hash[:12]}"
        )
    busy = [sample for sample in samples if sample.workers] or samples
    quarter = max(1, len(busy) // 4)
    figures: dict[str, Any] = {}
    rows = []
    for name, part in (("first", busy[:quarter]), ("last", busy[-quarter:])):
        parent = max((sample.parent for sample in part), default=None)
        # With one worker the command works itself.
        worker = max((max(sample.workers, default=sample.parent) for sample in part), default=None)
        highest = part[-1].highest if part else None
        rows.append((f"{name} quarter", parent, worker, highest))
        figures |= {f"parent_mib_{name}_quarter": parent, f"worker_mib_{name}_quarter": worker}
        figures |= {f"worker_peak_mib_after_{name}_quarter": highest}
    print(f"{n} cases by {workers} workers: {seconds:.1f} s, {n / seconds:.1f} cases/s, start of Python included")
    print(f"the same command again, nothing changed: {again:.1f} s, content {after.content_hash[:12]} as before")
    show(
        f"memory while packing, MiB, {len(busy)} samples",
        ("", "parent", "largest worker", "any worker's peak till then"),
        rows,
    )
    return {
        "cohort": n,
        "workers": workers,
        "cases_per_s": n / seconds,
        "seconds": seconds,
        "again_s": again,
        "total_mib": max((sample.parent + sum(sample.workers) for sample in samples), default=None),
        **figures,
        "same_content_hash": True,
    }


def watch(command: Sequence[str]) -> tuple[float, list[Sample]]:
    """Run a command and return its seconds, and its memory over time.

    Raises:
        SystemExit: it failed.
    """
    samples = []
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    process.wait(SAMPLE_S)
                    break
                except subprocess.TimeoutExpired:
                    samples.append(take_sample(process.pid))
        finally:
            process.kill()
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read())
    return seconds, samples


def take_sample(process: int) -> Sample:
    """Look at a command and the workers that it started."""
    parent = read_status(process)
    workers = [read_status(worker) for worker in find_workers(process)]
    resident = tuple(status["VmRSS"] for status in workers if "VmRSS" in status)
    peaks = [status.get("VmHWM", 0.0) for status in workers] or [parent.get("VmHWM", 0.0)]
    return Sample(parent=parent.get("VmRSS", 0.0), workers=resident, highest=max(peaks))


def find_workers(parent: int) -> list[int]:
    """Return a process's children that multiprocessing started to work, and not to keep its books."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            # The name before the last bracket may hold anything, spaces and brackets too.
            mother = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if mother == parent and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    texts = [list(head), *([_to_text(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    print(f"\n{title}")
    for first, *others in texts:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  " + "  ".join([first.ljust(widths[0]), *cells]))
    sys.stdout.flush()


def _to_text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if cell >= 100 else f"{cell:.3g}"
    return "null" if cell is None else str(cell)


def describe() -> str:
    """Name versions and hardware."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("numpy", "h5py", "torch", "torchio", "SimpleITK", "nibabel", "deflate", "pillow"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    import h5py

    versions.insert(3, f"HDF5 {h5py.version.hdf5_version}")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{', '.join(versions)}\n{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory"


def round_all(value: Any) -> Any:
    """Keep four digits of every figure."""
    if isinstance(value, dict):
        return {key: round_all(inner) for key, inner in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def parse() -> argparse.Namespace:
    """Parse the command line; what --quick changes is set here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, metavar="DIR", help="real data; default: phantoms, in a temporary folder")
    parser.add_argument("--recipe", default="brats2021", help="how --raw is packed (brats2021)")
    parser.add_argument("--cases", type=int, metavar="N", help="take the first N of --raw, or make N phantoms (12)")
    parser.add_argument("--linked", type=int, metavar="N", help="cases, by links, of whole packings and reading (256)")
    parser.add_argument("--repeats", type=int, metavar="N", help="of every measurement (5)")
    parser.add_argument("--quick", action="store_true", help="3 cases, 64 linked, 2 repeats")
    parser.add_argument("--cohort", type=int, metavar="N", help="instead: pack N linked cases and watch the memory")
    parser.add_argument("--workers", type=int, metavar="N", help="of --cohort (as many as cores)")
    options = parser.parse_args()
    few, linked, repeats = (3, 64, 2) if options.quick else (12, 256, 5)
    if options.cases is None:
        options.cases = 4 if options.cohort and not options.raw else few
    options.linked, options.repeats = options.linked or linked, options.repeats or repeats
    options.workers = options.workers or len(os.sched_getaffinity(0))
    for name in ("cases", "linked", "repeats", "workers", "cohort"):
        if (getattr(options, name) or 1) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected 1 or more")
    return options


def main() -> None:
    """Measure, print tables, and end with one line of JSON."""
    options = parse()
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        raw = options.raw
        if raw is None:
            from hvae_hpc.preprocess.phantom import write_phantoms

            raw = scratch / "phantoms"
            write_phantoms(options.recipe, raw, options.cases, 0, len(os.sched_getaffinity(0)))
        work = find_work(options.recipe, raw, options.cases)
        data = {"data": "phantoms" if options.raw is None else "real", "cases": len(work.cases)}
        if options.cohort:
            print(f"{options.cohort} links to {len(work.cases)} cases ({data['data']})", flush=True)
            figures = pack_cohort(work, scratch, options.cohort, options.workers)
        else:
            figures = measure_cases(work, options.repeats)
            by_workers, packed = measure_workers(work, scratch, options.linked, options.repeats)
            figures |= by_workers | measure_reading(packed, scratch, options.repeats)
            figures |= measure_storage(packed, scratch, 2 * len(work.cases), options.repeats)
            data |= {"linked": options.linked, "repeats": options.repeats}
    print(json.dumps(round_all(figures | data)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from error
