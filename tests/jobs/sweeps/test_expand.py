"""A sweep file becomes the runs it means: counts, parents, doses, ids, and refusals."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.config.arms import ArmConfig
from hvae_hpc.config.augmentations import FREE, CarveMixConfig
from hvae_hpc.config.loader import dump, load, read_toml
from hvae_hpc.config.model import OptimConfig
from hvae_hpc.config.stages import (
    GenerateConfig,
    LikelihoodConfig,
    QualityConfig,
    SegmentConfig,
    SplitConfig,
    TrainConfig,
)
from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sweeps import expand
from hvae_hpc.jobs.sweeps.config import SweepConfig
from hvae_hpc.preprocess.store.manifest import (
    CaseEntry,
    Manifest,
    ShardEntry,
    compute_content_hash,
    read_manifest,
)
from hvae_hpc.results.labels import arm_label
from hvae_hpc.runs.plan import Array, Plan, read_plan, write_plan
from hvae_hpc.sweep import SWEEPS, read_site, read_sweep
from tests.tiny import make_project


def paper_data(name: str, side: int, cases: int = 210) -> expand.DataSet:
    """A data set of the paper's size, as the planner sees one."""
    entries = tuple(
        CaseEntry(
            case_id=f"{name}-{i:04d}", shard="s", first_row=i, pairs=1, slices=(0,), tumour_px=(9,),
            spacing_mm=(1.0, 1.0), sources={},
        )
        for i in range(cases)
    )  # fmt: skip
    content = compute_content_hash({}, (), entries)
    shards = (ShardEntry(file="s", pairs=cases, content_sha256="0" * 64),)
    manifest = Manifest(
        schema=1, name=name, modality="", recipe={}, size_px=(side, side), shards=shards, cases=entries,
        skipped=(), content_hash=content,
    )  # fmt: skip
    return expand.DataSet(name=name, folder=Path(name), manifest=manifest)


PAPER = [paper_data("brats2021", 240), paper_data("hecktor2022", 256)]


def segments(runs: list[expand.Run], data: str) -> list[SegmentConfig]:
    return [
        run.config
        for run in runs
        if isinstance(run.config, SegmentConfig) and run.config.data == data
    ]


def test_table1_is_16_arms_on_two_data_sets_with_ten_seeds() -> None:
    runs = expand.expand(read_sweep("table1"), PAPER)
    for data in ("brats2021", "hecktor2022"):
        arms = [config.arm.name for config in segments(runs, data)]
        assert len(arms) == 160
        assert {name: arms.count(name) for name in arms} == {
            name: 10
            for name in [
                "reference", "standard-x2", "standard-x3", "standard-x5",
                *(f"{g}+{n}" for g in ("lsgan", "vae", "hvae") for n in (100, 200, 300, 500)),
            ]
        }  # fmt: skip
    stages = [run.stage for run in runs]
    assert {stage: stages.count(stage) for stage in stages} == {
        "train": 6, "likelihood": 4, "generate": 6, "quality": 10, "augment": 20, "segment": 320,
    }  # fmt: skip
    assert len({run.run_id for run in runs}) == len(runs)


def test_eighty_epochs_become_images_once_and_nothing_is_dropped() -> None:
    runs = segments(expand.expand(read_sweep("table1"), PAPER), "brats2021")
    images = {config.arm.name: config.optim.images for config in runs}
    assert images["reference"] == 8000  # 250 steps of 32
    assert images["standard-x5"] == 80 * 500
    assert images["hvae+500"] == 80 * 600
    assert images["vae+100"] == 80 * 200
    sweep = read_sweep("table1")
    odd = replace(sweep, split=SplitConfig(train=7, test=7))
    assert {c.arm.name: c.optim.images for c in segments(expand.expand(odd, PAPER), "brats2021")}[
        "reference"
    ] == 576


def test_the_arms_share_their_parents_as_the_paper_does() -> None:
    runs = {run.run_id: run for run in expand.expand(read_sweep("table1"), PAPER)}
    for run in runs.values():
        if isinstance(run.config, SegmentConfig):
            config, parents = (
                run.config,
                {role: runs[p] for role, p in run.parents.items() if role != "data"},
            )
            if config.arm.generator:
                assert parents["pairs"].config.generator == config.arm.generator
                assert parents["pairs"].config.n_pairs == 500
                assert config.arm.n_standard == 0
            elif config.arm.n_standard:
                assert parents["standard"].config.seed == config.seed
                assert parents["standard"].config.n_pairs == 400
                factor = int(config.arm.name[-1])
                assert 100 + config.arm.n_standard == factor * 100
            else:
                assert not parents
            for parent in parents.values():
                assert parent.config.split == config.split
                assert parent.config.data == config.data


def test_the_first_reference_of_a_split_keeps_its_weights_and_judges_all_quality_runs_of_it() -> (
    None
):
    sweep = replace(read_sweep("table1"), splits=2)
    runs = {run.run_id: run for run in expand.expand(sweep, PAPER)}
    judges = [
        run
        for run in runs.values()
        if isinstance(run.config, SegmentConfig) and run.config.keep_weights
    ]
    assert [(judge.config.arm.name, judge.config.seed) for judge in judges] == [
        ("reference", 0)
    ] * 4
    for run in runs.values():
        if isinstance(run.config, QualityConfig):
            (judge,) = [
                j
                for j in judges
                if (j.config.data, j.config.split) == (run.config.data, run.config.split)
            ]
            assert run.parents["judge"] == judge.run_id
            assert ("pairs" in run.parents) == (run.config.source not in ("real", "mean"))
    without = expand.expand(replace(sweep, quality={**sweep.quality, "features": False}), PAPER)
    assert len(without) == len(runs)
    assert not any("judge" in run.parents for run in without)
    assert not any(
        isinstance(run.config, SegmentConfig) and run.config.keep_weights for run in without
    )


def test_parents_come_before_children() -> None:
    seen: set[str] = set()
    for run in expand.expand(read_sweep("table1"), PAPER):
        assert {p for role, p in run.parents.items() if role != "data"} <= seen
        seen.add(run.run_id)


def test_splits_and_generator_seeds_multiply_the_generators() -> None:
    sweep = replace(read_sweep("table1"), splits=2, generator_seeds=3)
    runs = expand.expand(sweep, PAPER[:1])
    trains = [run.config for run in runs if isinstance(run.config, TrainConfig)]
    assert len(trains) == 3 * 2 * 3
    assert {(c.split.seed, c.seed) for c in trains} == {(d, s) for d in (0, 1) for s in (0, 1, 2)}
    hvae = [c for c in segments(runs, "brats2021") if c.arm.name == "hvae+100"]
    assert len(hvae) == 10 * 2 * 3


def test_equal_steps_are_those_of_the_largest_arm() -> None:
    sweep = read_sweep("table1")
    runs = segments(
        expand.expand(replace(sweep, segment=replace(sweep.segment, budget="steps")), PAPER),
        "brats2021",
    )
    assert {config.optim.images for config in runs} == {80 * 600}


def with_share(share: float, batch_size: int = 32) -> SweepConfig:
    sweep = read_sweep("table1")
    optim = {**sweep.segment.optim, "batch_size": batch_size}
    segment = replace(sweep.segment, synthetic_share=share, optim=optim)
    return replace(sweep, segment=segment, arms=("hvae-only+100", "nnunet+hvae+100"))


def test_a_share_of_synthetic_pairs_is_asked_of_arms_that_join_both_kinds_alone() -> None:
    plain, shared = (
        segments(expand.expand(with_share(share), PAPER), "brats2021") for share in (0.0, 0.5)
    )
    for arm in {config.arm for config in shared}:
        joins_both = "+" in arm.name and "only" not in arm.name
        assert arm.synthetic_share == (0.5 if joins_both else 0.0), arm.name
    assert all("synthetic_share" not in dump(config.arm) for config in plain)


def test_a_batch_of_one_kind_is_refused() -> None:
    with pytest.raises(UserError, match="at least one synthetic and one real"):
        expand.expand(with_share(0.99, batch_size=16), PAPER)


def test_stored_mixed_pairs_are_a_source_of_arms_without_a_training() -> None:
    sweep = replace(read_sweep("table1"), mixed=("carvemix",), arms=("carvemix",), generators={})
    runs = expand.expand(sweep, PAPER[:1])
    (stored,) = [run for run in runs if run.stage == "generate"]
    assert set(stored.parents) == {"data"}
    judged = [run for run in runs if run.stage == "quality"]
    assert judged
    assert all("judge" in run.parents for run in judged)
    assert stored.config.mixing == CarveMixConfig(share=1.0)
    arms = {config.arm.name: config.arm for config in segments(runs, "brats2021")}
    assert arms["carvemix+300"].n_synthetic == 300
    assert arms["carvemix+300"].moves is None
    assert arms["carvemix"].moves == CarveMixConfig()
    assert arm_label(arms["carvemix+300"]) == "CarveMix + 300"
    assert arm_label(arms["carvemix"]) == "CarveMix"
    with pytest.raises(ValueError, match="mixed has 'nnunet', expected some of cutmix"):
        replace(sweep, mixed=("nnunet",))


def test_combined_arms_add_moved_copies_and_generated_pairs() -> None:
    sweep = replace(read_sweep("table1"), combined=(5,), factors=(2,), doses=(100, 300))
    runs = {run.run_id: run for run in expand.expand(sweep, PAPER[:1])}
    arms = {
        run.config.arm.name: run for run in runs.values() if isinstance(run.config, SegmentConfig)
    }
    assert len(arms) == 2 + 3 * 2 * 2
    both = arms["standard-x5+hvae+300"]
    assert isinstance(both.config, SegmentConfig)
    assert (both.config.arm.n_standard, both.config.arm.n_synthetic) == (400, 300)
    assert both.config.optim.images == 80 * 800
    parents = {role: runs[parent].config for role, parent in both.parents.items() if role != "data"}
    assert isinstance(parents["pairs"], GenerateConfig)
    assert parents["pairs"].generator == "hvae"
    assert parents["standard"].n_pairs == 400  # of which x2 takes the first 100


def test_arms_by_name_come_beside_the_others_with_their_own_parents_and_budget() -> None:
    names = (
        "copies-x3",
        "hvae-only+100",
        "hvae-first+500",
        "moved",
        "real-105",
        "hvae+500@steps",
        "reference@steps",
    )
    sweep = replace(read_sweep("table1"), doses=(), factors=(), arms=names)
    data = paper_data("brats2021", 240, cases=205)
    runs = {run.run_id: run for run in expand.expand(sweep, [data])}
    arms = {
        run.config.arm.name: run for run in runs.values() if isinstance(run.config, SegmentConfig)
    }
    assert list(arms) == ["reference", *names]
    images = {name: run.config.optim.images for name, run in arms.items()}
    assert images == {
        "reference": 80 * 100,
        "copies-x3": 80 * 300,
        "hvae-only+100": 80 * 100,
        "hvae-first+500": 80 * 600,
        "moved": 80 * 100,
        "real-105": -(-80 * 105 // 32) * 32,
        "hvae+500@steps": 80 * 600,
        "reference@steps": 80 * 600,
    }
    for name, run in arms.items():
        assert set(run.parents) == ({"data", "pairs"} if "hvae" in name else {"data"})
    assert not any(run.stage == "augment" for run in runs.values())


def test_the_controls_take_equal_steps_and_those_of_the_paper_its_epochs() -> None:
    sizes = {"brats2021": 700, "hecktor2022": 488}
    runs = expand.expand(
        read_sweep("beyond"), [paper_data(name, 240, cases) for name, cases in sizes.items()]
    )
    for data in sizes:
        arms = {config.arm.name: config for config in segments(runs, data)}
        free = {"moved", "nnunet", "cutmix", "carvemix", "tumorcp", "nnunet+cutmix", "copies-x5"}
        controls = {"real-300", "edm-shuffled+300", "edm-nearest+300", "edm-only+300"}
        assert free | controls < set(arms)
        encoded = ("vae-aggregated", "hvae-aggregated", "hvae-gan-aggregated")
        sources = ("lsgan", *encoded, "edm", "edm-given")
        for source in (*sources, "carvemix", "tumorcp"):
            for dose in (100, 300, 500):
                alone, on_top = arms[f"{source}+{dose}"].arm, arms[f"nnunet+{source}+{dose}"].arm
                assert (alone.moves, on_top.moves) == (None, FREE["nnunet"])
                assert (on_top.generator, on_top.synthetic_share) == (source, 0.5)
        assert arms["edm-nearest+300"].arm.nearest
        assert ("real-500" in arms) == (data == "brats2021")
        steps = {name: config.optim.images for name, config in arms.items()}
        assert {images for name, images in steps.items() if "@" not in name} == {
            max(steps.values())
        }
        assert steps["reference@epochs"] == 8000


@pytest.mark.parametrize(
    ("arms", "budget", "reason"),
    [
        (("standard-x5",), "epochs", None),
        (("reference@steps",), "steps", "arms 'reference' and 'reference@steps' are the same"),
        (("hvae+100@steps", "reference@epochs"), "steps", "are the same|nothing to be compared"),
        (
            ("hvae+100@epochs",),
            "steps",
            "'hvae\\+100@epochs' has nothing to be compared with; add 'reference@epochs'",
        ),
        (("copies-x3", "copies-x3@steps", "reference@steps"), "epochs", None),
        (
            ("copies-x3@epochs",),
            "epochs",
            "names the budget that arms have anyway; call it 'copies-x3'",
        ),
        (("real-100",), "epochs", "arms 'reference' and 'real-100' are the same"),
        (
            ("real-100+hvae+100",),
            "epochs",
            "arms 'hvae\\+100' and 'real-100\\+hvae\\+100' are the same",
        ),
    ],
)
def test_one_training_has_one_name_and_every_budget_its_reference(
    arms: tuple[str, ...], budget: str, reason: str | None
) -> None:
    sweep = read_sweep("table1")
    sweep = replace(sweep, arms=arms, segment=replace(sweep.segment, budget=budget))
    if reason is None:
        assert len(expand.expand(sweep, PAPER[:1])) > 160
        return
    with pytest.raises(UserError, match=reason):
        expand.expand(sweep, PAPER[:1])


def test_too_few_cases_to_judge_pairs_are_refused_before_anything_is_trained() -> None:
    sweep = replace(read_sweep("table1"), split=SplitConfig(train=100, test=6))
    with pytest.raises(
        UserError, match=r"6 training or test cases, expected 7 or more for the quality of pairs"
    ):
        expand.expand(sweep, PAPER[:1])
    assert expand.expand(replace(sweep, quality={"features": False}), PAPER[:1])


def test_an_arm_of_more_real_cases_than_there_are_is_left_out_and_one_of_fewer_than_the_split_s_refused() -> (
    None
):
    sweep = replace(read_sweep("table1"), arms=("real-110", "real-111"))
    data = paper_data("brats2021", 240, cases=210)
    assert {config.arm.name for config in segments(expand.expand(sweep, [data]), "brats2021")} >= {
        "real-110"
    }
    assert "real-111" not in {
        config.arm.name for config in segments(expand.expand(sweep, [data]), "brats2021")
    }
    with pytest.raises(UserError, match="60 real cases asked for, expected 100"):
        expand.expand(replace(sweep, arms=("real-60",)), [data])


def test_likelihoods_are_asked_of_generators_with_an_encoder_where_the_sweep_has_the_table() -> (
    None
):
    sweep = read_sweep("table1")
    runs = {run.run_id: run for run in expand.expand(replace(sweep, generator_seeds=2), PAPER[:1])}
    asked = [run for run in runs.values() if isinstance(run.config, LikelihoodConfig)]
    assert sorted((run.config.generator, run.config.seed) for run in asked) == [
        ("hvae", 0), ("hvae", 1), ("vae", 0), ("vae", 1),
    ]  # fmt: skip
    for run in asked:
        parent = runs[run.parents["generator"]].config
        assert (parent.generator, parent.seed) == (run.config.generator, run.config.seed)
        assert run.config.chains == 4
    settings = sweep.generators["hvae"]
    hybrid = replace(settings, model=replace(settings.model, adversarial_weight=0.1))
    others = replace(sweep, generators={"vae": sweep.generators["vae"], "hvae-gan": hybrid})
    judged = [run.config for run in expand.expand(others, PAPER[:1]) if run.stage == "likelihood"]
    assert [config.generator for config in judged] == ["vae"]
    without = expand.expand(replace(sweep, likelihoods=False), PAPER[:1])
    assert not any(isinstance(run.config, LikelihoodConfig) for run in without)
    literal = expand.expand(
        read_sweep("table1-literal"), PAPER[:1]
    )  # whose HVAE has no density of grey values
    assert {
        run.config.generator for run in literal if isinstance(run.config, LikelihoodConfig)
    } == {"vae"}
    with pytest.raises(UserError, match="estimates is 1 and temperatures 100, expected 2 or more"):
        expand.expand(replace(sweep, likelihood={"estimates": 1}), PAPER[:1])


def test_the_vae_is_the_hvae_s_network_with_no_leaps() -> None:
    sweep = read_sweep("table1")
    vae, hvae = sweep.generators["vae"], sweep.generators["hvae"]
    assert vae.model.network == hvae.model.network == sweep.generators["lsgan"].model.network
    assert (vae.model.n_leapfrog, hvae.model.n_leapfrog) == (0, 3)
    assert vae.optim == hvae.optim


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_library_expands(path: Path) -> None:
    sweep = load(SweepConfig, read_toml(path, SWEEPS), str(path))
    assert sweep.name == path.stem
    data = [paper_data("brats2021", 240, 240), paper_data("hecktor2022", 256, 240)]
    assert expand.expand(sweep, data)


def test_an_unknown_key_at_any_depth_is_named(tmp_path: Path) -> None:
    for text, message in [
        ("seed = 3", "unknown key 'seed'; did you mean 'seeds'"),
        (
            "[generators.hvae.model]\nstep_sise = 1",
            "unknown key 'step_sise'; did you mean 'step_size'",
        ),
        ("[segment.optim]\nlearning = 1", "unknown key 'learning'"),
        ("[generate]\nn_pair = 3", "unknown key 'n_pair'; did you mean 'n_pairs'"),
        ("[segment]\nepochs = 0", r"segment: epochs is 0, expected more than 0"),
        ("[segment.optim]\nimages = 32", "segment: optim.images follows from epochs"),
        ("doses = [501]", r"arm lsgan\+501 asks for 501 pairs, generate.n_pairs is 500"),
        ("[split]\ntrain = 200", "has 210 cases, the split asks for 300"),
        ("image_px = 100", "images of 100x100 px, expected multiples of 16"),
    ]:
        (tmp_path / "own.toml").write_text('extends = "table1"\n' + text)
        with pytest.raises(UserError, match=message):
            expand.expand(read_sweep(str(tmp_path / "own.toml")), PAPER)


def test_repacked_data_gives_new_run_ids_to_all_that_reads_it_and_moved_data_none(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path)
    sweep = read_sweep(str(project / "sweep.toml"))

    def ids(folder: Path) -> dict[str, set[str]]:
        sets = [
            expand.DataSet(name=n, folder=folder / n, manifest=read_manifest(folder / n))
            for n in ("tiny", "tiny2")
        ]
        runs = expand.expand(sweep, sets)
        return {n: {run.run_id for run in runs if run.config.data == n} for n in ("tiny", "tiny2")}

    before = ids(project / "shards")
    shutil.move(project / "shards", project / "elsewhere")
    assert ids(project / "elsewhere") == before
    from tests.tiny import make_data_set

    make_data_set(project / "elsewhere", "tiny", seed=5)
    after = ids(project / "elsewhere")
    assert not before["tiny"] & after["tiny"]
    assert before["tiny2"] == after["tiny2"]


def plan_of(tmp_path: Path) -> Plan:
    return expand.make_plan(read_sweep("table1"), PAPER, tmp_path, read_site(None).resources)


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    first = next(iter(plan.runs))
    plan = replace(plan, arrays=(Array(name="a", stage="train", elements=((first,),)),))
    write_plan(plan, tmp_path / "plan.json")
    assert dump(read_plan(tmp_path / "plan.json")) == dump(plan)


def test_the_smallest_effect_is_in_the_plan_and_in_no_run(tmp_path: Path) -> None:
    sweep = replace(read_sweep("table1"), smallest_effect=0.01)
    plan = expand.make_plan(sweep, PAPER, tmp_path, read_site(None).resources)
    assert plan.smallest_effect == 0.01
    assert plan.runs.keys() == plan_of(tmp_path).runs.keys()
    with pytest.raises(ValueError, match="smallest_effect is 0, expected more than 0"):
        replace(sweep, smallest_effect=0)

    # A plan of an earlier version does not have it.
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    path.write_text(path.read_text().replace(',"smallest_effect":0.01', ""))
    assert read_plan(path).smallest_effect == 0.02


def test_an_arm_s_name_and_amounts_are_in_its_id() -> None:
    base = SegmentConfig(
        data="d", split=SplitConfig(), image_px=0, arm=ArmConfig(name="a"), unet=read_sweep("table1").segment.unet,
        optim=OptimConfig(images=32),
    )  # fmt: skip
    ids = {
        expand.Run(
            stage="segment", config=replace(base, arm=ArmConfig(name="a", n_synthetic=n))
        ).run_id
        for n in (0, 1)
    }
    assert len(ids) == 2


def test_every_sampler_of_a_sweep_makes_pairs_and_arms_of_one_training() -> None:
    runs = {run.run_id: run for run in expand.expand(read_sweep("samplers"), PAPER[:1])}
    made = [run for run in runs.values() if isinstance(run.config, GenerateConfig)]
    sources = {run.config.source for run in made}
    samplers = ("aggregated", "mixture", "hmc", "mask", "riemannian")
    assert sources == {
        "lsgan",
        "vae",
        "hvae",
        *(f"{g}-{s}" for g in ("vae", "hvae") for s in samplers),
    }
    for run in made:
        train = runs[run.parents["generator"]].config
        assert isinstance(train, TrainConfig)
        assert train.generator == run.config.generator
        assert run.config.sampler == "prior" or train.generator != "lsgan"
        # Given the mask alone, chains walk in the prior's units.
        assert (run.config.hmc_scale == "prior") == (run.config.sampler == "mask")
    assert len({run.parents["generator"] for run in made}) == 3
    arms = {
        run.config.arm.name: run for run in runs.values() if isinstance(run.config, SegmentConfig)
    }
    assert runs[arms["hvae-mask+500"].parents["pairs"]].config.source == "hvae-mask"
    assert {"hvae+100", "hvae-aggregated+100", "vae-hmc+500"} <= set(arms)
    assert "hvae-hmc" in runs[arms["hvae-hmc+100"].parents["pairs"]].label


def test_the_ablation_changes_one_thing_at_a_time() -> None:
    sweep = read_sweep("ablation")
    hvae = dump(sweep.generators["hvae"])
    changed = {}
    for name, settings in sweep.generators.items():
        model, base = dump(settings)["model"], hvae["model"]
        assert dump(settings)["moves"] == hvae["moves"]
        if name not in ("lsgan", "hvae"):
            assert dump(settings)["optim"] == hvae["optim"]
            changed[name] = {key for key in model if model[key] != base[key]}
    several = {
        # In z itself a step of 0.3 leaves the posterior, and the force's bound would hold it fast.
        "hvae-raw": {"mass", "step_size", "force_max"},
        "hvae-metropolis": {"metropolis", "tempering", "force_max"},
    }
    literal = changed.pop("paper-literal")
    assert {
        "mass",
        "step_size",
        "learn_step_size",
        "tempering",
        "sqrt_beta_0",
        "image_likelihood",
        "force_max",
    } == literal
    for name, fields in changed.items():
        assert fields == several[name] if name in several else len(fields) == 1, name
    assert len(changed) == 15  # with the VAE


@pytest.mark.parametrize("samplers", [(), ("prior", "prior")])
def test_samplers_are_one_or_more_each_once(samplers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="samplers is"):
        replace(read_sweep("table1"), samplers=samplers)


def test_a_generator_may_not_have_the_name_of_anothers_pairs() -> None:
    sweep = read_sweep("table1")
    twin = {**sweep.generators, "hvae-aggregated": sweep.generators["vae"]}
    with pytest.raises(ValueError, match=r"names of pairs are .* expected each once"):
        replace(sweep, samplers=("prior", "aggregated"), generators=twin)


def test_the_curve_has_each_arm_at_each_size_with_a_generator_of_as_many_cases() -> None:
    sweep = read_sweep("curve")
    runs = {run.run_id: run for run in expand.expand(sweep, [paper_data("brats2021", 240, 300)])}
    trained = [run.config for run in runs.values() if isinstance(run.config, TrainConfig)]
    assert sorted(config.n_cases for config in trained) == [0, 50, 100, 200]
    sizes = dict[str, set[int]]()
    for run in runs.values():
        if isinstance(run.config, SegmentConfig):
            arm = run.config.arm
            kind = ("nnunet" if arm.moves else "") + ("+edm" if arm.generator else "")
            sizes.setdefault(kind, set()).add(arm.n_cases)
            if arm.generator:
                generator = runs[runs[run.parents["pairs"]].parents["generator"]].config
                assert generator.n_cases == arm.n_cases
                assert arm.n_synthetic == 500
    assert sizes.keys() == {"", "nnunet", "nnunet+edm"}
    assert all(numbers == {0, 50, 100, 200} for numbers in sizes.values())
    # Where there are too few cases, neither the largest arms nor their generator are made.
    fewer = expand.expand(sweep, [paper_data("brats2021", 240, 250)])
    assert {run.config.arm.n_cases for run in fewer if run.stage == "segment"} == {0, 50, 100}
    assert sum(run.stage == "train" for run in fewer) == 3


def test_a_plan_says_which_data_sets_its_sweep_makes_up() -> None:
    sweep = read_sweep("demo")
    ours = [replace(each, folder=Path(sweep.shards) / each.name) for each in PAPER]
    theirs = replace(ours[1], folder=Path("/data/packed"))
    plan = expand.make_plan(sweep, [ours[0], theirs], Path("runs"), {})
    assert ["made_up" in data for data in plan.data.values()] == [True, False]
    plan = expand.make_plan(replace(sweep, phantoms=0), ours, Path("runs"), {})
    assert ["made_up" in data for data in plan.data.values()] == [False, False]
