"""Two optimizers as one, and Muon."""

import copy

import pytest
import torch
from torch.optim import SGD, AdamW
from transformers import get_scheduler

from trainer import optimizers
from trainer.optimizers import CombinedOptimizer, Muon, orthogonalize, with_muon

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(24, 40), (40, 24), (16, 16)]


def pair(a: torch.nn.Parameter, b: torch.nn.Parameter) -> CombinedOptimizer:
    return CombinedOptimizer(SGD([a], lr=0.5), SGD([b], lr=0.25))


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
        optimizer = with_muon(AdamW([matrix, bias], lr=0.1), [matrix])
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
    optimizer = with_muon(adamw, [matrix, bias])
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
    assert isinstance(with_muon(AdamW([matrix]), [matrix]), Muon)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_muon_takes_torchs_steps(monkeypatch, shape, dtype):
    """torch's computes in bfloat16: ours is then equal to the bit, and in float32 within its rounding."""
    torch_muon = getattr(torch.optim, "Muon", None)
    if torch_muon is None:
        pytest.skip("torch.optim.Muon came with torch 2.9")
    monkeypatch.setattr(optimizers, "fastest_dtype", lambda device: dtype)
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    pair = (Muon([ours], lr=0.1), torch_muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    state, expected = (list(optimizer.state.values()) for optimizer in pair)
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
    error = (ours - theirs).norm() / (theirs - start).norm()
    assert error == 0 if dtype == torch.bfloat16 else error < 0.03


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_moves_the_singular_values_alone(shape):
    """Five steps of x ↦ 3.4445 x - 4.775 x³ + 2.0315 x⁵ on each singular value, computed here in float64."""
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert 0.3 < values.min() and values.max() < 1.3
    torch.testing.assert_close(orthogonalize(matrix, torch.float32).double(), u * values @ vh, rtol=0, atol=1e-5)
    coarse = orthogonalize(matrix, torch.bfloat16)
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.double(), u * values @ vh, rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", DTYPES)
def test_muon_computes_in_the_fastest_dtype(monkeypatch, dtype):
    monkeypatch.setattr(optimizers, "fastest_dtype", lambda device: dtype)
    asked = []
    monkeypatch.setattr(optimizers, "orthogonalize", lambda matrix, dtype: asked.append(dtype) or matrix)
    matrix = torch.nn.Parameter(torch.zeros(4, 9))
    matrix.grad = torch.ones(4, 9)
    Muon([matrix], lr=0.1).step()
    assert asked == [dtype]
    # Average 0.05, Nesterov's update 1 + 0.95 (0.05 - 1) = 0.0975, scale 0.2 √9.
    torch.testing.assert_close(matrix.data, torch.full((4, 9), -0.1 * 0.2 * 3 * 0.0975))


@pytest.mark.parametrize(
    ("name", "options"),
    [("polynomial", {"lr_end": 0.01}), ("cosine_with_min_lr", {"min_lr": 0.01}), ("cosine", {}), ("linear", {})],
)
def test_schedules_end_at_the_least_rate_of_transformers(name, options):
    """A schedule reads the initial rate from the optimizer's `defaults`."""
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    pair = CombinedOptimizer(AdamW([first], lr=0.1), AdamW([second], lr=0.1))
    scheduler = get_scheduler(name, pair, num_warmup_steps=0, num_training_steps=3, scheduler_specific_kwargs=options)
    for _ in range(3):
        pair.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.01 if options else 0.0] * 2)
