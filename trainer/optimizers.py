"""Two optimizers as one: AdamW for BART, and for the two maps Muon, where asked for."""

from typing import Any

from torch.optim import Muon, Optimizer


class OptimizerPair(Optimizer):
    """Steps two optimizers together; a scheduler sees the parameter groups of both.

    Args:
        first, second: optimizers of disjoint parameters.
    """

    def __init__(self, first: Optimizer, second: Optimizer):
        self.pair = (first, second)
        super().__init__(first.param_groups + second.param_groups, {})
        self._share_groups()

    def _share_groups(self) -> None:
        """The groups are the same objects here and there, so that a learning rate set here holds there."""
        self.param_groups = [group for optimizer in self.pair for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:
        for optimizer in self.pair:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.pair:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"pair": [optimizer.state_dict() for optimizer in self.pair]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.pair, state_dict["pair"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()


def with_muon(optimizer: Optimizer, maps: set[int]) -> Optimizer:
    """Move the matrices among the parameters with these ids from `optimizer` to Muon, with their learning rates.

    CLIP's tokens vary a hundred times more in some directions than in others, and a matrix that reads them learns
    the small ones slowly by AdamW. Muon (Jordan et al., 2024) makes the update equally large in every direction.
    """
    moved = []
    for group in optimizer.param_groups:
        matrices = [p for p in group["params"] if id(p) in maps and p.ndim == 2]
        group["params"] = [p for p in group["params"] if not (id(p) in maps and p.ndim == 2)]
        if matrices:
            moved.append({"params": matrices, "lr": group["lr"]})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    muon = Muon(moved, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return OptimizerPair(optimizer, muon) if optimizer.param_groups else muon
