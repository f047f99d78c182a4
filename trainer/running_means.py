"""Means of what is logged, over batches and processes."""

import torch
from accelerate import Accelerator
from torch import Tensor


class RunningMeans:
    """Weighted means of named scalars, summed where they are computed: no synchronisation before they are read."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor | float] = {}

    def add(self, weighted: dict[str, Tensor], weights: dict[str, Tensor | float]) -> None:
        """Add values already multiplied by their weights."""
        for name, value in weighted.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.weights[name] = self.weights.get(name, 0) + weights[name]

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes, which must hold the same names; starts again from nothing."""
        names = list(self.sums)
        sums = torch.stack([self.sums[name].float() for name in names])
        weights = torch.stack([torch.as_tensor(self.weights[name]).to(sums) for name in names])
        self.sums, self.weights = {}, {}
        sums, weights = accelerator.reduce(torch.stack([sums, weights]), reduction="sum")
        return dict(zip(names, (sums / weights).tolist(), strict=True))
