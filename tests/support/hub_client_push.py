"""Run by test_hub.py, with the package and a loopback Hub: pushes in every way, from the folder it is given."""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from caption_data import load
from huggingface_hub import HfApi

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer import EpochDataset, VLKDTrainer, VLKDTrainingArguments
from trainer.cli import main
from trainer.hub.repository import HUB

home, clip_dir, bart_dir = Path(sys.argv[1]), *sys.argv[2:]
report = {}


def command(*argv: str) -> dict:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["push", *argv])
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def train(folder: Path, **options) -> VLKDTrainer:
    args = VLKDTrainingArguments(
        str(folder),
        push_to_hub=True,
        per_device_train_batch_size=4,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        report_to="none",
        clip="tiny/clip",
        **options,
    )
    run_config = {"bart": "tiny/bart", "dataset_name": "tiny/captions", "image_dir": "/home/me/images"}
    model = VLKDForConditionalGeneration.from_vision_text_pretrained("tiny/clip", "tiny/bart")
    trainer = VLKDTrainer(model, args, train_dataset=data, processing_class=processor, run_config=run_config)
    trainer.train()
    return trainer


# Two checkpoints on the Hub become one model, which pushes itself.
api = HfApi()
for name, folder in (("clip", clip_dir), ("bart", bart_dir)):
    api.create_repo(f"tiny/{name}")
    api.upload_folder(repo_id=f"tiny/{name}", folder_path=folder)
model = VLKDForConditionalGeneration.from_vision_text_pretrained("tiny/clip", "tiny/bart")
processor = VLKDProcessor.from_vision_text_pretrained("tiny/clip", "tiny/bart")
processor.push_to_hub("user/by-method")
model.push_to_hub("user/by-method")
torch.save(model(**torch.load(home / "inputs.pt")).logits, home / "logits.pt")

# The same from a folder, by `vlkd push`.
folder = home / "run" / "model"
model.save_pretrained(folder)
processor.save_pretrained(folder)
torch.save(model.to_bart().config, folder / "training_args.bin")
(folder / "notes.md").write_text("private")
(folder / "checkpoint-1").mkdir()
(folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
report["without figures"] = command(str(folder), "user/without-figures", "--revision", "draft")
(home / "run" / "metrics.json").write_text((home / "metrics.json").read_text())
report["command"] = command(
    str(folder), "user/by-command", "--private", "--metrics", str(home / "run" / "metrics.json")
)
report["public"] = command(str(folder), "user/without-figures", "--private")
HUB.token = "hf_wrong"
report["wrong token"] = command(str(folder), "user/refused")
HUB.token = None
(folder / "README.md").write_text("---\nlicense: mit\n---\n# My own words\n")
report["by hand"] = command(str(folder), "user/by-hand")

# The trainer, by every strategy.
data = EpochDataset(load(rows=8))
for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    trainer = train(home / strategy, hub_model_id=f"user/{strategy}", hub_strategy=strategy, hub_always_push=True)
    if strategy != "checkpoint":  # there, the pushes in training are all there is
        trainer.push_to_hub(tags="mine") if strategy == "end" else trainer.save_model()
torch.save(trainer.model.state_dict(), home / "trained.pt")
print(json.dumps(report))
