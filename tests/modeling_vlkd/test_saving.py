"""Saved, loaded, loaded as remote code, and turned back into BART."""

import copy
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    BartForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.models.clip.modeling_clip import CLIPOutput

from modeling_vlkd import VLKDForConditionalGeneration, VLKDModel

TEXTS = ["a photo of a red circle", "two dogs", "Question: how many squares are there? Answer: <mask>"]
PROMPTS = ["a photo of", "<mask>", "Question: what color is the circle? Answer: <mask>", "two dogs <mask> the grass"]


def saved(model, processor, folder) -> str:
    model.save_pretrained(folder, True)  # `is_main_process`, by position as in transformers
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_saved_model_gives_equal_logits(clip_dir, bart_dir, processor, batch, tmp_path, projector):
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir, image_projector=projector)
    folder = saved(model, processor, tmp_path)
    for auto in (VLKDForConditionalGeneration, AutoModelForImageTextToText, AutoModelForSeq2SeqLM):
        again = auto.from_pretrained(folder)
        assert type(again) is VLKDForConditionalGeneration
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert again.language_model.lm_head.weight is again.language_model.model.shared.weight
    assert type(AutoProcessor.from_pretrained(folder)) is type(processor)
    reloaded = AutoProcessor.from_pretrained(folder)(text=PROMPTS)
    assert torch.equal(reloaded["input_ids"], processor(text=PROMPTS)["input_ids"])


def test_resuming_warns_about_no_missing_weight(model, tmp_path, caplog):
    """The tied embeddings are saved once; `Trainer` resumes with `load_state_dict`."""
    model.save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    trainer = Trainer(copy.deepcopy(model), TrainingArguments(tmp_path / "out", use_cpu=True))
    trainer._load_from_checkpoint(str(tmp_path))
    logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if "missing keys" in record.getMessage()]


def test_saved_folder_is_complete_and_names_no_place(model, processor, bart_dir, tmp_path):
    folder = Path(saved(model, processor, tmp_path))
    package = Path(sys.modules["modeling_vlkd"].__file__).parent
    for file in package.glob("*.py"):
        assert (folder / file.name).read_bytes() == file.read_bytes()
    for file in folder.glob("*.json"):
        assert os.path.dirname(bart_dir) not in file.read_text()


def test_dual_encoder_loads_from_the_same_folder(model, processor, images, tmp_path, caplog):
    folder = saved(model, processor, tmp_path)
    logging.getLogger("transformers").addHandler(caplog.handler)
    dual, info = VLKDModel.from_pretrained(folder, output_loading_info=True)
    assert type(AutoModel.from_pretrained(folder)) is VLKDModel
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(folder)) is VLKDModel
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    pixels = processor(images=images[:2])["pixel_values"]
    texts = processor(text=TEXTS)
    output = dual(**texts, pixel_values=pixels)
    assert torch.equal(output.image_embeds, model.get_image_features(pixels).pooler_output)
    assert torch.equal(output.text_embeds, model.get_text_features(**texts).pooler_output)
    expected = model.logit_scale.exp() * output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, expected)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    assert dual(pixel_values=pixels).logits_per_image is None
    with pytest.raises(ValueError, match="Neither"):
        dual()
    decoder_layers = sum("decoder.layers" in name for name, _ in dual.named_parameters())
    assert decoder_layers == 0


def test_dual_encoder_returns_what_clip_returns(model, processor, images, tmp_path):
    dual = VLKDModel.from_pretrained(saved(model, processor, tmp_path))
    pixels, texts = processor(images=images[:2])["pixel_values"], processor(text=TEXTS)
    output = dual(**texts, pixel_values=pixels, output_hidden_states=True)
    assert list(output) == list(CLIPOutput(*range(7)))[1:]  # all but the loss
    assert len(output.text_model_output.hidden_states) == len(output.vision_model_output.hidden_states) == 3
    assert torch.equal(output.vision_model_output.pooler_output, output.image_embeds)
    as_tuple = dual(**texts, pixel_values=pixels, return_dict=False)
    assert torch.equal(as_tuple[0], output.logits_per_image) and isinstance(as_tuple[4], tuple)


def test_resized_dual_encoder_can_be_saved(model, processor, tmp_path):
    dual = VLKDModel.from_pretrained(saved(model, processor, tmp_path / "first"))
    vocabulary = dual.config.text_config.vocab_size
    dual.resize_token_embeddings(vocabulary + 5)
    dual.save_pretrained(tmp_path / "second")
    again = VLKDModel.from_pretrained(tmp_path / "second")
    assert again.config.text_config.vocab_size == len(again.get_input_embeddings().weight) == vocabulary + 5
    texts = processor(text=TEXTS)
    assert torch.equal(again(**texts).text_embeds, dual(**texts).text_embeds)


def test_to_bart_is_a_plain_bart(model, bart_dir, processor, tmp_path):
    bart = BartForConditionalGeneration.from_pretrained(bart_dir)
    plain = model.to_bart()
    assert type(plain) is BartForConditionalGeneration
    assert plain.state_dict().keys() == bart.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in bart.state_dict().items())
    plain.save_pretrained(tmp_path)
    again = BartForConditionalGeneration.from_pretrained(tmp_path)
    batch = processor(text=TEXTS)
    assert torch.equal(again(**batch).logits, bart(**batch).logits)
    assert torch.equal(again.generate(**batch, max_new_tokens=9), bart.generate(**batch, max_new_tokens=9))
    with torch.no_grad():
        plain.model.shared.weight.zero_()
    assert model.language_model.model.shared.weight.abs().sum() > 0
