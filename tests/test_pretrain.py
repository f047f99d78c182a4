"""The pretraining of the teachers runs and leaves whole checkpoints; tests/test_teachers.py has how good they are."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import BartForConditionalGeneration, BartTokenizer, CLIPModel, CLIPProcessor

from microworld.pretrain_bart import DROPOUT, pretrain_bart, set_dropout
from microworld.pretrain_clip import SINGLE_SHARE, batches, build_processor, pretrain_clip


def assert_half(folder):
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}


def test_bart(tmp_path, capsys):
    pretrain_bart(tmp_path, steps=4, dropout_steps=2)
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


def test_clip(tmp_path, capsys):
    pretrain_clip(tmp_path, steps=2, batch_size=4)
    assert "clip step 2" in capsys.readouterr().out
    assert_half(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32)
    texts = CLIPProcessor.from_pretrained(tmp_path)(
        text=["one red circle", "two stars"], padding=True, return_tensors="pt"
    )
    assert model.get_text_features(**texts).pooler_output.shape == (2, 256)


def test_clip_reads_every_image_with_its_caption_and_four_wrong_ones(processor):
    drawn = batches(processor.tokenizer, batch_size=16, seed=0)
    alone = 0
    for _ in range(20):
        batch = next(drawn)
        assert batch["pixel_values"].shape == (16, 3, 120, 120) and len(batch["input_ids"]) == 5 * 16
        texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        for image in range(16):
            wrong = texts[16 + 4 * image : 20 + 4 * image]
            assert texts[image] not in wrong
        # A card is black in all channels, and no background is: so many pixels of 0 tell the number of groups.
        dark = (batch["pixel_values"] == 0).all(dim=1).flatten(1).sum(dim=1)
        alone += (dark < 36 * 36).sum().item()
    assert alone / 320 == pytest.approx(SINGLE_SHARE, abs=0.1)
