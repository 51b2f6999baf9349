"""The training's log as TensorBoard event files; log.jsonl is written in any case."""

from typing import Any

from hvae_hpc.errors import UserError
from hvae_hpc.runs.workplace import Workplace

FOLDER = "tensorboard"


def open_tensorboard(workplace: Workplace, images_seen: int) -> Any:
    """Return what writes scalars to ``tensorboard/`` of the run's folder.

    Args:
        workplace: only its first process writes.
        images_seen: where the training goes on; what TensorBoard shows of later steps is dropped.

    Returns:
        A SummaryWriter; None where the resources do not ask for it, or another process writes.

    Raises:
        UserError: the package is not installed.
    """
    if not workplace.resources.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "tensorboard = true, and the package tensorboard is not installed; "
            "pip install 'hvae_hpc[tensorboard]', or leave it out of the site file"
        ) from error
    if workplace.rank > 0:
        return None
    return SummaryWriter(workplace.folder / FOLDER, purge_step=images_seen + 1)
