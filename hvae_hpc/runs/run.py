"""A run: a stage with its config and parents, its id, its label and its folder."""

import re
from collections.abc import Mapping
from dataclasses import field
from functools import cached_property

from hvae_hpc.config.loader import dump
from hvae_hpc.config.stages import (
    STAGE_VERSIONS,
    GenerateConfig,
    QualityConfig,
    SegmentConfig,
    Stage,
    StageConfig,
)
from hvae_hpc.frozen import frozen
from hvae_hpc.runs.identity import content_hash


@frozen
class Run:
    """A stage with its config and parents; what it makes lies in the folder named after it.

    Attributes:
        parents: role to run id; the role "data" holds the data set's content hash.
    """

    stage: Stage
    config: StageConfig
    parents: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.stage} {self.label}"

    @cached_property
    def run_id(self) -> str:
        """The 12 hexadecimal digits that follow from all of the above."""
        version = STAGE_VERSIONS[self.stage]
        return content_hash([self.stage, version, dump(self.config), dict(self.parents)])[:12]

    @cached_property
    def label(self) -> str:
        """What the run is, for people: "brats2021-hvae+100-s3"."""
        config = self.config
        if isinstance(config, SegmentConfig):
            what = config.arm.name
        else:
            what = self.source or "standard"
        split = f"-d{config.split.seed}" if config.split.seed else ""
        label = f"{config.data}-{what}{split}-s{config.seed}"
        return re.sub(r"[^A-Za-z0-9+._-]", "_", label)  # it becomes part of a folder's name

    @property
    def source(self) -> str:
        """What makes the pairs that the run makes, takes or judges; "" where there are none."""
        config = self.config
        if isinstance(config, SegmentConfig):
            return config.arm.generator or ("standard" if config.arm.n_standard else "reference")
        if isinstance(config, QualityConfig | GenerateConfig):
            return config.source
        return getattr(config, "generator", "")
