"""Sharded by `fully_shard` on two processes, the model gives the losses, gradients and weights of one."""

import random
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from finetune_data import TEACHERS, blocks, micro_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from microworld.world.language import caption
from microworld.world.rendering import render
from microworld.world.scenes import scenes
from modeling_vlkd import VLKDForConditionalGeneration
from trainer import EpochDataset, TextInfilling, VLKDDataCollator, optimizers
from trainer.grad_cache import embed, split
from trainer.losses import icti, itcl, ttdm
from trainer.models import load_teacher
from trainer.optimizers import Muon

PROCESSES, ROWS = 2, 4  # rows a process
STEPS = 5


def batches(model, processor) -> list[dict]:
    """The collator's batch of each process, whose captions have different lengths."""
    rng = random.Random(0)
    rows = [
        {"image": render(scene, rng), "caption": caption(scene, rng)} for scene in islice(scenes("train"), 2 * ROWS)
    ]
    collator = VLKDDataCollator(
        processor=processor,
        teacher_tokenizer=load_teacher(str(TEACHERS / "clip"))[1],
        infilling=TextInfilling(processor.tokenizer.mask_token_id, 0.3, 0.3),
        decoder_start_token_id=model.config.text_config.decoder_start_token_id,
        projection_dim=model.config.projection_dim,
    )
    data = EpochDataset(rows)
    return [collator([data[index + ROWS * rank] for index in range(ROWS)]) for rank in range(PROCESSES)]


def step_terms(model, batch: dict, labels: int) -> dict[str, torch.Tensor]:
    """The three losses, the token loss over all processes' labels; a mean over processes is meant."""
    batch = {name: value for name, value in batch.items() if not name.startswith(("teacher_", "row_names"))}
    targets = batch.pop("labels")
    output = model(**batch, use_cache=False)
    teacher = torch.nn.functional.normalize(torch.ones_like(output.text_embeds), dim=-1)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    return {
        "ttdm": ttdm(output.text_embeds, teacher),
        "itcl": itcl(output.text_embeds, output.image_embeds, torch.tensor([2.0])),
        "icti": icti(output.logits, targets, labels) * processes,
    }


def train_some_steps(model, batch: dict, count: int) -> tuple[dict, list[torch.Tensor]]:
    """Steps of plain SGD on one batch: the first step's gradients, and the terms of each."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    gradients, terms = {}, []
    for _ in range(STEPS):
        of_step = step_terms(model, batch, count)
        sum(of_step.values()).backward()
        if not gradients:
            gradients = {name: whole(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        terms.append(torch.stack([term.detach() for term in of_step.values()]))
    return gradients, torch.stack(terms)


def muon_weights(is_sharded: bool) -> torch.Tensor:
    """A matrix after three steps of Muon in float32."""
    torch.manual_seed(0)
    layer, rows = torch.nn.Linear(24, 40, bias=False), torch.randn(8, 24)
    if is_sharded:
        fully_shard(layer, mesh=init_device_mesh("cpu", (PROCESSES,)))
    optimizer = Muon(layer.parameters(), lr=0.1)
    for _ in range(3):
        layer(rows).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return whole(layer.weight).detach()


def joined(parts: list[dict]) -> dict:
    """The batches of the processes as one: padded to the longest, as the collator pads."""
    batch = {}
    for name, value in parts[0].items():
        if name == "row_names":
            continue
        width = max(part[name].shape[1] for part in parts)
        fill = -100 if name.endswith("labels") else 0 if name.endswith("mask") else 1
        pads = [(0, width - part[name].shape[1]) if value.dim() == 2 else (0, 0) for part in parts]
        rows = [torch.nn.functional.pad(part[name], pad, value=fill) for part, pad in zip(parts, pads, strict=True)]
        batch[name] = torch.cat(rows)
    return batch


def label_count(parts: list[dict]) -> int:
    return sum(int(part["labels"].ne(-100).sum()) for part in parts)


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def in_process(rank: int, folder: str) -> None:
    """One of the two processes: shard by the documented block, take a step, write, save."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    model, processor = micro_model()
    parts = batches(model, processor)
    (code,) = blocks("FSDP2", "python")
    exec(code, {"model": model})
    sharded = sum(isinstance(parameter, DTensor) for parameter in model.parameters())
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    optimizers.fastest_dtype = lambda device: torch.float32
    muon = muon_weights(is_sharded=True)
    gradients, terms = train_some_steps(model, parts[rank], label_count(parts))
    dist.all_reduce(terms)
    embeds = embed(model, split(parts[0], 2), [0, 1])
    words = model.eval().generate(
        **processor(images=[render(next(scenes("test")), random.Random(0))]), max_new_tokens=8
    )
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        tied = model.language_model.lm_head.weight is model.language_model.model.shared.weight
        model.save_pretrained(f"{folder}/saved", state_dict=state)
        result = {"sharded": sharded, "learning": learning, "tied": tied, "gradients": gradients, "words": words}
        result["muon"] = muon
        torch.save({**result, "terms": terms / PROCESSES, "embeds": embeds}, f"{folder}/result.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> tuple[Path, dict]:
    """The folder with the saved model, and what the first process found."""
    folder = tmp_path_factory.mktemp("fsdp")
    mp.set_forkserver_preload(["trainer.vlkd_trainer"])
    mp.start_processes(in_process, args=(str(folder),), nprocs=PROCESSES, start_method="forkserver")
    return folder, torch.load(folder / "result.pt")


def test_two_sharded_processes_take_the_steps_of_one(sharded):
    """Terms, gradients, weights after the last step, embedding in chunks, what stays frozen or tied, generation."""
    folder, result = sharded
    model, processor = micro_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert result["sharded"] == len(list(model.parameters())) and result["learning"] == learning
    assert result["tied"]

    parts = batches(model, processor)
    gradients, terms = train_some_steps(model, joined(parts), label_count(parts))
    torch.testing.assert_close(result["terms"], terms, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result["embeds"], embed(model, split(parts[0], 2), [0, 1]), rtol=1e-5, atol=1e-5)
    assert result["gradients"].keys() == gradients.keys()
    for name, gradient in result["gradients"].items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=2e-5)

    image = render(next(scenes("test")), random.Random(0))
    words = model.eval().generate(**processor(images=[image]), max_new_tokens=8)
    assert torch.equal(result["words"], words)
    saved = VLKDForConditionalGeneration.from_pretrained(folder / "saved")
    assert saved.language_model.lm_head.weight is saved.language_model.model.shared.weight
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-5)
        frozen = name.startswith(("vision_model", "visual_projection", "logit_scale"))
        assert torch.equal(value, before[name]) or not frozen


def test_muon_on_sharded_matrices(sharded, monkeypatch):
    monkeypatch.setattr(optimizers, "fastest_dtype", lambda device: torch.float32)
    torch.testing.assert_close(sharded[1]["muon"], muon_weights(is_sharded=False), rtol=0, atol=1e-5)
