"""The rehearsal: before the first step, the costliest step of a training is taken and thrown away.

An HVAE's flow comes on late and multiplies the memory of a step. Without a rehearsal a GPU that is
too small would end the training after hours. Where the rehearsal finds too little memory it chooses
a sparer way, and tries again. All ways lead to the same weights, up to rounding. The steps are
taken by a copy of the network, so that nothing of the training changes. What is to be compiled is
compiled here too: later, a signal to save and leave would wait for it.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hvae_hpc.config.resources import Resources
from hvae_hpc.runs.workplace import Workplace
from hvae_hpc.training.device import is_out_of_memory
from hvae_hpc.training.distributed import Team, part_of_batch

SPARE_BUDGET = 0.5  # see HVAE.activation_memory_budget


def needs_rehearsal(device: torch.device, compiled: bool) -> bool:
    """Tell whether a training is rehearsed: on a GPU, or where something is to be compiled.

    On a CPU it would cost a step, and too little memory ends a process without an exception.
    """
    return device.type == "cuda" or compiled


class MemoryChoice:
    """How a training is spread over its memory: as the site says, or as a rehearsal chose.

    Args:
        model: the network.
        batch_size: pairs of a step over all processes.
        workplace: of the run.
        device: where it trains.

    Attributes:
        workplace: of the run, with the resources that are chosen now.
        compiled: whether the steps are compiled.
        pairs_apart: as the network's config says.
        changes: fields of the resources that a rehearsal changed.
        notes: for the provenance.
    """

    def __init__(
        self, model: nn.Module, batch_size: int, workplace: Workplace, device: torch.device
    ) -> None:
        part = part_of_batch(batch_size, workplace)
        self.model, self.share, self.device = model, part.stop - part.start, device
        self.workplace = workplace
        wish = workplace.resources.compile
        on_gpu = device.type == "cuda"
        self.compiled = on_gpu if wish == "auto" else wish != "off"
        self.pairs_apart = getattr(getattr(model, "config", None), "pairs_apart", False)
        self.changes: dict[str, Any] = {}
        self.notes: list[str] = []

    @property
    def resources(self) -> Resources:
        """The resources that are chosen now."""
        return self.workplace.resources

    @property
    def cuda_graphs(self) -> bool:
        """Whether each graph's kernels are launched all at once."""
        return self.compiled and self.resources.compile == "cuda_graphs"

    @property
    def rows(self) -> int:
        """How many of a process's share of pairs go through the network at once.

        They divide the share, as parts of two sizes would be compiled twice. A U-Net's BatchNorm
        and an LSGAN's spectral norm would give other numbers in parts: these take the whole share.
        """
        most = self.resources.micro_batch
        if not most or not self.pairs_apart:
            return self.share
        return next(rows for rows in range(min(most, self.share), 0, -1) if self.share % rows == 0)

    @property
    def budget(self) -> float:
        """Share of its activations that a compiled step keeps for the backward pass."""
        own = getattr(self.model, "activation_memory_budget", 1.0)
        return float(min(own, self.resources.activation_memory_budget))

    def change(self, **changes: Any) -> None:
        """Choose other values of some resources."""
        self.changes |= changes
        self.workplace = replace(self.workplace, resources=replace(self.resources, **changes))

    def ways_to_spare(self) -> Iterator[tuple[str, Any]]:
        """Yield what can be changed so that a step needs less memory: field and value."""
        if self.cuda_graphs:  # their memory is kept from all else
            yield "compile", "on"
        if self.compiled and self.budget > SPARE_BUDGET:
            yield "activation_memory_budget", SPARE_BUDGET
        if hasattr(self.model, "recompute") and not self.resources.recompute:
            yield "recompute", True
        if self.pairs_apart and self.rows > 1:
            yield "micro_batch", self.rows // 2

    def find_fitting(self, rehearse: Callable[[list[str]], None], team: Team) -> None:
        """Rehearse, ever sparer, until the memory suffices in all processes.

        Args:
            rehearse: takes the costliest steps, and raises where memory is not enough. Its list
                takes what is said where compiling fails.
            team: all its processes choose alike.

        Raises:
            torch.OutOfMemoryError: no sparer way is left.
        """
        if not needs_rehearsal(self.device, self.compiled):
            return
        while shortage := self._rehearse(rehearse, team):
            name, value = next(self.ways_to_spare(), ("", None))
            if not name:
                raise torch.OutOfMemoryError(shortage)
            self.change(**{name: value})
            event = {"event": "memory_spared", "reason": shortage[:200]}
            self.workplace.log(event | self.changes)
        if self.changes:
            words = ", ".join(f"{name} = {value}" for name, value in self.changes.items())
            self.notes.append(f"chosen for too little memory: {words}")

    def _rehearse(self, rehearse: Callable[[list[str]], None], team: Team) -> str:
        """Rehearse once; returns what was said of too little memory, "" where it sufficed."""
        shortage = ""
        failures: list[str] = []
        try:
            rehearse(failures)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            shortage = " ".join(str(error).split())

        # What one process cannot do, none does.
        is_short, is_eager = team.any(bool(shortage), bool(failures))
        self.compiled = self.compiled and not is_eager
        self.notes += failures
        if is_short:  # what the step held goes, now that its exception has gone
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return shortage or "out of memory in another process"
        return ""

    def explain(self, image_size: tuple[int, int]) -> str:
        """Return a line for a person: what did not fit, and what to do."""
        height, width = image_size
        ways = "".join(f"set {name} = {value!r}, ".lower() for name, value in self.ways_to_spare())
        return (
            f"out of memory with {self.rows} pairs of {height}x{width} px at once on "
            f"{self.device}; lower optim.batch_size, {ways}share the batch among more processes "
            "(gpus, nodes), or ask for more memory (memory_gb)"
        )
