"""Attention: one interface for all of it, every implementation the same, and what a caller may look at."""

import copy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, BartForConditionalGeneration, CLIPVisionModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from modeling_vlkd import VLKDForConditionalGeneration, VLKDModel


def with_attention(model, implementation: str):
    model = copy.deepcopy(model)
    model.set_attn_implementation(implementation)
    return model


def left_padded(batch, width: int = 3) -> dict[str, torch.Tensor]:
    fill = {"input_ids": 1, "attention_mask": 0}
    return {
        **batch,
        **{name: torch.nn.functional.pad(batch[name], (width, 0), value=value) for name, value in fill.items()},
    }


@pytest.mark.parametrize("padded", [False, True])
def test_eager_gives_what_sdpa_gives(model, batch, padded):
    inputs = left_padded(batch) if padded else dict(batch)
    assert model.config._attn_implementation == model.vision_model.config._attn_implementation == "sdpa"
    eager = with_attention(model, "eager")
    parts = (eager, eager.vision_model, eager.language_model)
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    expected = model(**inputs, labels=batch["input_ids"]).logits
    torch.testing.assert_close(eager(**inputs, labels=batch["input_ids"]).logits, expected, rtol=0, atol=1e-5)


def test_all_attention_goes_through_the_interface(model, batch):
    """So flash and flex attention, and whatever else is registered there, reach every layer."""
    modules = []

    def counting(module, *args, **kwargs):
        modules.append(type(module).__name__)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("counting", counting)
    AttentionMaskInterface.register("counting", sdpa_mask)
    output = with_attention(model, "counting")(**batch, labels=batch["input_ids"])
    assert torch.equal(output.logits, model(**batch, labels=batch["input_ids"]).logits)
    # two layers each: CLIP's; BART's encoder, decoder and cross-attention
    assert modules == ["CLIPAttention"] * 2 + ["BartAttention"] * 6


@pytest.mark.parametrize("kind", ["flash_attn", "sdpa", "flex_attn"])
def test_what_is_declared_is_what_both_parts_declare(kind):
    flag = f"_supports_{kind}"
    both = getattr(CLIPVisionModel, flag) and getattr(BartForConditionalGeneration, flag)
    assert getattr(VLKDForConditionalGeneration, flag) == getattr(VLKDModel, flag) == both


@pytest.mark.slow
def test_flex_attention_gives_what_sdpa_gives(model, batch):
    """Two minutes on a CPU: each of the four kinds of attention is compiled."""
    flex = with_attention(model, "flex_attention")
    with torch.no_grad():
        logits = flex(**left_padded(batch), labels=batch["input_ids"]).logits
    expected = model(**batch, labels=batch["input_ids"]).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_attentions_and_hidden_states_stand_where_the_tokens_do(model, batch):
    """17 image tokens, and text padded on the left: its states, keys and queries are those of the text alone."""
    eager, width, tokens = with_attention(model, "eager"), 3, batch["input_ids"].shape[1]
    options = {"labels": batch["input_ids"], "output_attentions": True, "output_hidden_states": True}
    plain, padded = eager(**batch, **options), eager(**left_padded(batch, width), **options)
    assert plain.cross_attentions[0].shape[-1] == 17 + tokens
    assert plain.encoder_attentions[0].shape[-1] == tokens
    kept = batch["attention_mask"].bool()
    for one, two in zip(plain.encoder_hidden_states, padded.encoder_hidden_states, strict=True):
        torch.testing.assert_close(two[:, width:][kept], one[kept], rtol=0, atol=1e-5)
    for one, two in zip(plain.encoder_attentions, padded.encoder_attentions, strict=True):
        queries = kept.unsqueeze(1).expand(one.shape[:3])
        torch.testing.assert_close(two[..., width:, width:][queries], one[queries], rtol=0, atol=1e-5)
    for one, two in zip(plain.cross_attentions, padded.cross_attentions, strict=True):
        torch.testing.assert_close(two[..., :17], one[..., :17], rtol=0, atol=1e-5)
        torch.testing.assert_close(two[..., 17 + width :], one[..., 17:], rtol=0, atol=1e-5)


def test_features_hold_the_layers_states_and_can_be_tuples(model, batch):
    eager = with_attention(model, "eager")
    options = {"output_attentions": True, "output_hidden_states": True}
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    image, words = (
        eager.get_image_features(batch["pixel_values"], **options),
        eager.get_text_features(**text, **options),
    )
    assert len(image.hidden_states) == len(words.hidden_states) == 3  # the embeddings and two layers
    assert image.attentions[1].shape == (4, 4, 17, 17)
    assert torch.equal(words.hidden_states[-1], words.last_hidden_state)
    tokens, pooled = model.get_image_features(batch["pixel_values"], return_dict=False)
    assert torch.equal(pooled, model.get_image_features(batch["pixel_values"]).pooler_output)
    assert torch.equal(model.get_text_features(**text, return_dict=False)[0], model.get_text_features(**text)[0])
