"""Packing again: what is taken over, what is packed again, and that the bytes never tell which."""

import json
import os
import shutil

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.preprocess import case as case_module
from hvae_hpc.preprocess import pack as pack_module
from hvae_hpc.preprocess.journal import JOURNAL, packing_key, read_journal
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.recipes.recipe import GridConfig, LayoutConfig, SlicesConfig, load_recipe
from hvae_hpc.preprocess.store.manifest import read_manifest
from tests.preprocess.scans import draw_case, save, save_cases, tiny_recipe


@pytest.fixture
def raw(tmp_path):
    save_cases(tmp_path / "raw", 6)
    return tmp_path / "raw"


@pytest.fixture
def read(monkeypatch):
    """The ids of the cases whose files were read, by packings in this process."""
    ids = []
    real = case_module.pack_case

    def pack_case(recipe, known, files):
        ids.append(files.case_id)
        return real(recipe, known, files)

    monkeypatch.setattr(pack_module, "pack_case", pack_case)
    monkeypatch.setattr(pack_module, "PAIRS_PER_SHARD", 2)
    return ids


def content(folder):
    return {
        path.name: path.read_bytes()
        for path in [*folder.glob("shard-*.h5"), folder / "manifest.json"]
    }


def make_afresh(tmp_path, raw, recipe):
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    pack(recipe, raw, tmp_path / "fresh", workers=1)
    return content(tmp_path / "fresh")


def change_case(raw, number, seed):
    image, label = draw_case(seed)
    save(raw / f"case{number}" / f"case{number}_flair.nii.gz", image)
    save(raw / f"case{number}" / f"case{number}_seg.nii.gz", label)


def test_nothing_is_read_again_when_nothing_changed(raw, tmp_path, read):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    read.clear()
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert read == []


@pytest.mark.parametrize("what", ["added first", "added last", "removed", "changed", "all three"])
def test_only_new_and_changed_cases_are_read_and_the_bytes_are_those_of_a_first_packing(
    raw, tmp_path, read, what
):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    read.clear()
    expected = []
    if what in ("added first", "all three"):
        save_cases(tmp_path / "more", 1, first=9)
        for path in (tmp_path / "more" / "case9").iterdir():
            (raw / "a").mkdir(exist_ok=True)
            path.rename(raw / "a" / path.name.replace("case9", "a"))
        expected.append("a")
    if what in ("changed", "all three"):
        change_case(raw, 2, seed=77)
        expected.append("case2")
    if what in ("removed", "all three"):
        shutil.rmtree(raw / "case3")
    if what == "added last":
        save_cases(raw, 1, first=7)
        expected.append("case7")
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert read == expected
    assert content(tmp_path / "out") == make_afresh(tmp_path, raw, tiny_recipe())


def test_a_file_touched_or_copied_anew_with_the_same_content_is_not_read_again(raw, tmp_path, read):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    read.clear()
    for path in raw.glob("*/*"):
        os.utime(path, (1, 1))
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert read == []
    assert content(tmp_path / "out") == make_afresh(tmp_path, raw, tiny_recipe())


def test_a_moved_raw_folder_is_taken_over(raw, tmp_path, read):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    read.clear()
    raw.rename(tmp_path / "elsewhere")
    pack(tiny_recipe(), tmp_path / "elsewhere", tmp_path / "out", workers=1)
    assert read == []


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": GridConfig(size_px=(14, 16), centre="image")},
        {"slices": SlicesConfig(choose="all")},
    ],
)
def test_another_recipe_takes_nothing_over_and_another_name_all(raw, tmp_path, read, changes):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    read.clear()
    pack(tiny_recipe(name="other", about="words"), raw, tmp_path / "out", workers=1)
    assert read == []
    assert read_manifest(tmp_path / "out").name == "other"
    pack(tiny_recipe(**changes), raw, tmp_path / "out", workers=1)
    assert len(read) == 6
    assert content(tmp_path / "out") == make_afresh(tmp_path, raw, tiny_recipe(**changes))


def test_good_cases_are_kept_when_a_bad_one_stops_the_packing(raw, tmp_path, read):
    path = raw / "case4" / "case4_seg.nii.gz"
    good = path.read_bytes()
    path.write_bytes(good[:-30])
    with pytest.raises(UserError, match="bad cases: 1, good ones packed: 5"):
        pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    with pytest.raises(UserError, match="no manifest"):
        read_manifest(tmp_path / "out")
    path.write_bytes(good)
    read.clear()
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert read == ["case4"]
    assert content(tmp_path / "out") == make_afresh(tmp_path, raw, tiny_recipe())


def test_a_damaged_shard_is_packed_anew_and_nothing_else(raw, tmp_path, read):
    manifest = pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    path = tmp_path / "out" / manifest.shards[1].file
    path.write_bytes(path.read_bytes()[:-200])
    read.clear()
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert read == ["case2", "case3"]
    assert content(tmp_path / "out") == make_afresh(tmp_path, raw, tiny_recipe())


def put_value(place, value):
    """Return a change of one value in the journal's second line, which tells of a shard."""

    def change(path):
        key, shard, *rest = path.read_text().splitlines()
        data = node = json.loads(shard)
        for step in place[:-1]:
            node = node[step]
        node[place[-1]] = value
        path.write_text("\n".join([key, json.dumps(data), *rest]) + "\n")

    return change


@pytest.mark.parametrize(
    "change",
    [
        put_value(("shard", "pairs"), 7),
        put_value(("records", 1, "entry", "pairs"), 2),
        put_value(("records", 1, "entry", "first_row"), 0),
        put_value(("records", 0, "entry", "slices"), []),
        put_value(("records", 0, "entry", "spacing_mm"), [1.0]),
        put_value(("records", 0, "entry", "spacing_mm"), [1e308, 1e308]),
        put_value(("records", 0, "facts", "highest"), 1e308),
        put_value(("records", 0, "stamps"), {"image": [1, 1, 1]}),
    ],
)
def test_a_line_of_the_journal_that_makes_no_sense_counts_as_none(raw, tmp_path, read, change):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    before = content(tmp_path / "out")
    change(tmp_path / "out" / JOURNAL)
    save_cases(raw, 1, first=6)
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert content(tmp_path / "out") == make_afresh(tmp_path, raw, tiny_recipe()) != before


@pytest.mark.parametrize("spoil", ["cut", "gone", "of another version", "rubbish"])
def test_without_a_sound_journal_all_is_packed_anew_to_the_same_bytes(
    raw, tmp_path, read, spoil, monkeypatch
):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    before, path = content(tmp_path / "out"), tmp_path / "out" / JOURNAL
    read.clear()
    if spoil == "cut":  # as when a packing is killed while it adds a line
        path.write_text(path.read_text()[:-40])
    elif spoil == "gone":
        path.unlink()
    elif spoil == "rubbish":
        path.write_bytes(b"\xff\xfe{")
    else:
        monkeypatch.setattr("hvae_hpc.preprocess.journal.PACKING_VERSION", 0)
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert read == (
        ["case4", "case5"] if spoil == "cut" else [f"case{number}" for number in range(6)]
    )
    assert content(tmp_path / "out") == before


def test_the_journal_holds_just_the_shards_of_the_data_set(raw, tmp_path, read):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    change_case(raw, 0, seed=77)
    manifest = pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert set(
        read_journal(tmp_path / "out", packing_key(tiny_recipe(), "FLAIR", (0, 1, 2, 4)))
    ) == {entry.file for entry in manifest.shards}
    assert {path.name for path in (tmp_path / "out").glob("*.h5")} == {
        entry.file for entry in manifest.shards
    }
    assert read


def test_a_shard_with_an_older_state_of_one_case_is_not_taken_for_the_new_one(
    raw, tmp_path, monkeypatch
):
    """Two packings that were killed left a case in two shards; the one beside its old neighbours is the older."""
    out, hidden = tmp_path / "out", tmp_path / "hidden"
    monkeypatch.setattr(
        pack_module, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        pack(tiny_recipe(), raw, out, workers=1)
    change_case(raw, 1, seed=88)
    (raw / "case0").rename(hidden)
    with pytest.raises(KeyboardInterrupt):
        pack(tiny_recipe(), raw, out, workers=1)
    hidden.rename(raw / "case0")
    monkeypatch.undo()
    pack(tiny_recipe(), raw, out, workers=1)
    assert content(out) == make_afresh(tmp_path, raw, tiny_recipe())


def test_a_changed_file_of_the_same_size_and_time_is_seen(tmp_path, read):
    for number in range(2):
        image, label = draw_case(number)
        save(tmp_path / "raw" / f"c{number}" / f"c{number}_flair.nii.gz", image)
        save(tmp_path / "raw" / f"c{number}" / f"c{number}_seg.nii", label)
    recipe = tiny_recipe(
        layout=LayoutConfig(image="{case}/{case}_flair.nii.gz", label="{case}/{case}_seg.nii")
    )
    pack(recipe, tmp_path / "raw", tmp_path / "out", workers=1)
    path = tmp_path / "raw" / "c1" / "c1_seg.nii"
    before = path.stat()
    _, label = draw_case(1)
    label[10, 10, 3] = 4
    save(path, label)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    read.clear()
    manifest = pack(recipe, tmp_path / "raw", tmp_path / "out", workers=1)
    assert read == ["c1"]
    assert manifest.cases[1].tumour_px == (23,)


def test_what_dataset_json_says_is_part_of_what_was_packed(tmp_path, read):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number in range(2):
        image, label = draw_case(number)
        save(raw / f"imagesTr/c{number}_0000.nii.gz", image)
        save(raw / f"labelsTr/c{number}.nii.gz", (label > 0).astype("uint8") * 2)
    content_of = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content_of))
    pack(load_recipe("nnunet"), raw, tmp_path / "out", workers=1)
    (raw / "dataset.json").write_text(json.dumps(content_of | {"channel_names": {"0": "MR"}}))
    read.clear()
    assert pack(load_recipe("nnunet"), raw, tmp_path / "out", workers=1).modality == "MR"
    assert len(read) == 2
    (raw / "dataset.json").write_text(
        json.dumps(content_of | {"labels": {"background": 0, "a": 1}})
    )
    with pytest.raises(UserError, match=r"bad cases: 2|none of the cases"):
        pack(load_recipe("nnunet"), raw, tmp_path / "out", workers=1)


def test_a_manifest_that_is_no_text_is_healed_by_the_same_command(raw, tmp_path, read):
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    path = tmp_path / "out" / "manifest.json"
    good = path.read_bytes()
    path.write_bytes(good[:50] + b"\xff\xfe" + good[52:])
    read.clear()
    pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert (path.read_bytes(), read) == (good, [])
