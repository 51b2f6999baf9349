"""A whole data set: every case of a raw folder -> shards and, last, manifest.json.

Shards are named after their content and never changed, and the manifest is replaced in one step.
So a packing that is killed, or that finds bad cases, leaves the earlier data set as it was, and the
next packing takes over what it packed. The content is the same for any number of workers and for
any history.
"""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from hvae_hpc.config.loader import dump
from hvae_hpc.errors import UserError, printable
from hvae_hpc.preprocess.case import PackedCase, pack_case
from hvae_hpc.preprocess.journal import (
    JOURNAL,
    CaseRecord,
    ShardRecords,
    add_to_journal,
    packing_key,
    read_journal,
    stamp_files,
    write_journal,
)
from hvae_hpc.preprocess.parallel import map_in_order
from hvae_hpc.preprocess.read.find_cases import RawFolder, find_cases, known_labels
from hvae_hpc.preprocess.recipes.recipe import Recipe
from hvae_hpc.preprocess.store.manifest import (
    MANIFEST,
    MANIFEST_SCHEMA,
    CaseEntry,
    Manifest,
    ShardEntry,
    SkippedEntry,
    compute_content_hash,
    read_manifest,
    write_manifest,
)
from hvae_hpc.preprocess.store.pairs import Pairs, concatenate
from hvae_hpc.preprocess.store.shards import hash_pairs, read_pairs, write_pairs
from hvae_hpc.preprocess.summary import write_summary
from hvae_hpc.preprocess.verify import check_shard, check_sources
from hvae_hpc.runs.files import RECORD_BYTES, read_file
from hvae_hpc.runs.folder import remove_temporaries
from hvae_hpc.runs.lease import LEASE, check, locked

PAIRS_PER_SHARD = 256
BYTES_PER_SHARD = 64 * 2**20
"""A shard is closed at this many pairs or bytes before compression; a case is never cut."""


def pack(
    recipe: Recipe,
    raw: Path,
    out: Path,
    workers: int,
    skip_bad: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Pack all cases that the recipe's layout finds; unchanged ones are taken over.

    Args:
        recipe: what the data set is.
        raw: folder with the image files.
        out: folder for shards, manifest and summary.
        workers: processes; 1 works in this one.
        skip_bad: leave cases out that cannot be packed, and record them; otherwise one such case
            fails the packing, after all have been looked at and the others packed.
        report: is called with lines of progress.

    Raises:
        UserError: no cases, or bad ones (all named, one per line); then the manifest stays as it
            was.
    """
    folder = find_cases(recipe, raw)
    report(f"{len(folder.cases)} cases in {raw}")
    with locked(out, wait="in doubt") as owned:
        if not owned:
            raise UserError(
                f"{out}: another packing is writing there; wait for it, or choose another --out"
            )
        remove_temporaries(out)
        try:
            return _pack_folder(folder, out, workers, skip_bad, report)
        finally:
            _clear(out)


def _pack_folder(
    folder: RawFolder,
    out: Path,
    workers: int,
    skip_bad: bool,
    report: Callable[[str], None],
) -> Manifest:
    """Pack what is not packed yet; in the place of a bad scan take the patient's next one."""
    packing = _Packing(folder, out, workers)
    report(f"{len(packing.known)} of them are packed already")
    skipped = packing.pack_cases()
    following = folder.mark_bad({entry.case_id: entry.reason for entry in skipped})
    if skip_bad and following.further != folder.further:
        report(f"{len(folder.further) - len(following.further)} bad scans: their patients' next")
        return _pack_folder(following, out, workers, skip_bad, report)

    _refuse_bad(skipped, len(packing.records), skip_bad)
    manifest = packing.make_manifest(skipped)
    before = None
    with contextlib.suppress(UserError):
        before = read_manifest(out)
    if before == manifest:
        report(f"{out} is up to date")
    else:
        write_manifest(out, manifest)
    write_summary(out, folder, manifest, packing.records)
    write_journal(out, packing.key, packing.closed)
    return manifest


class _Packing:
    """One packing under way: cases in order, a shard filled at a time.

    Attributes:
        before: the shards of earlier packings that are whole, by file name.
        known: the cases in them that have not changed, by id.
        closed: the shards of this packing so far.
    """

    def __init__(self, folder: RawFolder, out: Path, workers: int) -> None:
        recipe = folder.recipe
        self.recipe, self.folder, self.out, self.workers = recipe, folder, out, workers
        self.modality = recipe.modality or _name_channel(recipe, folder)
        self.labels = known_labels(recipe, folder.index)
        self.key = packing_key(recipe, self.modality, self.labels)
        self.closed = list[ShardRecords]()
        self.before = _sound_shards(out, read_journal(out, self.key), workers)
        write_journal(out, self.key, self.before.values())

        records = {
            record.entry.case_id: record
            for shard in self.before.values()
            for record in shard.records
        }
        self.known = dict[str, CaseRecord]()
        for files in folder.cases:
            record, stamps = records.get(files.case_id), stamp_files(files)
            if record is None or files.fault:
                continue
            # A copy has other times; then the content counts.
            if record.stamps == stamps or not check_sources((record.entry, files.paths)):
                self.known[files.case_id] = replace(record, stamps=stamps)

    @property
    def records(self) -> list[CaseRecord]:
        """Of all cases that are in closed shards."""
        return [record for shard in self.closed for record in shard.records]

    def pack_cases(self) -> list[SkippedEntry]:
        """Read what is missing or changed, close shard after shard, and return the bad cases."""
        rows, columns = self.recipe.grid.size_px
        most = max(1, min(PAIRS_PER_SHARD, BYTES_PER_SHARD // (5 * rows * columns)))
        skipped = list[SkippedEntry]()
        held = list[PackedCase]()
        seen = dict[str, str]()
        for case in self._cases():
            if isinstance(case, PackedCase):
                case_id = case.record.entry.case_id
                first = seen.setdefault(case.record.images_sha256, case_id)
                if first != case_id and "repeated" not in self.recipe.accept:
                    reason = (
                        f"its images are those of {first}; remove one (no patient may train and "
                        'test), or say accept = ["repeated"] at the head of the recipe'
                    )
                    case = SkippedEntry(case_id=case_id, reason=reason)
            if isinstance(case, SkippedEntry):
                skipped.append(case)
                continue
            held.append(case)
            if sum(case.record.entry.pairs for case in held) >= most:
                self._close_shard(held)
                held = []
        if held:
            self._close_shard(held)
        return skipped

    def make_manifest(self, skipped: Sequence[SkippedEntry]) -> Manifest:
        """Describe the closed shards."""
        rules = dump(self.recipe)
        shards = tuple(shard.shard for shard in self.closed)
        cases = tuple(record.entry for record in self.records)
        return Manifest(
            schema=MANIFEST_SCHEMA,
            name=self.recipe.name,
            modality=self.modality,
            recipe=rules,
            size_px=self.recipe.grid.size_px,
            shards=shards,
            cases=cases,
            skipped=tuple(skipped),
            content_hash=compute_content_hash(rules, shards, cases),
        )

    def _cases(self) -> Iterator[PackedCase | SkippedEntry]:
        """Yield all cases in order: taken over, or packed by the workers."""
        new = [files for files in self.folder.cases if files.case_id not in self.known]
        recipe = replace(self.recipe, modality=self.modality)
        work = functools.partial(pack_case, recipe, self.labels)
        packed = iter(
            tqdm(
                map_in_order(work, new, self.workers),
                total=len(new),
                unit="case",
                disable=not new,
                mininterval=0.2 if sys.stderr.isatty() else 30.0,  # a log gets a line now and then
                miniters=1,
            )
        )
        for files in self.folder.cases:
            record = self.known.get(files.case_id)
            yield PackedCase(record=record) if record else next(packed)
        next(packed, None)  # ends the bar

    def _close_shard(self, held: Sequence[PackedCase]) -> None:
        """Make one shard of cases."""
        pairs = concatenate([case.pairs or self._read_again(case.record.entry) for case in held])
        attributes = {"kind": "real", "modality": self.modality}
        digest = hash_pairs(pairs, attributes)
        name = f"shard-{digest[:16]}.h5"
        row, records = 0, []
        for case in held:
            entry = replace(case.record.entry, shard=name, first_row=row)
            records.append(replace(case.record, entry=entry))
            row += entry.pairs
        shard = ShardEntry(file=name, pairs=len(pairs), content_sha256=digest)
        closed = ShardRecords(shard=shard, records=tuple(records))
        self.closed.append(closed)
        if name not in self.before:
            write_pairs(self.out / name, pairs, attributes)
            add_to_journal(self.out, closed)

    def _read_again(self, entry: CaseEntry) -> Pairs:
        rows = range(entry.first_row, entry.first_row + entry.pairs)
        return read_pairs(self.out / entry.shard, rows)[0]


def _name_channel(recipe: Recipe, folder: RawFolder) -> str:
    names = {**folder.index.modality, **folder.index.channel_names} if folder.index else {}
    in_name = re.search(r"_(\d{4})\.", recipe.layout.image)
    number = recipe.layout.channel or int(in_name[1] if in_name else 0)
    if str(number) not in names:
        raise UserError(
            f"{recipe.layout.index} names no channel {number} ({', '.join(names)}); "
            "say the recipe's modality"
        )
    return names[str(number)]


def _sound_shards(
    out: Path, journal: Mapping[str, ShardRecords], workers: int
) -> dict[str, ShardRecords]:
    """Return the shards of the journal that are whole; nothing that is damaged is taken over."""
    work = [
        (out / name, shard.shard.content_sha256, [record.entry for record in shard.records])
        for name, shard in journal.items()
    ]
    faults = map_in_order(check_shard, work, min(workers, len(work) // 8))
    return {
        name: shard
        for (name, shard), fault in zip(journal.items(), faults, strict=True)
        if not fault
    }


def _refuse_bad(skipped: Sequence[SkippedEntry], n_good: int, skip_bad: bool) -> None:
    lines = "".join(f"\n  {printable(entry.case_id)}: {entry.reason}" for entry in skipped)
    if not n_good:
        raise UserError(f"none of the cases can be packed; nothing was written:{lines}")
    if skipped and not skip_bad:
        raise UserError(
            f"bad cases: {len(skipped)}, good ones packed: {n_good}; "
            "repair the bad and give the same command again, "
            f"or accept the data set without them by --skip-bad:{lines}"
        )


def _clear(out: Path) -> None:
    """Remove shards that neither manifest nor journal names; leave nothing in an empty folder."""
    check(out)  # who lost the folder removes nothing of its new owner
    named = b""
    for name in (JOURNAL, MANIFEST):
        # Searched as text: a manifest that is damaged names its shards all the same.
        with contextlib.suppress(FileNotFoundError):
            named += read_file(out / name, RECORD_BYTES)
    for path in out.glob("shard-*.h5"):
        is_ours = re.fullmatch(r"shard-[0-9a-f]{16}\.h5", path.name)
        if is_ours and path.name.encode() not in named:
            path.unlink(missing_ok=True)

    names = {path.name for path in out.iterdir() if not path.name.startswith(LEASE)}
    if names <= {JOURNAL}:
        (out / JOURNAL).unlink(missing_ok=True)
