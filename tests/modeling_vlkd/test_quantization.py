"""Loading in 8 bits on the CPU, by bitsandbytes as documented and by torchao; `make test-slow` fetches the two."""

from pathlib import Path

import pytest
import torch
from finetune_data import blocks, micro_batch
from torch import Tensor
from transformers import AutoModelForImageTextToText, BatchFeature, PreTrainedModel, TorchAoConfig

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.cli import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Path, PreTrainedModel, BatchFeature]:
    """The folder that holds `my_vlkd`, the model in float32, and a batch.

    It has learned for 60 steps: an untrained join often has no first choice to speak of, whole or quantized.
    """
    folder = tmp_path_factory.mktemp("quantization")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the recipe names the teachers from there
        recipe = ["--config", "hub_configs/microworld/train.yaml", "--max_steps", "60"]
        assert main(["train", *recipe, "--output_dir", str(folder / "my_vlkd")]) == 0
    model = VLKDForConditionalGeneration.from_pretrained(folder / "my_vlkd", dtype=torch.float32)
    return folder, model, micro_batch(VLKDProcessor.from_pretrained(folder / "my_vlkd"))


@pytest.fixture(scope="module")
def quantized(original) -> PreTrainedModel:
    """What the documented block loads; it also writes `my_8bit`."""
    names: dict = {}
    (code,) = blocks("Quantized loading", "python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(original[0])
        exec(code, names)
    return names["quantized"]


@torch.no_grad()
def logits(model: PreTrainedModel, batch: dict) -> Tensor:
    return model(**batch).logits.float()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, in standard deviations of what is expected."""
    return ((actual - expected).square().mean().sqrt() / expected.std()).item()


def assert_near_equal(quantized: PreTrainedModel, model: PreTrainedModel, batch: BatchFeature) -> None:
    """Logits, first choices and image embeddings."""
    expected, actual = logits(model, batch), logits(quantized, batch)
    assert actual.isfinite().all()
    agreement = (actual.argmax(-1) == expected.argmax(-1)).float().mean().item()
    with torch.no_grad():
        embeds = [one.get_image_features(batch["pixel_values"]).pooler_output.float() for one in (quantized, model)]
    cosine = (embeds[0] * embeds[1]).sum(dim=-1).min().item()
    error = relative_error(actual, expected)
    print(f"relative error {error:.3f}, same first choice {agreement:.3f}, lowest cosine {cosine:.5f}")
    assert 0 < error < 0.05 and agreement > 0.95 and cosine > 0.999


def test_near_equal(original, quantized):
    _, model, batch = original
    assert_near_equal(quantized, model, batch)


def test_weights_are_small_and_embeddings_stay_tied(quantized):
    layer = quantized.language_model.model.encoder.layers[0]
    linear = (layer.fc1, quantized.vision_model.encoder.layers[0].mlp.fc1, quantized.text_projection)
    assert {module.weight.dtype for module in linear} == {torch.int8}
    assert quantized.language_model.lm_head.weight is quantized.language_model.model.shared.weight
    assert quantized.language_model.lm_head.weight.dtype == torch.float32


def test_generate(original, quantized):
    _, model, batch = original
    inputs = {key: batch[key] for key in ("pixel_values", "input_ids", "attention_mask")}
    ids = quantized.generate(**inputs, max_new_tokens=6, min_new_tokens=6)
    expected = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6)
    assert ids.shape == expected.shape and (ids == expected).float().mean() > 0.9


def test_cached_features_enter_in_half_precision(original, quantized):
    """The features take the model's dtype, and not that of a quantized matrix, which is an integer's."""
    _, _, batch = original
    features = quantized.get_image_features(batch["pixel_values"]).last_hidden_state.half()
    inputs = {**batch, "image_features": features}
    del inputs["pixel_values"]
    assert relative_error(logits(quantized, inputs), logits(quantized, batch)) < 0.02


def test_saved_and_loaded(original, quantized):
    folder, _, batch = original
    again = AutoModelForImageTextToText.from_pretrained(folder / "my_8bit")
    assert torch.equal(logits(again, batch), logits(quantized, batch))


def test_torchao(original):
    from torchao.quantization import Int8WeightOnlyConfig

    folder, model, batch = original
    int8 = AutoModelForImageTextToText.from_pretrained(
        folder / "my_vlkd", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    assert_near_equal(int8, model, batch)
