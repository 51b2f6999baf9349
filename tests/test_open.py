"""The house is open: a package from outside adds a generator, an augmentation and stored copies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hvae_hpc
from hvae_hpc.config.kinds import BUILT_IN
from hvae_hpc.config.loader import dump, load
from hvae_hpc.config.stages import AugmentConfig, StandardCopiesConfig, TrainConfig
from hvae_hpc.errors import UserError
from tests import ROOT
from tests.tiny import make_data_set

CONFIGS = """
from dataclasses import dataclass
from typing import ClassVar, Literal
from hvae_hpc.config.kinds import AugmentationConfig, GeneratorConfig
from hvae_hpc.config.stages import AugmentConfig

@dataclass(frozen=True, kw_only=True)
class ToyConfig(GeneratorConfig):
    network_class: ClassVar[str] = "toy_networks:NoisyMean"
    label: ClassVar[str] = "Noisy mean"
    kind: Literal["toy"] = "toy"
    noise: float = 0.1

@dataclass(frozen=True, kw_only=True)
class DarkerConfig(AugmentationConfig):
    augmentation_class: ClassVar[str] = "toy_networks:Darker"
    label: ClassVar[str] = "Darker in every step"
    kind: Literal["darker"] = "darker"

@dataclass(frozen=True, kw_only=True)
class PlainCopiesConfig(AugmentConfig):
    copy_function: ClassVar[str] = "toy_networks:copy_pair"
    kind: Literal["plain"] = "plain"
"""

NETWORKS = '''
import numpy as np
import torch
from hvae_hpc.models.blocks import Loss, Phase

class NoisyMean(torch.nn.Module):
    """Learns the mean image and mask; draws it with noise."""

    def __init__(self, config, image_size):
        super().__init__()
        self.noise, self.image_size = config.noise, image_size
        self.latent_size = image_size[0] * image_size[1]
        self.mean = torch.nn.Parameter(torch.full((1, 1, *image_size), 0.5))
        self.mask_logits = torch.nn.Parameter(torch.zeros(1, 1, *image_size))

    def phases(self):
        return (Phase("mean", self),)

    def draw(self, n, share, generator):
        return {}

    def forward(self, batch, phase):
        distance = (batch["image"] - self.mean) ** 2
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(
            self.mask_logits.expand_as(batch["mask"]), batch["mask"]
        )
        return Loss(distance.mean() + cross_entropy, {"distance": distance.mean().detach()})

    def decode(self, z):
        image = self.mean + self.noise * z.reshape(len(z), 1, *self.image_size)
        return image, torch.sigmoid(self.mask_logits).expand(len(z), -1, -1, -1)

class Darker:
    def __init__(self, config):
        pass

    def draw(self, n, image_size, generator):
        return {"share": torch.rand(n, generator=generator)}

    def apply(self, images, masks, drawn):
        return images * (1 - 0.2 * drawn["share"][:, None, None, None]), masks

def copy_pair(data, row, config, copy):
    return data.images[row, 0].numpy(), data.masks[row, 0].numpy().astype(np.uint8)
'''

ENTRY_POINTS = """
[hvae_hpc.generators]
toy = toy_configs:ToyConfig
[hvae_hpc.augmentations]
darker = toy_configs:DarkerConfig
[hvae_hpc.copies]
plain = toy_configs:PlainCopiesConfig
"""

SWEEP = """
name = "open"
data = ["tiny"]
seeds = 2
factors = [2]
doses = [4]
arms = ["dark", "dark+toy+4"]
[split]
train = 6
test = 5
[segment]
epochs = 2
unet = {base_channels = 4, depth = 2}
optim = {batch_size = 4, precision = "fp32"}
augmentations = {dark = {kind = "darker"}}
[augment]
kind = "plain"
[generate]
n_pairs = 4
min_mask_px = 1
[quality]
n_images = 5
nearest = 2
draws = 2
[generators.toy]
model = {kind = "toy", noise = 0.2}
optim = {images = 120, batch_size = 4, lr = 0.1, precision = "fp32"}
"""


def install_toy(folder: Path) -> Path:
    """Lay an installed package out in a folder; returns it."""
    record = folder / "toy-1.0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "toy_configs.py").write_text(CONFIGS)
    (folder / "toy_networks.py").write_text(NETWORKS)
    return folder


def sweep(
    project: Path, *options: str, packages: Path | None = None
) -> subprocess.CompletedProcess[str]:
    places = [str(ROOT), *([str(packages)] if packages else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hvae_hpc.sweep", "--local", "--workers", "1", *options]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )


def test_a_generator_and_augmentations_from_outside_the_package_go_all_the_way_to_the_tables(
    tmp_path: Path,
) -> None:
    project = tmp_path / "project"
    make_data_set(project / "shards")
    (project / "sweep.toml").write_text(SWEEP)

    ended = sweep(project, packages=install_toy(tmp_path / "packages"))
    assert ended.returncode == 0, ended.stderr + ended.stdout
    results = project / "runs" / "results" / "open"
    arms = (results / "arms.md").read_text()
    assert "Noisy mean" in (results / "table1.md").read_text()
    assert "Noisy mean" in (results / "table2.md").read_text()
    for label in ("Darker in every step", "Darker in every step + Noisy mean + 4"):
        assert label in arms


def test_a_package_that_lies_in_the_working_folder_is_not_installed(tmp_path: Path) -> None:
    project = install_toy(tmp_path / "project")
    make_data_set(project / "shards")
    (project / "sweep.toml").write_text(SWEEP)
    ended = sweep(project, "--plan")
    assert ended.returncode == 2
    assert "dark.kind: got 'darker', expected no kind" in ended.stderr


@pytest.mark.parametrize("kind", ["", "hvae-2", ["hvae"], 3])
def test_an_unknown_kind_names_those_that_there_are(kind: object) -> None:
    base = {"data": "d", "generator": "g", "split": {}, "image_px": 0, "optim": {"images": 320}}
    with pytest.raises(UserError, match=r"test\.model\.kind: got .*, expected hvae \| lsgan"):
        load(TrainConfig, {**base, "model": {"kind": kind}}, "test")


def test_a_config_without_a_kind_is_the_usual_one_and_says_no_kind() -> None:
    base = {"data": "d", "split": {}, "image_px": 0}
    config = load(AugmentConfig, base, "test")
    assert isinstance(config, StandardCopiesConfig)
    assert "kind" not in dump(config)
    with pytest.raises(UserError, match=r"test\.kind: got 'odd', expected no kind"):
        load(AugmentConfig, {**base, "kind": "odd"}, "test")


def test_every_kind_that_is_listed_is_there() -> None:
    for group, kinds in BUILT_IN.items():
        for place in kinds.values():
            module, _, name = place.partition(":")
            config_class = getattr(__import__(module, fromlist=[name]), name)
            assert config_class.entry_points == group


def test_the_working_folder_gives_no_modules_but_children_find_a_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "path", ["/somebody/elses", "/usr/lib"])
    monkeypatch.setenv("PYTHONPATH", "/ours")
    hvae_hpc._leave_working_folder()
    assert sys.path == ["/usr/lib", str(ROOT)]
    assert os.environ["PYTHONPATH"] == f"{ROOT}{os.pathsep}/ours"

    monkeypatch.setattr(sys, "argv", ["hvae-hpc"])
    hvae_hpc._leave_working_folder()
    assert sys.path == ["/usr/lib", str(ROOT)]
