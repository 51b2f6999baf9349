"""A generate run's pairs arrive whole in other people's formats, without copies, and with all that made them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from hvae_hpc import cli
from hvae_hpc.config.augmentations import CarveMixConfig
from hvae_hpc.config.diffusion import EDMConfig
from hvae_hpc.config.model import HVAEConfig, NetworkConfig, OptimConfig
from hvae_hpc.config.resources import Resources
from hvae_hpc.config.stages import GenerateConfig, SplitConfig, TrainConfig
from hvae_hpc.errors import run_command
from hvae_hpc.export import formats
from hvae_hpc.export import pairs as export
from hvae_hpc.export.formats import Part, make_folds
from hvae_hpc.jobs.worker.run import execute
from hvae_hpc.metrics.memorisation import Copies, find_copies
from hvae_hpc.preprocess.store.manifest import read_manifest
from hvae_hpc.preprocess.store.pairs import Pairs
from hvae_hpc.preprocess.store.shards import read_pairs, write_pairs
from hvae_hpc.runs.folder import METRICS, PAIRS, SNAPSHOT, read_result, write_result
from hvae_hpc.runs.identity import file_sha256
from hvae_hpc.runs.plan import Plan, plan_path, write_plan
from hvae_hpc.runs.run import Run
from hvae_hpc.training.batches import read_cases
from hvae_hpc.training.train import read_split
from tests.tiny import make_data_set, make_pairs

SIDE, PX = 32, 16
SPLIT = SplitConfig(train=7, test=5)
COMMON: dict[str, Any] = {"data": "tiny", "generator": "vae", "split": SPLIT, "image_px": PX}
NETWORK = NetworkConfig(channels=(4, 8), attention_levels=(1,), attention_heads=2, latent_size=4)
OPTIM = OptimConfig(images=160, batch_size=4, lr=1e-2, precision="fp32", ema_decay=0.9)
LABEL = "tiny-vae-s0"


def make_plan(folder: Path) -> Plan:
    """Write the plan of a generator and its pairs, none of them made yet."""
    shards = make_data_set(folder / "shards", side=SIDE, n=14)
    data = {"data": read_manifest(shards).content_hash}
    train = Run(
        stage="train",
        config=TrainConfig(**COMMON, model=HVAEConfig(n_leapfrog=0, network=NETWORK), optim=OPTIM),
        parents=data,
    )
    config = GenerateConfig(
        **COMMON, n_pairs=10, min_mask_px=1, threshold=0.3, max_draws_per_pair=2000
    )
    generate = Run(stage="generate", config=config, parents={**data, "generator": train.run_id})
    plan = Plan(
        sweep="tiny",
        runs_folder=folder / "runs",
        code_sha="abc",
        data={"tiny": {"folder": str(shards), "content_hash": data["data"]}},
        resources={"train": Resources(), "generate": Resources()},
        runs={run.run_id: run for run in (train, generate)},
    )
    write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
    return plan


class Project:
    """A folder with a finished generator and its pairs, and the command at work in it."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, self.runs = folder, plan, folder / "runs"
        self.train_id, self.run_id = plan.runs
        self.train, self.generate = (self.runs / plan.folder_name(run_id) for run_id in plan.runs)
        self.shards, self.out = folder / "shards/tiny", folder / "out"

    def pairs(self) -> Pairs:
        return read_pairs(self.generate / PAIRS)[0]

    def real(self) -> np.ndarray:
        return (
            read_cases(self.shards, read_split(self.shards, SPLIT).train, PX).images[:, 0].numpy()
        )

    def replay(self, rows: list[int]) -> None:
        """Put training images, moved, in the place of some pairs."""
        pairs, attributes = read_pairs(self.generate / PAIRS)
        for row in rows:
            pairs.images[row] = np.roll(self.real()[row % 7, :, ::-1], 1, axis=0)
        write_pairs(self.generate / PAIRS, pairs, attributes)

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "manifest.json").read_text()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    plan = make_plan(folder)
    assert [execute(plan, run_id).state for run_id in plan.runs] == ["done", "done"]
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    shutil.copytree(made, folder)
    return Project(folder, make_plan(folder))  # the same runs, at another place


Command = Callable[..., str]


@pytest.fixture
def command(project: Project, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object, code: int = 0) -> str:
        argv = ["export", *map(str, arguments), "--runs", str(project.runs)]
        assert run_command(cli._dispatch, argv) == code
        said = capsys.readouterr()
        assert code == 0 or said.err.startswith("error: ") or code == 130
        assert said.err.count("\n") <= 1
        return said.out + said.err

    return run


@pytest.mark.parametrize("flag", [["--id", "7"], ["--synthetic-only"]])
def test_what_belongs_to_nnunet_is_refused_with_png(
    command: Command, project: Project, flag: list[str]
) -> None:
    said = command(project.generate, "--png", project.out, *flag, code=2)
    assert "belong to --nnunet" in said
    assert not project.out.exists()


def read_image(path: Path) -> np.ndarray:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def test_nnunet_gets_every_pixel_of_synthetic_real_and_test_pairs(
    project: Project, command: Command
) -> None:
    said = command(LABEL, "--nnunet", project.out)
    folder = project.out / f"Dataset501_{LABEL}"
    assert f"{folder}: 10 synthetic, 7 real, 5 test pairs\n" in said
    split = read_split(project.shards, SPLIT)
    expected = {"synthetic": (project.pairs().images, project.pairs().masks)}
    for kind, cases in (("real", split.train), ("test", split.test)):
        tensors = read_cases(project.shards, cases, PX)
        expected[kind] = (tensors.images[:, 0].numpy(), tensors.masks[:, 0].numpy())
    for kind, (images, masks) in expected.items():
        listed = [pair for pair in project.manifest()["pairs"] if pair["kind"] == kind]
        assert len(listed) == len(images)
        for pair, image, mask in zip(listed, images, masks, strict=True):
            got = read_image(folder / pair["image"])
            assert got.dtype == np.float32
            assert np.array_equal(got, image)
            assert np.array_equal(read_image(folder / pair["mask"]), mask)
            # Packed at 1 mm, shrunk from 32 to 16 px.
            assert sitk.ReadImage(str(folder / pair["image"])).GetSpacing() == (2.0, 2.0)
    assert [pair["case"] for pair in project.manifest()["pairs"] if pair["kind"] == "test"] == list(
        split.test
    )


def test_the_data_set_keeps_the_rules_that_nnunet_checks(
    project: Project, command: Command
) -> None:
    command(LABEL, "--nnunet", project.out, "--id", 7)
    folder = project.out / f"Dataset007_{LABEL}"
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "tumour": 1}
    assert description["channel_names"] == {"0": "discs"}
    for part in ("Tr", "Ts"):
        images, labels = (
            sorted((folder / f"{what}{part}").iterdir()) for what in ("images", "labels")
        )
        assert [path.name.replace("_0000.nii.gz", ".nii.gz") for path in images] == [
            path.name for path in labels
        ]
        if part == "Tr":
            assert len(images) == description["numTraining"] == 17
        for image, label in zip(images, labels, strict=True):
            grids = [
                (i.GetSize(), i.GetSpacing(), i.GetOrigin(), i.GetDirection())
                for i in (sitk.ReadImage(str(path)) for path in (image, label))
            ]
            assert grids[0] == grids[1]
            assert grids[0][0] == (PX, PX)
            assert set(np.unique(read_image(label))) <= {0, 1}


def test_nnunet_itself_finds_nothing_wrong(project: Project, command: Command) -> None:
    pytest.importorskip(
        "nnunetv2", reason="nnU-Net is not installed (pip install -c constraints.txt -e '.[bench]')"
    )
    command(LABEL, "--nnunet", project.out)
    check = (
        "import sys\nfrom nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
        "verify_dataset_integrity(sys.argv[1], 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check, str(project.out / f"Dataset501_{LABEL}")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout
    assert "Error" not in done.stdout


def test_no_synthetic_pair_validates_and_each_real_case_does_once(
    project: Project, command: Command
) -> None:
    command(LABEL, "--nnunet", project.out)
    folds = json.loads((project.out / f"Dataset501_{LABEL}/splits_final.json").read_text())
    pairs = project.manifest()["pairs"]
    kind = {pair["name"]: pair["kind"] for pair in pairs}
    real = sorted(name for name in kind if kind[name] == "real")
    assert len(folds) == 5
    assert sorted(name for fold in folds for name in fold["val"]) == real
    for fold in folds:
        assert fold["val"]
        assert {kind[name] for name in fold["val"]} == {"real"}
        assert not set(fold["val"]) & set(fold["train"])
        assert sorted(fold["train"] + fold["val"]) == sorted(
            name for name in kind if kind[name] != "test"
        )


def test_all_slices_of_a_case_validate_together_and_few_cases_make_few_folds() -> None:
    cases = ("a", "a", "b", "c", "c", "c")
    pairs = replace(make_pairs(6, 8), case_ids=cases)
    records = [{"name": f"{case}{row}", "case": case} for row, case in enumerate(cases)]
    synthetic = Part(kind="synthetic", pairs=make_pairs(1, 8), records=[{"name": "made-0"}])
    folds = make_folds(Part(kind="real", pairs=pairs, records=records), synthetic)
    assert [fold["val"] for fold in folds] == [["a0", "a1"], ["b2"], ["c3", "c4", "c5"]]
    assert folds[1]["train"] == ["made-0", "a0", "a1", "c3", "c4", "c5"]


def test_png_files_hold_the_pairs_in_eight_bits(project: Project, command: Command) -> None:
    said = command(project.run_id[:6], "--png", project.out)
    assert f"{project.out}: 10 synthetic pairs\n" in said
    pairs, manifest = project.pairs(), project.manifest()
    assert [pair["pair"] for pair in manifest["pairs"]] == list(range(10))
    assert manifest["folder"] == "."
    for pair in manifest["pairs"]:
        image, mask = (
            np.asarray(Image.open(project.out / pair[what])) for what in ("image", "mask")
        )
        assert image.dtype == mask.dtype == np.uint8
        assert np.abs(image / 255 - pairs.images[pair["pair"]]).max() <= 0.5 / 255 + 1e-6
        assert np.array_equal(mask, 255 * pairs.masks[pair["pair"]])
    assert sorted(path.name for path in project.out.iterdir()) == [
        "images",
        "manifest.json",
        "masks",
    ]
    assert (
        len(list((project.out / "images").iterdir()))
        == len(list((project.out / "masks").iterdir()))
        == 10
    )


def test_the_manifest_leads_back_to_generator_snapshot_draw_and_nearest_case(
    project: Project, command: Command
) -> None:
    project.replay([4])
    command(
        project.generate, "--png", project.out, "--keep-copies"
    )  # the run's folder names it as well
    manifest, split = project.manifest(), read_split(project.shards, SPLIT)
    assert manifest["generate"]["run_id"] == project.run_id
    assert manifest["generate"]["pairs_sha256"] == file_sha256(project.generate / PAIRS)
    assert (manifest["generate"]["config"]["sampler"], manifest["generate"]["config"]["seed"]) == (
        "prior",
        0,
    )
    assert manifest["train"]["run_id"] == project.train_id
    assert manifest["train"]["snapshot_sha256"] == file_sha256(project.train / SNAPSHOT)
    assert manifest["train"]["source_cases"] == list(split.train)
    assert manifest["data"]["content_hash"] == read_manifest(project.shards).content_hash
    pair = manifest["pairs"][4]
    assert (pair["nearest_case"], pair["copy"]) == (split.train[4], True)
    assert pair["nearest_slice"] == int(split.train[4].removeprefix("case-"))
    assert pair["distance"] < 0.01


def test_the_number_of_a_draw_makes_its_pair_again(project: Project, command: Command) -> None:
    import torch

    from hvae_hpc.evaluation.generate import DRAWN_AT_ONCE
    from hvae_hpc.training.batches import generator_for
    from hvae_hpc.training.train import load_generator

    command(LABEL, "--png", project.out)
    draws = [pair["draw"] for pair in project.manifest()["pairs"]]
    assert draws == sorted(set(draws))
    config = project.plan.runs[project.train_id].config
    assert isinstance(config, TrainConfig)
    model = load_generator(project.train).model
    images = project.pairs().images
    for row, draw in ((0, draws[0]), (9, draws[9])):
        first = draw - draw % DRAWN_AT_ONCE
        z = torch.randn(DRAWN_AT_ONCE, 4, generator=generator_for(0, "draws", first))
        with torch.no_grad():
            image, _ = model.decode(z)
        np.testing.assert_allclose(
            image[draw - first, 0].clamp(0, 1).numpy(), images[row], atol=1e-5
        )


def test_pairs_of_an_earlier_version_have_draws_that_nobody_knows(
    project: Project, command: Command
) -> None:
    pairs, attributes = read_pairs(project.generate / PAIRS)
    write_pairs(
        project.generate / PAIRS,
        pairs,
        {k: v for k, v in attributes.items() if k != "draw_numbers"},
    )
    command(LABEL, "--png", project.out)
    assert {pair["draw"] for pair in project.manifest()["pairs"]} == {None}


@pytest.mark.parametrize("form", ["--png", "--nnunet"])
def test_copies_are_left_out_and_counted(form: str, project: Project, command: Command) -> None:
    project.replay([1, 4])
    said = command(LABEL, form, project.out)
    assert "2 of 10 pairs copy a training image: left out, and listed in manifest.json\n" in said
    manifest = project.manifest()
    assert [pair["pair"] for pair in manifest["left_out"]] == [1, 4]
    assert [pair["pair"] for pair in manifest["pairs"] if pair["kind"] == "synthetic"] == [
        0,
        2,
        3,
        5,
        6,
        7,
        8,
        9,
    ]
    assert (manifest["copies"]["flagged"], manifest["copies"]["of"]) == (2, 10)
    assert not [
        path
        for path in project.out.rglob("*")
        if "vae-00001" in path.name or "vae-00004" in path.name
    ]
    kept = [pair for pair in manifest["pairs"] if pair["kind"] == "synthetic"]
    assert all((project.out / manifest["folder"] / pair["image"]).is_file() for pair in kept)


@pytest.mark.parametrize("generator", ["carvemix", "edm"])
def test_mixed_pairs_and_those_of_an_edm_are_exported(
    generator: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path)
    common: dict[str, Any] = {**COMMON, "generator": generator}
    parents, runs = {"data": plan.data["tiny"]["content_hash"]}, []
    mixing = CarveMixConfig(share=1.0) if generator == "carvemix" else None
    if not mixing:
        model = EDMConfig(channels=(4, 8), attention_heads=2)
        config = TrainConfig(**common, model=model, optim=OPTIM)
        runs = [Run(stage="train", config=config, parents=parents)]
        parents = {**parents, "generator": runs[0].run_id}
    asked = GenerateConfig(**common, n_pairs=6, min_mask_px=1, threshold=0.3, mixing=mixing)
    runs.append(Run(stage="generate", config=asked, parents=parents))
    plan = replace(plan, runs={run.run_id: run for run in runs})
    write_plan(plan, plan_path(plan.runs_folder, plan.sweep))
    assert {execute(plan, run_id).state for run_id in plan.runs} == {"done"}

    out = tmp_path / "out"
    argv = ["export", runs[-1].label, "--png", str(out), "--runs", str(plan.runs_folder)]
    assert run_command(cli._dispatch, [*argv, "--keep-copies"]) == 0
    assert "6 synthetic pairs" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(list((out / "images").iterdir())) == len(manifest["pairs"]) == 6
    train = {"source_cases": list(read_split(tmp_path / "shards/tiny", SPLIT).train)}
    if not mixing:
        train |= {"run_id": runs[0].run_id, "label": "tiny-edm-s0"}
        train |= {"snapshot_sha256": file_sha256(plan.folder(runs[0].run_id) / SNAPSHOT)}
    assert manifest["train"] == train


def test_copies_are_decided_without_test_images(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []

    def find(*given: Any) -> Copies:
        said.append(given)
        return find_copies(*given)

    monkeypatch.setattr(export, "find_copies", find)
    command(LABEL, "--png", project.out, "--keep-copies")
    (given,) = said
    assert sum(isinstance(part, np.ndarray) for part in given) == 2  # synthetic and training ones
    assert np.array_equal(given[1], project.real())
    copies = project.manifest()["copies"]
    assert (copies["held_out"], copies["held_out_images"]) == ("each training case in turn", 7)


def test_copies_are_kept_on_request_and_marked(project: Project, command: Command) -> None:
    project.replay([1, 4])
    said = command(LABEL, "--png", project.out, "--keep-copies")
    assert "2 of 10 pairs copy a training image: handed over, and marked in manifest.json\n" in said
    assert [pair["pair"] for pair in project.manifest()["pairs"] if pair["copy"]] == [1, 4]
    assert project.manifest()["left_out"] == []


def test_a_generator_that_only_copies_has_nothing_to_hand_over(
    project: Project, command: Command
) -> None:
    project.replay(list(range(10)))
    said = command(LABEL, "--png", project.out, code=2)
    assert (
        said
        == "error: each of the 10 pairs copies a training image; --keep-copies hands them over\n"
    )
    assert not project.out.exists()
    assert "the generator copies its training set" in command(
        LABEL, "--png", project.out, "--keep-copies"
    )


def test_synthetic_pairs_alone_name_no_patient_in_their_files_and_have_no_folds(
    project: Project, command: Command
) -> None:
    said = command(LABEL, "--nnunet", project.out, "--synthetic-only")
    folder = project.out / f"Dataset501_{LABEL}"
    assert "no splits_final.json: train nnU-Net with fold all" in said
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json",
        "imagesTr",
        "labelsTr",
    ]
    assert len(list((folder / "imagesTr").iterdir())) == 10
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 10


def test_an_unknown_spacing_is_said_and_written_as_one_millimetre(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export.read_dataset

    def without_spacing(*arguments: Any) -> Pairs:
        pairs = whole(*arguments)
        return replace(pairs, spacing_mm=np.full((len(pairs), 2), np.nan))

    monkeypatch.setattr(export, "read_dataset", without_spacing)
    assert "the spacing is not known: the files say 1 mm\n" in command(
        LABEL, "--nnunet", project.out
    )
    pair = project.manifest()["pairs"][0]
    path = project.out / f"Dataset501_{LABEL}" / pair["image"]
    assert sitk.ReadImage(str(path)).GetSpacing() == (1.0, 1.0)


def test_rows_and_columns_keep_their_own_spacing(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.float32).reshape(3, 4)
    formats._write_nifti(tmp_path / "x.nii.gz", pixels, np.array([2.0, 0.5]))
    image = sitk.ReadImage(str(tmp_path / "x.nii.gz"))
    assert image.GetSpacing() == (0.5, 2.0)  # columns first
    assert image.GetDirection() == (1.0, 0.0, 0.0, 1.0)
    assert np.array_equal(sitk.GetArrayFromImage(image), pixels)


def test_the_same_export_again_gives_the_same_bytes(project: Project, command: Command) -> None:
    for name in ("one", "two"):
        command(LABEL, "--nnunet", project.folder / name)
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        for root in (project.folder / "one", project.folder / "two")
    )
    assert first == second


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("trouble", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)]
)
def test_an_export_that_is_cut_short_leaves_nothing(
    there: bool,
    trouble: BaseException,
    code: int,
    project: Project,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if there:
        project.out.mkdir()
    before = sorted(project.folder.rglob("*"))
    whole = formats._write_nifti

    def write(path: Path, *rest: Any) -> None:
        if path.parent.name == "imagesTs":
            raise trouble
        whole(path, *rest)

    monkeypatch.setattr(formats, "_write_nifti", write)
    said = command(LABEL, "--nnunet", project.out, code=code)
    assert code == 130 or "cannot be made (No space left on device); nothing was left there" in said
    caches = {path for path in project.folder.rglob("*") if path.suffix == ".cache"}
    assert sorted(set(project.folder.rglob("*")) - caches) == sorted(set(before) - caches)


def test_an_empty_folder_is_taken_and_a_full_one_refused(
    project: Project, command: Command
) -> None:
    project.out.mkdir()
    command(LABEL, "--png", project.out)
    before = project.manifest()
    said = command(LABEL, "--png", project.out, code=2)
    assert (
        said
        == f"error: {project.out}: is there and is no empty folder; name a new one, or delete it\n"
    )
    assert project.manifest() == before


def test_what_is_no_finished_generate_run_is_refused(project: Project, command: Command) -> None:
    said = command(f"train/{LABEL}", "--png", project.out, code=2)
    assert f"no generate run 'train/{LABEL}'; give a label, such as {LABEL}" in said
    assert "no generate run 'nobody'" in command("nobody", "--png", project.out, code=2)
    assert "data set number is 1000, expected 1 to 999" in command(
        f"generate/{LABEL}", "--nnunet", project.out, "--id", 1000, code=2
    )
    result = read_result(project.train, project.train_id)
    assert result is not None
    write_result(project.train, replace(result, metrics={"loss": 1.0}))
    assert "is not done (what it was made from was made again, or is gone)" in command(
        project.run_id, "--png", project.out, code=2
    )
    (project.generate / METRICS).unlink()
    said = command(project.run_id, "--png", project.out, code=2)
    assert "is not done; give the sweep command again, then export" in said
    assert not project.out.exists()


def test_data_that_is_not_what_the_run_read_is_refused(project: Project, command: Command) -> None:
    (project.generate / PAIRS).rename(project.generate / "elsewhere")
    assert "no such shard" in command(project.run_id, "--png", project.out, code=2)
    (project.generate / "elsewhere").rename(project.generate / PAIRS)
    shutil.rmtree(project.shards)
    assert "no manifest.json in" in command(project.run_id, "--png", project.out, code=2)
    make_data_set(project.folder / "shards", side=SIDE, n=14, seed=5)
    assert "was repacked" in command(project.run_id, "--png", project.out, code=2)
    assert not project.out.exists()


@pytest.mark.parametrize(
    ("attributes", "case_ids", "line"),
    [
        (
            {"source_cases": None},
            (),
            "lacks what made its pairs, or it is damaged ('source_cases')",
        ),
        ({"source_cases": "7"}, (), "lacks what made its pairs"),
        ({"draws": "x"}, (), "lacks what made its pairs"),
        ({"draw_numbers": "[1]"}, (), "1 numbers of draws for"),
        ({}, ("a/b", "a b"), "two pairs would get one file name"),
        ({}, ("..", "_."), "two pairs would get one file name"),
    ],
)
def test_pairs_that_somebody_changed_are_refused_in_a_line(
    attributes: dict[str, str | None],
    case_ids: tuple[str, ...],
    line: str,
    project: Project,
    command: Command,
) -> None:
    pairs, written = read_pairs(project.generate / PAIRS)
    changed = {k: v for k, v in {**written, **attributes}.items() if v is not None}
    names = (*case_ids, *pairs.case_ids[len(case_ids) :])
    write_pairs(project.generate / PAIRS, replace(pairs, case_ids=names), changed)
    assert line in command(LABEL, "--png", project.out, code=2)
    assert not project.out.exists()
