"""An exported VLKD gives what the model gives."""

import copy

import pytest
import torch
from transformers import pipeline

from modeling_vlkd import VLKDForConditionalGeneration
from trainer.inference.export import VLKDExportedModel, export_model

pytestmark = pytest.mark.slow  # an export takes half a minute; CI runs the tests of one

PROMPTS = ["a photo of", "<mask>", "Question: what color is the circle? Answer: <mask>", "a red"]


@pytest.fixture(scope="module")
def onnx(model, tmp_path_factory) -> VLKDExportedModel:
    folder = str(tmp_path_factory.mktemp("onnx"))
    export_model(copy.deepcopy(model)).save_pretrained(folder)
    return VLKDExportedModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def batch(processor, images):
    return processor(images=images, text=PROMPTS)


def test_embeddings(model, onnx, batch, processor):
    with torch.no_grad():
        image, text = model.get_image_features(batch["pixel_values"]), model.get_text_features(batch["input_ids"])
    found = onnx.get_image_features(batch["pixel_values"])
    torch.testing.assert_close(found.last_hidden_state, image.last_hidden_state, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.pooler_output, image.pooler_output, atol=1e-4, rtol=0)
    found = onnx.get_text_features(batch["input_ids"])
    torch.testing.assert_close(found.pooler_output, text.pooler_output, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_with_and_without_a_cache(model, onnx, processor, images, side):
    batch = processor(images=images, text=PROMPTS, padding_side=side)
    ids = torch.tensor([[2, 0, 8, 9, 7]] * 4)
    with torch.no_grad():
        expected = model(**batch, decoder_input_ids=ids).logits
    torch.testing.assert_close(onnx(**batch, decoder_input_ids=ids).logits, expected, atol=1e-4, rtol=0)
    first = onnx(**batch, decoder_input_ids=ids[:, :3])
    memory = first.encoder_last_hidden_state
    for position in (3, 4):
        output = onnx(
            attention_mask=batch["attention_mask"],
            encoder_outputs=(memory,),
            decoder_input_ids=ids[:, position : position + 1],
            past_key_values=first.past_key_values,
        )
        torch.testing.assert_close(output.logits[:, 0], expected[:, position], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"repetition_penalty": 1.5}, {"use_cache": False}]
)
def test_texts(model, onnx, batch, options):
    assert torch.equal(
        onnx.generate(**batch, max_new_tokens=7, **options), model.generate(**batch, max_new_tokens=7, **options)
    )
    one = {name: tensor[2:3] for name, tensor in batch.items()}
    assert torch.equal(
        onnx.generate(**one, max_new_tokens=7, **options), model.generate(**one, max_new_tokens=7, **options)
    )


def test_texts_without_an_image_or_a_prompt(model, onnx, batch):
    text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    assert torch.equal(onnx.generate(**text, max_new_tokens=5), model.generate(**text, max_new_tokens=5))
    pixels = {"pixel_values": batch["pixel_values"]}
    assert torch.equal(onnx.generate(**pixels, max_new_tokens=5), model.generate(**pixels, max_new_tokens=5))


def test_pipelines(model, onnx, processor, images):
    for task, inputs in (("image-to-text", (images,)), ("visual-question-answering", (images[0], PROMPTS[2:3] * 2))):
        theirs, ours = (pipeline(task, model=one, processor=processor, device="cpu") for one in (model, onnx))
        assert ours(*inputs, max_new_tokens=6) == theirs(*inputs, max_new_tokens=6)
    (best, *_), (expected, *_) = (pipe(images[0], PROMPTS[2], top_k=2, max_new_tokens=6) for pipe in (ours, theirs))
    assert best == expected | {"score": pytest.approx(expected["score"], abs=1e-4)}


def test_int8_is_close(model, onnx, batch):
    quantized = export_model(copy.deepcopy(model), "int8")
    exact = onnx.get_image_features(batch["pixel_values"]).pooler_output
    rounded = quantized.get_image_features(batch["pixel_values"]).pooler_output
    assert not torch.equal(exact, rounded) and (exact * rounded).sum(-1).min() > 0.98
    assert quantized.generate(**batch, max_new_tokens=3).shape[0] == 4


@pytest.mark.parametrize(("precision", "difference"), [("fp32", 1e-4), ("int8", 0.5)])
def test_openvino(model, batch, tmp_path, precision, difference):
    if precision == "int8":
        pytest.importorskip("nncf")
    export_model(copy.deepcopy(model), precision, "openvino").save_pretrained(tmp_path)
    ids = torch.tensor([[2, 0, 8, 9, 7]] * 4)
    with torch.no_grad():
        expected = model(**batch, decoder_input_ids=ids).logits
    found = VLKDExportedModel.from_pretrained(tmp_path)(**batch, decoder_input_ids=ids).logits
    assert 0 < (found - expected).abs().max() < difference * (1 if precision == "fp32" else expected.std())


@pytest.mark.parametrize("options", [{"image_projector": "linear"}, {"image_tokens": "pooled"}])
def test_options_of_the_model(clip_dir, bart_dir, batch, options):
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir, **options).eval()
    expected = model.generate(**batch, max_new_tokens=4)
    assert torch.equal(export_model(model).generate(**batch, max_new_tokens=4), expected)


def test_what_cannot_be_exported(model):
    with pytest.raises(ValueError, match="in torch.bfloat16 on cpu; load it in float32"):
        export_model(copy.deepcopy(model).bfloat16())
    with pytest.raises(ValueError, match="`precision`='int4' is unknown; choose one of fp32, int8"):
        export_model(model, "int4")
