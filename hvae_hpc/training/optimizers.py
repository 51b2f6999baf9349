"""The optimizers, fused, and a step of theirs that a gradient without a number does not spoil."""

import functools
import inspect
import math
from typing import Any

import torch
from torch import Tensor

from hvae_hpc.config.model import OptimConfig
from hvae_hpc.models.blocks import Phase

WRAPPED = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")


def make_optimizer(phase: Phase, optim: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a phase's weights."""
    weights = list(phase.network.parameters())
    common = {"lr": optim.lr, "weight_decay": optim.weight_decay, "fused": True}
    if optim.optimizer == "adamw":
        return _plain(torch.optim.AdamW)(weights, betas=(optim.beta_1, optim.beta_2), **common)

    nesterov = optim.beta_1 > 0
    sgd = _plain(torch.optim.SGD)(weights, momentum=optim.beta_1, nesterov=nesterov, **common)
    # The fused step leaves a momentum that it makes itself unset where found_inf is 1.
    for weight in weights:
        sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return sgd


def learning_rate(optim: OptimConfig, images_seen: int) -> float:
    """Return the learning rate of the step that starts at images_seen.

    It rises linearly during the warm-up, and then does what the schedule says.
    """
    if images_seen / optim.images < optim.warm_up:
        warm_up_images = optim.warm_up * optim.images
        # Written so that the first step's rate is not 0.
        return optim.lr * (images_seen + optim.batch_size) / (warm_up_images + optim.batch_size)
    if optim.schedule == "constant":
        return optim.lr
    gone = (images_seen / optim.images - optim.warm_up) / (1 - optim.warm_up)
    if optim.schedule == "poly":
        return optim.lr * (1 - gone) ** 0.9
    return optim.lr * (0.5 * (1 + math.cos(math.pi * gone)))


def move_weights(
    optimizer: torch.optim.Optimizer, norm: Tensor, scaler: torch.amp.GradScaler, lr: float
) -> None:
    """Move the weights, unless their gradient's norm is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    if scaler.is_enabled():
        scaler.step(optimizer)
        return
    # What GradScaler does too: the fused optimizer itself leaves everything as it was where
    # found_inf is 1.
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    optimizer.step()


@functools.cache
def _plain(kind: Any) -> Any:
    """Return a class of optimizers without the wrappers that import torch's compiler.

    That import takes a process seconds.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    if kind is torch.optim.AdamW:
        methods["_init_group"] = _init_group_as_it_lies
    return type(kind.__name__, (kind,), methods)


def _init_group_as_it_lies(self: Any, group: dict[str, Any], *lists: list[Tensor]) -> Any:
    """Fill the lists for a step; of weights whose channels lie last with views in that order.

    On a CPU the fused step first copies each gradient that is not contiguous, which doubles its
    time.
    """
    result = torch.optim.AdamW._init_group(self, group, *lists)
    for place in range(len(lists[0])):
        of_weight = [
            tensors for tensors in lists if place < len(tensors) and tensors[place].dim() == 4
        ]
        if all(
            tensors[place].device.type == "cpu"
            and tensors[place].is_contiguous(memory_format=torch.channels_last)
            for tensors in of_weight
        ):
            for tensors in of_weight:
                tensors[place] = tensors[place].detach().permute(0, 2, 3, 1)
    return result
