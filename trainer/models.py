"""Load a VLKD checkpoint, and the teacher: CLIP's text tower."""

import copy
import hashlib
from pathlib import Path

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

TOLERANCE = 0.01  # relative to a weight's norm; rounding to bfloat16 changes it by a tenth of that


def load_vlkd(
    name: str, option: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """The model and processor of a folder or Hub name. A PEFT adapter is merged into its base model.

    Args:
        name: the folder or Hub name.
        option: the option that gave `name`, for messages.
        device, dtype: device and dtype of the model.

    Raises:
        ValueError: `name` is not a VLKD checkpoint, or cannot be read.
    """
    if is_missing_path(name):
        raise ValueError(f"{option}: '{name}' is not a VLKD checkpoint: it does not exist.")
    adapter = None
    try:
        if find_adapter_config_file(name):
            from peft import PeftConfig, PeftModel  # only an adapter needs this optional dependency

            adapter, name = name, PeftConfig.from_pretrained(name).base_model_name_or_path
        config = VLKDConfig.from_pretrained(name)  # raises for another model type
        model = VLKDForConditionalGeneration.from_pretrained(name, config=config, dtype=dtype)
        processor = VLKDProcessor.from_pretrained(name)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        words, known = len(processor.tokenizer), config.text_config.vocab_size
        if words > known:
            raise ValueError(f"its tokenizer has {words} tokens, the model {known}.")
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each library raises its own types for a broken file
        reason = " ".join(str(error).split("\n")[:2])  # some messages are long
        of = "" if adapter is None else f", the base model of the adapter '{adapter}',"
        raise ValueError(f"{option}: '{name}'{of} is not a VLKD checkpoint that can be read: {reason}") from error
    return model.to(device), processor


def weights_digest(folder: str | Path) -> str | None:
    """A short hash of the weights in a folder; None if there are none."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("*.safetensors"))
    for file in files:
        with file.open("rb") as weights:
            digest.update(hashlib.file_digest(weights, "sha256").digest())
    return digest.hexdigest()[:16] if files else None


def teacher_name(clip: str | None, config: VLKDConfig) -> str:
    """The CLIP checkpoint of the teacher: `clip`, or else the one in the config of the model.

    Raises:
        ValueError: neither is known.
    """
    if clip is None and not config.base_models:
        raise ValueError(
            "clip is not set, and the model's config has no base_models; set clip to the CLIP checkpoint that the "
            "model was made from."
        )
    return clip or config.base_models[0]


def load_teacher(
    clip: str, model: PreTrainedModel | None = None
) -> tuple[CLIPTextModelWithProjection, PreTrainedTokenizerBase]:
    """CLIP's frozen text tower, in float32, and its tokenizer, which truncates captions to the tower's length.

    Args:
        clip: Hub name or folder of a `CLIPModel`.
        model: the student, which must have been made from the same CLIP.

    Raises:
        ValueError: there is no such checkpoint, it cannot be read, or it is not the CLIP of `model`.
    """
    check_checkpoint("clip", clip, "clip")
    try:
        tokenizer = AutoTokenizer.from_pretrained(clip)
    except Exception as error:  # each library raises its own types for a broken file
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`clip`='{clip}' has no tokenizer that can be read: {reason}") from error
    if not has_vocabulary(tokenizer):  # transformers makes an empty one if the files are missing
        raise ValueError(f"`clip`='{clip}' has no tokenizer; put its tokenizer.json into the folder.")
    both_towers = load_part(CLIPModel, "clip", clip, torch.float32)
    if model is not None and clip not in (model.config.base_models or ()):
        _check_same_clip(both_towers, model, clip)
    config = copy.deepcopy(both_towers.config.text_config)
    config.projection_dim = both_towers.config.projection_dim  # the text config may hold another value
    with torch.device("meta"):
        teacher = CLIPTextModelWithProjection(config)
    teacher.text_model, teacher.text_projection = both_towers.text_model, both_towers.text_projection
    teacher.eval().requires_grad_(False)
    tokenizer.model_max_length = min(tokenizer.model_max_length, teacher.config.max_position_embeddings)
    return teacher, tokenizer


@torch.no_grad()
def _check_same_clip(clip: CLIPModel, model: PreTrainedModel, name: str) -> None:
    """Raise a ValueError unless the model has the vision tower of `clip`, up to rounding to 16 bits.

    Otherwise images and the teacher's embeddings would be in two different spaces.
    """
    if next(model.parameters(), None) is None:  # an export, which may be rounded to 8 bits
        pixels = torch.ones(1, 3, *[clip.config.vision_config.image_size] * 2)
        ours, theirs = (part.get_image_features(pixels).pooler_output for part in (model, clip))
        if ours.shape != theirs.shape or torch.cosine_similarity(ours, theirs).item() < 0.9:
            raise ValueError(f"clip: '{name}' is not the CLIP that the model was made from. Set clip to that one.")
    parameters = dict(clip.named_parameters())
    for key, ours in model.named_parameters():
        if not key.startswith(("vision_model.", "visual_projection.", "logit_scale")):
            continue
        theirs = parameters[key].reshape(ours.shape) if key == "logit_scale" else parameters.get(key)
        same_shape = theirs is not None and theirs.shape == ours.shape
        if not same_shape or (ours.cpu().float() - theirs).norm() > TOLERANCE * theirs.norm():
            raise ValueError(
                f"clip: '{name}' is not the CLIP that the model was made from: {key} differs. Set clip to that one; "
                f"the model's config names {model.config.base_models or 'none'}."
            )


@torch.no_grad()
def teacher_embeds(teacher: CLIPTextModelWithProjection, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """t: (batch, projection_dim), unit norm, float32."""
    embeds = teacher(input_ids=input_ids, attention_mask=attention_mask).text_embeds
    return torch.nn.functional.normalize(embeds.float(), dim=-1)
