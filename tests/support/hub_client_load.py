"""Run by test_hub.py, without the package: loads what was pushed from a loopback Hub, or, offline, from the cache."""

import json
import re
import sys
from pathlib import Path

import torch
from huggingface_hub import constants, snapshot_download
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils import logging

logging.set_verbosity_error()
home, pinned = Path(sys.argv[1]), sys.argv[2]
inputs, trained = torch.load(home / "inputs.pt"), torch.load(home / "trained.pt")
report = {}


def logits(name: str, **options) -> torch.Tensor:
    return AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, **options)(**inputs).logits


def refusal(**options) -> str:
    try:
        AutoModelForImageTextToText.from_pretrained("user/by-method", **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def run_snippets(card: str) -> list[str]:
    """What the card's examples print."""
    printed = []
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        exec(code, {"print": lambda value: printed.append(value if isinstance(value, str) else value.tolist())})
    return printed


processor = AutoProcessor.from_pretrained("user/by-method", trust_remote_code=True, revision=pinned)
report["ids"] = processor(text="a photo of")["input_ids"].tolist()
report["pinned"] = torch.equal(logits("user/by-method", revision=pinned), torch.load(home / "logits.pt"))
pipe = pipeline("image-to-text", model="user/by-method", revision=pinned, trust_remote_code=True)
report["caption"] = pipe("photo.png", max_new_tokens=5)[0]["generated_text"]
if not constants.HF_HUB_OFFLINE:
    report["newest"] = refusal(trust_remote_code=True)
    report["untrusted"] = refusal(trust_remote_code=False, revision=pinned)
    folder = snapshot_download("user/by-command")
    report["files"] = sorted(path.name for path in Path(folder).iterdir())
    report["snapshot"] = torch.equal(logits(folder), torch.load(home / "logits.pt"))
    report["snippets"] = run_snippets(Path(folder, "README.md").read_text(encoding="utf-8"))
    report["by hand"] = torch.equal(logits("user/by-hand"), torch.load(home / "logits.pt"))
    for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
        model = AutoModelForImageTextToText.from_pretrained(f"user/{strategy}", trust_remote_code=True)
        state = model.state_dict()
        report[strategy] = all(torch.equal(value, state[name]) for name, value in trained.items())
    model = AutoModelForImageTextToText.from_pretrained(
        "user/checkpoint", subfolder="last-checkpoint", trust_remote_code=True
    )
    report["last-checkpoint"] = torch.equal(model.text_projection.weight, trained["text_projection.weight"])
report["package"] = "modeling_vlkd" in sys.modules
print(json.dumps(report))
