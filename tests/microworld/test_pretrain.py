"""The pretraining of the teachers runs and leaves whole checkpoints; test_teachers.py has how good they are."""

import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import BartForConditionalGeneration, BartTokenizer, CLIPModel, CLIPProcessor

from microworld.pretrain.bart import DROPOUT, pretrain_bart, set_dropout
from microworld.pretrain.clip import PLACED_SHARE, SINGLE_SHARE, batches, build_model, build_processor, pretrain_clip
from microworld.pretrain.common import build_optimizer


def assert_half(folder):
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}


def test_bart(tmp_path, capsys):
    pretrain_bart(tmp_path, steps=4, dropout_steps=2, documents=1000)
    assert capsys.readouterr().out.count("bart step") == 2  # the end of each part
    assert_half(tmp_path)
    model = BartForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.dropout == 0
    ids = BartTokenizer.from_pretrained(tmp_path)("a red circle", return_tensors="pt").input_ids
    set_dropout(model, DROPOUT)
    layers = (model.get_encoder(), *model.get_encoder().layers, model.get_decoder(), *model.get_decoder().layers)
    assert {part.dropout for part in layers} == {DROPOUT}
    with torch.no_grad():
        assert not torch.equal(model.train()(ids).logits, model(ids).logits)
        assert torch.equal(model.eval()(ids).logits, model(ids).logits)


@pytest.fixture(scope="module")
def processor():
    return build_processor(captions=1000)


def test_muon_learns_the_matrices_of_layers_and_projections(processor):
    model = build_model(processor.tokenizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adamw, muon = build_optimizer(model, 1e-3).pair
    groups = [[[names.pop(id(p)) for p in group["params"]] for group in part.param_groups] for part in (adamw, muon)]
    assert not names and [[group["lr"] for group in part.param_groups] for part in (adamw, muon)] == [[1e-3], [2e-3]]
    by_muon = set(groups[1][0])
    assert {"visual_projection.weight", "text_model.encoder.layers.2.mlp.fc1.weight"} <= by_muon
    assert len(by_muon) == 6 * (3 + 1) + 2  # the four of attention and two of the MLP, in each layer
    assert {"logit_scale", "vision_model.embeddings.position_embedding.weight"} <= set(groups[0][0])


def test_clip(tmp_path, capsys):
    pretrain_clip(tmp_path, steps=2, batch_size=4, captions=1000)
    assert "clip step 2" in capsys.readouterr().out
    assert_half(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32)
    texts = CLIPProcessor.from_pretrained(tmp_path)(
        text=["one red circle", "two stars"], padding=True, return_tensors="pt"
    )
    assert model.get_text_features(**texts).pooler_output.shape == (2, 256)


def test_clip_reads_every_image_with_its_caption_and_four_wrong_ones(processor):
    drawn = batches(processor.tokenizer, batch_size=16, seed=0)
    alone = placed = 0
    for _ in range(20):
        batch = next(drawn)
        assert batch["pixel_values"].shape == (16, 3, 120, 120) and len(batch["input_ids"]) == 5 * 16
        texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        for image in range(16):
            wrong = texts[16 + 4 * image : 20 + 4 * image]
            assert texts[image] not in wrong
            said = [re.findall(r"at the (left|right|top|bottom)", text) for text in (texts[image], *wrong)]
            assert len({len(places) for places in said}) == 1  # the right caption says a place if the wrong ones do
            if said[0]:
                assert [places == said[0] for places in said] == [True] * 4 + [False]
                placed += 1
        # A card is black in all channels, and no background is: so many pixels of 0 tell the number of groups.
        dark = (batch["pixel_values"] == 0).all(dim=1).flatten(1).sum(dim=1)
        alone += (dark < 36 * 36).sum().item()
    assert alone / 320 == pytest.approx(SINGLE_SHARE, abs=0.1)
    assert placed / 320 == pytest.approx(SINGLE_SHARE * PLACED_SHARE, abs=0.1)
