"""With an image the model's own generation defaults hold; for text alone, and in `to_bart()`, those of the BART."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from finetune_data import TEACHERS
from transformers import (
    AutoModelForSeq2SeqLM,
    BartForConditionalGeneration,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    pipeline,
)

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.evaluation.generation import complete, encode_images

CLIP, BART = str(TEACHERS / "clip"), str(TEACHERS / "bart")
BASE = {"num_beams": 4, "no_repeat_ngram_size": 3, "early_stopping": True, "forced_bos_token_id": 0}
SUMMARIZER = BASE | {"min_length": 28, "max_length": 56, "length_penalty": 2.0, "forced_eos_token_id": 2}
TEXTS = ["two frogs and two frogs and two frogs", "two penguins"]
PROMPTS = ["<mask>", "Question: what is on the left? Answer: <mask>"]


def publish(folder: Path, file: str, defaults: dict) -> str:
    """The micro BART with generation defaults in one of the two files in which public checkpoints have them."""
    shutil.copytree(BART, folder)
    if file == "config.json":
        (folder / "generation_config.json").unlink()
        defaults = {**json.loads((folder / file).read_text()), **defaults}
    else:
        defaults = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, **defaults}
    (folder / file).write_text(json.dumps(defaults))
    return str(folder)


@pytest.fixture(scope="module", params=["base", "summarizer"])
def bart(request, tmp_path_factory) -> str:
    """facebook/bart-base's own defaults, which are in its config.json; and those of bart-large-cnn, but shorter."""
    folder = tmp_path_factory.mktemp("published") / "bart"
    if request.param == "base":
        return publish(folder, "config.json", BASE)
    return publish(folder, "generation_config.json", SUMMARIZER)


def join(bart: str) -> VLKDForConditionalGeneration:
    return VLKDForConditionalGeneration.from_vision_text_pretrained(CLIP, bart)


@pytest.fixture(scope="module")
def plain() -> VLKDForConditionalGeneration:
    return join(BART)


@pytest.fixture(scope="module")
def model(bart) -> VLKDForConditionalGeneration:
    return join(bart)


@pytest.fixture(scope="module")
def reloaded(model, tmp_path_factory) -> VLKDForConditionalGeneration:
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder / "first")
    VLKDForConditionalGeneration.from_pretrained(folder / "first").save_pretrained(folder / "second")
    return AutoModelForSeq2SeqLM.from_pretrained(folder / "second")


@pytest.fixture(scope="module")
def processor() -> VLKDProcessor:
    return VLKDProcessor.from_vision_text_pretrained(CLIP, BART)


@pytest.fixture(scope="module")
def batch(processor, images):
    return processor(images=images[:2], text=PROMPTS)


def test_captions_are_those_of_a_plain_bart(model, reloaded, plain, processor, images, batch):
    expected = plain.generate(**batch)
    assert model.generation_config.to_diff_dict() == plain.generation_config.to_diff_dict()
    for published in (model, reloaded):
        assert torch.equal(published.generate(**batch), expected)
        assert torch.equal(published.generate(**batch, max_new_tokens=40), plain.generate(**batch, max_new_tokens=40))
    features = model.get_image_features(batch["pixel_values"]).last_hidden_state
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model.generate(image_features=features, **text), expected)
    starts = {"attention_mask": batch["attention_mask"], "decoder_input_ids": model.decoder_prompt_ids(**text)}
    assert torch.equal(model.generate(encoder_outputs=model.encode_multimodal(**batch), **starts), expected)
    said = [pipeline("image-to-text", model=one, processor=processor)(images[0]) for one in (reloaded, plain)]
    assert said[0] == said[1]


def test_text_alone_is_barts_to_the_id(model, reloaded, bart, processor):
    due = BartForConditionalGeneration.from_pretrained(bart, dtype=torch.float32)
    text = processor(text=TEXTS)
    expected = due.generate(**text)
    plain_bart = BartForConditionalGeneration.from_pretrained(BART, dtype=torch.float32)
    assert not torch.equal(expected, plain_bart.generate(**text))
    for found in (model, reloaded, model.to_bart(), reloaded.to_bart()):
        assert torch.equal(found.generate(**text), expected)
        assert torch.equal(found.generate(text["input_ids"], attention_mask=text["attention_mask"]), expected)
    for options in ({"num_beams": 2}, {"max_new_tokens": 40, "length_penalty": 0.5}, {"forced_bos_token_id": None}):
        assert torch.equal(reloaded.generate(**text, **options), due.generate(**text, **options))
    config = GenerationConfig(num_beams=3, max_length=60)
    assert torch.equal(
        reloaded.generate(text["input_ids"], config, attention_mask=text["attention_mask"]),
        due.generate(**text, generation_config=config),
    )
    encoded = {"encoder_outputs": reloaded.encode_multimodal(**text), "attention_mask": text["attention_mask"]}
    assert torch.equal(reloaded.generate(**encoded), expected)


def test_the_restored_bart_is_saved_with_its_defaults(reloaded, bart, tmp_path):
    reloaded.to_bart().save_pretrained(tmp_path)
    found, due = (GenerationConfig.from_pretrained(tmp_path), BartForConditionalGeneration.from_pretrained(bart))
    for name in (*SUMMARIZER, "bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id"):
        assert getattr(found, name) == getattr(due.generation_config, name), name


def test_a_users_choice_wins(bart, plain, batch, processor, tmp_path):
    model = join(bart)
    beams = plain.generate(**batch, num_beams=3, max_new_tokens=9)
    assert torch.equal(model.generate(**batch, num_beams=3, max_new_tokens=9), beams)
    config = GenerationConfig(num_beams=3, max_new_tokens=9)
    assert torch.equal(model.generate(**batch, generation_config=config), beams)
    model.generation_config.num_beams, model.generation_config.max_new_tokens = 3, 9
    model.language_model.generation_config.num_beams = 2
    model.save_pretrained(tmp_path)
    again = VLKDForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.generate(**batch), beams)
    due = BartForConditionalGeneration.from_pretrained(bart, dtype=torch.float32)
    text = processor(text=TEXTS)
    assert torch.equal(again.generate(**text, max_new_tokens=40), due.generate(**text, num_beams=2, max_new_tokens=40))


def test_trainer_predicts_captions(model, plain, processor, batch, tmp_path):
    inputs = {**batch, "labels": batch["input_ids"]}
    rows = [{name: value[row] for name, value in inputs.items()} for row in (0, 1)]
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, use_cpu=True, report_to="none", remove_unused_columns=False
    )
    tools = {"args": arguments, "processing_class": processor.tokenizer}
    found = [Seq2SeqTrainer(one, **tools).predict(rows).predictions for one in copy.deepcopy((model, plain))]
    assert (found[0] == found[1]).all()


def test_an_evaluation_is_decoded_by_its_task_alone(model, plain, processor, images):
    """With images, with text alone, and by the BART itself: only what a step names is in force."""
    tokenizer = processor.tokenizer
    features = encode_images(plain, processor, images[:2])
    for options in ({}, {"num_beams": 3, "length_penalty": 0.5, "max_new_tokens": 40}):
        expected = complete(plain, tokenizer, PROMPTS, features, **options)
        assert complete(model, tokenizer, PROMPTS, features, **options) == expected
        blind = complete(plain, tokenizer, PROMPTS, **options)
        assert complete(model, tokenizer, PROMPTS, **options) == blind
        assert complete(model.to_bart(), tokenizer, PROMPTS, **options) == blind
    assert model.language_model.generation_config.num_beams == 4  # as before
