"""Folders that are no VLKD checkpoint, or half of one: an error that names what is wrong, never random weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, CLIPConfig, CLIPTextConfig, pipeline

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDModel, VLKDProcessor
from trainer.models import load_vlkd

TEACHER = Path(__file__).parents[2] / "microworld" / "teachers" / "bart"


@pytest.fixture
def folder(vlkd_dir, tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be broken."""
    return Path(shutil.copytree(vlkd_dir, tmp_path / "broken"))


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.update(model_type="clip"), ValueError, "`model_type`='clip' is not a VLKD"),
        (
            lambda c: c["vision_config"].update(model_type="siglip_vision_model"),
            ValueError,
            "`vision_config` must be a CLIPVisionConfig .* 'siglip_vision_model'",
        ),
        (lambda c: c.update(text_config="bart"), ValueError, "`text_config` must be a BartConfig .* 'bart'"),
        (lambda c: c.update(image_tokens="some"), ValueError, "`image_tokens`='some' is unknown"),
        (lambda c: c.update(projection_dim="many"), ValueError, "'projection_dim' expected int, got str .*'many'"),
        (lambda c: c["text_config"].update(d_model="many"), ValueError, "'d_model' with value 'many'"),
        (lambda c: c.update(default_prompt_ids="many"), ValueError, "`default_prompt_ids`=many must contain"),
        (lambda c: c.pop("text_config"), ValueError, "`text_config` is missing"),
        (lambda c: c["vision_config"].update(patch_size=0), ValueError, "cannot be loaded.*ZeroDivisionError"),
        (
            lambda c: c["text_config"].update(d_model=64),
            ValueError,
            r"image_projection.weight has shape \(32, 24\) instead of",
        ),
        (
            lambda c: c["text_config"].update(encoder_layers=3),
            ValueError,
            r"its config: language_model.model.encoder.layers.2.fc1.bias is missing, .*, and 13 more",
        ),
    ],
)
def test_a_broken_config(folder, change, error, message):
    change_config(folder, change)
    with pytest.raises(error, match=message):
        VLKDForConditionalGeneration.from_pretrained(folder)


def test_a_config_of_the_wrong_class():
    with pytest.raises(ValueError, match="`vision_config` must be a CLIPVisionConfig .* 'clip'"):
        VLKDConfig(vision_config=CLIPConfig())
    with pytest.raises(ValueError, match="`text_config` must be a BartConfig .* 'clip_text_model'"):
        VLKDConfig(text_config=CLIPTextConfig())


@pytest.mark.parametrize("text", ["{", ""])
def test_a_config_that_is_no_json(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(OSError, match="config.json' is not a valid JSON file"):
        VLKDForConditionalGeneration.from_pretrained(folder)


def test_missing_weights_are_named(folder):
    change_weights(folder, lambda weights: weights.pop("image_projection.weight"))
    for load in (VLKDForConditionalGeneration.from_pretrained, AutoModelForImageTextToText.from_pretrained):
        with pytest.raises(ValueError, match="image_projection.weight is missing. .*`ignore_mismatched_sizes=True`"):
            load(folder)
    with pytest.raises(ValueError, match="image_projection.weight is missing"):
        pipeline("image-to-text", model=str(folder), device="cpu")
    assert isinstance(AutoModel.from_pretrained(folder), VLKDModel)  # the dual encoder does not need that one
    model, info = VLKDForConditionalGeneration.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"image_projection.weight"} and model.image_projection.weight.isfinite().all()


def test_weights_of_a_wrong_shape_are_named(folder):
    change_weights(
        folder,
        lambda weights: weights.update({"text_projection.weight": weights["text_projection.weight"].T.contiguous()}),
    )
    for auto_class in (AutoModel, AutoModelForImageTextToText):
        with pytest.raises(ValueError, match=r"text_projection.weight has shape \(32, 24\) instead of \(24, 32\)"):
            auto_class.from_pretrained(folder)


def test_weights_that_are_not_there(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        VLKDForConditionalGeneration.from_pretrained(folder)


def test_a_tokenizer_without_its_vocabulary(clip_dir, tmp_path):
    """transformers would go on with a `BartTokenizer` that knows no word."""
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(TEACHER / name, tmp_path)
    with pytest.raises(ValueError, match="only special tokens; put its tokenizer.json"):
        VLKDProcessor.from_vision_text_pretrained(clip_dir, str(tmp_path))


def test_a_processor_that_does_not_exist(folder):
    file = folder / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["image_processor_type"] = "other"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no valid VLKD processor"):
        VLKDProcessor.from_pretrained(folder)


def test_a_tokenizer_with_more_words_than_the_model(folder):
    """An embedding that is not there would be an IndexError in the model."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sep_token": "<one more>"}))
    with pytest.raises(ValueError, match=r"--model: '.*' .* its tokenizer has \d+ tokens, the model \d+"):
        load_vlkd(str(folder), "--model")


def test_no_question_is_asked(folder, monkeypatch):
    """transformers would ask the terminal whether to run the code that the folder carries."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    change_config(folder, lambda config: config.pop("model_type"))
    for file in ("processor_config.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text())
        content.pop("tokenizer_class", None)
        (folder / file).write_text(json.dumps(content))
    try:
        load_vlkd(str(folder), "--model")
    except ValueError as error:
        assert "trust_remote_code" in str(error)


def test_a_broken_processor(folder, clip_dir):
    (folder / "processor_config.json").write_text("{")
    with pytest.raises(OSError, match="processor_config.json' is not a valid JSON file"):
        AutoProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="has no mask token.* BART"):
        VLKDProcessor.from_pretrained(clip_dir)
