"""Two optimizers as one."""

import copy

import torch
from torch.optim import SGD, AdamW, Muon

from trainer.optimizers import OptimizerPair, with_muon


def pair(a: torch.nn.Parameter, b: torch.nn.Parameter) -> OptimizerPair:
    return OptimizerPair(SGD([a], lr=0.5), SGD([b], lr=0.25))


def parameters() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    a, b = torch.nn.Parameter(torch.tensor([1.0])), torch.nn.Parameter(torch.tensor([1.0]))
    a.grad, b.grad = torch.tensor([2.0]), torch.tensor([2.0])
    return a, b


def test_each_parameter_moves_by_its_own_optimizer():
    a, b = parameters()
    optimizer = pair(a, b)
    optimizer.step()
    assert (a.item(), b.item()) == (0.0, 0.5)  # 1 - 0.5 * 2 and 1 - 0.25 * 2
    optimizer.zero_grad()
    assert a.grad is None and b.grad is None


def test_a_scheduler_reaches_both_before_and_after_loading_a_state():
    a, b = parameters()
    optimizer = pair(a, b)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
    optimizer.step()
    assert torch.allclose(a, torch.tensor([0.9])) and torch.allclose(b, torch.tensor([0.95]))


def test_a_loaded_state_goes_on_where_the_saved_one_stopped():
    torch.manual_seed(0)
    start = torch.randn(4, 3)

    def run(steps: int, state: dict | None = None, weight: torch.Tensor = start):
        matrix, bias = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(torch.zeros(3))
        optimizer = with_muon(AdamW([matrix, bias], lr=0.1), {id(matrix)})
        if state:
            optimizer.load_state_dict(state)
            bias.data.fill_(state["bias"])
        for _ in range(steps):
            (matrix.square().sum() + (bias - 1).square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return matrix.detach(), optimizer.state_dict() | {"bias": bias[0].item()}

    whole, _ = run(4)
    half, state = run(2)
    assert torch.equal(run(2, copy.deepcopy(state), half)[0], whole)


def test_muon_takes_the_matrices_of_the_maps_alone_and_moves_every_direction_alike():
    matrix, other = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2, 2))
    bias = torch.nn.Parameter(torch.zeros(2))
    adamw = AdamW([{"params": [matrix, bias], "lr": 0.1}, {"params": [other], "lr": 0.01}])
    optimizer = with_muon(adamw, {id(matrix), id(bias)})
    muon = optimizer.pair[1]
    assert isinstance(muon, Muon) and muon.param_groups[0]["params"] == [matrix] and muon.param_groups[0]["lr"] == 0.1
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(matrix), id(bias), id(other)} and len(held) == 3

    matrix.grad = torch.diag(torch.tensor([100.0, 1.0]))  # a hundred times steeper one way than the other
    optimizer.step()
    fast, slow = matrix[0, 0].item(), matrix[1, 1].item()
    assert fast < 0 and slow < 0 and 0.5 < slow / fast < 2


def test_without_other_parameters_muon_stands_alone():
    matrix = torch.nn.Parameter(torch.zeros(2, 2))
    assert isinstance(with_muon(AdamW([matrix]), {id(matrix)}), Muon)
