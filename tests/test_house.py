"""The house itself: who may import whom, the links, the sizes of files, and what planning must not import."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hvae_hpc"
STAGE_FOLDERS = ("jobs", "preprocess", "results")

# A module imports only from floors below its own (or its own room); the first match counts.
FLOORS = [
    ("hvae_hpc.errors", 0),
    ("hvae_hpc.config", 0),
    ("hvae_hpc.identity", 0),
    ("hvae_hpc.model_configs", 0),
    ("hvae_hpc.stages", 0),
    ("hvae_hpc.runs", 0),
    ("hvae_hpc.resources", 0),
    ("hvae_hpc.holder", 0),
    ("hvae_hpc.lease", 0),
    ("hvae_hpc.rundir", 0),
    ("hvae_hpc.plan", 0),
    ("hvae_hpc.preprocess.manifest", 0),  # plain JSON: planning reads it
    ("hvae_hpc.preprocess.splits", 0),
    ("hvae_hpc.preprocess.__main__", 5),
    ("hvae_hpc.results.__main__", 5),
    ("hvae_hpc.metrics", 1),
    ("hvae_hpc.memorisation", 1),
    ("hvae_hpc.set_measures", 1),
    ("hvae_hpc.models", 1),
    ("hvae_hpc.preprocess", 1),
    ("hvae_hpc.results", 1),
    ("hvae_hpc.training", 2),
    ("hvae_hpc.evaluation", 3),
    ("hvae_hpc.jobs", 4),
    ("hvae_hpc.sweep", 5),
    ("hvae_hpc.cli", 5),
    ("hvae_hpc.export", 5),
    ("hvae_hpc", 0),
]
FORBIDDEN = {  # room: libraries that it must not import, not even inside a function
    "hvae_hpc.models": {"h5py", "submitit", "torchio", "pandas", "matplotlib", "nibabel"},
    "hvae_hpc.training": {"torchio", "pandas", "matplotlib", "nibabel", "submitit"},
    "hvae_hpc.results": {"torch", "h5py", "submitit", "torchio", "nibabel"},
    "hvae_hpc.jobs": {"torch", "torchio", "pandas", "matplotlib", "nibabel"},
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")) + [p for f in STAGE_FOLDERS for p in sorted((ROOT / f).rglob("*.py"))]:
        below = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(below if below[0] == "hvae_hpc" else ("hvae_hpc", *below))
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (imported module, at the module's top level) of a file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def floor(module: str) -> int:
    return next(level for prefix, level in FLOORS if module == prefix or module.startswith(prefix + "."))


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_the_stage_folders_hang_in_the_package_by_relative_links() -> None:
    for name in STAGE_FOLDERS:
        assert (PACKAGE / name).is_symlink()
        assert (PACKAGE / name).readlink() == Path("..") / name


def test_nothing_imports_a_stage_folder_by_its_bare_name() -> None:
    files = [*modules().values(), *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    bare = [f"{f}: {name}" for f in files for name, _ in imports(f) if name.split(".")[0] in STAGE_FOLDERS]
    assert not bare


@pytest.mark.parametrize(("module", "path"), modules().items())
def test_a_module_imports_only_from_the_floors_below(module: str, path: Path) -> None:
    here = floor(module)
    for name, top_level in imports(path):
        if not name.startswith("hvae_hpc.") or room(name) == room(module):
            continue
        inside_a_call = module in ("hvae_hpc.jobs.tasks",) and not top_level  # what a task does is imported in the task
        # One command may end by calling another; preprocess can submit itself.
        also = module == "hvae_hpc.preprocess.__main__" and name.startswith("hvae_hpc.jobs.")
        assert floor(name) < here or floor(name) == here in (0, 5) or inside_a_call or also, f"{module} imports {name}"


@pytest.mark.parametrize(("module", "path"), modules().items())
def test_a_room_does_not_import_what_it_must_not_pay_for(module: str, path: Path) -> None:
    forbidden = FORBIDDEN.get(room(module), set())
    assert not {name for name, _ in imports(path) if name.split(".")[0] in forbidden}


def code_lines(path: Path) -> int:
    """Count the lines that are code: no blank lines, comments or docstrings, of which there cannot be too many."""
    tree = ast.parse(path.read_text())
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            docstrings |= set(range(body[0].lineno, (body[0].end_lineno or 0) + 1))
    lines = path.read_text().splitlines()
    return sum(
        bool(t.strip()) and not t.lstrip().startswith("#") and i not in docstrings for i, t in enumerate(lines, 1)
    )


def test_product_files_are_short_enough_to_read() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in modules().values()}
    assert {str(path): n for path, n in lengths.items() if n > 300} == {}
    assert sum(code_lines(path) for path in modules().values()) <= 15_400


@pytest.mark.parametrize(
    "code",
    [
        "import hvae_hpc.sweep, hvae_hpc.jobs.launcher, hvae_hpc.jobs.local, hvae_hpc.jobs.tasks",
        "import hvae_hpc.cli, hvae_hpc.results.__main__, hvae_hpc.results.tables, hvae_hpc.results.collect",
    ],
)
def test_planning_status_and_tables_start_without_torch(code: str) -> None:
    check = (
        f"{code}\nimport sys\nassert not {{'torch', 'torchio', 'matplotlib'}} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=os.path.sep)


def test_training_starts_without_what_only_preparation_and_tables_need() -> None:
    check = (
        "import hvae_hpc.training.train, hvae_hpc.evaluation.segment, hvae_hpc.evaluation.generate, sys\n"
        "assert not {'torchio', 'pandas', 'matplotlib', 'nibabel', 'submitit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=os.path.sep)
