"""The house: who may import whom, the links, the sizes of files, and what planning must not import."""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "hvae_hpc"
STAGE_FOLDERS = ("jobs", "preprocess", "results")

# Floor of each room: a module imports from lower floors and from its own folder. The longest name that fits counts.
FLOORS = {
    "hvae_hpc": 0,
    "hvae_hpc.errors": 0,
    "hvae_hpc.config": 0,
    "hvae_hpc.runs": 0,
    "hvae_hpc.preprocess.store.manifest": 0,  # plain JSON: planning reads it
    "hvae_hpc.preprocess.store.splits": 0,
    "hvae_hpc.metrics": 1,
    "hvae_hpc.models": 1,
    "hvae_hpc.preprocess": 1,
    "hvae_hpc.results": 1,
    "hvae_hpc.training": 2,
    "hvae_hpc.evaluation": 3,
    "hvae_hpc.jobs": 4,
    "hvae_hpc.export": 5,
    "hvae_hpc.sweep": 5,
    "hvae_hpc.cli": 5,
    "hvae_hpc.__main__": 5,
    "hvae_hpc.preprocess.__main__": 5,
    "hvae_hpc.results.__main__": 5,
    "hvae_hpc.results.write": 5,
}

# Folders within a floor, lowest first: a module imports from its own folder and from those before it.
ORDERS = {
    "hvae_hpc.runs": ["hvae_hpc.runs.files", "hvae_hpc.config", "hvae_hpc.runs"],
    "hvae_hpc.preprocess": [
        f"hvae_hpc.preprocess.{name}" for name in ("store", "recipes", "read", "phantoms")
    ],
    "hvae_hpc.results": ["hvae_hpc.results.tables", "hvae_hpc.results.figures"],
    "hvae_hpc.jobs": [
        f"hvae_hpc.jobs.{name}"
        for name in (
            "sweeps",
            "slurm",
            "sites",
            "state",
            "failures",
            "submit",
            "worker",
            "commands",
        )
    ],
}
STRANGERS = [("submit", "worker"), ("worker", "submit")]  # of jobs: neither imports the other

# Libraries that a room must not import, not even inside a function.
FORBIDDEN = {
    "hvae_hpc.models": {"h5py", "submitit", "torchio", "pandas", "matplotlib", "nibabel"},
    "hvae_hpc.training": {"torchio", "pandas", "matplotlib", "nibabel", "submitit"},
    "hvae_hpc.results": {"torch", "h5py", "submitit", "torchio", "nibabel"},
    "hvae_hpc.jobs": {"torch", "torchio", "pandas", "matplotlib", "nibabel"},
}


@cache
def modules() -> dict[str, Path]:
    """Return all modules of the product by name."""
    files = {}
    for folder in (PACKAGE, *(ROOT / name for name in STAGE_FOLDERS)):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[0] == "hvae_hpc" and parts[1:2] and parts[1] in STAGE_FOLDERS:
                continue  # through the link
            name = ".".join(parts if parts[0] == "hvae_hpc" else ("hvae_hpc", *parts))
            files[name.removesuffix(".__init__")] = path
    return files


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (imported name, whether at the module's top level) of a file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    names: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return names


def longest(module: str, names: list[str]) -> str:
    """Return the longest of some names that a module is, or lies in; "" for none."""
    fits = [name for name in names if module == name or module.startswith(name + ".")]
    return max(fits, key=len, default="")


def floor(module: str) -> int:
    return FLOORS[longest(module, list(FLOORS))]


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def may_import(module: str, name: str, top_level: bool) -> bool:
    """Tell whether a module may import a name of the product."""
    here, there = floor(module), floor(name)
    if here != there:
        # What a run does is imported inside the call; packing can submit itself.
        inside = module == "hvae_hpc.jobs.worker.run" and not top_level
        packing = module == "hvae_hpc.preprocess.__main__"
        return there < here or inside or packing
    if here == 5 or longest(name, ["hvae_hpc.errors"]):
        return True
    for folders in ORDERS.values():
        mine, other = longest(module, folders), longest(name, folders)
        if mine and other:
            pair = (mine.rpartition(".")[2], other.rpartition(".")[2])
            return folders.index(other) <= folders.index(mine) and pair not in STRANGERS
    return here == 0 or room(module) == room(name)


def test_the_stage_folders_hang_in_the_package_by_relative_links() -> None:
    for name in STAGE_FOLDERS:
        assert (PACKAGE / name).is_symlink()
        assert (PACKAGE / name).readlink() == Path("..") / name


def test_nothing_imports_a_stage_folder_by_its_bare_name() -> None:
    tests = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    files = [*modules().values(), *tests]
    bare = [
        f"{file}: {name}"
        for file in files
        for name, _ in imports(file)
        if name.split(".")[0] in STAGE_FOLDERS
    ]
    assert not bare


@pytest.mark.parametrize(("module", "path"), modules().items())
def test_a_module_imports_only_from_below(module: str, path: Path) -> None:
    for name, top_level in imports(path):
        if name.startswith("hvae_hpc."):
            assert may_import(module, name, top_level), f"{module} imports {name}"


@pytest.mark.parametrize(("module", "path"), modules().items())
def test_a_room_does_not_import_what_it_must_not_pay_for(module: str, path: Path) -> None:
    forbidden = FORBIDDEN.get(room(module), set())
    assert not {name for name, _ in imports(path) if name.split(".")[0] in forbidden}


SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
MOST_TOKENS = 153_758
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
MOST_MODULES = 12


def count_tokens(source: str) -> int:
    """Count a file's tokens without comments, line ends and docstrings: long lines win nothing."""
    docstrings = {
        node.body[0].value.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
        and isinstance(node.body[0].value.value, str)
    }
    return sum(
        token.type not in SKIPPED
        and not (token.type == tokenize.STRING and token.start[0] in docstrings)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    )


def test_the_product_is_small_enough_to_take_over() -> None:
    assert sum(count_tokens(path.read_text()) for path in modules().values()) <= MOST_TOKENS


def test_files_and_functions_are_short_enough_to_read() -> None:
    long = []
    for path in [*modules().values(), *(ROOT / "benchmarks").rglob("*.py")]:
        source = path.read_text()
        if source.count("\n") > LONGEST_FILE:
            long.append(f"{path}: {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    assert not long


def test_a_folder_has_few_enough_modules_to_find_ones_way() -> None:
    folders: dict[Path, int] = {}
    for path in modules().values():
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    assert {str(folder): n for folder, n in folders.items() if n > MOST_MODULES} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import hvae_hpc.sweep, hvae_hpc.jobs.submit.prepare, hvae_hpc.jobs.worker.run",
        "import hvae_hpc.cli, hvae_hpc.results.__main__, hvae_hpc.results.collect",
    ],
)
def test_planning_status_and_tables_start_without_torch(code: str) -> None:
    heavy = "{'torch', 'torchio', 'matplotlib'}"
    check = f"{code}\nimport sys\nassert not {heavy} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=os.path.sep)


def test_training_starts_without_what_only_preparation_and_tables_need() -> None:
    check = (
        "import hvae_hpc.training.train, hvae_hpc.evaluation.segment, sys\n"
        "import hvae_hpc.evaluation.generate\n"
        "assert not {'torchio', 'pandas', 'matplotlib', 'nibabel', 'submitit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=os.path.sep)


def test_an_array_element_imports_nothing_of_commands_submission_and_results() -> None:
    check = (
        "import hvae_hpc.jobs.worker.element, hvae_hpc.training.train, sys\n"
        "rooms = ('jobs.commands', 'jobs.submit', 'results')\n"
        "heavy = tuple(f'hvae_hpc.{room}' for room in rooms) + ('pandas', 'matplotlib')\n"
        "paid = [name for name in sys.modules if name.startswith(heavy)]\n"
        "assert not paid, paid"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=os.path.sep)


MOST_WORDS = 35
LONGEST_LINE = 100
GENERATED = ("benchmarks/measured/*/*", "docs/BAD_INPUT.md", "docs/SETTINGS.md")


def markdown_files() -> list[Path]:
    """Return the tracked Markdown files that people write."""
    command = ["git", "ls-files", "--", "*.md", *(f":(exclude,glob){path}" for path in GENERATED)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.splitlines()]


def prose_lines(text: str) -> list[str]:
    """Return the lines of a Markdown text; tables, code, images and headings become empty lines.

    Indented lines are code where they follow an empty line or code. After a list's item they
    belong to it.
    """
    lines, in_fence, is_code = [], False, False
    for line in text.splitlines():
        after_empty = not lines or not lines[-1]
        in_fence = in_fence != line.startswith("```")
        is_code = line.startswith("    ") and (is_code or after_empty)
        is_prose = not (in_fence or is_code or line.startswith(("|", "#", "```", "![")))
        lines.append(line.rstrip() if is_prose else "")
    return lines


def sentences(text: str) -> list[str]:
    """Return the sentences of a Markdown text, without tables, code, images and headings."""
    prose = "\n".join(prose_lines(text))
    parts = re.split(r"(?<=[.!?:])[*_\"')]*\s+|\n\s*\n|\n *(?:[*-]|\d+\.) ", prose)
    return [" ".join(part.split()) for part in parts if part.strip()]


def test_sentences_and_lines_are_told_from_tables_and_code() -> None:
    text = "# T\n\nOne two. Three\nfour:\n\n    a = 1\n\n    b = 2\n\n* five\n  six\n* seven\n| a | b |\n"
    assert sentences(text) == ["One two.", "Three four:", "* five six", "seven"]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git checkout")
def test_documentation_has_short_sentences_and_lines() -> None:
    files = markdown_files()
    assert ROOT / "README.md" in files
    bad = []
    for path in files:
        text = path.read_text()
        bad += [f"{path}: {s}" for s in sentences(text) if len(s.split()) > MOST_WORDS]
        bad += [f"{path}: {line}" for line in prose_lines(text) if len(line) > LONGEST_LINE]
    assert not bad, "\n".join(bad)


def test_nothing_that_a_file_or_a_peer_sends_is_executed() -> None:
    modules_that_execute = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "runpy"}
    calls_that_execute = {"eval", "exec", "read_pickle", "unsafe_load"}
    bad = []
    for name, path in modules().items():
        bad += [f"{name}: {n}" for n, _ in imports(path) if n.split(".")[0] in modules_that_execute]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            short = called.rpartition(".")[2]
            # torch.distributed's calls on objects send pickles.
            if (
                called in calls_that_execute
                or "_object" in short
                or given.get("allow_pickle", "False") != "False"
            ):
                bad.append(f"{name}: {called}")
            if called == "torch.load" and given.get("weights_only") != "True":
                bad.append(f"{name}: {called} of anything")
    assert not bad


def test_one_function_prints() -> None:
    bare = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "traceback.print_exc")
        and name != "hvae_hpc.errors"
    ]
    assert not bare
