"""Site files: what is laid over what, and what an administrator's caps cut."""

import re
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.sites import site as site_module
from hvae_hpc.jobs.sites.site import fit_cluster, read_site
from hvae_hpc.jobs.slurm.limits import Cluster, Node, Partition
from tests import ROOT

CLUSTER = Cluster(
    partitions={"gpu": Partition(minutes=600, grace_s=0), "cpu": Partition(minutes=0, grace_s=30)},
    max_array_size=1001,
)


@pytest.fixture
def admin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "admin.toml"
    monkeypatch.setenv("HVAE_HPC_SITE", str(path))
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own.toml"


def test_a_user_s_file_goes_over_the_administrator_s_and_flags_over_both(
    admin: Path, own: Path
) -> None:
    admin.write_text('[all]\naccount = "lab"\n[segment]\nminutes = 40\npartition = "gpu"\n')
    own.write_text("[segment]\nminutes = 20\n")
    assert read_site(None).resources["segment"].minutes == 40
    segment = read_site(own).resources["segment"]
    assert (segment.minutes, segment.partition, segment.account, segment.gpus) == (
        20,
        "gpu",
        "lab",
        1,
    )
    assert read_site(own, {"minutes": 15, "account": "mine"}).resources["segment"].minutes == 15
    assert read_site(own, {"account": "mine"}).resources["augment"].account == "mine"


def test_caps_cut_what_file_and_flags_ask_and_say_so(admin: Path, own: Path) -> None:
    admin.write_text("[caps]\nminutes = 120\nnodes = 2\narray_parallelism = 8\n")
    own.write_text("[train]\nnodes = 4\nminutes_min = 300\n")
    site = read_site(own, {"minutes": 100_000})
    train = site.resources["train"]
    assert (train.minutes, train.nodes, train.array_parallelism, train.minutes_min) == (
        120,
        2,
        8,
        120,
    )
    assert f"train: nodes 4 to 2, minutes 100000 to 120, capped by {admin}" in site.notes
    assert site.resources["tables"].minutes == 120


def test_only_the_administrator_s_file_may_hold_caps(own: Path) -> None:
    own.write_text("[caps]\nminutes = 100\n")
    with pytest.raises(
        UserError, match=r"own\.toml: \[caps\] stand only in the administrator's file"
    ):
        read_site(own)


def test_nodes_gpus_and_constraints_are_for_the_stages_they_make_sense_for() -> None:
    site = read_site(None, {"nodes": 2, "gpus": 4, "constraint": "a100", "qos": "long"})
    assert (
        site.resources["train"].nodes,
        site.resources["train"].gpus,
        site.resources["train"].tasks,
    ) == (2, 4, 8)
    assert {stage for stage, r in site.resources.items() if r.constraint} == {
        "train",
        "likelihood",
        "generate",
        "segment",
    }
    assert all(r.tasks == 1 for stage, r in site.resources.items() if stage != "train")
    assert {r.qos for r in site.resources.values()} == {"long"}


def test_no_cpu_stage_holds_a_gpu() -> None:
    site = read_site(None, {"gpus": 8})
    assert {stage for stage, r in site.resources.items() if r.gpus} == {
        "train",
        "likelihood",
        "generate",
        "segment",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[segmnt]\nminutes = 5\n", "unknown table 'segmnt'"),
        ("segment = 3\n", r"segment: got 3, expected a table \[segment\]"),
        (
            "[segment]\nnodes = 2\n",
            "segment asks for 2 processes per run; only train runs on several",
        ),
        ("[segment]\nminutes = 1\n", "a limit of 1 minutes leaves no time to work: 30 s to start"),
        ('[segment]\npartition = "a\\nb"\n', "expected printable characters"),
        ("[segment]\nminute = 3\n", "did you mean 'minutes'"),
        (
            '[all]\nsetup = ["#SBATCH --partition=urgent"]\n',
            "expected single shell lines, and no #SBATCH",
        ),
        ('[all]\nsetup = ["#PBS -A theirs"]\n', "expected single shell lines, and no #SBATCH"),
        ('[all]\nsetup = ["#BSUB -q urgent"]\n', "expected single shell lines, and no #SBATCH"),
        (
            '[all]\nsetup = ["true\\n#SBATCH --time=9"]\n',
            "expected single shell lines, and no #SBATCH",
        ),
    ],
)
def test_a_wrong_site_file_is_refused_with_its_place(own: Path, text: str, message: str) -> None:
    own.write_text(text)
    with pytest.raises(UserError, match=message):
        read_site(own)


def test_a_misspelt_key_is_named_with_its_file_and_table(admin: Path, own: Path) -> None:
    own.write_text("[train]\nminutes = 90\n")
    admin.write_text("[all]\nminuts = 60\n")
    with pytest.raises(UserError, match=r"admin\.toml: all: unknown key 'minuts'; did you mean"):
        read_site(own)


def test_a_wrong_value_is_of_one_of_the_files_that_are_named(admin: Path, own: Path) -> None:
    own.write_text("[train]\nminutes = 90\n")
    admin.write_text("[segment]\nminutes = 1\n")
    with pytest.raises(UserError, match=r"admin\.toml and .*own\.toml: segment: a limit of 1"):
        read_site(own)


def test_caps_in_a_folder_with_braces_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "{lab}.toml"
    path.write_text("[caps]\nminutes = 1\n")
    monkeypatch.setenv("HVAE_HPC_SITE", str(path))
    with pytest.raises(UserError, match=r"\{lab\}\.toml: a limit of 1 minutes"):
        read_site(None)


def test_a_file_of_the_user_s_choice_does_not_lift_the_system_s_caps(
    tmp_path: Path, admin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_module, "SYSTEM_SITE", tmp_path / "etc.toml")
    (tmp_path / "etc.toml").write_text('[caps]\nminutes = 60\n[all]\naccount = "lab"\n')
    admin.write_text("[caps]\nminutes = 9999\nnodes = 3\n[all]\nqos = 'q'\n")
    site = read_site(None)
    assert (site.caps.minutes, site.caps.nodes) == (60, 0)
    assert (site.resources["train"].account, site.resources["train"].qos) == ("lab", "")


def test_caps_that_are_no_table_are_refused(admin: Path) -> None:
    admin.write_text("caps = 3\n")
    with pytest.raises(UserError, match=r"admin\.toml: caps: got 3, expected a table \[caps\]"):
        read_site(None)


def test_caps_that_leave_no_time_to_work_are_the_administrator_s_fault(admin: Path) -> None:
    admin.write_text("[caps]\nminutes = 1\n")
    with pytest.raises(
        UserError, match=r"^train, capped by .*admin\.toml: a limit of 1 minutes leaves no time"
    ):
        read_site(None)


def test_a_partition_s_own_limit_cuts_and_unknown_or_forbidden_partitions_are_refused(
    admin: Path,
) -> None:
    admin.write_text('[caps]\npartitions = ["gpu", "cpu", "gone"]\n')
    site = fit_cluster(read_site(None), "gpu", CLUSTER)
    assert site.resources["train"].minutes == 600
    assert any(
        "train: minutes 1440 to 600, all that its partition has" in note for note in site.notes
    )
    little = replace(
        CLUSTER, partitions={"gpu": Partition(minutes=0, grace_s=0, nodes={"n": Node(1, 4.0, 64)})}
    )
    cut = fit_cluster(read_site(None), "gpu", little)
    assert {resources.memory_gb for resources in cut.resources.values()} == {4.0}
    assert any(
        "train: memory_gb" in note and "to 4, all that its partition has" in note
        for note in cut.notes
    )
    assert fit_cluster(read_site(None), "cpu", CLUSTER).resources["train"].minutes == 1440
    with pytest.raises(UserError, match="unknown partition 'gone'; this cluster has cpu, gpu"):
        fit_cluster(read_site(None), "gone", CLUSTER)
    short = replace(CLUSTER, partitions={"gpu": Partition(minutes=1, grace_s=0)})
    with pytest.raises(
        UserError,
        match="train, all that its partition has: a limit of 1 minutes leaves no time to work",
    ):
        fit_cluster(read_site(None), "gpu", short)
    with pytest.raises(UserError, match="'urgent' is not among the administrator's"):
        fit_cluster(read_site(None), "urgent", CLUSTER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[train.sbatch_args]\npartition = "urgent"', "sbatch_args has 'partition', which partition sets"),
        ('[train.sbatch_args]\nmem-per-cpu = "9G"', "sbatch_args has 'mem-per-cpu', which memory_gb sets"),
        ('[train.sbatch_args]\nti = 9999', "sbatch_args has 'ti', which minutes sets"),
        ("[train.sbatch_args]\ntasks-per-node = 8", "sbatch_args has 'tasks-per-node', which gpus sets"),
        ('[train.sbatch_args]\ntres-per-task = "gres/gpu:8"', "'tres-per-task', which gpus sets"),
        ('[train.srun_args]\nntasks = 8', "srun_args has 'ntasks', which gpus sets"),
        ('[all.sbatch_args]\ndependency = "afterok:1"', "has 'dependency', which --after sets"),
        ('[all.sbatch_args]\noutput = "x"', "has 'output', which the sweep command sets; take it out"),
        ('[train.sbatch_args]\ngres = "gpu:a100:2"', "gres is 'gpu:a100:2', expected as many GPUs as gpus = 1"),
        ('[train.sbatch_args]\nmem_per_cpu = "9G"', "expected a long option and its value"),
        ('[train.sbatch_args]\nreservation = "a\\n#SBATCH -p b"', "expected a long option and its value"),
        ("[train.sbatch_args]\nexclusive = false", "expected a long option and its value"),
        ('[all.sbatch_args]\nmail-user = "me@lab"', r"on_end and mail are for the last job; put them under \[tables\]"),
        ('[train]\non_end = ["true"]', r"on_end and mail are for the last job"),
        ("[train.sbatch_args]\nexclusive = true", "own.toml: train: the administrator forbids 'exclusive'; take it out"),
        ('[train.srun_args]\nreserv = "x"', "train: the administrator forbids 'reserv'; take it out"),
    ],
)  # fmt: skip
def test_options_that_we_set_or_the_administrator_forbids_are_refused_in_one_line(
    admin: Path, own: Path, text: str, message: str
) -> None:
    admin.write_text('[caps]\nforbidden_args = ["exclusive", "reservation"]\n')
    own.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        read_site(own)
    assert "\n" not in str(refused.value)


def test_options_of_all_stages_and_of_one_are_put_together(admin: Path, own: Path) -> None:
    admin.write_text('[all.sbatch_args]\nlicenses = "tea:1"\nreservation = "imaging"\n')
    own.write_text(
        '[train.sbatch_args]\nlicenses = "tea:2"\ngres = "gpu:a100:1,nvme:1"\n'
        '[tables]\non_end = ["true"]\n[tables.sbatch_args]\nmail-user = "me@lab"\n'
    )
    asked = read_site(own).resources
    assert replace(asked["train"], gpus=0).gpus_in_gres == 1  # a local sweep without a GPU
    assert asked["segment"].sbatch_args == {"licenses": "tea:1", "reservation": "imaging"}
    assert asked["train"].sbatch_args["licenses"] == "tea:2"
    assert asked["train"].sbatch_args["reservation"] == "imaging"
    assert asked["tables"].sbatch_args["mail-user"] == "me@lab"


def test_named_gpus_do_not_get_around_the_cap(admin: Path, own: Path) -> None:
    admin.write_text("[caps]\ngpus = 1\n")
    own.write_text('[train]\ngpus = 4\n[train.sbatch_args]\ngres = "gpu:a100:4"\n')
    with pytest.raises(UserError, match="gres is 'gpu:a100:4', expected as many GPUs as gpus = 1"):
        read_site(own)


def test_of_several_partitions_a_stage_gets_the_first_that_fits_and_the_reason_is_told() -> None:
    nodes = {"n": Node(1, 64.0, 16)}
    partitions = {
        "short": Partition(minutes=60, grace_s=0, nodes=nodes),
        "thin": Partition(minutes=0, grace_s=0, nodes={"n": Node(1, 8.0, 16)}),
        "gpu": Partition(minutes=2000, grace_s=0, nodes=nodes),
    }
    cluster = replace(CLUSTER, partitions=partitions)
    site = fit_cluster(read_site(None), "short,thin,gpu", cluster)
    chosen = {stage: resources.partition for stage, resources in site.resources.items()}
    assert (chosen["train"], chosen["segment"], chosen["pack"]) == ("gpu", "short", "gpu")
    lacks = "thin has too few nodes with gpus = 1, memory_gb = 32 and 4 cores, expected 1"
    assert f"train: partition gpu, since short allows 60 of 1440 minutes; {lacks}" in site.notes
    assert not any("segment: partition" in note for note in site.notes)
    assert not site.misfits

    misfit = fit_cluster(read_site(None), "short,thin", cluster).misfits
    assert misfit["train"].startswith(
        "train: no partition fits: short allows 60 of 1440 minutes; thin"
    )
    assert "segment" not in misfit
    with pytest.raises(UserError, match="unknown partition 'gone'"):
        fit_cluster(read_site(None), "short,gone", cluster)


def test_account_and_qos_of_the_profile_are_defaults(
    monkeypatch: pytest.MonkeyPatch, own: Path
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "profile")
    assert read_site(None).resources["train"].account == "profile"
    own.write_text('[all]\naccount = "file"\n')
    assert read_site(own).resources["train"].account == "file"


def test_the_site_files_in_the_documents_are_read(
    admin: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = ROOT / "docs"
    (caps,) = re.findall(
        r"^    \[caps\]\n(?:    .*\n|\n)+", (docs / "ADMIN.md").read_text(), re.MULTILINE
    )
    admin.write_text(textwrap.dedent(caps))
    site = read_site(None)
    assert (site.caps.elements, site.caps.poll_s, site.resources["augment"].partition) == (
        500,
        120,
        "cpu",
    )
    (mine,) = re.findall(
        r"^    # site.toml\n(?:    .*\n)+", (docs / "CLUSTER.md").read_text(), re.MULTILINE
    )
    own.write_text(textwrap.dedent(mine))
    site = read_site(own)
    assert (site.resources["train"].tasks, site.resources["train"].minutes) == (8, 720)
    (whole,) = re.findall(
        r"^    # a whole file\n(?:    .*\n)+", (docs / "CLUSTER.md").read_text(), re.MULTILINE
    )
    own.write_text(textwrap.dedent(whole))
    for file, partitions in ((own, "gpu"), (None, "cpu,gpu")):
        nodes = {"cpu": {"c": Node(0, 512.0, 64)}, "gpu": {"g": Node(4, 512.0, 64)}}
        both = {name: Partition(minutes=0, grace_s=0, nodes=nodes[name]) for name in nodes}
        monkeypatch.delenv("HVAE_HPC_SITE", raising=False)
        fitted = fit_cluster(read_site(file), partitions, Cluster(partitions=both)).resources
        assert all(asked.partition == ("gpu" if asked.gpus else "cpu") for asked in fitted.values())
