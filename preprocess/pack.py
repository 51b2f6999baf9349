"""A whole data set: every case of a raw folder -> shards and, last, manifest.json.

Shards are named after their content and never changed, and the manifest is replaced in one step: a
    packing that is
killed, or that finds bad cases, leaves the data set that was there before, and what it packed is
taken over by the next one. The bytes written are the same for any number of workers and for any
history.
"""

import contextlib
import functools
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
    is_unchanged,
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
    Manifest,
    ShardEntry,
    SkippedEntry,
    compute_content_hash,
    read_manifest,
    write_manifest,
)
from hvae_hpc.preprocess.store.pairs import Pairs, concatenate
from hvae_hpc.preprocess.store.shards import Shard, hash_pairs, read_pairs, write_pairs
from hvae_hpc.preprocess.summary import summarise, write_summary
from hvae_hpc.runs.folder import remove_temporaries
from hvae_hpc.runs.lease import LEASE, LOCK, check, locked

PAIRS_PER_SHARD = 256
BYTES_PER_SHARD = 64 * 2**20
"""A shard is closed at this many pairs or this many bytes before compression; a case is never cut."""

Report = Callable[[str], None]


def pack(
    recipe: Recipe,
    raw: Path,
    out: Path,
    workers: int,
    skip_bad: bool = False,
    report: Report | None = None,
    bar: bool = False,
) -> Manifest:
    """Pack all cases that the recipe's layout finds; cases that are packed already and unchanged are taken over.

    Args:
        recipe: what the data set is.
        raw: folder with the image files.
        out: folder for shards, manifest and summary.
        workers: processes; 1 works in this one.
        skip_bad: leave cases out that cannot be packed, and record them; otherwise one such case
            fails the packing, after all have been looked at and the others packed.
        report: is called with lines of progress.
        bar: draw a progress bar on stderr.

    Raises:
        UserError: no cases, or bad ones (all named, one per line); then the manifest stays as it
            was.
    """
    say = report or (lambda line: None)
    found = find_cases(recipe, raw)
    say(f"{len(found.cases)} cases in {raw}")
    with locked(out, wait="in doubt") as mine:
        if not mine:
            raise UserError(
                f"{out}: another packing is writing there; wait for it, or choose another --out"
            )
        remove_temporaries(out)
        try:
            packing = _Packing(recipe, found, out, workers, bar)
            say(f"{packing.n_known} of them are packed already")
            manifest = packing.run(skip_bad)
        finally:
            _clear(out)
        if _is_up_to_date(out, manifest):
            say(f"{out} is up to date")
        else:
            write_manifest(out, manifest)
        write_summary(out, summarise(found, manifest, packing.records))
        write_journal(out, packing.key, packing.closed)
        _clear(out)
    return manifest


class _Packing:
    """One packing under way: cases in order, a shard filled at a time."""

    def __init__(
        self, recipe: Recipe, found: RawFolder, out: Path, workers: int, bar: bool
    ) -> None:
        self.recipe, self.found, self.out, self.workers, self.bar = recipe, found, out, workers, bar
        self.modality = recipe.modality or _name_channel(recipe, found)
        self.labels = known_labels(recipe, found.index)
        self.key = packing_key(recipe, self.modality, self.labels)
        rows, columns = recipe.grid.size_px
        self.limit = max(1, min(PAIRS_PER_SHARD, BYTES_PER_SHARD // (5 * rows * columns)))
        self.before = _sound_shards(out, read_journal(out, self.key), workers)
        write_journal(out, self.key, self.before.values())
        records = {
            record.entry.case_id: record
            for shard in self.before.values()
            for record in shard.records
        }
        self.known: dict[str, CaseRecord] = {}
        for files in found.cases:
            stamps = stamp_files(files)
            record = records.get(files.case_id)
            if record and is_unchanged(record, files, stamps):
                self.known[files.case_id] = replace(record, stamps=stamps)
        self.n_known = len(self.known)
        self.closed: list[ShardRecords] = []
        self.held: list[PackedCase] = []

    @property
    def records(self) -> list[CaseRecord]:
        """Of all cases that are in closed shards."""
        return [record for shard in self.closed for record in shard.records]

    def run(self, skip_bad: bool) -> Manifest:
        """Read what is missing or changed, and close shard after shard."""
        skipped: list[SkippedEntry] = []
        pairs = 0
        for case in self._cases():
            if case.record is None:
                skipped.append(SkippedEntry(case_id=case.case_id, reason=case.fault))
                continue
            self.held.append(case)
            pairs += case.record.entry.pairs
            if pairs >= self.limit:
                self._close_shard()
                pairs = 0
        if self.held:
            self._close_shard()
        _refuse(skipped, len(self.records), skip_bad)
        plain = dump(self.recipe)
        shards = tuple(shard.shard for shard in self.closed)
        entries = tuple(record.entry for record in self.records)
        return Manifest(
            schema=MANIFEST_SCHEMA,
            name=self.recipe.name,
            modality=self.modality,
            recipe=plain,
            size_px=self.recipe.grid.size_px,
            shards=shards,
            cases=entries,
            skipped=tuple(skipped),
            content_hash=compute_content_hash(
                schema=MANIFEST_SCHEMA, recipe=plain, shards=shards, cases=entries
            ),
        )

    def _cases(self) -> Iterator[PackedCase]:
        """Yield all cases in order: taken over, or packed by the workers."""
        new = [files for files in self.found.cases if files.case_id not in self.known]
        work = functools.partial(pack_case, self.recipe, self.labels)
        packed = map_in_order(work, new, min(self.workers, len(new)))
        seconds = 0.2 if sys.stderr.isatty() else 30.0  # between two lines, in a log
        with tqdm(
            total=len(new),
            unit="case",
            disable=not self.bar or not new,
            mininterval=seconds,
            miniters=1,
        ) as bar:
            for files in self.found.cases:
                if files.case_id in self.known:
                    yield PackedCase(case_id=files.case_id, record=self.known[files.case_id])
                else:
                    yield next(packed)
                    bar.update()

    def _close_shard(self) -> None:
        """Write the held cases as one shard, unless just these lie in one shard already."""
        held, self.held = self.held, []
        shard = self._same_shard(held) or self._write_shard(held)
        row, records = 0, []
        for case in held:
            assert case.record is not None
            entry = replace(case.record.entry, shard=shard.file, first_row=row)
            records.append(replace(case.record, entry=entry))
            row += entry.pairs
        closed = ShardRecords(shard=shard, records=tuple(records))
        self.closed.append(closed)
        if shard.file not in self.before:
            add_to_journal(self.out, closed)

    def _same_shard(self, held: Sequence[PackedCase]) -> ShardEntry | None:
        """Return the shard that holds just these cases already, each as it is now."""
        places = {
            case.record.entry.shard if case.record and case.pairs is None else "" for case in held
        }
        there = self.before.get(places.pop()) if len(places) == 1 else None
        if there is None or [record.entry.case_id for record in there.records] != [
            case.case_id for case in held
        ]:
            return None
        return there.shard

    def _write_shard(self, held: Sequence[PackedCase]) -> ShardEntry:
        pairs = concatenate(
            [case.pairs if case.pairs is not None else self._take_over(case) for case in held]
        )
        attributes = {"kind": "real", "modality": self.modality}
        digest = hash_pairs(pairs, attributes)
        path = self.out / f"shard-{digest[:16]}.h5"
        if not _is_sound(path, digest):
            write_pairs(path, pairs, attributes)
        return ShardEntry(file=path.name, pairs=len(pairs), content_sha256=digest)

    def _take_over(self, case: PackedCase) -> Pairs:
        assert case.record is not None
        entry = case.record.entry
        with Shard(self.out / entry.shard) as shard:
            return shard.read(range(entry.first_row, entry.first_row + entry.pairs))


def _name_channel(recipe: Recipe, found: RawFolder) -> str:
    names = found.index.channels if found.index else ()
    if not names:
        raise UserError(f"{recipe.layout.index} names no channels; say the recipe's modality")
    return names[min(recipe.layout.channel or 0, len(names) - 1)]


def _sound_shards(
    out: Path, journal: Mapping[str, ShardRecords], workers: int
) -> dict[str, ShardRecords]:
    """Return the shards of the journal that are whole; nothing that is damaged is taken over."""
    paths = [(out / name, entry.shard.content_sha256) for name, entry in journal.items()]
    sound = map_in_order(_is_entry_sound, paths, min(workers, len(paths) // 8))
    return {
        name: entry for (name, entry), whole in zip(journal.items(), sound, strict=True) if whole
    }


def _is_entry_sound(entry: tuple[Path, str]) -> bool:
    return _is_sound(*entry)


def _is_sound(path: Path, digest: str) -> bool:
    with contextlib.suppress(UserError):
        read_pairs(path, content_sha256=digest)
        return True
    return False


def _refuse(skipped: Sequence[SkippedEntry], good: int, skip_bad: bool) -> None:
    lines = "".join(f"\n  {printable(entry.case_id)}: {entry.reason}" for entry in skipped)
    if not good:
        raise UserError(f"none of the cases can be packed; nothing was written:{lines}")
    if skipped and not skip_bad:
        raise UserError(
            f"bad cases: {len(skipped)}, good ones packed: {good}; repair the bad and give the same command again, "
            f"or accept the data set without them by --skip-bad:{lines}"
        )


def _is_up_to_date(out: Path, manifest: Manifest) -> bool:
    with contextlib.suppress(UserError):
        return read_manifest(out) == manifest
    return False


def _clear(out: Path) -> None:
    """Remove shards that neither manifest nor journal names; a folder that is then as good as empty goes at the end."""
    check(out)  # who lost the folder removes nothing of the other's
    keep = _named_shards(out)
    for path in out.glob("shard-*.h5"):
        if path.name not in keep:
            path.unlink(missing_ok=True)
    ours = {LOCK, JOURNAL, *(path.name for path in out.glob(f"{LEASE}*"))}
    if not keep and not (out / MANIFEST).exists() and {path.name for path in out.iterdir()} <= ours:
        (out / JOURNAL).unlink(missing_ok=True)
        (out / LOCK).unlink(missing_ok=True)


def _named_shards(out: Path) -> set[str]:
    texts = []
    for name in (JOURNAL, MANIFEST):
        # Any other error than that is raised: a manifest that cannot be read just now
        # names shards all the same.
        with contextlib.suppress(FileNotFoundError):
            texts.append((out / name).read_text(encoding="utf-8", errors="replace"))
    return {
        path.name for path in out.glob("shard-*.h5") if any(path.name in text for text in texts)
    }
