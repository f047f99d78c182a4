"""FLOP of a training step: worked out by hand, and counted in a real step of `VLKDTrainer`."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BartConfig, CLIPTextConfig, CLIPVisionConfig

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDProcessor
from trainer import VLKDTrainer, VLKDTrainingArguments
from trainer.cost.estimate import build_on_meta, teacher_config
from trainer.cost.flops import step_flops
from trainer.lora import add_lora

# One layer each, all widths different. 10 tokens; 5 image tokens: a 4 x 4 image as 2 x 2 patches, and the class token.
TOKENS, PATCHES = 10, 4
VISION, TEXT, BART, JOINT, WORDS = 8, 12, 16, 6, 30


def options(**changes) -> Namespace:
    weights = {"ttdm_weight": 1, "itcl_weight": 1, "icti_weight": 1, "itdd_weight": 0}
    model = {"freeze": "none", "use_peft": False, "activation_checkpointing": False, "gradient_checkpointing": None}
    sizes = {"caption_tokens": TOKENS, "max_text_length": 64, "per_device_train_batch_size": 8}
    return Namespace(**{**weights, **model, **sizes, "contrastive_chunk_size": None, **changes})


def flops(**changes) -> dict[str, int]:
    config = VLKDConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=VISION,
            intermediate_size=VISION,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=4,
            patch_size=2,
        ),
        text_config=BartConfig(
            vocab_size=WORDS,
            d_model=BART,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=BART,
            decoder_ffn_dim=BART,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
        ),
        projection_dim=JOINT,
        image_projector="linear",
    )
    teacher = CLIPTextConfig(
        hidden_size=TEXT, intermediate_size=TEXT, num_hidden_layers=1, num_attention_heads=1, projection_dim=JOINT
    )
    args = options(**changes)
    return step_flops(*build_on_meta(config, teacher, args), args)


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs  # a multiplication and an addition for each weight and row


def attention(queries: int, keys: int, width: int) -> int:
    return 2 * 2 * queries * keys * width  # the scores, and the weighted sum of the values


def layer(tokens: int, width: int) -> int:
    return 6 * linear(tokens, width, width) + attention(tokens, tokens, width)  # Q, K, V, output, and an MLP as wide


ENCODER = layer(TOKENS, BART)
MEMORY = PATCHES + 1 + TOKENS
CROSS = 2 * linear(TOKENS, BART, BART) + 2 * linear(MEMORY, BART, BART) + attention(TOKENS, MEMORY, BART)
DECODER, HEAD = layer(TOKENS, BART) + CROSS, linear(TOKENS, BART, WORDS)
W_D, W_E = linear(PATCHES + 1, JOINT, BART), linear(1, BART, JOINT)


def test_towers():
    found = flops()
    patches = linear(PATCHES, 3 * 2 * 2, VISION)
    assert found["vision tower"] == patches + layer(PATCHES + 1, VISION) + linear(PATCHES + 1, VISION, JOINT)
    assert found["teacher"] == layer(TOKENS, TEXT) + linear(1, TEXT, JOINT)


def test_student():
    """Backward costs twice as much as forward: the gradients of inputs and of weights. CLIP's output needs none."""
    found = flops()
    assert found["student forward"] == 2 * ENCODER + DECODER + HEAD + W_D + W_E
    assert found["student backward"] == 2 * (2 * ENCODER + DECODER + HEAD + W_E) + W_D


@pytest.mark.parametrize(
    ("changes", "backward"),
    [
        ({"icti_weight": 0}, 2 * (ENCODER + W_E)),
        ({"ttdm_weight": 0, "itcl_weight": 0}, 2 * (ENCODER + DECODER + HEAD) + W_D),
        ({"freeze": "all", "icti_weight": 0}, W_E),  # the gradient of the weight alone
        ({"activation_checkpointing": True}, 3 * (2 * ENCODER + DECODER) + 2 * (HEAD + W_E) + W_D),
    ],
)
def test_backward_follows_the_options(changes, backward):
    assert flops(**changes)["student backward"] == backward


def test_contrastive_chunks_count_only_if_they_split_the_batch():
    assert "contrastive chunks" not in flops(contrastive_chunk_size=8)
    assert flops(contrastive_chunk_size=4)["contrastive chunks"] == ENCODER + W_E


def test_itdd():
    """For one in four images: the teacher's pass, and a decoder pass over image and `<s><mask></s>`, no head."""
    plain, found = flops(), flops(itdd_weight=1)
    memory = PATCHES + 1 + 3
    cross = 2 * linear(TOKENS, BART, BART) + 2 * linear(memory, BART, BART) + attention(TOKENS, memory, BART)
    assert 4 * (found["student forward"] - plain["student forward"]) == layer(3, BART) + layer(TOKENS, BART) + cross
    memory = TOKENS
    cross = 2 * linear(TOKENS, BART, BART) + 2 * linear(memory, BART, BART) + attention(TOKENS, memory, BART)
    assert 4 * found["ITDD teacher"] == ENCODER + layer(TOKENS, BART) + cross


def test_lora():
    """An adapter on Q and V of each attention: two encoder passes, and two attentions of the decoder."""
    adapter, memory_adapter = (linear(rows, BART, 2) + linear(rows, 2, BART) for rows in (TOKENS, MEMORY))
    plain, found = flops(), flops(use_peft=True, lora_r=2)
    assert found["student forward"] - plain["student forward"] == (4 + 3) * adapter + memory_adapter
    assert found["student backward"] < plain["student backward"]  # BART's weights have no gradient


@pytest.mark.parametrize(
    "changes",
    [{}, {"freeze": "decoder"}, {"itdd_weight": 1}, {"use_peft": True, "lora_r": 2}, {"image_tokens": "pooled"}],
)
def test_equals_a_real_step_of_the_microworld(tmp_path, changes):
    """The estimate leaves out only what the losses themselves multiply: the similarities of the batch."""
    teachers = [str(Path(__file__).parents[3] / "microworld" / "teachers" / name) for name in ("clip", "bart")]
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(
        *teachers, image_tokens=changes.get("image_tokens", "all")
    )
    model.set_attn_implementation("eager")
    config, rows = model.config, 4
    args = options(**changes)
    expected = step_flops(*build_on_meta(config, teacher_config(teachers[0], config.projection_dim), args), args)

    ids = torch.randint(5, 40, (rows, TOKENS))
    names = ["input_ids", "decoder_input_ids", "labels", "caption_input_ids"]
    names += ["itdd_input_ids", "itdd_decoder_input_ids", "itdd_labels"] if args.itdd_weight else []
    masks = [name.replace("input_ids", "attention_mask") for name in names if name.endswith("input_ids")]
    batch = {name: ids[:1] if name.startswith("itdd") else ids for name in names} | {
        name: torch.ones_like(ids[:1] if name.startswith("itdd") else ids) for name in masks if "decoder" not in name
    }
    size = config.vision_config.image_size
    batch |= {"pixel_values": torch.randn(rows, 3, size, size)}
    batch |= {"teacher_embeds": torch.randn(rows, config.projection_dim)}
    training = VLKDTrainingArguments(
        str(tmp_path), use_cpu=True, bf16=False, freeze=args.freeze, itdd_weight=args.itdd_weight, report_to="none"
    )
    model = add_lora(model, r=args.lora_r) if args.use_peft else model
    processor = VLKDProcessor.from_vision_text_pretrained(*teachers)
    trainer = VLKDTrainer(model, training, processing_class=processor)
    trainer.current_gradient_accumulation_steps = 1
    with FlopCounterMode(display=False) as counter:
        trainer.training_step(model, batch, torch.tensor(rows * TOKENS))
    losses = counter.get_total_flops() - rows * (sum(expected.values()) - expected["teacher"])
    similarities = linear(rows, config.projection_dim, rows)
    assert 0 <= losses <= 4 * similarities
