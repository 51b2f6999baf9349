"""What a packing found and made, for people (text) and programs (summary.json).

summary.json holds, by name:

* name, modality, content_hash, size_px: of the manifest;
* found: cases that the layout found;
* labelled: of these, with image and label there;
* packed: cases in the data set;
* skipped: cases left out on request, and why;
* further: scans that are not among these, and why (a patient's second scan);
* notes: of the raw folder, such as files that fit nothing;
* pairs: in the data set; ``pairs_per_case`` maps their number to the number of such cases;
* tumour_px: tumour area of the pairs, px, as its least, median and greatest;
* tumour_mm2: the same in mm^2; null where the spacing is unknown;
* cut: cases whose tumour the crop cuts -> px cut off;
* accepted: findings that the recipe accepts -> number of cases;
* orientations: of the files -> number of cases;
* shapes: columns x rows x slices of the images -> number of cases;
* spacings: of the images' files, or "spacing unknown" -> number of cases;
* lowest, highest: of the cases' images, in their own unit, as least, median and greatest;
* window_low, window_high: intensities that became 0 and 1, likewise.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from hvae_hpc.config.loader import dump, read_json
from hvae_hpc.errors import printable
from hvae_hpc.preprocess.journal import CaseRecord
from hvae_hpc.preprocess.read.find_cases import RawFolder
from hvae_hpc.preprocess.store.manifest import Manifest
from hvae_hpc.runs.folder import write_json

SUMMARY = "summary.json"


def write_summary(
    out: Path, folder: RawFolder, manifest: Manifest, records: Sequence[CaseRecord]
) -> None:
    """Count and measure a packed data set, and write summary.json, atomically.

    Args:
        out: where the data set lies.
        folder: what was found.
        manifest: of the data set.
        records: of its cases.
    """
    entries = manifest.cases
    facts = [record.facts for record in records]
    areas_mm2 = [
        area * entry.spacing_mm[0] * entry.spacing_mm[1]
        for entry in entries
        if entry.spacing_mm
        for area in entry.tumour_px
    ]
    known = all(entry.spacing_mm for entry in entries)

    summary = {
        "name": manifest.name,
        "modality": manifest.modality,
        "content_hash": manifest.content_hash,
        "size_px": manifest.size_px,
        "found": len(folder.cases),
        "labelled": sum(1 for files in folder.cases if files.images and all(files.labels)),
        "packed": len(entries),
        "skipped": manifest.skipped,
        "further": folder.further,
        "pairs": sum(entry.pairs for entry in entries),
        "pairs_per_case": Counter(entry.pairs for entry in entries),
        "tumour_px": _spread(area for entry in entries for area in entry.tumour_px),
        "tumour_mm2": _spread(areas_mm2) if known else None,
        "cut": {record.entry.case_id: record.cut_px for record in records if record.cut_px},
        "accepted": Counter(name for record in records for name in record.accepted),
        "orientations": Counter(fact.orientation or "2D" for fact in facts),
        "shapes": Counter(_times(fact.shape) for fact in facts),
        "spacings": Counter(
            f"{_times(fact.spacing_mm)} mm" if fact.spacing_mm else "spacing unknown"
            for fact in facts
        ),
        "lowest": _spread(fact.lowest for fact in facts),
        "highest": _spread(fact.highest for fact in facts),
        "window_low": _spread(fact.window[0] for fact in facts),
        "window_high": _spread(fact.window[1] for fact in facts),
        "notes": folder.notes,
    }
    write_json(out / SUMMARY, dump(summary))


def to_text(folder: Path) -> str:
    """Write a packed folder's summary.json as lines for people.

    Raises:
        UserError: it is missing or no JSON.
    """
    summary = read_json(folder / SUMMARY)
    lines = [
        f"cases:       {summary['found']} found, {summary['labelled']} with image and label, "
        f"{summary['packed']} packed, {len(summary['skipped'])} skipped"
    ]
    lines += [
        f"  skipped {printable(case['case_id'])}: {case['reason']}" for case in summary["skipped"]
    ]
    if summary["further"]:
        lines.append(f"  not taken: {len(summary['further'])} further scans of the same patients")
    lines += [f"  {printable(note)}" for note in summary["notes"]]

    mm2 = summary["tumour_mm2"]
    mm2 = f", {_shown(mm2)} mm2" if mm2 else " (spacing unknown)"
    lines += [
        f"pairs:       {summary['pairs']} of {_times(summary['size_px'])} px, "
        f"{summary['modality']}; per case {_listed(summary['pairs_per_case'])}",
        f"tumour:      {_shown(summary['tumour_px'])} px{mm2}",
    ]
    if summary["cut"]:
        worst = Counter(summary["cut"]).most_common(3)
        named = ", ".join(f"{case_id} {count} px" for case_id, count in worst)
        more = ", ..." if len(summary["cut"]) > 3 else ""
        lines.append(f"  cut by the crop: {len(summary['cut'])} cases ({named}{more})")

    if summary["accepted"]:
        named = ", ".join(f"{name} ({count} cases)" for name, count in summary["accepted"].items())
        lines.append(f"  implausible, but accepted: {named}")

    lines += [
        f"files:       {_listed(summary['orientations'])}; {_listed(summary['shapes'])} voxels; "
        f"{_listed(summary['spacings'])}",
        f"intensity:   lowest {_shown(summary['lowest'])}, highest {_shown(summary['highest'])}",
        f"window:      0 is {_shown(summary['window_low'])}, 1 is {_shown(summary['window_high'])}",
        f"content:     {summary['content_hash'][:12]}",
    ]
    return "\n".join(lines)


def _spread(values: Iterable[float]) -> dict[str, float]:
    numbers = [float(value) for value in values]
    return {"least": min(numbers), "median": median(numbers), "greatest": max(numbers)}


def _times(sides: Sequence[float]) -> str:
    return " x ".join(f"{side:g}" for side in sides)


def _shown(spread: Mapping[str, float]) -> str:
    if spread["least"] == spread["greatest"]:
        return f"{spread['least']:g}"
    return f"{spread['least']:.4g} to {spread['greatest']:.4g} (median {spread['median']:.4g})"


def _listed(counts: dict[str, int]) -> str:
    """Name the three most frequent values, which stand in the file's order where they are equal."""
    if len(counts) == 1:
        return next(iter(counts))
    often = Counter(counts).most_common(3)
    shown = ", ".join(f"{value} ({count})" for value, count in often)
    return shown + (f" and {len(counts) - 3} more" if len(counts) > 3 else "")
