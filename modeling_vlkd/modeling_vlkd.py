"""The models of VLKD: a dual encoder in CLIP's joint space, and a BART whose decoder also attends to images."""

import copy
import os
from typing import Unpack

import torch
from torch import nn
from transformers import BartForConditionalGeneration, Cache, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_vlkd import VLKDConfig
from .conversion_vlkd import join_checkpoints
from .generation_vlkd import VLKDEncoder, VLKDGenerationMixin, as_plain_dict, default_generation_config
from .processing_vlkd import check_same_number
from .towers_vlkd import VLKDEncoderOutput, VLKDOutput, VLKDPreTrainedModel, VLKDSeq2SeqLMOutput, unit


class VLKDModel(VLKDPreTrainedModel):
    """The dual encoder: embeds images and texts in CLIP's joint space. Loads from every VLKD checkpoint."""

    _keys_to_ignore_on_load_unexpected = [r"^image_projection\.", r"^language_model\.model\.decoder\.layers\."]

    def __init__(self, config: VLKDConfig):
        super().__init__(config)
        self._build_towers()
        del self.language_model.get_decoder().layers[:]  # only the encoder is used
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VLKDOutput | tuple:
        """
        Args:
            input_ids: (texts, text_tokens), BART's ids.
            attention_mask: (texts, text_tokens).
            pixel_values: (images, 3, height, width). The numbers of images and texts may differ.

        Raises:
            ValueError: Neither `input_ids` nor `pixel_values` is given.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("Neither `input_ids` nor `pixel_values` is given; give texts, images, or both.")
        kwargs["return_dict"] = True
        image = text = similarity = None
        if pixel_values is not None:
            image = self.get_image_features(pixel_values, **kwargs)
        if input_ids is not None:
            text = self.get_text_features(input_ids, attention_mask, **kwargs)
        if image is not None and text is not None:
            scaled = self.logit_scale.exp().to(image.pooler_output.device) * image.pooler_output
            similarity = scaled @ text.pooler_output.to(scaled.device).t()  # (images, texts)
        return VLKDOutput(
            logits_per_image=similarity,
            logits_per_text=None if similarity is None else similarity.t(),
            text_embeds=None if text is None else text.pooler_output,
            image_embeds=None if image is None else image.pooler_output,
            text_model_output=text,
            vision_model_output=image,
        )


class VLKDForConditionalGeneration(VLKDPreTrainedModel, VLKDGenerationMixin):
    """
    A BART whose decoder attends to CLIP's image tokens and to the encoder's text states.

    Without an image, its outputs are bitwise identical to those of the BART checkpoint.

    Inputs of `forward`; `encode_multimodal` and `generate` also accept the first five:
        input_ids: (batch, text_tokens), prompts or, with `caption_input_ids`, corrupted captions. Defaults to `<mask>`
            for images.
        attention_mask: (batch, text_tokens), for the text only; the decoder attends to all image tokens.
        pixel_values: (batch, 3, height, width).
        image_features: (batch, image_tokens, d_j), instead of `pixel_values`: `last_hidden_state` of
            `get_image_features`, class token first.
        inputs_embeds: (batch, text_tokens, d_model), instead of `input_ids`.
        decoder_input_ids: (batch, target_tokens). Defaults to `labels`, else `input_ids`, shifted right as in BART.
        decoder_attention_mask: (batch, target_tokens).
        encoder_outputs: Output of `get_encoder()`, instead of image and text.
        past_key_values: The decoder's cache.
        decoder_inputs_embeds: (batch, target_tokens, d_model), instead of `decoder_input_ids`.
        labels: (batch, target_tokens), -100 where ignored; not shifted: `logits[:, i]` predicts `labels[:, i]`.
        caption_input_ids: (batch, caption_tokens), the clean captions, for `text_embeds`.
        caption_attention_mask: (batch, caption_tokens).
        itdd_decoder_input_ids: (rows, itdd_tokens), decoder inputs for `itdd_hidden_states`: the decoder's states
            with one of the first `rows` images and the default prompt as its memory.
        num_items_in_batch: Number by which the summed loss is divided. Defaults to the number of labels of this call.
    """

    def __init__(self, config: VLKDConfig):
        super().__init__(config)
        self._build_towers()
        width, hidden = config.text_config.d_model, config.image_projector_hidden_size
        if config.image_projector == "linear":
            self.image_projection = nn.Linear(config.projection_dim, width, bias=False)  # W_d
        else:
            self.image_projection = nn.Sequential(
                nn.Linear(config.projection_dim, hidden), nn.GELU(), nn.Linear(hidden, width)
            )
        self.generation_config = default_generation_config(config.text_config)
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls,
        clip: str,
        bart: str,
        *,
        image_tokens: str = "all",
        image_projector: str = "mlp",
        projector_init: str = "pinv",
        seed: int = 42,
        dtype: torch.dtype | str = torch.float32,
    ) -> "VLKDForConditionalGeneration":
        """
        Builds a VLKD from a CLIP checkpoint and a BART checkpoint.

        Args:
            clip: Hub name or folder of a `CLIPModel`.
            bart: Hub name or folder of a `BartForConditionalGeneration`, with its tokenizer.
            image_tokens, image_projector: See [`VLKDConfig`].
            projector_init: `"pinv"` initializes W_d as the pseudo-inverse of the orthogonal W_e, `"random"` at random.
            seed: Seed of W_e and of a random W_d. The default equals that of `TrainingArguments`. The global random
                generator is not used.
            dtype: Dtype of all weights. Training requires float32, so that is the default for every checkpoint.

        Raises:
            ValueError: `clip` or `bart` is not a checkpoint of that kind, or an option is unknown.
        """
        config = {"image_tokens": image_tokens, "image_projector": image_projector}
        return join_checkpoints(cls, clip, bart, config, projector_init=projector_init, seed=seed, dtype=dtype)

    def to_bart(self) -> BartForConditionalGeneration:
        """Returns the language model as a plain BART, with a copy of its weights and generation config."""
        return copy.deepcopy(self.language_model)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Same as `PreTrainedModel.save_pretrained`; config.json also stores BART's own generation config."""
        self.config.text_generation_config = as_plain_dict(self.language_model.generation_config)
        super().save_pretrained(save_directory, *args, **kwargs)

    def freeze_language_model(self, part: str) -> None:
        """
        Freezes a part of BART. W_e and W_d stay trainable, and CLIP stays frozen.

        Args:
            part: `"none"`, `"decoder"` (with the head and the embeddings that are tied to it) or `"all"`.
        """
        if part not in ("none", "decoder", "all"):
            raise ValueError(f"`part`={part!r} is unknown; choose one of none, decoder, all.")
        self.language_model.requires_grad_(part != "all")
        if part == "decoder":
            self.language_model.get_decoder().requires_grad_(False)
            self.language_model.get_input_embeddings().requires_grad_(False)
            self.language_model.get_output_embeddings().requires_grad_(False)

    def projection_parameter_names(self) -> set[str]:
        """Returns the names of the parameters of W_e and W_d, as in `named_parameters()`."""
        maps = ("text_projection.", "image_projection.")
        return {name for name, _ in self.named_parameters() if name.startswith(maps)}

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Returns the composite encoder, or with `modality="image"` CLIP's vision tower."""
        return VLKDEncoder(self) if modality is None else super().get_encoder(modality=modality)

    @property
    def text_generation_config(self) -> GenerationConfig:
        """BART's own generation config, for texts without an image."""
        return self.language_model.generation_config

    @text_generation_config.setter
    def text_generation_config(self, config: GenerationConfig) -> None:
        self.language_model.generation_config = config

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        return self.language_model.prepare_decoder_input_ids_from_labels(labels)

    def encode_multimodal(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs,
    ) -> VLKDEncoderOutput:
        """
        Computes the decoder's memory [W_d V ; E(x)]: (batch, image_tokens + text_tokens, d_model).

        Raises:
            ValueError: Neither image nor text, two inputs for one image, or different numbers of images and texts.
        """
        if pixel_values is not None and image_features is not None:
            raise ValueError("`pixel_values` and `image_features` are both given; give one of them.")
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values, return_dict=True).last_hidden_state
        text = input_ids if inputs_embeds is None else inputs_embeds
        if text is None and image_features is None:
            raise ValueError(
                "No image and no text; give `pixel_values`, `image_features`, `input_ids` or `inputs_embeds`."
            )
        if text is None:
            input_ids = text = self.default_prompt(image_features.shape[0])
        if image_features is not None:
            check_same_number(image_features.shape[0], text.shape[0])
        output = self._encode_text(input_ids, attention_mask, inputs_embeds, **kwargs)
        if image_features is None:
            return VLKDEncoderOutput(**output)
        image_features = image_features.to(self.dtype)  # not the projection's dtype: a quantized one holds integers
        image_states, text_states = self.project_images(image_features), output.last_hidden_state
        memory = torch.cat([image_states.to(text_states.device), text_states], dim=1)  # `device_map` may part them
        return VLKDEncoderOutput(**{**output, "last_hidden_state": memory}, image_embeds=unit(image_features[:, 0]))

    def project_images(self, image_features: torch.FloatTensor) -> torch.FloatTensor:
        """V (batch, image_tokens, d_j) -> W_d V of the tokens that the decoder sees, (batch, tokens, d_model)."""
        return self.image_projection(self._visible_tokens(image_features))

    def _visible_tokens(self, image_features: torch.FloatTensor) -> torch.FloatTensor:
        """(batch, tokens, d_j), class token first -> the tokens that the decoder attends to."""
        kind = self.config.image_tokens
        needed = 1 if kind == "pooled" else 1 + self.config.num_patches
        shape = tuple(image_features.shape)
        if len(shape) != 3 or shape[1] < needed or shape[2] != self.config.projection_dim:
            raise ValueError(
                f"`image_features` has shape {shape}; `image_tokens`={kind!r} requires (batch, {needed}, "
                f"{self.config.projection_dim}), as returned by `get_image_features(pixel_values).last_hidden_state`."
            )
        return {"all": image_features, "patch": image_features[:, 1:], "pooled": image_features[:, :1]}[kind]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        caption_input_ids: torch.LongTensor | None = None,
        caption_attention_mask: torch.Tensor | None = None,
        itdd_decoder_input_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> VLKDSeq2SeqLMOutput | tuple:
        """See the class for the inputs. Raises a ValueError for invalid ones (see `encode_multimodal`)."""
        text_embeds = None
        if caption_input_ids is not None:  # first, so that its dropout masks do not depend on the other inputs
            caption = self.get_text_features(caption_input_ids, caption_attention_mask, return_dict=True)
            text_embeds = caption.pooler_output
        if encoder_outputs is None:
            encoder_outputs = self.encode_multimodal(
                input_ids, attention_mask, pixel_values, image_features, inputs_embeds, **kwargs
            )
        memory = encoder_outputs[0]
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            targets = input_ids if labels is None else labels
            targets = self.default_prompt(memory.shape[0]) if targets is None else targets
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(targets)
        self._check_length(
            labels=labels, decoder_input_ids=decoder_input_ids, decoder_inputs_embeds=decoder_inputs_embeds
        )
        output = self.language_model(
            attention_mask=_memory_mask(memory, attention_mask),
            encoder_outputs=encoder_outputs,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache if labels is None else False,
            return_dict=True,
            **kwargs,
        )
        itdd_hidden_states = None
        if itdd_decoder_input_ids is not None:
            itdd_hidden_states = self._itdd_hidden_states(memory, input_ids, itdd_decoder_input_ids)
        return VLKDSeq2SeqLMOutput(
            **{**output, "loss": _language_modeling_loss(output.logits, labels, num_items_in_batch)},
            image_embeds=getattr(encoder_outputs, "image_embeds", None),
            text_embeds=text_embeds,
            itdd_hidden_states=itdd_hidden_states,
        )

    def _itdd_hidden_states(self, memory, input_ids, decoder_input_ids) -> tuple[torch.FloatTensor, ...]:
        """Returns the hidden states of the decoder's layers on the first images of `memory` and the default prompt."""
        rows = decoder_input_ids.shape[0]
        prompt = self._encode_text(self.default_prompt(rows)).last_hidden_state
        text_tokens = prompt.shape[1] if input_ids is None else input_ids.shape[1]
        image_states = memory[:rows, : memory.shape[1] - text_tokens]  # (rows, image_tokens, d_model)
        output = self.language_model.model(  # without the head: no logits are needed
            encoder_outputs=(torch.cat([image_states, prompt], dim=1),),
            decoder_input_ids=decoder_input_ids,
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
        )
        return output.decoder_hidden_states[1:]  # without the embeddings


def _memory_mask(memory: torch.FloatTensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """(batch, text_tokens) -> (batch, image_tokens + text_tokens), with ones for the image tokens."""
    if attention_mask is None or attention_mask.dim() != 2:
        return attention_mask
    image_tokens = memory.shape[1] - attention_mask.shape[1]
    return torch.cat([attention_mask.new_ones(attention_mask.shape[0], image_tokens), attention_mask], dim=1)


def _language_modeling_loss(logits, labels=None, num_items_in_batch=None) -> torch.FloatTensor | None:
    """Cross-entropy over the labels that are not -100: their mean, or their sum divided by `num_items_in_batch`."""
    if labels is None:
        return None
    logits, labels = logits.flatten(0, 1).float(), labels.to(logits.device).flatten()  # fp16 overflows in the sum
    if num_items_in_batch is None:
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
