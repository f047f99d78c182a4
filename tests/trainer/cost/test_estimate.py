"""`vlkd estimate`: numbers worked out by hand, what the configs and the recipe decide, and invalid input."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from trainer.cli import main
from trainer.cost.estimate import CC3M

ROOT = Path(__file__).parents[3]
LARGE = ROOT / "hub_configs" / "vlkd-vit-large-patch14-bart-large" / "train.yaml"
BASE = ROOT / "hub_configs" / "vlkd-vit-base-patch16-bart-base" / "train.yaml"
MICRO = ROOT / "hub_configs" / "microworld" / "train.yaml"


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def estimate(capsys, config: Path, *flags: str) -> dict:
    assert main(["estimate", "--config", str(config), "--device_flops", "989e12", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *argv: str) -> str:
    assert main(["estimate", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlkd: error: ") and error.count("\n") == 1
    return error


def test_an_adapter_is_what_learns(capsys):
    whole = estimate(capsys, MICRO, "--itdd_weight", "0")
    adapted = estimate(capsys, MICRO, "--itdd_weight", "0", "--use_peft")
    # 3 encoder attentions and 6 of the decoder, two projections of 128 x 128 in each: 128 x 16 and 16 x 128.
    adapter = 9 * 2 * 2 * 16 * 128
    bart = whole["parameters"]["BART"]["total"]
    assert adapted["parameters"]["BART"] == {"total": bart + adapter, "trainable": adapter}
    assert adapted["parameters"]["W_e and W_d"] == whole["parameters"]["W_e and W_d"]
    maps = whole["parameters"]["W_e and W_d"]["total"]
    weights = whole["memory_bytes"]["weights"] + 4 * (adapter + maps)  # PEFT keeps the maps it began with
    assert adapted["memory_bytes"]["weights"] == weights and adapted["settings"]["lora_r"] == 16
    assert adapted["memory_bytes"]["gradients"] == 4 * (adapter + maps)


def test_large(capsys):
    """W_d is an MLP of 768, 2048 and 1024 units."""
    found, matrices, biases = estimate(capsys, LARGE), 2 * 1024 * 768 + 768 * 1024 + 2048 * 1024, 2048 + 1024
    assert found["parameters"] == {
        "vision tower": {"total": 303_179_776 + 1024 * 768, "trainable": 0},
        # 49408 words and 77 places; 12 layers of 12 · 768² weights and 13 · 768 biases and norms; norm; projection
        "teacher": {
            "total": 49485 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768 + 768**2,
            "trainable": 0,
        },
        "BART": {"total": 406_291_456, "trainable": 406_291_456},
        "W_e and W_d": {"total": matrices + biases, "trainable": matrices + biases},
    }
    whole = 406_291_456 + matrices + biases
    assert found["memory_bytes"] == {
        # 1: CLIP's temperature; ITDD has a second BART
        "weights": 4 * (whole + 303_179_776 + 1024 * 768 + 1 + 406_291_456),
        "gradients": 4 * whole,
        "optimizer": 8 * (406_291_456 + biases) + 4 * matrices,  # those of the maps by Muon
    }
    assert found["cache_bytes"]["images, pooled"] == {"row": 1536, "all": 1536 * CC3M}
    assert found["cache_bytes"]["images, all"]["row"] == 394_752
    assert found["cache_bytes"]["captions"] == {"row": 1536, "all": 1536 * CC3M}
    # 24 layers: four maps and an MLP of 8 · 1024² on 257 tokens, attention; 256 patches of 588 pixels; projection
    vision = 24 * (2 * 257 * 12 * 1024**2 + 4 * 257**2 * 1024) + 2 * 256 * 588 * 1024 + 2 * 257 * 1024 * 768
    assert found["flops_per_sample"]["vision tower"] == vision
    assert found["flops_per_sample"]["teacher"] == 12 * (2 * 15 * 12 * 768**2 + 4 * 15**2 * 768) + 2 * 768**2


def test_cost_adds_up(capsys):
    found = estimate(capsys, MICRO, "--epochs", "4", "--samples", "1000", "--mfu", "0.5")
    part, cost = found["flops_per_sample"], found["cost"]
    student = part["ITDD teacher"] + part["student forward"] + part["student backward"]
    assert part.keys() == {"vision tower", "teacher", "ITDD teacher", "student forward", "student backward"}
    assert cost["live"]["flops"] == 1000 * (part["teacher"] + 4 * (part["vision tower"] + student))
    assert cost["cached"]["flops"] == 1000 * (part["teacher"] + part["vision tower"] + 4 * student)
    assert cost["live"]["hours"] == pytest.approx(cost["live"]["flops"] / (0.5 * 989e12 * 3600))
    assert cost["live"]["samples_per_second"] == pytest.approx(4000 / (3600 * cost["live"]["hours"]))


def test_recipe_decides(capsys):
    micro = estimate(capsys, MICRO, "--max_steps", "-1", "--num_train_epochs", "7")
    assert micro["settings"]["epochs"] == 7
    found = estimate(capsys, MICRO, "--max_steps", "100", "--samples", "6400", "--freeze", "all")
    assert found["settings"]["epochs"] == 0.5  # 100 batches of 32
    assert found["parameters"]["BART"]["trainable"] == 0
    plain = estimate(capsys, MICRO, "--itdd_weight", "0")  # ITDD has a second BART, which is not trained
    second = 4 * micro["parameters"]["BART"]["total"]
    assert micro["memory_bytes"]["weights"] == plain["memory_bytes"]["weights"] + second
    assert micro["memory_bytes"]["gradients"] == plain["memory_bytes"]["gradients"]


def test_options_of_the_recipe_win_over_the_config_beside_it(capsys, tmp_path):
    """hub_configs/microworld/config.json says `image_tokens: all`: 9 x 9 patches and the class token."""
    for name in ("config.json", "train.yaml"):
        shutil.copy(MICRO.with_name(name), tmp_path)
    recipe = tmp_path / "train.yaml"
    recipe.write_text(recipe.read_text().replace("image_tokens: all", "image_tokens: pooled"))
    every, pooled = estimate(capsys, MICRO), estimate(capsys, recipe)
    assert (every["settings"]["image_tokens"], pooled["settings"]["image_tokens"]) == ("all", "pooled")
    # 81 tokens fewer: for both layers of W_d, and as keys and values of the three decoder layers, to which 15 caption
    # tokens attend, for one image in four again by ITDD.
    fewer = 2 * 81 * (256 + 128) * 256 + 3 * (2 * 2 * 81 * 128**2 + 2 * 2 * 15 * 81 * 128) * 5 // 4
    flops = [found["flops_per_sample"]["student forward"] for found in (every, pooled)]
    assert flops[0] - flops[1] == fewer


def test_folders_and_trained_models(capsys, clip_dir, bart_dir, vlkd_dir):
    def figures(*flags: str) -> dict:
        assert main(["estimate", "--clip", clip_dir, *flags, "--device_flops", "1e9", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    joined, trained = (
        figures("--bart", bart_dir, "--image_projector", "linear"),
        figures("--model_name_or_path", vlkd_dir),
    )
    assert joined["flops_per_sample"] == trained["flops_per_sample"]
    assert joined["cache_bytes"]["images, all"]["row"] == 17 * 24 * 2


def test_text(capsys):
    assert main(["estimate", "--config", str(BASE), "--device_flops", "1e15"]) == 0
    out = capsys.readouterr().out
    assert "3,318,333 samples (the size of CC3M) × 10 epochs" in out and "image features live (recipe)" in out
    assert "1000 TFLOP/s × 0.4" in out and "139,420,416" in out


def test_page_shows_what_is_printed(capsys):
    page = (ROOT / "docs" / "estimate.md").read_text(encoding="utf-8")
    command = page.split("```bash\nvlkd ")[1].split("\n")[0]
    assert main(command.split()) == 0
    assert page.split("```\n")[2].strip() == capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device_flops", "0"], "device_flops is 0.0; it must be above 0"),
        (["--device_flops", "nan"], "device_flops is nan"),
        (["--device_flops", "fast"], "invalid float value: 'fast'"),
        ([], "required: --device_flops"),
        (["--device_flops", "1e12", "--mfu", "0"], "mfu is 0.0; it is a fraction"),
        (["--device_flops", "1e12", "--mfu", "40"], "mfu is 40.0; it is a fraction"),
        (["--device_flops", "1e12", "--samples", "0"], "samples is 0"),
        (["--device_flops", "1e12", "--epochs", "-1"], "epochs is -1.0"),
        (["--device_flops", "1e12", "--caption_tokens", "0"], "caption_tokens is 0"),
        (["--device_flops", "1e12", "--freeze", "encoder"], "invalid choice: 'encoder'"),
        (["--device_flops", "1e12", "--clip", "openai/clip-vit-base-patch16"], "move the recipe"),
    ],
)
def test_bad_numbers(capsys, flags, message):
    assert message in refused(capsys, "--config", str(LARGE), *flags)


def test_bad_recipes(capsys, tmp_path, bart_dir):
    recipe = yaml.safe_load(LARGE.read_text())
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in recipe.items() if name != "clip"}))
    assert "clip is not set" in refused(capsys, "--config", str(file), "--device_flops", "1e12")
    file.write_text(yaml.safe_dump({**recipe, "clip": bart_dir, "bart": bart_dir}))
    assert "is of type 'bart'; give a clip checkpoint" in refused(
        capsys, "--config", str(file), "--device_flops", "1e12"
    )
    shutil.copy(Path(bart_dir, "config.json"), tmp_path)
    assert "'bart' is not a VLKD" in refused(capsys, "--config", str(file), "--device_flops", "1e12")
    assert "--config none.yaml does not exist" in refused(capsys, "--config", "none.yaml", "--device_flops", "1e12")
