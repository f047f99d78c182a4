"""Checkpoints as they are found on the Hub that cannot be joined as they stand: refused with a reason, at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finetune_data import TEACHERS
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    CLIPModel,
)

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd import conversion_vlkd as conversion
from trainer.evaluation.retention import load_language_model
from trainer.models import load_teacher

CLIP, BART = TEACHERS / "clip", TEACHERS / "bart"
join = VLKDForConditionalGeneration.from_vision_text_pretrained


@pytest.fixture
def copied(tmp_path) -> Callable[[str], Path]:
    return lambda part: Path(shutil.copytree(TEACHERS / part, tmp_path / part))


@pytest.fixture(scope="module")
def micro() -> VLKDForConditionalGeneration:
    return join(str(CLIP), str(BART))


def change_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_json(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def without(prefix: str) -> Callable[[dict], dict]:
    return lambda weights: {name: value for name, value in weights.items() if not name.startswith(prefix)}


BROKEN = [
    ("bart", lambda w: {f"module.{name}": value for name, value in w.items()}, "missing.*Not in the config: module."),
    ("bart", without("model.encoder."), "model.encoder.*is missing.* and .* more"),
    (
        "bart",
        lambda w: w | {"final_logits_bias": torch.zeros(1, 3)},
        r"final_logits_bias has shape \(1, 3\) instead of",
    ),
    ("clip", without("text_model."), "text_model.*is missing"),
    ("clip", without("vision_model."), "vision_model.*is missing"),
    ("clip", without("logit_scale"), "logit_scale is missing"),
]


@pytest.mark.parametrize(("part", "change", "message"), BROKEN)
def test_weights_that_are_missing_are_named(copied, part, change, message):
    folder = copied(part)
    change_weights(folder, change)
    with pytest.raises(ValueError, match=f"`{part}`='{folder}' has no complete weights.*{message}"):
        join(**{"clip": str(CLIP), "bart": str(BART), part: str(folder)})
    if part == "clip":
        with pytest.raises(ValueError, match=f"`clip`='{folder}' .*{message}"):
            load_teacher(str(folder))


def test_a_bart_with_more_tokens_in_its_config_than_weights(copied):
    """The embeddings are stored three times and transformers fails to tie those of the wrong shape."""
    folder = copied("bart")
    tokens = len(load_file(folder / "model.safetensors")["model.shared.weight"])
    change_json(folder / "config.json", lambda c: c.update(vocab_size=tokens + 6))
    with pytest.raises(ValueError, match=rf"has shape \({tokens}, .*instead of \({tokens + 6}, "):
        join(str(CLIP), str(folder))


def test_a_bart_with_untied_embeddings(copied, tmp_path):
    folder, ids = copied("bart"), torch.tensor([[0, 9, 8, 2]])
    untied = BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, tie_word_embeddings=False)
    torch.nn.init.normal_(untied.lm_head.weight)
    untied.save_pretrained(folder)
    due = untied(ids).logits
    joined = join(str(CLIP), str(folder))
    joined.save_pretrained(tmp_path / "vlkd")
    for model in (joined, VLKDForConditionalGeneration.from_pretrained(tmp_path / "vlkd")):
        assert torch.equal(model(input_ids=ids).logits, due)


def test_the_bart_that_retention_compares_with_is_whole(copied):
    folder = copied("bart")
    change_weights(folder, without("model.encoder."))
    with pytest.raises(ValueError, match=f"`--reference_model`='{folder}' has no complete weights.*model.encoder"):
        load_language_model(str(folder), "--reference_model")


def test_other_heads_of_bart(tmp_path):
    """A classifier holds all of a BART but the tied head; a decoder alone has no encoder."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for kind in ("classifier", "decoder"):
            (tmp_path / kind).mkdir(exist_ok=True)
            shutil.copy(BART / name, tmp_path / kind)
    BartForSequenceClassification.from_pretrained(BART).save_pretrained(tmp_path / "classifier")
    BartForCausalLM.from_pretrained(BART).save_pretrained(tmp_path / "decoder")
    ids = torch.tensor([[0, 9, 8, 2]])
    found = join(str(CLIP), str(tmp_path / "classifier"))
    due = BartForConditionalGeneration.from_pretrained(BART, dtype=torch.float32)
    assert torch.equal(found.to_bart().model(ids).last_hidden_state, due.model(ids).last_hidden_state)
    with pytest.raises(ValueError, match="model.encoder.*is missing"):
        join(str(CLIP), str(tmp_path / "decoder"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def point(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 605247071\n")


@pytest.mark.parametrize(
    ("spoil", "reason"), [(cut, "may be damaged or truncated"), (point, "is a Git LFS pointer.*git lfs pull")]
)
def test_unreadable_weights_name_option_and_file(copied, spoil, reason, micro, tmp_path):
    for part in ("clip", "bart"):
        folder = copied(part)
        spoil(folder / "model.safetensors")
        with pytest.raises(ValueError, match=f"`{part}`='{folder}'.*model.safetensors {reason}"):
            join(**{"clip": str(CLIP), "bart": str(BART), part: str(folder)})
    with pytest.raises(ValueError, match=f"`clip`=.*model.safetensors {reason}"):
        load_teacher(str(tmp_path / "clip"))
    micro.save_pretrained(tmp_path / "vlkd")
    spoil(tmp_path / "vlkd" / "model.safetensors")
    with pytest.raises(ValueError, match=f"vlkd' cannot be loaded.* model.safetensors {reason}"):
        VLKDForConditionalGeneration.from_pretrained(tmp_path / "vlkd")


def test_unreadable_pickles_and_tokenizers(copied):
    folder = copied("bart")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert join(str(CLIP), str(folder)).dtype == torch.float32
    cut(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"`bart`='{folder}'.*pytorch_model.bin"):
        join(str(CLIP), str(folder))
    point(folder / "tokenizer.json")
    with pytest.raises(ValueError, match=f"Cannot load the tokenizer of `bart`='{folder}'"):
        VLKDProcessor.from_vision_text_pretrained(str(CLIP), str(folder))


def test_tokenizers_that_are_not_the_barts(copied, monkeypatch):
    monkeypatch.setattr(conversion, "load_part", lambda *_: pytest.fail("weights are loaded"))

    def refuses(folder, message):
        for load in (join, VLKDProcessor.from_vision_text_pretrained):
            with pytest.raises(ValueError, match=message):
                load(str(CLIP), str(folder))

    folder = copied("bart")
    change_json(folder / "tokenizer.json", lambda c: c.update(post_processor=None))
    change_json(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="PreTrainedTokenizerFast"))
    refuses(folder, r"tokenizes 'a' as .*, but BART requires `<s>` and `</s>`")
    shutil.rmtree(folder)
    folder = copied("bart")
    change_json(folder / "config.json", lambda c: c.update(bos_token_id=5))
    refuses(folder, "id 0 for '<s>', .* `bos_token_id`=5")
    shutil.rmtree(folder)
    folder = copied("bart")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken("<new>", special=True)])
    tokenizer.save_pretrained(folder)
    refuses(folder, r"has \d+ tokens, but BART has \d+ embeddings")


def test_configs_are_checked_before_weights_are_loaded(copied, monkeypatch):
    monkeypatch.setattr(conversion, "load_part", lambda *_: pytest.fail("weights are loaded"))
    for options, message in (
        ({"image_projector": "cubic"}, "`image_projector`='cubic' is unknown"),
        ({"projector_init": "zero"}, "`projector_init`='zero' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            join(str(CLIP), str(BART), **options)
    folder = copied("bart")
    mask = AutoTokenizer.from_pretrained(folder).mask_token_id
    change_json(folder / "config.json", lambda c: c.update(vocab_size=mask))  # as bart-large-cnn's
    with pytest.raises(ValueError, match=f"but BART has {mask} embeddings; .* bart-base"):
        join(str(CLIP), str(folder))


def test_a_tokenizer_with_token_type_ids_works(copied):
    folder = copied("bart")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    change_json(folder / "tokenizer_config.json", lambda c: c.update(model_input_names=names))
    assert "token_type_ids" in AutoTokenizer.from_pretrained(folder)("a")
    processor = VLKDProcessor.from_vision_text_pretrained(str(CLIP), str(folder))
    assert set(processor(text="a red circle")) == {"input_ids", "attention_mask"}
    processor.save_pretrained(folder)
    assert set(VLKDProcessor.from_pretrained(folder).tokenizer("a")) == {"input_ids", "attention_mask"}


def test_files_of_two_dtypes_give_one(copied, batch_of_micro, tmp_path):
    clip, bart = copied("clip"), copied("bart")
    CLIPModel.from_pretrained(clip, dtype=torch.float16).save_pretrained(clip)
    BartForConditionalGeneration.from_pretrained(bart, dtype=torch.float32).save_pretrained(bart)
    model = join(str(clip), str(bart), dtype="auto")
    written = model.generate(**batch_of_micro, max_new_tokens=3)
    model.save_pretrained(tmp_path / "saved")
    again = VLKDForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype="auto")
    found = {parameter.dtype for one in (model, again) for parameter in one.parameters()}
    assert found == {torch.float32}
    assert torch.equal(again.generate(**batch_of_micro, max_new_tokens=3), written)


@pytest.fixture
def batch_of_micro(image):
    return VLKDProcessor.from_vision_text_pretrained(str(CLIP), str(BART))(images=image)


def test_a_clip_without_its_tokenizer_does_not_teach(copied):
    folder = copied("clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="has no tokenizer; put its tokenizer.json into the folder"):
        load_teacher(str(folder))


def test_another_clip_of_the_same_width_is_refused(copied, micro):
    folder = copied("clip")
    change_weights(folder, lambda w: {n: v.half() if v.is_floating_point() else v for n, v in w.items()})
    load_teacher(str(folder), micro)  # rounded, but the same
    change_weights(folder, lambda w: w | {"visual_projection.weight": w["visual_projection.weight"] * 1.1})
    with pytest.raises(ValueError, match="not the CLIP .* visual_projection.weight differs"):
        load_teacher(str(folder), micro)
