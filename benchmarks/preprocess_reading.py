"""Time to read packed pairs back, and their size on disk, against other file formats."""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from preprocess_sides import import_peer, one_core
from preprocess_tables import median, rate, ratio, show, take_turns

from hvae_hpc.preprocess.store.manifest import Manifest, read_manifest
from hvae_hpc.preprocess.store.pairs import Pairs

GREY = 65535
"""White of a 16-bit PNG."""

Read = Callable[[int], tuple[NDArray[Any], NDArray[Any]]]
"""Returns image and mask of one slice by its row."""

OURS, H5PY = "shards, verified", "h5py on the shards"
FORMS = (OURS, H5PY, "memmap", "PNG")


@contextlib.contextmanager
def open_forms(
    folder: Path, manifest: Manifest, scratch: Path, whole: Pairs, pictures: Any
) -> Iterator[dict[str, Read]]:
    """Open the same pairs in all forms; yield how each form reads one slice."""
    import h5py

    from hvae_hpc.preprocess.store.shards import Shard

    places = [
        (case.shard, case.first_row + row) for case in manifest.cases for row in range(case.pairs)
    ]
    images, masks = map_raw_files(scratch, whole)
    with contextlib.ExitStack() as stack:
        names = {shard for shard, _ in places}
        shards = {name: stack.enter_context(Shard(folder / name)) for name in names}
        # Without locks, like our reader: HDF5 refuses to open a file with and without them at once.
        files = {
            name: stack.enter_context(h5py.File(folder / name, "r", locking=False))
            for name in names
        }

        def from_shards(row: int) -> tuple[NDArray[Any], NDArray[Any]]:
            shard, place = places[row]
            pairs = shards[shard].read([place])
            return pairs.images[0], pairs.masks[0]

        def from_h5py(row: int) -> tuple[NDArray[Any], NDArray[Any]]:
            shard, place = places[row]
            return files[shard]["images"][place], files[shard]["masks"][place]

        def from_memmap(row: int) -> tuple[NDArray[Any], NDArray[Any]]:
            return np.array(images[row]), np.array(masks[row])

        def from_png(row: int) -> tuple[NDArray[Any], NDArray[Any]]:
            with (
                pictures.open(scratch / f"image-{row}.png") as image,
                pictures.open(scratch / f"mask-{row}.png") as mask,
            ):
                grey = np.asarray(image, dtype=np.float32)
                return grey / np.float32(GREY), np.asarray(mask, dtype=np.uint8)

        forms: dict[str, Read] = {OURS: from_shards, H5PY: from_h5py, "memmap": from_memmap}
        yield forms | ({"PNG": from_png} if pictures is not None else {})


def map_raw_files(scratch: Path, whole: Pairs) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the raw files of images and masks, mapped into memory."""
    return (
        np.memmap(scratch / "images.raw", "<f4", "r", shape=whole.images.shape),
        np.memmap(scratch / "masks.raw", np.uint8, "r", shape=whole.masks.shape),
    )


def read_in_order(read: Read, order: Sequence[int]) -> None:
    """Read slices one after the other, and keep nothing."""
    for row in order:
        read(row)


def measure_reading(folder: Path, scratch: Path, repeats: int) -> dict[str, Any]:
    """Time single slices in random order, from shards and other files; then the whole data set."""
    from hvae_hpc.preprocess.store.reader import DatasetReader

    # The same pairs in all forms.
    manifest = read_manifest(folder)
    whole = DatasetReader(folder).read_all()
    pictures = import_peer("PIL.Image")
    sizes = write_peers(whole, scratch, pictures)
    sizes["shards"] = sum((folder / shard.file).stat().st_size for shard in manifest.shards)
    order = [int(row) for row in np.random.default_rng(0).permutation(len(whole))]
    images, masks = map_raw_files(scratch, whole)

    with open_forms(folder, manifest, scratch, whole, pictures) as forms:
        # Timing starts only when all forms give the same slices.
        for name, read in forms.items():
            check_same_content(whole, name, read, 0.51 / GREY if name == "PNG" else 0.0)

        with one_core():
            runs = {name: partial(read_in_order, read, order) for name, read in forms.items()}
            slices = take_turns({name: runs.get(name) for name in FORMS}, repeats)
            everything = take_turns(
                {
                    "shards, read_all": lambda: DatasetReader(folder, manifest=manifest).read_all(),
                    "np.load": lambda: (
                        np.load(scratch / "images.npy"),
                        np.load(scratch / "masks.npy"),
                    ),
                    "memmap, copied": lambda: (np.array(images), np.array(masks)),
                },
                repeats,
            )
    return report_reading(slices, everything, sizes, len(whole), pictures is not None)


def report_reading(
    slices: Mapping[str, list[float] | None],
    everything: Mapping[str, list[float] | None],
    sizes: Mapping[str, int],
    n: int,
    has_png: bool,
) -> dict[str, Any]:
    """Show what reading took and return the figures."""
    size_of = {OURS: "shards", H5PY: "shards"}
    disk = {name: sizes.get(size_of.get(name, name)) for name in slices}
    if not has_png:
        print("Pillow is not installed: no figures of PNG")
    show(
        f"one slice of {n} at a time, in random order, from the page cache; PNG rounds to 16 bits",
        ("", "ms/slice", "bytes/slice"),
        [
            (name, median(times, 1000 / n), (size := disk[name]) and size // n)
            for name, times in slices.items()
        ],
    )
    show(
        f"all {n} slices to memory, from the page cache",
        ("", "pairs/s"),
        [(name, rate(times, n)) for name, times in everything.items()],
    )
    return {
        "slice_read_vs_memmap": ratio(slices["memmap"], slices[OURS]),
        "slice_read_vs_h5py": ratio(slices[H5PY], slices[OURS]),
        "slice_read_vs_png": ratio(slices["PNG"], slices[OURS]),
        "slice_ms": {name: median(times, 1000 / n) for name, times in slices.items()},
        "slice_bytes": {name: size and size // n for name, size in disk.items()},
        "read_all_pairs_per_s": {name: rate(times, n) for name, times in everything.items()},
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


def check_same_content(pairs: Pairs, form: str, read: Read, tolerance: float) -> None:
    """Compare all slices of one form with the pairs.

    Raises:
        SystemExit: a slice differs.
    """
    for row in range(len(pairs)):
        image, mask = read(row)
        if image.dtype != np.float32 or not np.array_equal(mask, pairs.masks[row]):
            raise SystemExit(
                f"{form}: row {row} has another mask, or is {image.dtype}, expected float32"
            )
        apart = float(np.abs(image.astype(np.float64) - pairs.images[row]).max())
        if not apart <= tolerance:
            raise SystemExit(f"{form}: row {row} is {apart:g} off, expected {tolerance:g} at most")


def measure_storage(folder: Path, scratch: Path, at_most: int, repeats: int) -> dict[str, Any]:
    """Compare the shards' compression with HDF5's own filters, on the first pairs."""
    from hvae_hpc.preprocess.store.reader import DatasetReader

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
        writing = take_turns(
            {name: partial(write_form, path[name], pairs, forms[name]) for name in forms}, repeats
        )
        reading = take_turns(
            {name: partial(read_form, path[name], order, forms[name]) for name in forms}, repeats
        )
    rows = [
        (name, taken[name], median(writing[name], 1000 / n), median(reading[name], 1000 / n))
        for name in forms
    ]
    show(
        f"storage of {n} slices, a chunk each (ours: gzip 1, read beside HDF5's filter)",
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
    """Write pairs to an HDF5 file in one form (None: the shards'); return their chunks' bytes."""
    import h5py

    size = 0
    with h5py.File(path, "w") as file:
        for name, values in (("images", pairs.images), ("masks", pairs.masks)):
            filters = {"compression": "gzip", "compression_opts": 1} if form is None else form
            dataset = file.create_dataset(
                name, values.shape, values.dtype, chunks=(1, *values.shape[1:]), **filters
            )
            for row, plane in enumerate(values):
                dataset[row] = plane
            file.flush()
            size += dataset.id.get_storage_size()
    return size


def read_form(
    path: Path, order: Sequence[int], form: Mapping[str, Any] | None, expected: Pairs | None = None
) -> None:
    """Read the slices one at a time.

    Raises:
        SystemExit: a slice differs from the expected one.
    """
    import h5py

    with h5py.File(path, "r") as file:
        images, masks = file["images"], file["masks"]
        for row in order:
            image, mask = (_read_plane(dataset, row, form) for dataset in (images, masks))
            if expected is None:
                continue
            if not (
                np.array_equal(image, expected.images[row])
                and np.array_equal(mask, expected.masks[row])
            ):
                raise SystemExit(f"row {row} comes back changed from HDF5 with {form}")


def _read_plane(dataset: Any, row: int, form: Mapping[str, Any] | None) -> NDArray[Any]:
    if form is not None:
        return np.asarray(dataset[row])
    plane = np.empty(dataset.shape[1:], dataset.dtype)
    stream = dataset.id.read_direct_chunk((row, 0, 0))[1]
    plane.reshape(-1)[:] = np.frombuffer(zlib.decompress(stream), plane.dtype)
    return plane
