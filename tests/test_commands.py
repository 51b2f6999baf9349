"""Every command that the README, the documents, ``--help`` and messages show works as it stands.

Each runs in a folder of its own: packing on phantoms, sweeps on made-up data against made-up SLURM
clients, all others on a finished sweep. A sweep that would train here is planned only.
"""

import ast
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from hvae_hpc import cli
from hvae_hpc.errors import run_command
from hvae_hpc.jobs.state.sweep_status import read_plans
from hvae_hpc.jobs.worker import run as tasks
from tests import ROOT
from tests.test_house import markdown_files, modules, prose_lines
from tests.tiny import make_data_set, make_project

FILLS = {
    # What a reader has elsewhere, or gives a name to.
    "/data/BraTS2021": "raw/brats2021",
    "/data/HECKTOR2022": "raw/hecktor2022",
    "/data/ours": "raw/ours",
    "--raw DIR": "--raw raw/brats2021",
    "--verify DIR": "--verify shards/brats2021",
    "--nnunet DIR": "--nnunet handed",
    "--data NAME=DIR": "--data new=shards/ours",
    "--explain NAME": "--explain brats2021",
    "export RUN": "export brats2021-hvae-s0",
    "RUN": "train/brats2021-hvae-s0",
    "RUNS": "runs",
    "RECIPE": "brats2021",
    "--sweep table1": "--sweep tiny",
    "NAME": "ours",
    "--partition P": "--partition gpu",
    "--workers N": "--workers 2",
    "--container IMAGE": "--container image.sif",
    "--after JOBID": "--after 4711",
    # Fewer phantoms make the same point.
    "--phantom 8": "--phantom 1",
    "--phantom 200": "--phantom 1",
    "--phantom {n_cases}": "--phantom 1",
    # What messages put in.
    "{recipe}": "brats2021",
    "{name}": "brats2021",
    "{run}": "train/brats2021-hvae-s0",
    "{parent}": "train/brats2021-hvae-s0",
    "{name_run(sweep.plan, troubles[0].run_ids[0])}": "train/brats2021-hvae-s0",
    "{quote(str(sweep.plan.runs_folder))}": "runs",
    "{shlex.quote(str(plan.runs_folder))}": "runs",
    "{shlex.quote(str(prepared.plan.runs_folder))}": "runs",
    "{shlex.quote(str(folder))}": "shards/new",
    "{str(folder)}": "shards/new",
    "{f'{recipe.name}={out}'}": "brats2021=shards/brats2021",
    "{*place}": "--local --phantom 1",
}
"""What stands for what is not the same for everybody."""

NOT_RUN = {
    "make": "targets are looked up in the Makefile; they set up an environment, or run for minutes",
    "pip install": "it downloads packages",
    "python3 -m venv": "it downloads packages",
    "export": "it sets a variable of a shell",
    "sbatch": "it is SLURM's own",
    "scancel": "it is SLURM's own",
    "nnUNetv2_": "it is nnU-Net's own",
    "python -m tests.": "its flags are looked up; it starts daemons, or runs for minutes",
}
"""Beginnings of commands that are not run here, with the reason."""

NOT_OURS = {
    *("--dependency", "--signal", "--requeue", "--me", "--cpus-per-task", "--gpus-per-node"),
    *("--nv", "--exclusive", "--mem", "--user", "--name", "--wrap"),
}
"""Flags in the documents that are SLURM's or apptainer's."""

COMMAND = re.compile(
    r"(?:python -m hvae_hpc\.[a-z]+|hvae-hpc)(?: (?:\S*'[^']*'|(?:[^\s;,()'\"`]|,(?=\w))+))*"
)

CLIENTS = {
    "sbatch": "echo 4711",
    "squeue": "",
    "sacct": "",
    "scancel": "",
    "scontrol": """case "$*" in *partition*)
        for name in cpu gpu gpu-short; do echo "PartitionName=$name MaxTime=UNLIMITED"; done;;
        *) echo "ClusterName = one";; esac""",
    "sinfo": """echo "cpu|c1|65536|8|(null)"
        for name in gpu gpu-short; do for i in 1 2; do echo "$name|g$i|524288|64|gpu:4"; done; done""",
}


# What is shown.


def blocks(text: str) -> list[str]:
    """Return the indented blocks of a Markdown text."""
    is_prose = [bool(prose) or not line for line, prose in zip(
        text.splitlines(), prose_lines(text), strict=True
    )]  # fmt: skip
    lines = [
        line if line.startswith("    ") and not prose else ""
        for line, prose in zip(text.splitlines(), is_prose, strict=True)
    ]
    return [textwrap.dedent(block) for block in re.split(r"\n\n+", "\n".join(lines)) if block]


def is_known(command: str) -> bool:
    return bool(COMMAND.fullmatch(command)) or command.startswith(tuple(NOT_RUN))


def commands_of_blocks(text: str) -> list[str]:
    """Return the lines of all blocks that begin with a command; a comment may follow each."""
    commands = []
    for block in blocks(text):
        lines = re.sub(r"\s*\\\n\s*", " ", block).splitlines()
        lines = [re.sub(r"\s+#\s.*", "", line).strip() for line in lines]
        if any(line.startswith(("python", "hvae-hpc", "make ", "pip ")) for line in lines):
            commands += lines
    return commands


def inline_code(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`", text)]


def flags_of_the_sweep(text: str) -> list[str]:
    """Return the flags of the sweep that a text shows with a value, and without the command."""
    return [code for code in inline_code(text) if re.match(r"--\S+ (?!--)|--local ", code)]


def with_the_sweep(flags: str) -> str:
    place = "" if "--partition" in flags or "--local" in flags else " --partition gpu"
    return f"python -m hvae_hpc.sweep{place} {flags} --plan"


def commands_of_source() -> Iterator[str]:
    """Yield the commands in the product's texts, with ``{expression}`` for what is put in."""
    for path in modules().values():
        tree = ast.parse(path.read_text())
        skipped = {id(part) for node in ast.walk(tree) for part in _parts_to_skip(node)}
        for node in ast.walk(tree):
            if id(node) not in skipped:
                for line in _text(node).splitlines():
                    if not line.startswith("usage:"):
                        yield from COMMAND.findall(fill(line))


def _parts_to_skip(node: ast.AST) -> list[ast.AST]:
    """Return the parts of a node that nobody sees, or that are seen with the node: docstrings, ..."""
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    is_name = isinstance(node, ast.keyword) and node.arg in ("prog", "usage")
    if is_docstring or is_name:
        return list(ast.walk(node))
    return list(ast.walk(node))[1:] if isinstance(node, ast.JoinedStr) else []


def _text(node: ast.AST) -> str:
    """Return a text, or a list of words of a command, as a person sees it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text(part) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
            if isinstance(part, (ast.Constant, ast.FormattedValue))
        )
    if isinstance(node, ast.List) and [_text(word) for word in node.elts[:2]] == ["python", "-m"]:
        words = (_text(word) if isinstance(word, ast.Constant) else "" for word in node.elts)
        pairs = zip(words, node.elts, strict=True)
        return " ".join(word or f"{{{ast.unparse(element)}}}" for word, element in pairs)
    return ""


def fill(command: str) -> str:
    for name in sorted(FILLS, key=len, reverse=True):
        ends = r"(?![\w/])" if name[-1].isalnum() else ""
        starts = r"(?<![\w-])" if name[0].isalnum() else ""
        command = re.sub(starts + re.escape(name) + ends, lambda match: FILLS[match[0]], command)
    return command


# Where it runs.


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project for each kind of command, with the files that the documents show."""
    home = tmp_path_factory.mktemp("projects")
    for kind in ("preprocess", "sweep", "finished"):
        (home / kind).mkdir()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for block in blocks(path.read_text()):
            name = re.match(r"# (\w+\.toml)\n", block)
            for kind in ("preprocess", "sweep") if name and name[1] != "sweep.toml" else ():
                (home / kind / name[1]).write_text(block)

    scans, brats = home / "preprocess", f"{home}/raw/brats2021"
    arguments = ["brats2021", "--phantom", "1", "--raw", brats, "--local", "--sheet", "0"]
    assert call_in(scans, ["preprocess", *arguments]) == 0
    for path in (home / "raw/brats2021").glob("*/*.nii.gz"):
        name = "flair" if "flair" in path.name else "tumour"
        link = home / "raw/ours" / path.parent.name / f"{name}.nii.gz"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    for name in ("imagesTr/CHUM-001__PT", "imagesTr/CHUM-001__CT", "labelsTr/CHUM-001"):
        path = home / "raw/hecktor2022" / f"{name}.nii.gz"  # they are looked for, and not read
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (scans / "raw").symlink_to(home / "raw")

    for number, name in enumerate(("brats2021", "hecktor2022", "ours")):
        make_data_set(home / "sweep/shards", name, n=200, side=32, seed=number)
        make_data_set(home / "sweep/demo/shards", name, n=40, side=32, seed=number)
    make_finished(home / "finished")
    return home


def make_finished(folder: Path) -> None:
    """Make a project with a finished sweep of one data set, one generator and one seed."""
    make_project(folder)
    sweep = folder / "sweep.toml"
    text = re.sub(r"data = .*", 'data = ["brats2021"]', sweep.read_text())
    text = re.sub(r"\[generators\.(vae|lsgan)\]\n.*\n.*\n", "", text)
    sweep.write_text(
        text.replace("seeds = 2", "seeds = 1").replace("[4, 8]\nfactors", "[4]\nfactors")
    )
    make_data_set(folder / "shards", "brats2021")
    assert call_in(folder, ["sweep", "--local", "--workers", "2"]) == 0


def call_in(folder: Path, words: list[str], path: str = "/nowhere") -> int:
    """Run ``hvae-hpc`` in a folder, with some PATH; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", path)
        try:
            return run_command(lambda _: cli._dispatch(words), [])
        except SystemExit as error:  # argparse refuses, or has shown --help
            return int(str(error.code or 0))


Runner = Callable[..., tuple[int, str]]


@pytest.fixture
def run(projects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Return what runs a command in a fresh folder and returns exit code and output."""
    clients = tmp_path / "clients"
    clients.mkdir()
    for name, text in CLIENTS.items():
        (clients / name).write_text(f"#!/bin/sh\n{text}\n")
        (clients / name).chmod(0o755)

    def run(command: str, folder: Path | None = None, tables: bool = False) -> tuple[int, str]:
        words = shlex.split(fill(command).replace("python -m hvae_hpc.", "hvae-hpc "))[1:]
        if command.startswith("python") and (spec := find_spec(f"hvae_hpc.{words[0]}")):
            assert not spec.submodule_search_locations or find_spec(f"{spec.name}.__main__")
        kind = (words or ["finished"])[0]
        if kind == "sweep" and not {"--partition", "--plan"} & set(words):
            words.append("--plan")
        if not folder:
            folder = tmp_path / f"project {len(list(tmp_path.iterdir()))}"
            source = projects / (kind if (projects / kind).is_dir() else "finished")
            shutil.copytree(source, folder, symlinks=True)
        asks_slurm = "--partition" in words or kind in ("cancel", "throttle")
        path = f"{clients}:/usr/bin:/bin" if asks_slurm else "/nowhere"
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            if not tables:
                patch.setattr("hvae_hpc.results.write.write_results", lambda *_: None)
            code = call_in(folder, words, path)
        out, err = capsys.readouterr()
        return code, out + err

    return run


def assert_all_run(commands: list[str], run: Runner) -> None:
    failed = []
    for command in dict.fromkeys(map(fill, commands)):
        code, said = run(command)
        if code or "{" in command:
            failed.append(f"{command}\n    {said.strip()[-300:]}")
    assert commands
    assert not failed, "\n".join(failed)


# The tests.


def documents() -> list[Path]:
    """Return the documents that tell what to do; CHANGELOG.md tells what was."""
    paths = [path for path in markdown_files() if "benchmarks" not in path.parts]
    return [path for path in paths if path.name != "CHANGELOG.md"]


def test_the_commands_of_the_documents_run(run: Runner) -> None:
    commands, unknown = [], []
    for path in documents():
        text = path.read_text()
        shown = commands_of_blocks(text)
        shown += [
            code for code in inline_code(text) if code.startswith(("python -m ", "hvae-hpc "))
        ]
        if path.name in ("README.md", "CLUSTER.md"):
            shown += map(with_the_sweep, flags_of_the_sweep(text))
        unknown += [f"{path.name}: {command}" for command in shown if not is_known(command)]
        commands += [command for command in shown if not command.startswith(tuple(NOT_RUN))]
    assert not unknown, "\n".join(unknown)
    assert_all_run(commands, run)


def test_the_commands_of_help_texts_run(
    run: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[str] = []
    for words in ([], *([name] for name in cli.COMMANDS)):
        capsys.readouterr()
        assert call_in(tmp_path, [*words, "--help"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "usage:" not in line]
        commands += [command for line in lines for command in COMMAND.findall(line)]
    assert_all_run(commands, run)


def test_the_commands_of_messages_run(run: Runner) -> None:
    assert_all_run(list(commands_of_source()), run)


def test_flags_targets_and_files_that_the_documents_name_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in cli.COMMANDS:
        call_in(tmp_path, [name, "--help"])
    for module in ("tests.drill.drill", "tests.minislurm.minislurm"):
        for words in (["--help"], ["up", "--help"]):
            with pytest.raises(SystemExit):
                import_module(module).main(words)
    files = [*(ROOT / "benchmarks").glob("*.py"), ROOT / "tests/gpu_without_gpu/trace.py"]
    scripts = "".join(path.read_text() for path in files)
    said = capsys.readouterr().out + scripts
    known = {*re.findall(r"--[a-z][a-z-]+", said), *NOT_OURS}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    missing = []
    for path in documents():
        text = path.read_text()
        for command in [*commands_of_blocks(text), *inline_code(text)]:
            missing += [
                flag for flag in re.findall(r"--[a-z][a-z-]+", command) if flag not in known
            ]
            missing += [
                command for word in re.findall(r"^make ([\w-]+)", command) if word not in targets
            ]
            if re.match(
                r"(?!.*NAME)(jobs|hvae_hpc|preprocess|results|tests|benchmarks|docs)/[\w/.-]+$",
                command,
            ):
                missing += [command] if not (ROOT / command).exists() else []
    assert not missing, missing


def test_what_a_command_says_next_works_from_packing_to_the_tables(
    run: Runner, projects: Path, tmp_path: Path
) -> None:
    """Follow the hints in a folder with a space in its name."""
    folder = tmp_path / "our project"
    shutil.copytree(projects / "preprocess", folder, symlinks=True)
    pack = (
        "python -m hvae_hpc.preprocess ours.toml --raw raw/ours --out 'our shards/ours' --sheet 0"
    )
    _, said = run(f"{pack} --local", folder)
    (following,) = COMMAND.findall(said)
    assert following.endswith("--data 'ours=our shards/ours' --plan --local")
    shutil.rmtree(folder / "our shards")
    code, said = run(following, folder)
    assert code == 2
    (pack_again,) = COMMAND.findall(said)
    assert "ours.toml --out 'our shards/ours' --local --raw DIR" in pack_again
    assert run(f"{pack_again.replace('DIR', 'raw/ours')} --sheet 0", folder)[0] == 0

    # The nodes that pack have no GPU, so the sweep goes elsewhere.
    _, said = run(f"{pack.replace('our shards', 'new shards')} --partition cpu", folder)
    (elsewhere,) = COMMAND.findall(said)
    elsewhere = elsewhere.replace("new shards", "our shards")
    assert elsewhere.endswith("--data 'ours=our shards/ours' --plan --partition gpu")

    # The sweep: planned as it is said, then submitted, and looked at.
    make_data_set(folder / "our shards", "ours", n=200, side=32)
    assert run(following, folder)[0] == 0
    code, said = run(elsewhere, folder)
    assert code == 0
    # The summary comes last, where a terminal shows it.
    texts = ("sbatch text of the last job", "sweep table1: ", "design of ours", "expected:")
    places = [said.index(text) for text in texts]
    assert places == sorted(places)
    submit = elsewhere.replace("--plan ", "")
    code, said = run(submit, folder)
    (status,) = COMMAND.findall(said)
    assert status == f"hvae-hpc status '{folder}/runs'"
    assert run(status, folder)[0] == 0


def test_what_status_and_why_say_next_works(run: Runner, projects: Path, tmp_path: Path) -> None:
    folder = tmp_path / "our project"
    shutil.copytree(projects / "finished", folder)
    _, said = run(f"hvae-hpc status '{folder}/runs'", tmp_path)
    (tables,) = COMMAND.findall(said)
    assert run(tables, tmp_path, tables=True)[0] == 0

    # A training fails, since its data are others now, and the generate run needs it.
    (plan,) = read_plans(folder / "runs")
    moved = {"folder": str(make_data_set(folder / "shards", "brats2021", seed=7))}
    plan = replace(plan, data={"brats2021": plan.data["brats2021"] | moved})
    for run_id, state in zip(plan.runs, ("failed", "blocked"), strict=False):
        shutil.rmtree(plan.folder(run_id))
        assert tasks.execute(plan, run_id).state == state
    _, said = run(f"hvae-hpc status '{folder}/runs'", tmp_path)
    (why,) = COMMAND.findall(said)
    assert run(why, tmp_path)[0] == 0
    _, said = run(f"hvae-hpc why generate/brats2021-hvae-s0 --runs '{folder}/runs'", tmp_path)
    assert COMMAND.findall(said) == [why]


def test_the_sweep_file_of_the_readme_is_planned(run: Runner, projects: Path) -> None:
    (block,) = (text for text in blocks((ROOT / "README.md").read_text()) if "# sweep.toml" in text)
    file = projects / "sweep" / "mine.toml"
    file.write_text(block)
    code, said = run("python -m hvae_hpc.sweep mine.toml --plan")
    assert (code, said.splitlines()[0]) == (0, "sweep mine from mine.toml")

    # As it says, the first two lines may be left out.
    file.write_text(re.sub(r"extends.*\n|name.*\n", "", block))
    code, short = run("python -m hvae_hpc.sweep mine.toml --plan")
    assert re.sub(r"project \d", "", short) == re.sub(r"project \d", "", said)
