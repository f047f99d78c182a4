"""Write config.json, generation_config.json and processor_config.json of each folder here, from its train.yaml.

Run `python hub_configs/make.py` when a train.yaml names another checkpoint or shape, when the microworld's teachers
have changed, or when VLKDConfig has a new field.
"""

import json
import math
from pathlib import Path

import yaml
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BartConfig,
    CLIPConfig,
    CLIPImageProcessor,
    GenerationConfig,
    HfArgumentParser,
)

from modeling_vlkd import VLKDConfig, VLKDProcessor
from modeling_vlkd.generation_vlkd import as_plain_dict, default_generation_config
from trainer.arguments import ModelArguments

HERE = Path(__file__).parent
TEACHERS = HERE.parent / "microworld" / "teachers"

# The public checkpoints, as their config.json on the Hub describes them.
CLIP = {
    "openai/clip-vit-base-patch16": CLIPConfig(vision_config={"patch_size": 16}, projection_dim=512),
    "openai/clip-vit-large-patch14": CLIPConfig(
        vision_config={
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        projection_dim=768,
    ),
}
CLIP_LOGIT_SCALE = math.log(100)  # CLIP's training clips it here, where all of OpenAI's checkpoints ended
BART_DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}
BART = {
    "facebook/bart-base": BartConfig(
        d_model=768,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
        **BART_DROPOUT,
    ),
    "facebook/bart-large": BartConfig(**BART_DROPOUT),
}
BART_GENERATION = GenerationConfig(
    bos_token_id=0,
    pad_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=2,
    forced_bos_token_id=0,
    forced_eos_token_id=2,
    num_beams=4,
    no_repeat_ngram_size=3,
    early_stopping=True,
)


def main() -> None:
    for recipe in sorted(HERE.glob("*/train.yaml")):
        args = HfArgumentParser(ModelArguments).parse_yaml_file(recipe, allow_extra_keys=True)[0]
        args.clip = yaml.safe_load(recipe.read_text(encoding="utf-8"))["clip"]
        write(recipe.parent, args)
        print(recipe.parent.name)


def write(folder: Path, args: ModelArguments) -> None:
    """Write the three files of a folder, for the model of `args`."""
    public = args.clip in CLIP
    config = vlkd_config(args)
    config.architectures = ["VLKDForConditionalGeneration"]
    generation = default_generation_config(config.text_config)
    images = CLIPImageProcessor() if public else AutoImageProcessor.from_pretrained(args.clip)
    tokenizer = AutoTokenizer.from_pretrained(TEACHERS / "bart")  # any: processor_config.json does not depend on it
    files = {
        "config.json": config.to_diff_dict(),
        "generation_config.json": generation.to_diff_dict(),
        "processor_config.json": json.loads(VLKDProcessor(images, tokenizer).to_json_string()),
    }
    for name, values in files.items():
        for key in ("auto_map", "custom_pipelines"):  # they name code, which these folders do not have
            values.pop(key, None)
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(f"{text}\n", encoding="utf-8")


def vlkd_config(args: ModelArguments) -> VLKDConfig:
    """The config of the two joined checkpoints; the public ones are not downloaded."""
    options = {name: value for name, value in vars(args).items() if name in VLKDConfig.__annotations__}
    if args.clip in CLIP:
        clip, bart = CLIP[args.clip], BART[args.bart]
        options |= {"logit_scale_init_value": CLIP_LOGIT_SCALE, "base_models": [args.clip, args.bart]}
        options["text_generation_config"] = as_plain_dict(BART_GENERATION)
    else:
        clip, bart = AutoConfig.from_pretrained(args.clip), AutoConfig.from_pretrained(args.bart)
        with safe_open(Path(args.clip, "model.safetensors"), "pt") as weights:
            options["logit_scale_init_value"] = weights.get_tensor("logit_scale").float().item()
        options["text_generation_config"] = as_plain_dict(GenerationConfig.from_pretrained(args.bart))
        options["mask_token_id"] = AutoTokenizer.from_pretrained(args.bart).mask_token_id
    return VLKDConfig(
        vision_config=clip.vision_config, text_config=bart, projection_dim=clip.projection_dim, **options
    )


if __name__ == "__main__":
    main()
