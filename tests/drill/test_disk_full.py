"""A disk that is really full, before any file that any stage writes: one line, nothing lost, and with room it goes on."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.jobs.state.submissions import SUBMISSIONS, Job, note_job
from tests import ROOT

STAGES = {  # what must fail at each of them, at least
    "pack": {".lease-#.tmp", "packing.jsonl", "shard-#.h#", "manifest.json", "summary.json"},
    "pack again": {"shard-#.h#", "manifest.json"},
    "contact sheets": {"contact.png"},
    "train": {"config.json", "inputs.json", "log.jsonl", "checkpoint-#-#.pt", "snapshot.pt", "metrics.json"},
    "generate": {"pairs.h#", "samples.npz", "metrics.json"},
    "augment": {"pairs.h#", "metrics.json"},
    "segment": {"snapshot.pt", "samples.npz", "metrics.json"},
    "quality": {"metrics.json"},
    "likelihood": {"metrics.json"},
    "plan": {"tiny.json"},
    "results": {"tiny.cache", "table#.md", "segment.csv", "segment.parquet", "report.html"},
    "export to nnU-Net": {"vae-#_#.nii.gz", "dataset.json", "manifest.json"},
    "export as PNG": {"vae-#.png", "manifest.json"},
}  # fmt: skip
KEPT = re.compile(
    r".*/log\.jsonl: cannot be written \(No space left on device\); .* kept in memory until there is room"
)
LINE = re.compile(
    r"error: \S*/disk/\S+: cannot be (written|made) \(.*No space left on device\); .+"
)


def private_mounts() -> list[str]:
    """Return the command before which a process may mount what only it sees; skips where nobody may."""
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            trial = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
            if subprocess.run(trial, check=False, capture_output=True).returncode == 0:
                return command
        except OSError:
            break
    pytest.skip("this machine lets nobody mount a small disk of his own (unshare -m, unshare -rm)")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    command = [
        *private_mounts(),
        sys.executable,
        "-m",
        "tests.drill.full_disk",
        str(tmp_path_factory.mktemp("full")),
    ]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_loses_nothing_and_with_room_all_ends_as_undisturbed(
    stage: str, seen: list[dict[str, Any]]
) -> None:
    of_stage = [one for one in seen if one["stage"] == stage]
    assert {Path(one["file"]).name for one in of_stage} >= STAGES[stage]
    for one in of_stage:
        lines = [line for line in one["said"] if not KEPT.fullmatch(line)]
        assert one["code"] == 2, one
        assert len(lines) == 1, one
        assert LINE.fullmatch(lines[0]), one
        for fault in ("broken", "lost", "temporary", "differs", "again", "said_again"):
            assert not one[fault], one


def test_a_job_that_cannot_be_noted_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SUBMISSIONS / "a").mkdir(parents=True)
    full = "hvae_hpc.runs.folder.open_to_append"
    monkeypatch.setattr(full, lambda path: io.FileIO("/dev/full", "a+"))
    with pytest.raises(
        UserError, match=r"jobs.jsonl: cannot be written \(No space left on device\)"
    ):
        note_job(tmp_path, Job("a", 0, "7", (0,), 0.0))


def test_what_an_element_or_the_last_job_prints_to_a_full_disk_is_lost_and_it_goes_on() -> None:
    code = (
        "import sys; from hvae_hpc.jobs.state.run_log import let_output_be_lost\n"
        "{}print('a', flush=True); print('b', file=sys.stderr); sys.exit(7)"
    )
    last_job = ["-m", "hvae_hpc.sweep", "--finish", "/nowhere"]
    let = code.format("let_output_be_lost(); ")
    for arguments, exit_code in (
        (["-c", code.format("")], {1, 120}),
        (["-c", let], {7}),
        (last_job, {2}),
    ):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, *arguments], check=False, stdout=full, stderr=full,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        assert done.returncode in exit_code
