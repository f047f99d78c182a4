"""The losses against numbers worked out by hand, against transformers' own, and over two processes."""

import math
import weakref

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from trainer.losses import gather_rows, icti, itcl, itdd, ttdm


def unit_rows(rows: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_ttdm_of_equal_orthogonal_and_opposite_vectors():
    s = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    t = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert ttdm(s, t).item() == pytest.approx((0 + 2 + 4) / 3)


def test_ttdm_is_two_minus_two_cosines():
    s, t = unit_rows(5), unit_rows(5, seed=1)
    torch.testing.assert_close(ttdm(s, t), (2 - 2 * F.cosine_similarity(s, t)).mean())


def test_ttdm_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\(2, 8\).*\(3, 8\)"):
        ttdm(unit_rows(2), unit_rows(3))


def test_itcl_of_equal_scores_is_log_batch():
    v = torch.tensor([[1.0, 0.0]] * 4)
    s = torch.tensor([[0.0, 1.0]] * 4)  # every score is zero
    assert itcl(s, v, logit_scale=3.0).item() == pytest.approx(math.log(4))


def test_itcl_of_two_pairs_by_hand():
    eye = torch.eye(2)  # own score τ, the other 0: the loss is log(1 + e^-τ), and the scale is stored as log τ
    assert itcl(eye, eye, logit_scale=math.log(3.0)).item() == pytest.approx(math.log(1 + math.exp(-3.0)))


def test_itcl_is_the_loss_of_transformers_clip():
    s, v, scale = unit_rows(6), unit_rows(6, seed=1), torch.tensor([2.5])
    torch.testing.assert_close(itcl(s, v, scale), image_text_contrastive_loss(scale.exp() * s @ v.T))


def test_icti_of_equal_logits_is_log_vocabulary_and_ignores_padding():
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    logits = torch.zeros(2, 3, 7)
    logits[labels == -100] = torch.randn(3, 7) * 100
    assert icti(logits, labels).item() == pytest.approx(math.log(7))


def test_icti_does_not_shift():
    labels = torch.tensor([[4, 2, 5]])
    logits = F.one_hot(labels, 7).float() * 50
    assert icti(logits, labels).item() == pytest.approx(0, abs=1e-6)
    assert icti(logits[:, :-1], labels[:, 1:]).item() > 10


def test_icti_divides_by_num_items():
    labels = torch.tensor([[1, 2, -100]])
    assert icti(torch.zeros(1, 3, 7), labels, num_items=8).item() == pytest.approx(2 * math.log(7) / 8)


def test_itdd_by_hand():
    teacher = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    states = torch.tensor([[[2.0, 1.0], [0.0, 0.0], [0.0, 0.0]]])  # off by 1 of 4 and by 1 of 1; the third is ignored
    labels = torch.tensor([[5, 6, -100]])
    assert itdd([states], [teacher], labels).item() == pytest.approx((1 / 4 + 1) / 2)
    assert itdd([states, teacher], [teacher, teacher], labels).item() == pytest.approx((1 / 4 + 1) / 4)
    assert itdd([states], [teacher], labels, num_items=10).item() == pytest.approx((1 / 4 + 1) / 10)


def test_gather_rows_on_one_process_is_identity():
    rows = unit_rows(3)
    assert gather_rows(rows) is rows


# ---- two processes


def in_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    weight = torch.nn.Parameter(torch.eye(8))  # as the encoder: one weight, different rows on each process
    own = slice(rank * 3, rank * 3 + 3)
    s = F.normalize(unit_rows(6)[own] @ weight, dim=-1)
    v = F.normalize(unit_rows(6, seed=1)[own] @ weight, dim=-1)
    loss = itcl(s, v, torch.tensor([1.5]))
    loss.backward()
    error = ""
    try:
        gather_rows(unit_rows(2 + rank))
    except ValueError as caught:
        error = str(caught)
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    alive = group() is not None
    torch.save({"loss": loss.detach(), "grad": weight.grad, "error": error, "alive": alive}, f"{folder}/{rank}.pt")


def test_itcl_over_two_processes_is_that_of_one(tmp_path):
    mp.set_forkserver_preload(["trainer.vlkd_trainer"])
    mp.start_processes(in_process, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    weight = torch.nn.Parameter(torch.eye(8))
    s, v = F.normalize(unit_rows(6) @ weight, dim=-1), F.normalize(unit_rows(6, seed=1) @ weight, dim=-1)
    loss = itcl(s, v, torch.tensor([1.5]))
    loss.backward()

    torch.testing.assert_close(sum(result["loss"] for result in results) / 2, loss.detach())
    averaged = sum(result["grad"] for result in results) / 2  # what DDP does
    torch.testing.assert_close(averaged, weight.grad, atol=1e-6, rtol=1e-5)
    assert all("[2, 3] rows" in result["error"] for result in results)
    assert not any(result["alive"] for result in results)  # a group kept beyond its destruction aborts the process
