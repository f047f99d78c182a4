"""LoRA on BART: what it adapts, trained by both trainers, saved, loaded, merged, pushed."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from caption_data import load
from finetune_data import EXAMPLES, TEACHERS, blocks, micro_batch, micro_model, run_script, write_images, write_model
from loopback_hub import running_hub
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, pipeline

from modeling_vlkd import VLKDForConditionalGeneration
from trainer import EpochDataset, VLKDTrainer, VLKDTrainingArguments
from trainer.lora import add_lora, lora_config
from trainer.models import load_vlkd


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "my_vlkd")
    return tmp_path


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def logits(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model.eval()(**batch).logits


def test_target_expression_adapts_bart_and_leaves_clip_alone(model):
    adapted = add_lora(copy.deepcopy(model))
    layers = model.config.text_config
    attentions = layers.encoder_layers + 2 * layers.decoder_layers  # the decoder also attends to the memory
    names = {name.rsplit(".lora_A", 1)[0] for name in trainable(adapted) if ".lora_A" in name}
    assert len(names) == 2 * attentions
    assert all(name.endswith(("q_proj", "v_proj")) and "language_model." in name for name in names)
    whole = {name for name in trainable(adapted) if "lora_" not in name}
    maps = ("text_projection", "image_projection")
    assert whole == {f"base_model.model.{name}.modules_to_save.default.weight" for name in maps}


def test_clip_is_left_out_of_other_targets(model):
    for targets in (["q_proj", "v_proj"], "all-linear"):
        adapted = get_peft_model(copy.deepcopy(model), lora_config(target_modules=targets))
        assert not any("vision_model" in name or "visual_projection" in name for name in trainable(adapted))
        before = trainable(adapted)
        assert trainable(adapted.train()) == before
        naive = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=targets))
        with pytest.raises(ValueError, match=r"layers on CLIP \(first vision_model\..*`exclude_modules="):
            naive.train()


def test_commands_load_an_adapter_on_its_base(workplace):
    model, processor = micro_model()
    model.name_or_path = str(workplace / "my_vlkd")
    adapted = add_lora(model)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(workplace / "my_adapter")
    batch = micro_batch(processor)
    found, _ = load_vlkd(str(workplace / "my_adapter"), "--model")
    assert type(found) is VLKDForConditionalGeneration
    torch.testing.assert_close(logits(found, batch), logits(adapted, batch), rtol=1e-3, atol=1e-3)
    (workplace / "my_vlkd").rename(workplace / "moved")
    with pytest.raises(
        ValueError, match="--model: '.*/my_vlkd', the base model of the adapter '.*/my_adapter', is not"
    ):
        load_vlkd(str(workplace / "my_adapter"), "--model")


def test_adapter_of_the_example_is_loaded_and_merged(workplace, monkeypatch):
    """Trained with transformers' own `Trainer`, loaded and merged by the block of docs/finetune.md."""
    lines = write_images(workplace / "my_images", number=4)
    options = ("--learning-rate", "5e-3", "--batch-size", "4", "--epochs", "40")
    command = "python examples/lora.py --model my_vlkd --data my_images --output my_adapter"
    run_script(command, monkeypatch, *options)
    names: dict = {}
    code = blocks("Questions and answers", "python", "finetune.md")[0]
    exec(code.replace("my_model", "my_vlkd"), names)
    original, processor = micro_model()
    batch = micro_batch(processor)

    expected = logits(names["adapted"], batch)
    assert (expected - logits(original, batch)).abs().max() > 0.1
    torch.testing.assert_close(logits(names["merged"], batch), expected, rtol=1e-3, atol=1e-3)
    merged = AutoModelForImageTextToText.from_pretrained("my_merged")
    assert torch.equal(logits(merged, batch), logits(names["merged"], batch))
    assert merged.state_dict().keys() == original.state_dict().keys()
    changed = {
        name for name, value in merged.state_dict().items() if not torch.equal(value, original.state_dict()[name])
    }
    assert changed and not any(
        name.startswith(("vision_model", "visual_projection", "logit_scale")) for name in changed
    )
    assert merged.language_model.lm_head.weight is merged.language_model.model.shared.weight
    ids = batch["input_ids"]
    torch.testing.assert_close(merged.to_bart()(ids).logits, merged(ids).logits)

    captioner = pipeline("image-to-text", model=names["adapted"], processor=processor)
    said = captioner([f"my_images/{line['file_name']}" for line in lines])
    assert [one["generated_text"] for (one,) in said] == [line["caption"] for line in lines]


def vlkd_trainer(folder: Path, **options) -> VLKDTrainer:
    """A trainer of an adapted micro model on a few captioned squares."""
    model, processor = micro_model()
    model.name_or_path = str(folder / "my_vlkd")
    options = {"clip": str(TEACHERS / "clip"), "per_device_train_batch_size": 8, "save_strategy": "no", **options}
    arguments = VLKDTrainingArguments(str(folder / "my_adapter"), use_cpu=True, bf16=False, **options)
    return VLKDTrainer(add_lora(model), arguments, train_dataset=EpochDataset(load()), processing_class=processor)


def test_vlkd_trainer_trains_the_adapter_and_nothing_else(workplace):
    options = {"projector_learning_rate": 1e-2, "projector_optimizer": "muon", "logging_steps": 5}
    trainer = vlkd_trainer(workplace, max_steps=10, num_train_epochs=10, learning_rate=5e-3, **options)
    expected = trainable(trainer.model)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == expected == trainable(trainer.model)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(logs[-1][term] < logs[0][term] for term in ("ttdm", "itcl", "icti"))

    trainer.save_model()
    batch = micro_batch(trainer.processing_class)
    again = PeftModel.from_pretrained(VLKDForConditionalGeneration.from_pretrained("my_vlkd"), "my_adapter")
    assert torch.equal(logits(again, batch), logits(trainer.model, batch))
    assert torch.equal(logits(AutoModelForImageTextToText.from_pretrained("my_adapter"), batch), logits(again, batch))
    assert not (workplace / "my_adapter" / "model.safetensors").exists()


@pytest.mark.parametrize("freeze", ["decoder", "all"])
def test_freeze_does_not_undo_the_adapter(workplace, freeze):
    with pytest.raises(ValueError, match=f"freeze='{freeze}' .* set freeze='none'"):
        vlkd_trainer(workplace, max_steps=1, freeze=freeze)


PUSH = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText
import modeling_vlkd
from trainer.lora import add_lora

torch.manual_seed(0)
ids = torch.tensor([[0, 9, 10, 4, 2]])
modeling_vlkd.VLKDForConditionalGeneration.from_pretrained("my_vlkd").push_to_hub("user/base")
model = add_lora(AutoModelForImageTextToText.from_pretrained("user/base"))
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter)
expected = model.eval()(ids).logits
model.push_to_hub("user/adapter")
assert torch.equal(AutoModelForImageTextToText.from_pretrained("user/adapter")(ids).logits, expected)
merged = model.merge_and_unload()
merged.push_to_hub("user/merged")
again = AutoModelForImageTextToText.from_pretrained("user/merged")
assert torch.equal(again(ids).logits, merged(ids).logits)
print("pushed")
"""


@pytest.mark.slow
def test_adapter_and_merged_model_are_pushed_and_loaded_by_name(workplace):
    """Through the real client over HTTP; the adapter finds its base on the Hub by name."""
    with running_hub() as hub:
        environment = {**os.environ, **hub.environment(str(workplace / "home"))}
        environment["PYTHONPATH"] = str(EXAMPLES)
        run = subprocess.run([sys.executable, "-c", PUSH], env=environment, capture_output=True, text=True)
        assert run.stdout.strip().endswith("pushed"), run.stderr[-3000:]
        assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files("user/adapter").keys()
        assert len(hub.files("user/adapter")["adapter_model.safetensors"]) < 1e6
        assert {"config.json", "model.safetensors", "modeling_vlkd.py"} <= hub.files("user/merged").keys()
