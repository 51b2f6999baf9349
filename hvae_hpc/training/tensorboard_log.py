"""The training's log as TensorBoard event files; log.jsonl is written in any case."""

from collections.abc import Mapping
from typing import Any

from hvae_hpc.errors import UserError
from hvae_hpc.runs.workplace import Workplace

FOLDER = "tensorboard"


class TensorBoardLog:
    """Writes scalars to ``tensorboard/`` of the run's folder, where the resources ask for it.

    Args:
        workplace: only its first process writes.
        images_seen: where the training goes on; what TensorBoard shows of later steps is dropped.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, workplace: Workplace, images_seen: int) -> None:
        self.writer: Any = None
        if not workplace.resources.tensorboard:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "tensorboard = true, and the package tensorboard is not installed; "
                "pip install 'hvae_hpc[tensorboard]', or leave it out of the site file"
            ) from error
        if workplace.rank == 0:
            self.writer = SummaryWriter(workplace.folder / FOLDER, purge_step=images_seen + 1)

    def add(self, images_seen: int, terms: Mapping[str, float]) -> None:
        """Add a window's terms at these images seen, and write them out."""
        if self.writer is not None:
            for name, value in terms.items():
                self.writer.add_scalar(name, value, images_seen)
            self.writer.flush()

    def close(self) -> None:
        """Write no more."""
        if self.writer is not None:
            self.writer.close()
