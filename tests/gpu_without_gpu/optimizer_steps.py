"""Steps of the optimizers on the fake device: new ones, and ones that go on from a checkpoint."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hvae_hpc.config.model import OptimConfig
from hvae_hpc.training.optimizers import make_optimizer, move_weights
from tests.gpu_without_gpu.fake_cuda import move_to_device
from tests.gpu_without_gpu.recorder import Recorder
from tests.gpu_without_gpu.trace import MODE


def trace_optimizer(model: Any, optim: OptimConfig) -> dict[str, Any]:
    """Take a step, load what it left from a checkpoint on the CPU, and take another one.

    Args:
        model: on the CPU.
        optim: names the optimizer.

    Returns:
        the kernels that moved the weights, where the loaded state lies, the waits of both steps.
    """
    with MODE, Recorder() as recorder:
        move_to_device(model)
        (phase,) = model.phases()
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        state: dict[str, Any] = {}
        for _ in range(2):
            optimizer = make_optimizer(phase, optim)
            if state:
                optimizer.load_state_dict(state)
            for weight in phase.network.parameters():
                weight.grad = torch.empty_like(weight)
            norm = nn.utils.clip_grad_norm_(phase.network.parameters(), 1.0)
            move_weights(optimizer, norm, scaler, optim.lr)
            state = tree_map_only(Tensor, lambda tensor: tensor.cpu(), optimizer.state_dict())

        places = {
            name: sorted({str(of_weight[name].device) for of_weight in optimizer.state.values()})
            for name in next(iter(optimizer.state.values()))
        }
    kernels = sorted(name for name in recorder.operations if "adam" in name or "sgd" in name)
    return {"kernels": kernels, "places": places, "step_waits": recorder.step_waits}
