"""Load a VLKD checkpoint, and CLIP's text tower, the teacher."""

import argparse
import copy

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd.conversion_vlkd import check_checkpoint, load_part
from modeling_vlkd.processing_vlkd import has_vocabulary
from trainer.data.paths import is_missing_path
from trainer.precision import fastest_dtype, find_device

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
SAME = 0.01  # of a weight's norm: rounding to bfloat16 changes it by a tenth of that


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype, which `read_device_options` reads."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto: the GPU, if there is one")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 where the device is fast at it, else float32"
    )


def read_device_options(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that the options choose.

    `auto` chooses bfloat16 where the device multiplies matrices faster in it. That suits models of real size; one as
    small as the microworld's can be slower in it.

    Raises:
        ValueError: there is no such device.
    """
    device = find_device(args.device)
    return device, fastest_dtype(device) if args.dtype == "auto" else getattr(torch, args.dtype)


def load_vlkd(
    name: str, option: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Model, on `device` and in `dtype`, and processor of a folder or Hub name.

    A PEFT adapter is merged into its base model.

    Raises:
        ValueError: `name` is no VLKD checkpoint; the message names the `option` that gave it.
    """
    if is_missing_path(name):
        raise ValueError(f"{option}: '{name}' is no VLKD checkpoint: it does not exist.")
    adapter = None
    try:
        if find_adapter_config_file(name):
            from peft import PeftConfig, PeftModel  # only an adapter needs this optional dependency

            adapter, name = name, PeftConfig.from_pretrained(name).base_model_name_or_path
        config = VLKDConfig.from_pretrained(name)  # of no other type: transformers would make random weights of it
        model = VLKDForConditionalGeneration.from_pretrained(name, config=config, dtype=dtype)
        processor = VLKDProcessor.from_pretrained(name)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        words, known = len(processor.tokenizer), config.text_config.vocab_size
        if words > known:
            raise ValueError(f"its tokenizer knows {words} tokens, the model {known}.")
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each library has its own kinds for a broken file
        reason = " ".join(str(error).split("\n")[:2])  # a few span lines: what, and which value
        of = "" if adapter is None else f", the base model of the adapter '{adapter}',"
        raise ValueError(f"{option}: '{name}'{of} is no VLKD checkpoint that can be read: {reason}") from error
    return model.to(device), processor


def load_teacher(clip: str) -> tuple[CLIPTextModelWithProjection, PreTrainedTokenizerBase]:
    """CLIP's frozen text tower, in float32, and its tokenizer, which cuts captions to what the tower can read.

    Raises:
        ValueError: there is no such checkpoint, its weights are missing or cannot be read, or it has no tokenizer.
    """
    check_checkpoint("clip", clip, "clip")
    try:
        tokenizer = AutoTokenizer.from_pretrained(clip)
    except Exception as error:  # each library has its own kinds for a broken file
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`clip`='{clip}' has no tokenizer that can be read: {reason}") from error
    if not has_vocabulary(tokenizer):  # transformers makes an empty one where the files are missing
        raise ValueError(f"`clip`='{clip}' has no tokenizer; put its tokenizer.json into the folder.")
    both_towers = load_part(CLIPModel, "clip", clip, torch.float32)
    config = copy.deepcopy(both_towers.config.text_config)
    config.projection_dim = both_towers.config.projection_dim  # a tower's own config may hold another number
    with torch.device("meta"):
        teacher = CLIPTextModelWithProjection(config)
    teacher.text_model, teacher.text_projection = both_towers.text_model, both_towers.text_projection
    teacher.eval().requires_grad_(False)
    tokenizer.model_max_length = min(tokenizer.model_max_length, teacher.config.max_position_embeddings)
    return teacher, tokenizer


@torch.no_grad()
def check_same_clip(clip: str, model: PreTrainedModel) -> None:
    """Raise a ValueError unless the model's frozen CLIP is the one at `clip`, up to rounding to 16 bits.

    The images and the teacher's captions would be in two different spaces.
    """
    theirs = dict(load_part(CLIPModel, "clip", clip, torch.float32).named_parameters())
    for name, ours in model.named_parameters():
        if not name.startswith(("vision_model.", "visual_projection.", "logit_scale")):
            continue
        other = theirs[name].reshape(ours.shape) if name == "logit_scale" else theirs.get(name)
        same_shape = other is not None and other.shape == ours.shape
        if not same_shape or (ours.cpu().float() - other).norm() > SAME * other.norm():
            raise ValueError(
                f"`clip`='{clip}' is not the CLIP that the model was made from: {name} differs. Name that one; the "
                f"model's config says {model.config.base_models or 'nothing of it'}."
            )


def teacher_name(clip: str | None, config: VLKDConfig) -> str:
    """The CLIP checkpoint whose text tower teaches: `clip`, or the one that a model of this config was made from.

    Raises:
        ValueError: neither is known.
    """
    if clip is None and not config.base_models:
        raise ValueError(
            "clip is not set, and the model's config names no base_models; set clip to the CLIP checkpoint that the "
            "model was made from."
        )
    return clip or config.base_models[0]


def check_teacher(teacher: CLIPTextModelWithProjection, model: PreTrainedModel, clip: str) -> None:
    """Raise a ValueError if the teacher of checkpoint `clip` does not embed in the model's space.

    A model that was joined from another CLIP is found by its weights, even if both have the same `projection_dim`.
    """
    if teacher.config.projection_dim != model.config.projection_dim:
        raise ValueError(
            f"clip: '{clip}' embeds in {teacher.config.projection_dim} dimensions, the model in "
            f"{model.config.projection_dim}; set clip to the CLIP checkpoint that the model was made from."
        )
    if clip not in (model.config.base_models or ()):
        check_same_clip(clip, model)


@torch.no_grad()
def teacher_embeds(teacher: CLIPTextModelWithProjection, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """t: (batch, projection_dim), unit norm, float32."""
    embeds = teacher(input_ids=input_ids, attention_mask=attention_mask).text_embeds
    return torch.nn.functional.normalize(embeds.float(), dim=-1)
