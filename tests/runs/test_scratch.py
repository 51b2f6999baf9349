"""The folder on a node's own disk: ours alone, and what is used stays."""

import os
from pathlib import Path

import pytest

from hvae_hpc.errors import UserError
from hvae_hpc.runs.scratch import VARIABLE, held, remove_unused, scratch_folder


def test_variables_are_the_node_s_and_the_environment_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    own = scratch_folder("$NODE_DISK/me")
    assert own == tmp_path / "disk" / "me" / f"hvae_hpc-{os.getuid()}"
    assert own.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    assert scratch_folder("$NODE_DISK/me") == tmp_path / "other" / own.name
    monkeypatch.setenv(VARIABLE, "")
    assert scratch_folder("$NODE_DISK/me") is None


@pytest.mark.parametrize("asked", ["$NOT_SET_HERE", "$NOT_SET_HERE/x", "relative", "~/here"])
def test_a_folder_that_is_not_known_here_is_refused(asked: str) -> None:
    with pytest.raises(UserError, match="expected an absolute path"):
        scratch_folder(asked)


def test_nothing_goes_into_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "inside").mkdir()
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path / "inside")
    for asked in ("$HOME", "$HOME/.cache", f"{tmp_path}-link"):
        with pytest.raises(UserError, match="in the home folder"):
            scratch_folder(asked)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_what_others_laid_there_is_refused(tmp_path: Path) -> None:
    own = tmp_path / f"hvae_hpc-{os.getuid()}"
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    own.symlink_to(target)
    with pytest.raises(UserError, match="not a folder of ours alone"):
        scratch_folder(str(tmp_path))
    own.unlink()
    own.mkdir()
    own.chmod(0o750)
    with pytest.raises(UserError, match="not a folder of ours alone"):
        scratch_folder(str(tmp_path))
    own.chmod(0o700)
    assert scratch_folder(str(tmp_path)) == own
    own.rmdir()
    own.write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        scratch_folder(str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_another_user_s_folder_is_refused(tmp_path: Path) -> None:
    own = tmp_path / f"hvae_hpc-{os.getuid()}"
    own.mkdir(mode=0o700)
    os.chown(own, 65534, 65534)
    with pytest.raises(UserError, match="not a folder of ours alone"):
        scratch_folder(str(tmp_path))


def test_only_what_nobody_holds_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    os.utime(folder, (1, 1))
    with held(folder) as mine, held(folder) as also:
        assert mine
        assert also
        assert folder.stat().st_mtime > 1
        assert not remove_unused(folder)
        assert folder.exists()
    assert remove_unused(folder)
    assert not folder.exists()
    with held(folder) as mine:
        assert not mine
