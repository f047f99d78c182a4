"""The formulas against torch's own counter: real tensors at the microworld's size, meta tensors at
the size of the public checkpoints."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, CLIPTextConfig, CLIPTextModelWithProjection

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration
from trainer.cost import flops, flops_lora
from trainer.lora import add_lora

HUB_CONFIGS = Path(__file__).parents[3] / "hub_configs"
MICRO, BASE, LARGE = "microworld", "vlkd-vit-base-patch16-bart-base", "vlkd-vit-large-patch14-bart-large"
DEVICE = {MICRO: "cpu", BASE: "meta", LARGE: "meta"}
BATCH, PROMPT, CAPTION, DOCUMENT = 2, 9, 14, 23
MLP = {"image_projector": "mlp", "image_token_expansion": 4}
SELF = {"patch_attention": "self"}


def config_of(name: str, **options) -> VLKDConfig:
    config = AutoConfig.from_pretrained(HUB_CONFIGS / name)
    towers = {"vision_config": config.vision_config, "text_config": config.text_config}
    options = {"patch_attention": "global", **options}
    return VLKDConfig(**towers, projection_dim=config.projection_dim, mask_token_id=config.mask_token_id, **options)


@cache
def build(name: str, options: tuple) -> VLKDForConditionalGeneration:
    with torch.device(DEVICE[name]):
        model = VLKDForConditionalGeneration(config_of(name, **dict(options)))
    model.set_attn_implementation("eager")  # the counter does not know every kernel of sdpa, and eager is exact
    return model.train()


def counted(function) -> tuple[int, object]:
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops(), result


def ids(name: str, tokens: int) -> torch.Tensor:
    return torch.randint(5, 40, (BATCH, tokens), device=DEVICE[name])


def step(model, name: str, freeze: str) -> tuple[int, int, int]:
    """Operations counted in one training step: forward; backward of ICTI; of the alignment."""
    model.requires_grad_(True).train()
    model.freeze_language_model(freeze)
    tokens = flops.num_patches(model.config) + 1
    inputs = {
        "image_features": torch.randn(BATCH, tokens, model.config.projection_dim, device=DEVICE[name]),
        "input_ids": ids(name, PROMPT),
        "decoder_input_ids": ids(name, CAPTION),
        "caption_input_ids": ids(name, CAPTION),
    }
    forward, output = counted(lambda: model(**inputs, use_cache=False))
    icti, _ = counted(output.logits.sum().backward)
    alignment, _ = counted(output.text_embeds.sum().backward)
    return forward, icti, alignment


@pytest.mark.parametrize("name", [MICRO, BASE, LARGE])
@pytest.mark.parametrize("options", [{}, SELF])
def test_vision_tower(name, options):
    model, size = build(name, tuple(options.items())), config_of(name).vision_config.image_size
    pixels = torch.randn(BATCH, 3, size, size, device=DEVICE[name])
    with torch.no_grad():
        found, _ = counted(lambda: model.get_image_features(pixels))
    assert BATCH * flops.vision_forward(model.config) == found


@pytest.mark.parametrize(("width", "projection"), [(512, 512), (768, 768), (64, 24)])
def test_teacher(width, projection):
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    config = CLIPTextConfig(**sizes, projection_dim=projection, attn_implementation="eager")
    with torch.device("meta"):
        teacher = CLIPTextModelWithProjection(config)
        tokens = torch.zeros(BATCH, CAPTION, dtype=torch.long)
    with torch.no_grad():
        found, _ = counted(lambda: teacher(input_ids=tokens))
    assert BATCH * flops.teacher_forward(config, CAPTION) == found


def check_student(name: str, options: dict, freeze: str) -> None:
    """Each pass of a step, to the operation."""
    forward, icti, alignment = step(build(name, tuple(options.items())), name, freeze)
    config, lengths = config_of(name, **options), (PROMPT, CAPTION)
    assert BATCH * flops.student_forward(config, *lengths) == forward
    assert BATCH * flops.student_backward(config, *lengths, freeze, alignment=False) == icti
    assert BATCH * flops.student_backward(config, *lengths, freeze, infilling=False) == alignment
    assert BATCH * flops.student_backward(config, *lengths, freeze) == icti + alignment


CHOICES = ({}, MLP, {"image_tokens": "patch"}, {"image_tokens": "pooled"}, MLP | {"image_tokens": "pooled"})
FREEZES = ("none", "decoder", "all")


@pytest.mark.parametrize("freeze", FREEZES)
@pytest.mark.parametrize("options", CHOICES)
def test_student_of_the_microworld(options, freeze):
    check_student(MICRO, options, freeze)


@pytest.mark.parametrize(
    ("name", "options", "freeze"),
    [
        (BASE, {}, "none"),
        (BASE, MLP, "decoder"),
        (BASE, {"image_tokens": "patch"}, "all"),
        (LARGE, {}, "decoder"),
        (LARGE, MLP, "all"),
        (LARGE, {"image_tokens": "pooled"}, "none"),
    ],
)
def test_student_of_public_size(name, options, freeze):
    check_student(name, options, freeze)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", FREEZES)
@pytest.mark.parametrize("options", CHOICES)
@pytest.mark.parametrize("name", [BASE, LARGE])
def test_every_student_of_public_size(name, options, freeze):
    check_student(name, options, freeze)


@pytest.mark.parametrize("freeze", FREEZES)
@pytest.mark.parametrize("name", [MICRO, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_readings(name, freeze):
    model = build(name, tuple(MLP.items())).requires_grad_(True).train()
    model.freeze_language_model(freeze)
    tokens = flops.num_patches(model.config) + 1
    inputs = {
        "image_features": torch.randn(BATCH, tokens, model.config.projection_dim, device=DEVICE[name]),
        "input_ids": ids(name, PROMPT),
        "decoder_input_ids": ids(name, CAPTION),
    }
    reading = {"itdd_decoder_input_ids": ids(name, CAPTION)}
    plain, _ = counted(lambda: model(**inputs, use_cache=False))
    forward, output = counted(lambda: model(**inputs, **reading, use_cache=False))
    bart = model.language_model.model
    read, _ = counted(lambda: bart(ids(name, DOCUMENT), decoder_input_ids=ids(name, CAPTION), use_cache=False))
    assert BATCH * flops.reader_forward(model.config.text_config, DOCUMENT, CAPTION) == read
    backward, _ = counted((output.logits.sum() + sum(state.sum() for state in output.itdd_hidden_states)).backward)
    backward -= BATCH * flops.student_backward(model.config, PROMPT, CAPTION, freeze, alignment=False)
    assert BATCH * flops.reading_forward(model.config, CAPTION) == forward - plain
    assert BATCH * flops.reading_backward(model.config, CAPTION, freeze) == backward


@pytest.mark.parametrize("name", [MICRO, BASE])
@pytest.mark.parametrize("options", [{}, MLP])
def test_adapter(name, options):
    model, rank = copy.deepcopy(build(name, tuple(options.items()))), 3
    adapted = add_lora(model, r=rank)
    adapted.requires_grad_ = lambda *_: adapted  # `step` would let everything learn
    adapted.freeze_language_model = lambda *_: None
    forward, icti, alignment = step(adapted, name, "none")
    config, lengths = config_of(name, **options), (PROMPT, CAPTION)
    added = flops_lora.lora_forward(config, *lengths, rank)
    assert BATCH * (flops.student_forward(config, *lengths) + added) == forward
    assert BATCH * flops_lora.lora_backward(config, *lengths, rank, alignment=False) == icti
    assert BATCH * flops_lora.lora_backward(config, *lengths, rank, infilling=False) == alignment


def test_what_is_computed_twice():
    model, lengths = build.__wrapped__(MICRO, ()), (PROMPT, CAPTION)  # one of its own: checkpointing leaves hooks
    plain = step(model, MICRO, "none")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = step(model, MICRO, "none")
    assert again[0] == plain[0]
    assert BATCH * flops.checkpointing_forward(model.config, *lengths) == sum(again) - sum(plain)
    found, _ = counted(lambda: model.get_text_features(ids(MICRO, CAPTION)))
    assert BATCH * flops.chunking_forward(model.config, CAPTION) == found
