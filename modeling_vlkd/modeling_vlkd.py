"""VLKD: CLIP's image tokens and BART's text states in one decoder memory, CLIP's joint space on BART's encoder."""

import copy
import os
from typing import Unpack

import torch
from torch import nn
from transformers import BartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_vlkd import VLKDConfig
from .conversion_vlkd import join_checkpoints
from .generation_vlkd import (
    VLKDEncoder,
    VLKDGenerationMixin,
    as_plain_dict,
    check_same_number,
    default_generation_config,
    encoder_prompts,
)
from .outputs_vlkd import VLKDEncoderOutput, VLKDOutput, VLKDSeq2SeqLMOutput
from .towers_vlkd import VLKDPreTrainedModel, unit


class VLKDModel(VLKDPreTrainedModel):
    """The dual encoder: images and texts in CLIP's joint space. It loads from any VLKD checkpoint."""

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
            pixel_values: (images, 3, height, width); images and texts need not be equally many.

        Raises:
            ValueError: neither `input_ids` nor `pixel_values` is given.
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
            similarity = self.logit_scale.exp() * image.pooler_output @ text.pooler_output.t()  # (images, texts)
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
    BART that also sees: its decoder attends to CLIP's image tokens and to the encoder's text states.

    Without an image it is exactly the BART it was made from.
    """

    def __init__(self, config: VLKDConfig):
        super().__init__(config)
        self._build_towers()
        width, hidden = config.image_token_expansion * config.text_config.d_model, config.image_projector_hidden_size
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
        image_projector: str = "linear",
        image_token_expansion: int = 1,
        patch_attention: str = "global",
        prompt_in_encoder: bool = True,
        projector_init: str = "pinv",
        seed: int = 0,
        dtype: torch.dtype | str = torch.float32,
    ) -> "VLKDForConditionalGeneration":
        """
        Joins a CLIP checkpoint and a BART checkpoint.

        Args:
            clip: Hub name or folder of a `CLIPModel`.
            bart: Hub name or folder of a `BartForConditionalGeneration`, with its tokenizer.
            image_tokens: see [`VLKDConfig`].
            image_projector: see [`VLKDConfig`].
            image_token_expansion: see [`VLKDConfig`].
            patch_attention: see [`VLKDConfig`].
            prompt_in_encoder: see [`VLKDConfig`].
            projector_init: `"pinv"`: W_d starts as the pseudo-inverse of the orthogonal W_e; `"random"`: at random.
            seed: draws W_e (and a random W_d); the global generator is left alone.
            dtype: of all weights; training starts here, hence float32 whatever the checkpoints are saved in.

        Raises:
            ValueError: `clip` or `bart` is no checkpoint, or one of another kind; an option is unknown.
        """
        config = {
            "image_tokens": image_tokens,
            "image_projector": image_projector,
            "image_token_expansion": image_token_expansion,
            "patch_attention": patch_attention,
            "prompt_in_encoder": prompt_in_encoder,
        }
        return join_checkpoints(cls, clip, bart, config, projector_init=projector_init, seed=seed, dtype=dtype)

    def to_bart(self) -> BartForConditionalGeneration:
        """The language model alone: a plain BART with its own copy of the weights and of its generation config."""
        return copy.deepcopy(self.language_model)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """As every model's. BART's own generation config is saved in config.json, the model's beside it."""
        self.config.text_generation_config = as_plain_dict(self.language_model.generation_config)
        super().save_pretrained(save_directory, **kwargs)

    def freeze_language_model(self, part: str) -> None:
        """
        Chooses what of BART learns; the two maps always do, CLIP never does.

        Args:
            part: `"none"`; `"decoder"` (with the head and the embeddings tied to it; the encoder learns); `"all"`.

        Raises:
            ValueError: `part` is none of these.
        """
        if part not in ("none", "decoder", "all"):
            raise ValueError(f"`part`={part!r} is unknown; choose one of none, decoder, all.")
        self.language_model.requires_grad_(part != "all")
        if part == "decoder":
            self.language_model.get_decoder().requires_grad_(False)
            self.language_model.get_input_embeddings().requires_grad_(False)
            self.language_model.get_output_embeddings().requires_grad_(False)

    def projection_parameter_names(self) -> set[str]:
        """Names, as in `named_parameters()`, of the parameters of W_e and W_d."""
        maps = ("text_projection.", "image_projection.")
        return {name for name, _ in self.named_parameters() if name.startswith(maps)}

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The composite encoder; with `modality="image"`, CLIP's vision tower."""
        return VLKDEncoder(self) if modality is None else super().get_encoder(modality=modality)

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
        *,
        whole_text: bool = False,
        **kwargs,
    ) -> VLKDEncoderOutput:
        """
        The decoder's memory [W_d V ; E(x)]: (batch, image_tokens + text_tokens, d_model). Arguments as in `forward`.

        With an image and `config.prompt_in_encoder=False`, `input_ids` is a prompt of which the encoder reads only the
        part from `<mask>` on; `whole_text=True` reads all of it, as a corrupted caption is read.

        Raises:
            ValueError: no image and no text, two sources of one image, or not as many images as texts.
        """
        if pixel_values is not None and image_features is not None:
            raise ValueError("`pixel_values` and `image_features` are both given; give one of them.")
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values, return_dict=True).last_hidden_state
        text = input_ids if inputs_embeds is None else inputs_embeds
        if text is None and image_features is None:
            raise ValueError(
                "Neither an image nor a text is given; give `pixel_values`, `image_features`, `input_ids` or "
                "`inputs_embeds`."
            )
        if text is None:
            input_ids = text = self.default_prompt(image_features.shape[0])
        if image_features is not None:
            check_same_number(image_features, text)
        is_cut = not (self.config.prompt_in_encoder or whole_text or image_features is None or input_ids is None)
        if is_cut:
            input_ids, attention_mask = encoder_prompts(self.config, input_ids, attention_mask)
        output = self._encode_text(input_ids, attention_mask, inputs_embeds, **kwargs)
        if image_features is None:
            return VLKDEncoderOutput(**output)
        image_features = image_features.to(self.dtype)  # a cache may hold half precision, a quantised map integers
        seen = self.image_projection(self._visible_tokens(image_features))
        seen = seen.reshape(seen.shape[0], -1, self.config.text_config.d_model)  # (batch, seen_tokens, d_model)
        memory = torch.cat([seen, output.last_hidden_state], dim=1)
        return VLKDEncoderOutput(
            **{**output, "last_hidden_state": memory},
            image_embeds=unit(image_features[:, 0]),
            memory_mask=_memory_mask(memory, attention_mask) if is_cut else None,
        )

    def _visible_tokens(self, image_features: torch.FloatTensor) -> torch.FloatTensor:
        """(batch, tokens, d_j), class token first -> those tokens that the decoder sees."""
        kind, vision = self.config.image_tokens, self.config.vision_config
        needed = 1 if kind == "pooled" else 1 + (vision.image_size // vision.patch_size) ** 2
        shape = tuple(image_features.shape)
        if len(shape) != 3 or shape[1] < needed or shape[2] != self.config.projection_dim:
            raise ValueError(
                f"`image_features` has shape {shape}; `image_tokens`={kind!r} needs (batch, {needed}, "
                f"{self.config.projection_dim}), as `get_image_features(pixel_values).last_hidden_state` gives."
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
        past_key_values=None,
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
        """
        Args:
            input_ids: (batch, text_tokens), the prompt or, with `caption_input_ids`, the corrupted caption. An image
                without one gets `<mask>`.
            attention_mask: (batch, text_tokens), of the text alone; image tokens are always seen.
            pixel_values: (batch, 3, height, width).
            image_features: (batch, image_tokens, d_j), in place of `pixel_values`: what `get_image_features` gave as
                `last_hidden_state`, class token first.
            decoder_input_ids: (batch, target_tokens). Default: `labels`, else `input_ids`, shifted right as in BART.
            decoder_attention_mask: (batch, target_tokens).
            encoder_outputs: what `get_encoder()` gave, in place of image and text.
            past_key_values: the decoder's cache.
            inputs_embeds: (batch, text_tokens, d_model), in place of `input_ids`.
            decoder_inputs_embeds: (batch, target_tokens, d_model), in place of `decoder_input_ids`.
            labels: (batch, target_tokens), -100 where ignored; not shifted: `logits[:, i]` predicts `labels[:, i]`.
            caption_input_ids: (batch, caption_tokens), the clean caption, for `text_embeds`.
            caption_attention_mask: (batch, caption_tokens).
            itdd_decoder_input_ids: (batch, itdd_tokens), any text, for `itdd_hidden_states`: the decoder's, where it
                has written this and attends to the image and the default prompt.
            num_items_in_batch: number of labels the loss is the mean of, where not those of this call.

        Raises:
            ValueError: see `encode`; or `attention_mask` is longer than the memory.
        """
        text_embeds = None
        if caption_input_ids is not None:  # first, so that its dropout does not hang on what else the call computes
            caption = self.get_text_features(caption_input_ids, caption_attention_mask, return_dict=True)
            text_embeds = caption.pooler_output
        if encoder_outputs is None:
            encoder_outputs = self.encode_multimodal(
                input_ids,
                attention_mask,
                pixel_values,
                image_features,
                inputs_embeds,
                whole_text=caption_input_ids is not None,
                **kwargs,
            )
        memory_mask = getattr(encoder_outputs, "memory_mask", None)
        if memory_mask is None:
            memory_mask = _memory_mask(encoder_outputs[0], attention_mask)
        if input_ids is None and labels is None and decoder_input_ids is None and decoder_inputs_embeds is None:
            input_ids = self.default_prompt(encoder_outputs[0].shape[0])
        self._check_length(labels=labels, decoder_input_ids=decoder_input_ids)
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        output = self.language_model(
            input_ids=input_ids,
            attention_mask=memory_mask,
            encoder_outputs=encoder_outputs,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            decoder_inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        loss = None
        if labels is not None:
            loss = _language_modelling_loss(output.logits, labels, num_items_in_batch)
        itdd_hidden_states = None
        if itdd_decoder_input_ids is not None:
            itdd_hidden_states = self._read(encoder_outputs[0], input_ids.shape[1], itdd_decoder_input_ids)
        image_embeds = getattr(encoder_outputs, "image_embeds", None)
        embeds = {"image_embeds": image_embeds, "text_embeds": text_embeds}
        return VLKDSeq2SeqLMOutput(**{**output, "loss": loss}, **embeds, itdd_hidden_states=itdd_hidden_states)

    def _read(self, memory, text_tokens: int, decoder_input_ids) -> tuple[torch.FloatTensor, ...]:
        """The decoder's states of each layer at the image of `memory` and the default prompt."""
        prompt = self._encode_text(self.default_prompt(len(memory))).last_hidden_state
        seen = memory[:, : memory.shape[1] - text_tokens]  # (batch, seen_tokens, d_model)
        output = self.language_model.model(  # without the head, for no word is predicted
            encoder_outputs=(torch.cat([seen, prompt], dim=1),),
            decoder_input_ids=decoder_input_ids,
            output_hidden_states=True,
            use_cache=False,
            return_dict=True,
        )
        return output.decoder_hidden_states[1:]  # without the embeddings


def _memory_mask(memory: torch.FloatTensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """(batch, text_tokens) -> (batch, image_tokens + text_tokens): ones for the image tokens before the text."""
    if attention_mask is None or attention_mask.dim() != 2:
        return attention_mask
    image_tokens = memory.shape[1] - attention_mask.shape[1]
    if image_tokens < 0:
        raise ValueError(
            f"`attention_mask` covers {attention_mask.shape[1]} tokens, but the decoder's memory has only "
            f"{memory.shape[1]}; give the mask of the text that `input_ids` or `encoder_outputs` holds."
        )
    return torch.cat([attention_mask.new_ones(attention_mask.shape[0], image_tokens), attention_mask], dim=1)


def _language_modelling_loss(logits, labels, num_items_in_batch=None) -> torch.FloatTensor:
    """Cross-entropy over the labels that are not -100: their mean, or their sum over `num_items_in_batch`."""
    logits, labels = logits.flatten(0, 1), labels.to(logits.device).flatten()
    if num_items_in_batch is None:
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
