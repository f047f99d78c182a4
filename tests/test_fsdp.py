"""Sharded by `fully_shard` on two processes, the model gives the loss and the gradients of one."""

import random
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from finetune_data import TEACHERS, blocks, micro_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from microworld.language import caption
from microworld.render import render
from microworld.scenes import scenes
from modeling_vlkd import VLKDForConditionalGeneration
from trainer import EpochDataset, TextInfilling, VLKDDataCollator
from trainer.feature_cache import load_teacher
from trainer.losses import icti, itcl, ttdm

PROCESSES, ROWS = 2, 4  # rows a process


def batches(model, processor) -> list[dict]:
    """The collator's batch of each process, with text replay; captions and documents have different lengths."""
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
    data = EpochDataset(rows, ["a red circle", "two small blue stars. the background is white"] * ROWS)
    return [collator([data[index + ROWS * rank] for index in range(ROWS)]) for rank in range(PROCESSES)]


def step_loss(model, batch: dict, labels: int, replay_labels: int) -> torch.Tensor:
    """The three losses and the replay, the token losses over all processes' labels; a mean over processes is meant."""
    batch = {name: value for name, value in batch.items() if not name.startswith("teacher_")}
    targets, replay_targets = batch.pop("labels"), batch.pop("replay_labels")
    output = model(**batch, use_cache=False)
    teacher = torch.nn.functional.normalize(torch.ones_like(output.text_embeds), dim=-1)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    return (
        ttdm(output.text_embeds, teacher)
        + itcl(output.text_embeds, output.image_embeds, torch.tensor([2.0]))
        + icti(output.logits, targets, labels) * processes
        + icti(output.replay_logits, replay_targets, replay_labels) * processes
    )


def joined(parts: list[dict]) -> dict:
    """The batches of the processes as one: padded to the longest, as the collator pads."""
    batch = {}
    for name, value in parts[0].items():
        width = max(part[name].shape[1] for part in parts)
        fill = -100 if name.endswith("labels") else 0 if name.endswith("mask") else 1
        pads = [(0, width - part[name].shape[1]) if value.dim() == 2 else (0, 0) for part in parts]
        rows = [torch.nn.functional.pad(part[name], pad, value=fill) for part, pad in zip(parts, pads, strict=True)]
        batch[name] = torch.cat(rows)
    return batch


def label_counts(parts: list[dict]) -> list[int]:
    return [sum(int(part[name].ne(-100).sum()) for part in parts) for name in ("labels", "replay_labels")]


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

    loss = step_loss(model, parts[rank], *label_counts(parts))
    loss.backward()
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    words = model.eval().generate(
        **processor(images=[render(next(scenes("test")), random.Random(0))]), max_new_tokens=8
    )
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    loss = loss.detach() / PROCESSES
    dist.all_reduce(loss)
    if rank == 0:
        tied = model.language_model.lm_head.weight is model.language_model.model.shared.weight
        model.save_pretrained(f"{folder}/saved", state_dict=state)
        result = {"sharded": sharded, "learning": learning, "tied": tied, "gradients": gradients, "words": words}
        torch.save({**result, "loss": loss}, f"{folder}/result.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> tuple[Path, dict]:
    """The folder with the saved model, and what the first process found."""
    folder = tmp_path_factory.mktemp("fsdp")
    mp.spawn(in_process, args=(str(folder),), nprocs=PROCESSES)
    return folder, torch.load(folder / "result.pt")


def test_two_sharded_processes_take_the_step_of_one(sharded):
    """Loss, gradients, the step itself, what stays frozen or tied, what is saved, and generation."""
    folder, result = sharded
    model, processor = micro_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert result["sharded"] == len(list(model.parameters())) and result["learning"] == learning.keys()
    assert result["tied"]

    parts = batches(model, processor)
    loss = step_loss(model, joined(parts), *label_counts(parts))
    loss.backward()
    torch.testing.assert_close(result["loss"], loss.detach(), rtol=1e-5, atol=1e-5)
    assert result["gradients"].keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in result["gradients"].items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-3, atol=2e-5)

    torch.optim.SGD(learning.values(), lr=0.1).step()
    image = render(next(scenes("test")), random.Random(0))
    words = model.eval().generate(**processor(images=[image]), max_new_tokens=8)
    assert torch.equal(result["words"], words)
    saved = VLKDForConditionalGeneration.from_pretrained(folder / "saved")
    assert saved.language_model.lm_head.weight is saved.language_model.model.shared.weight
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=2e-5)
        frozen = name.startswith(("vision_model", "visual_projection", "logit_scale"))
        assert torch.equal(value, before[name]) or not frozen
