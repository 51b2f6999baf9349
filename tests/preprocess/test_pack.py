"""Packing a whole data set, from the folder of NIfTI files to the manifest, and its command."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest

from hvae_hpc.config.loader import read_json
from hvae_hpc.errors import UserError, run_command
from hvae_hpc.jobs.slurm.limits import Cluster, Partition
from hvae_hpc.preprocess.__main__ import main
from hvae_hpc.preprocess.journal import JOURNAL
from hvae_hpc.preprocess.pack import pack
from hvae_hpc.preprocess.parallel import map_in_order
from hvae_hpc.preprocess.read.find_cases import find_cases
from hvae_hpc.preprocess.read.volume import read_volume
from hvae_hpc.preprocess.recipes.recipe import LayoutConfig, SlicesConfig, load_recipe
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.reader import read_dataset
from hvae_hpc.preprocess.summary import SUMMARY
from hvae_hpc.preprocess.verify import verify
from hvae_hpc.runs.lease import LostError, check, locked
from tests import ROOT
from tests.preprocess.scans import draw_case, save, save_cases, tiny_recipe

REAL = ROOT / ".." / "shared" / "data"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-60])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def raw(tmp_path):
    save_cases(tmp_path / "raw", 5)
    return tmp_path / "raw"


def test_every_case_is_packed_and_listed_with_its_slices_and_sources(raw, tmp_path):
    manifest = pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    assert manifest == read_manifest(tmp_path / "out")
    assert [case.case_id for case in manifest.cases] == [f"case{number}" for number in range(5)]
    case = manifest.cases[3]
    assert case.slices == (3,)
    assert case.tumour_px == (22,)
    assert case.spacing_mm == (1.0, 1.0)
    assert sorted(case.sources) == ["image", "label"]
    pairs = read_dataset(tmp_path / "out", ["case3"])
    assert pairs.images.shape == (1, 16, 16)
    assert int(pairs.masks.sum()) == 22


def test_one_and_two_workers_write_the_same_bytes(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 2)
    pack(tiny_recipe(), raw, tmp_path / "one", workers=1)
    pack(tiny_recipe(), raw, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("shard-*.h5"))) == 3


def test_a_case_is_never_cut_between_shards(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 4)
    manifest = pack(
        tiny_recipe(slices=SlicesConfig(choose="all")), raw, tmp_path / "out", workers=1
    )
    assert [case.pairs for case in manifest.cases] == [3] * 5
    assert [case.first_row for case in manifest.cases] == [0, 3, 0, 3, 0]
    assert read_dataset(tmp_path / "out", ["case1"]).slice_index.tolist() == [2, 3, 4]


def test_moving_the_folder_keeps_the_hash_and_another_recipe_changes_it(raw, tmp_path):
    before = pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    shutil.move(raw, tmp_path / "raw2")
    assert read_manifest(tmp_path / "elsewhere").content_hash == before.content_hash
    assert len(read_dataset(tmp_path / "elsewhere", ["case0"])) == 1
    again = pack(tiny_recipe(name="other"), tmp_path / "raw2", tmp_path / "out2", workers=1)
    assert again.content_hash == before.content_hash
    other = pack(
        tiny_recipe(slices=SlicesConfig(choose="all")),
        tmp_path / "raw2",
        tmp_path / "out3",
        workers=1,
    )
    assert other.content_hash != before.content_hash


def test_packing_again_changes_nothing_when_nothing_changed(raw, tmp_path):
    out, lines = tmp_path / "out", []
    pack(tiny_recipe(), raw, out, workers=1)
    before = contents(out)
    stamps = {
        path.name: path.stat().st_mtime_ns for path in [*out.glob("shard*"), out / "manifest.json"]
    }
    pack(tiny_recipe(), raw, out, workers=1, report=lines.append)
    assert {
        path.name: path.stat().st_mtime_ns for path in [*out.glob("shard*"), out / "manifest.json"]
    } == stamps
    assert contents(out) == before
    assert lines[-1].endswith("is up to date")


def test_packing_again_with_other_content_replaces_the_old_and_mends_damage(raw, tmp_path):
    out = tmp_path / "out"
    old = pack(tiny_recipe(), raw, out, workers=1)
    truncate(out / old.shards[0].file)
    assert pack(tiny_recipe(), raw, out, workers=1) == old
    read_dataset(out, ["case0"])
    new = pack(tiny_recipe(slices=SlicesConfig(choose="all")), raw, out, workers=1)
    assert {path.name for path in out.glob("*.h5")} == {entry.file for entry in new.shards}
    assert not {entry.file for entry in new.shards} & {entry.file for entry in old.shards}


def test_a_bad_case_makes_no_data_set_and_every_bad_one_is_named(raw, tmp_path):
    truncate(raw / "case1" / "case1_flair.nii.gz")
    (raw / "case2" / "case2_seg.nii.gz").unlink()
    (raw / "case3" / "case3_flair.nii.gz").unlink()
    with pytest.raises(UserError) as caught:
        pack(tiny_recipe(), raw, tmp_path / "out", workers=1)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("bad cases: 3, good ones packed: 2")
    assert "--skip-bad" in first
    assert [line.split(":")[0].strip() for line in lines] == ["case1", "case2", "case3"]
    assert "Compressed file ended" in lines[0]
    assert "has no label" in lines[1]
    assert "has no image" in lines[2]
    with pytest.raises(UserError, match=r"no manifest.json"):
        read_manifest(tmp_path / "out")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_case_after_a_full_shard_leaves_the_old_data_as_it_was(
    raw, tmp_path, monkeypatch, workers
):
    out = tmp_path / "out"
    pack(tiny_recipe(), raw, out, workers=1)
    before = {name: content for name, content in contents(out).items() if name != JOURNAL}
    monkeypatch.setattr("hvae_hpc.preprocess.pack.PAIRS_PER_SHARD", 1)
    truncate(raw / "case4" / "case4_seg.nii.gz")
    with pytest.raises(UserError, match="bad cases: 1,"):
        pack(tiny_recipe(slices=SlicesConfig(choose="all")), raw, out, workers=workers)
    assert contents(out).items() >= before.items()
    assert len(read_dataset(out, ["case4"])) == 1


def test_bad_cases_are_left_out_on_request_and_recorded(raw, tmp_path):
    good = pack(tiny_recipe(), raw, tmp_path / "all", workers=1)
    truncate(raw / "case1" / "case1_flair.nii.gz")
    manifest = pack(tiny_recipe(), raw, tmp_path / "out", workers=1, skip_bad=True)
    assert [entry.case_id for entry in manifest.skipped] == ["case1"]
    assert "Compressed file ended" in read_manifest(tmp_path / "out").skipped[0].reason
    assert len(manifest.cases) == 4
    assert manifest.content_hash != good.content_hash


def test_a_case_that_does_not_fit_into_memory_is_a_bad_case(raw, tmp_path, monkeypatch):
    def read_or_fail(recipe, files, known):
        if files.case_id == "case1":
            raise MemoryError
        return read_volume(recipe, files, known)

    monkeypatch.setattr("hvae_hpc.preprocess.case.read_volume", read_or_fail)
    with pytest.raises(UserError, match=r"bad cases: 1.*\n  case1: .*does not fit into memory"):
        pack(tiny_recipe(), raw, tmp_path / "out", workers=1)


def test_nothing_but_bad_cases_is_an_error_also_when_they_may_be_skipped(raw, tmp_path):
    for path in raw.glob("*/*_seg.nii.gz"):
        path.unlink()
    with pytest.raises(UserError, match="none of the cases can be packed"):
        pack(tiny_recipe(), raw, tmp_path / "out", workers=1, skip_bad=True)
    assert not (tmp_path / "out").exists()


def test_a_killed_packing_leaves_the_old_data_whole_and_the_next_one_tidies_up(raw, tmp_path):
    out = tmp_path / "out"
    old = pack(tiny_recipe(), raw, out, workers=1)
    code = f"""
        import os, signal
        from pathlib import Path
        import hvae_hpc.preprocess.pack as pack
        from tests.preprocess.scans import tiny_recipe
        from hvae_hpc.preprocess.recipes.recipe import SlicesConfig
        pack.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        pack.pack(tiny_recipe(slices=SlicesConfig(choose="all")), Path({str(raw)!r}), Path({str(out)!r}), 1)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(out.glob("*.h5"))) == 2
    assert read_manifest(out) == old
    assert len(read_dataset(out, ["case0", "case4"])) == 2
    pack(tiny_recipe(), raw, out, workers=1)
    assert len(list(out.glob("*.h5"))) == 1


def test_two_packings_of_one_folder_do_not_mix(raw, tmp_path):
    with locked(tmp_path / "out") as mine:
        assert mine
        with pytest.raises(UserError, match="another packing is writing there"):
            pack(tiny_recipe(), raw, tmp_path / "out", workers=1)


def test_who_lost_the_folder_removes_nothing_that_the_other_packed(raw, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def lose(packing):
        (mine,) = out.glob(".lease-*")
        mine.rename(out / ".lease-99")  # another packing took over while this one was stopped
        (out / "shard-00000.h5").touch()  # and has just made this, which it has yet to note
        check(out)

    monkeypatch.setattr("hvae_hpc.preprocess.pack._Packing.pack_cases", lose)
    with pytest.raises(LostError, match="lost the folder"):
        pack(tiny_recipe(), raw, out, workers=1)
    assert (out / "shard-00000.h5").exists()


def test_cases_are_found_by_patterns_in_which_every_case_is_the_same(tmp_path):
    recipe = tiny_recipe(layout=LayoutConfig(image="im[1]/{case}__PT.nii", label="la/{case}.nii"))
    for name in (
        "im[1]/a__PT.nii",
        "la/a.nii",
        "im[1]/b__CT.nii",
        "la/c.nii",
        "im[1]/.d__PT.nii",
        "im1/e__PT.nii",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_cases(recipe, tmp_path)
    assert [(files.case_id, not files.images, all(files.labels)) for files in found.cases] == [
        ("a", False, True),
        ("c", True, True),
    ]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y_flair.nii.gz").touch()
    with pytest.raises(UserError, match="nothing fits"):
        find_cases(tiny_recipe(), tmp_path)


def test_of_a_patients_scans_the_first_good_one_is_packed(tmp_path):
    """The first is empty for patient 1, the first two are cut short for patient 2; 3 has no good one."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    recipe = tiny_recipe(
        layout=LayoutConfig(
            image="{case}/{case}_flair.nii.gz",
            label="{case}/{case}_seg.nii.gz",
            patient=r"(case\d)\d",
        )
    )
    save_cases(raw, 4, first=10)
    save_cases(raw, 3, first=20)
    save_cases(raw, 1, first=30)
    save(raw / "case10" / "case10_seg.nii.gz", draw_case()[1] * 0)
    for name in ("case20", "case21", "case30"):
        truncate(raw / name / f"{name}_flair.nii.gz")
    with pytest.raises(UserError, match=r"none of the cases can be packed"):
        pack(recipe, raw, out, workers=1)

    for _ in range(2):  # and again, to the same
        manifest = pack(recipe, raw, out, workers=1, skip_bad=True)
        assert [case.case_id for case in manifest.cases] == ["case11", "case22"]
        assert [case.case_id for case in manifest.skipped] == [
            "case10",
            "case20",
            "case21",
            "case30",
        ]
        assert list(read_json(out / SUMMARY)["further"]) == ["case12", "case13"]
    verify(out, raw, 1, lambda line: None)
    assert len(list(out.glob("shard-*.h5"))) == 1


def die(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number):
    raise ZeroDivisionError(number)


def test_a_worker_killed_by_the_system_is_told_and_a_bug_keeps_its_kind():
    with pytest.raises(UserError, match="use fewer --workers"):
        list(map_in_order(die, range(4), workers=2))
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(fail, range(4), workers=2))


def test_results_come_in_order_and_the_environment_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.py").write_text("raise SystemExit('a module of the working folder ran')")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert list(map_in_order(functools.partial(pow, 3), range(9), workers=2)) == [
        3**n for n in range(9)
    ]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


# The command.


@pytest.fixture
def no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.usefixtures("no_slurm")
def test_the_command_packs_phantoms_and_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["brats2021", "--phantom", "1", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 found, 1 with image and label, 1 packed, 0 skipped" in out
    assert "1 x 1 x 1 mm" in out
    assert out.endswith("python -m hvae_hpc.sweep --data brats2021=shards/brats2021 --plan\n")
    assert len(read_manifest(tmp_path / "shards" / "brats2021").cases) == 1


@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["brats2022", "--raw", "."], "'brats2022' is not one of "),
        (["brats2021", "--raw", "nowhere"], "nowhere: is no folder"),
        (["brats2021", "--raw", "."], "nothing fits '{case}/{case}_flair.nii*'"),
        (["brats2021"], "--raw is missing"),
        (["brats2021", "--phantom", "2", "--workers", "0"], "--workers is 0"),
        (["brats2021", "--phantom", "-2"], "--phantom is -2"),
        (["mine.toml", "--raw", "."], "mine.toml: cannot be read"),
    ],
)
def test_a_users_fault_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_slurm")
def test_the_summary_names_the_skipped(tmp_path, capsys):
    for number in range(2):
        image, label = draw_case(number)
        save(tmp_path / "raw" / f"c{number}" / f"c{number}_flair.nii.gz", image)
        save(
            tmp_path / "raw" / f"c{number}" / f"c{number}_seg.nii.gz", label * number
        )  # c0 has no tumour
    argv = [
        "brats2021",
        "--raw",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    assert run_command(main, argv) == 2
    assert "c0: " in capsys.readouterr().err
    assert run_command(main, [*argv, "--skip-bad"]) == 0
    out = capsys.readouterr().out
    assert "2 found, 2 with image and label, 1 packed, 1 skipped" in out
    assert "skipped c0: " in out
    assert "no tumour voxel" in out


def test_where_there_is_slurm_the_command_asks_or_submits_itself(
    raw, tmp_path, monkeypatch, capsys
):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    argv = ["brats2021", "--raw", str(raw), "--out", str(tmp_path / "out"), "--workers", "3"]
    assert run_command(main, argv) == 2
    assert "give --partition NAME to pack as a job, or --local" in capsys.readouterr().err
    calls = []
    launcher = types.ModuleType("launcher")
    launcher.submit_command = lambda *given: calls.append(given) or ("4711", False)
    monkeypatch.setitem(sys.modules, "hvae_hpc.jobs.submit.apply", launcher)
    cluster = Cluster(partitions={"cpu": Partition(minutes=0, grace_s=0)})
    monkeypatch.setattr("hvae_hpc.jobs.slurm.limits.read_cluster", lambda: cluster)
    assert run_command(main, [*argv, "--partition", "cpu"]) == 0
    assert "job 4711" in capsys.readouterr().out
    name, command, resources, _ = calls[0]
    assert (name, resources.partition) == ("pack-brats2021", "cpu")
    assert (resources.cpus, resources.gpus) == (3, 0)
    assert command[:3] == ["-m", "hvae_hpc.preprocess", "brats2021"]
    assert "--local" in command
    monkeypatch.chdir("/")
    assert run_command(main, command[2:]) == 0  # what was submitted runs, from anywhere
    assert len(read_manifest(tmp_path / "out").cases) == 5


# Real scans, where they are.


@pytest.mark.parametrize(
    ("folder", "name", "size"),
    [("brats", "brats2021", 240), ("lgg", "brats2021", 240), ("sts", "hecktor2022", 256)],
)
def test_real_scans_pack_with_the_librarys_recipes(tmp_path, folder, name, size):
    if not (REAL / folder).is_dir():
        pytest.skip(f"no real scans at {REAL / folder}")
    recipe = load_recipe(name)
    for files in find_cases(recipe, REAL / folder).cases[:2]:
        for path in files.paths.values():
            link = tmp_path / "raw" / path.relative_to(REAL / folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    manifest = pack(recipe, tmp_path / "raw", tmp_path / "out", workers=1)
    pairs = read_dataset(tmp_path / "out", [case.case_id for case in manifest.cases])
    assert pairs.images.shape == (2, size, size)
    for image, mask in zip(pairs.images, pairs.masks, strict=True):
        assert mask.sum() > 50
        assert (
            image[mask == 1].mean() > 1.5 * image[mask == 0].mean()
        )  # FLAIR and PET show tumour bright
        if folder == "sts":  # centred on the whole tumour, so near the middle in its largest slice
            assert np.abs(np.argwhere(mask).mean(axis=0) - size / 2).max() < 40


@pytest.mark.usefixtures("no_slurm")
def test_a_place_that_cannot_be_written_is_one_line(raw, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert (
            run_command(main, ["brats2021", "--raw", str(raw), "--out", str(out), "--workers", "1"])
            == 2
        )
        error = capsys.readouterr().err
        assert "choose another folder" in error
        assert error.count("\n") == 1
