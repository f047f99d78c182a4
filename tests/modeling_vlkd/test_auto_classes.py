"""Every Auto class, with the package imported and as remote code in a process without it: equal results each way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoProcessor

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDModel, VLKDProcessor

GENERATORS = (
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForVisualQuestionAnswering",
)
DUAL_ENCODERS = ("AutoModel", "AutoModelForZeroShotImageClassification")

REMOTE = """
import sys
import torch, transformers

folder, again, generators, dual_encoders = sys.argv[1], sys.argv[2], sys.argv[3].split(), sys.argv[4].split()
data = torch.load(folder + "/expected.pt")

def check(folder, generators, dual_encoders):
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__name__ == "VLKDConfig" and config.to_json_string() == data["config"]
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    for name, value in processor(text=data["texts"]).items():
        assert torch.equal(value, data["inputs"][name])
    for name in generators:
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        assert type(model).__name__ == "VLKDForConditionalGeneration"
        assert type(model).__module__.startswith("transformers_modules.")
        assert torch.equal(model(**data["inputs"]).logits, data["logits"])
    assert torch.equal(model.generate(**data["inputs"], max_new_tokens=5), data["generated"])
    for name in dual_encoders:
        dual = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        assert type(dual).__name__ == "VLKDModel"
        assert torch.equal(dual(**data["inputs"]).logits_per_image, data["logits_per_image"])
    return config, processor, model

config, processor, model = check(folder, generators, dual_encoders)
fresh = transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=True)
assert type(fresh) is type(model)
model.save_pretrained(again)
processor.save_pretrained(again)
check(again, generators[:1], [])
assert "modeling_vlkd" not in sys.modules
print("equal")
"""


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> Path:
    """The saved tiny model, and what it gave, beside it."""
    folder = tmp_path_factory.mktemp("auto") / "tiny-vlkd"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model, processor, batch, folder) -> dict:
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    return {
        "config": AutoConfig.from_pretrained(folder).to_json_string(),
        "texts": [processor.decode(row[1:].tolist()).split("</s>")[0] for row in batch["input_ids"]],
        "inputs": dict(batch),
        "logits": model(**batch).logits,
        "generated": model.generate(**batch, max_new_tokens=5),
        "logits_per_image": model.logit_scale.exp() * features @ texts.T,
    }


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
def test_every_auto_class_gives_the_package_s_own(folder, expected, batch, options):
    config = AutoConfig.from_pretrained(folder, **options)
    assert type(config) is VLKDConfig and config.to_json_string() == expected["config"]
    processor = AutoProcessor.from_pretrained(folder, **options)
    assert type(processor) is VLKDProcessor
    assert torch.equal(processor(text=expected["texts"])["input_ids"], batch["input_ids"])
    for name in GENERATORS:
        model = getattr(transformers, name).from_pretrained(folder, **options)
        assert type(model) is VLKDForConditionalGeneration
        assert torch.equal(model(**batch).logits, expected["logits"])
        assert type(getattr(transformers, name).from_config(config, **options)) is VLKDForConditionalGeneration
    for name in DUAL_ENCODERS:
        dual = getattr(transformers, name).from_pretrained(folder, **options)
        assert type(dual) is VLKDModel
        assert torch.equal(dual(**batch).logits_per_image, expected["logits_per_image"])
        assert type(getattr(transformers, name).from_config(config, **options)) is VLKDModel


def test_every_auto_class_gives_the_same_as_remote_code(folder, expected, batch, tmp_path):
    torch.save(expected, folder / "expected.pt")
    again = tmp_path / "again"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    arguments = [str(folder), str(again), " ".join(GENERATORS), " ".join(DUAL_ENCODERS)]
    command = [sys.executable, "-P", "-c", REMOTE, *arguments]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip().endswith("equal"), run.stderr
    # What the other process saved is complete, and the package reads it.
    assert {file.name for file in folder.glob("*.py")} == {file.name for file in again.glob("*.py")}
    model = VLKDForConditionalGeneration.from_pretrained(again)
    assert torch.equal(model(**batch).logits, expected["logits"])
