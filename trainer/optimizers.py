"""The optimizers: AdamW (or `optim`) for BART, Muon for the projections W_e and W_d."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.precision import fastest_dtype

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al.'s coefficients, for 5 steps


class Muon(Optimizer):
    """Muon (Jordan et al., 2024) for matrices, at the learning rate of AdamW (Moonshot's scale, 0.2 √max(n, m)).

    Bitwise identical to `torch.optim.Muon(params, weight_decay=0, adjust_lr_fn="match_rms_adamw")` where bfloat16 is
    fast. Elsewhere it computes in float32: on an AVX2 CPU (one thread), a step of a 768 × 512 matrix then takes 0.11 s
    instead of 2.8 s.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        momentum: decay of the gradient's moving average, for the Nesterov update.
    """

    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average = state["momentum_buffer"]
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"])
                update = orthogonalize(update, fastest_dtype(update.device))
                scale = 0.2 * math.sqrt(max(parameter.shape))
                parameter.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrix: Tensor, dtype: torch.dtype, steps: int = 5) -> Tensor:
    """U S Vᵀ of `matrix` with each nonzero singular value moved near 1, by Newton-Schulz iterations in `dtype`."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix.to(dtype) if matrix.shape[0] <= matrix.shape[1] else matrix.to(dtype).T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class CombinedOptimizer(Optimizer):
    """Two optimizers of disjoint parameters as one; a scheduler sees the parameter groups of both."""

    def __init__(self, first: Optimizer, second: Optimizer):
        self.pair = (first, second)
        super().__init__(first.param_groups + second.param_groups, dict(first.defaults))  # schedulers read `lr`
        self._share_groups()

    def _share_groups(self) -> None:
        """Share the group dictionaries, so that a learning rate set here reaches the two optimizers."""
        self.param_groups = [group for optimizer in self.pair for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:
        for optimizer in self.pair:
            optimizer.step()

    def train(self) -> None:
        """Tell a schedule-free optimizer that training goes on; the others have no such method."""
        self._call("train")

    def eval(self) -> None:
        """Give the model the averaged weights of a schedule-free optimizer, for evaluation."""
        self._call("eval")

    def _call(self, name: str) -> None:
        for optimizer in self.pair:
            if hasattr(optimizer, name):
                getattr(optimizer, name)()

    def state_dict(self) -> dict[str, Any]:
        return {"pair": [optimizer.state_dict() for optimizer in self.pair]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.pair, state_dict["pair"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()


def split_projector_groups(optimizer: Optimizer, projectors: list[Tensor], lr: float) -> None:
    """Move the projectors to parameter groups of their own, with learning rate `lr`."""
    for group in _pop_parameters(optimizer, projectors):
        optimizer.add_param_group({**group, "lr": lr})


def with_muon(optimizer: Optimizer, projectors: list[Tensor]) -> Optimizer:
    """Move the projectors' matrices from `optimizer` to Muon, with their learning rates.

    CLIP's tokens vary a hundred times more in some directions than in others, and AdamW learns the small ones slowly.
    Muon makes the update equally large in every direction.
    """
    groups = _pop_parameters(optimizer, [parameter for parameter in projectors if parameter.ndim == 2])
    muon = Muon([{"params": group["params"], "lr": group["lr"]} for group in groups])
    return CombinedOptimizer(optimizer, muon) if optimizer.param_groups else muon


def _pop_parameters(optimizer: Optimizer, parameters: list[Tensor]) -> list[dict[str, Any]]:
    """Remove `parameters` from the groups of an optimizer, and return them in groups with the same options."""
    popped, removed = [], {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        popped.append({**group, "params": [p for p in group["params"] if id(p) in removed]})
        group["params"] = [p for p in group["params"] if id(p) not in removed]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return [group for group in popped if group["params"]]
