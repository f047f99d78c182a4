"""The base class of both models, with CLIP's frozen vision tower and BART, and the output classes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn
from transformers import BartForConditionalGeneration, CLIPVisionModel, GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, Seq2SeqLMOutput
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .card_vlkd import TEMPLATE, TRANSFORMERS_CARD, model_card
from .configuration_vlkd import VLKDConfig
from .loading_vlkd import check_weights, load_with_info


@dataclass
class VLKDOutput(ModelOutput):
    """
    Output of [`VLKDModel`], in the field order of `CLIPModel`'s.

    Args:
        logits_per_image: (images, texts), similarities times CLIP's temperature factor; None unless both are given.
        logits_per_text: (texts, images), the transpose.
        text_embeds: (texts, d_j), unit norm: BART's sentence embeddings in the joint space; None without texts.
        image_embeds: (images, d_j), unit norm: CLIP's image embeddings; None without images.
        text_model_output: Output of `get_text_features`.
        vision_model_output: Output of `get_image_features`.
    """

    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        """As in `CLIPModel`, the two inner outputs become tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class VLKDEncoderOutput(BaseModelOutput):
    """
    Output of the composite encoder.

    Args:
        last_hidden_state: (batch, image_tokens + text_tokens, d_model), the decoder's memory [W_d V ; E(x)].
        image_embeds: (batch, d_j), unit norm; None without images.
    """

    image_embeds: torch.FloatTensor | None = None


@dataclass
class VLKDSeq2SeqLMOutput(Seq2SeqLMOutput):
    """
    Output of [`VLKDForConditionalGeneration`]: BART's, and the embeddings.

    Args:
        loss: Scalar language modeling loss; None without `labels`.
        logits: (batch, target_tokens, vocab_size); `logits[:, i]` predicts `labels[:, i]`.
        encoder_last_hidden_state: (batch, image_tokens + text_tokens, d_model), the decoder's memory.
        image_embeds: (batch, d_j), unit norm: CLIP's image embeddings; None without images.
        text_embeds: (batch, d_j), unit norm: embeddings of the captions; None without `caption_input_ids`.
        itdd_hidden_states: The decoder's hidden states on the image, one (rows, itdd_tokens, d_model) for each layer;
            None without `itdd_decoder_input_ids`.
    """

    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    itdd_hidden_states: tuple[torch.FloatTensor, ...] | None = None


class VLKDPreTrainedModel(PreTrainedModel):
    """Base class of both models: loading and freezing, and the image and text encoders."""

    config: VLKDConfig
    config_class = VLKDConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["CLIPEncoderLayer", "BartEncoderLayer", "BartDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs,
    ) -> Any:
        """
        Same as `PreTrainedModel.from_pretrained`, but missing weights and weights of another shape are errors.

        `ignore_mismatched_sizes=True` initializes them at random; `output_loading_info=True` does so for missing ones.

        Raises:
            ValueError: The weights do not match the config (the message names them), or a file cannot be read.
        """
        name = pretrained_model_name_or_path
        model, info = load_with_info(super().from_pretrained, name, *args, **kwargs)
        if name is not None and not ignore_mismatched_sizes:
            checked = {**info, "missing_keys": ()} if output_loading_info else info
            check_weights(name, checked, "; `ignore_mismatched_sizes=True` initializes these at random")
        return (model, info) if output_loading_info else model

    def _upload_modified_files(self, working_dir: str, repo_id: str, *args, **kwargs):
        """`push_to_hub` calls this: replaces the model card that transformers generates with ours."""
        card = Path(working_dir, "README.md")
        if TEMPLATE.is_file() and TRANSFORMERS_CARD in card.read_text(encoding="utf-8"):
            card.write_text(model_card(self.config, repo_id, self.config.base_models), encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _build_towers(self) -> None:
        config, text_config = self.config, self.config.text_config
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.language_model = BartForConditionalGeneration(text_config)
        if config.text_generation_config is not None:
            self.language_model.generation_config = GenerationConfig.from_dict(config.text_generation_config)
        self.text_projection = nn.Linear(text_config.d_model, config.projection_dim, bias=False)  # W_e
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
        self.train(self.training)  # freezes CLIP

    def post_init(self) -> None:
        super().post_init()
        # `Trainer` warns about tied weights as missing when it resumes, unless they are in this set.
        self._keys_to_ignore_on_save |= set(self.all_tied_weights_keys)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    def train(self, mode: bool = True) -> "VLKDPreTrainedModel":
        """
        Same as `nn.Module.train`, but CLIP's tower, projection and temperature stay frozen and in eval mode.

        Loading a checkpoint makes every parameter trainable and then calls `eval()`, so this method freezes CLIP.

        Raises:
            ValueError: `mode` is True and PEFT has added adapters to CLIP, which would not be trained.
        """
        if mode:
            _check_no_adapter(self.vision_model, "vision_model")
            _check_no_adapter(self.visual_projection, "visual_projection")
        super().train(mode)
        self.vision_model.eval()
        for part in (self.vision_model, self.visual_projection, self.logit_scale):
            part.requires_grad_(False)
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Same as BART's method, which also resizes `final_logits_bias`."""
        embeddings = self.language_model.resize_token_embeddings(*args, **kwargs)
        self.vocab_size = self.config.text_config.vocab_size  # transformers' method sets it too
        return embeddings

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Computes CLIP's image tokens and embedding.

        Args:
            pixel_values: (images, 3, height, width).

        Returns:
            `last_hidden_state` (images, image_tokens, d_j): V, every token in the joint space, class token first;
            `pooler_output` (images, d_j), unit norm: v, CLIP's image embedding;
            `hidden_states` and `attentions` of CLIP's layers, if requested.
        """
        # With gradient checkpointing, CLIP's embeddings require a gradient although all its parameters are frozen.
        needs_grad = pixel_values.requires_grad or any(p.requires_grad for p in self.vision_model.parameters())
        with torch.set_grad_enabled(needs_grad and torch.is_grad_enabled()):
            output = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
            states = self.vision_model.post_layernorm(output.last_hidden_state)
        tokens = self.visual_projection(states)  # (images, image_tokens, d_j)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=unit(tokens[:, 0]),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Computes the states of BART's encoder and the sentence embedding.

        Args:
            input_ids: (texts, text_tokens), with `<s>` first.
            attention_mask: (texts, text_tokens), 0 at padding, on either side.

        Returns:
            `last_hidden_state` (texts, text_tokens, d_model): E(x);
            `pooler_output` (texts, d_j), unit norm: s, the state at `<s>` mapped to the joint space;
            `hidden_states` and `attentions` of the encoder's layers, if requested.
        """
        output = self._encode_text(input_ids, attention_mask, **kwargs)
        states = output.last_hidden_state
        first = torch.zeros_like(input_ids[:, 0]) if attention_mask is None else left_padding(attention_mask)
        rows = torch.arange(states.shape[0], device=states.device)
        start = states[rows, first.to(states.device)]  # (texts, d_model)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=unit(self.text_projection(start)),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _encode_text(self, input_ids, attention_mask=None, inputs_embeds=None, **kwargs) -> BaseModelOutput:
        """
        Computes E(x), with padding on either side.

        BART counts positions from the left, so left-padded rows are rolled to the left and their states rolled back.
        """
        self._check_length(input_ids=input_ids, inputs_embeds=inputs_embeds)
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        encoder = self.language_model.get_encoder()
        if attention_mask is None or attention_mask.dim() != 2:
            return encoder(**inputs, return_dict=True, **kwargs)
        shift = left_padding(attention_mask)
        inputs = {name: _roll(value, shift) for name, value in inputs.items()}
        output = encoder(**inputs, return_dict=True, **kwargs)
        output.last_hidden_state = _roll(output.last_hidden_state, -shift)
        if output.hidden_states is not None:  # None for layers that `output_hidden_states` does not select
            output.hidden_states = tuple(
                None if states is None else _roll(states, -shift) for states in output.hidden_states
            )
        if output.attentions is not None:
            output.attentions = tuple(_roll_attentions(weights, -shift) for weights in output.attentions)
        return output

    def _check_length(self, **tokens: torch.Tensor | None) -> None:
        """Raises a ValueError if (batch, tokens, ...) has more tokens than BART has positions."""
        limit = self.config.text_config.max_position_embeddings
        for name, value in tokens.items():
            if value is not None and value.shape[1] > limit:
                raise ValueError(
                    f"`{name}` has {value.shape[1]} tokens, but BART has `max_position_embeddings`={limit}; shorten "
                    "the text, or pass `truncation=True` to the processor."
                )


def _check_no_adapter(part: nn.Module, name: str) -> None:
    adapted = [inner for inner, module in part.named_modules() if hasattr(module, "adapter_layer_names")]  # PEFT's
    if adapted:
        raise ValueError(
            f"The adapter has {len(adapted)} layers on CLIP (first {'.'.join([name, adapted[0]]).rstrip('.')}), which "
            "is frozen; add `exclude_modules=r'(vision_model|visual_projection)(\\..*)?'` to PEFT's config."
        )


def unit(vectors: torch.FloatTensor) -> torch.FloatTensor:
    """Normalizes vectors (..., d_j) to unit norm."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def left_padding(attention_mask: torch.Tensor) -> torch.LongTensor:
    """(batch, tokens) -> (batch,): the number of padding tokens before each row's first token."""
    return attention_mask.long().argmax(dim=1)


def _roll(rows: torch.Tensor, shift: torch.LongTensor) -> torch.Tensor:
    """(batch, tokens, ...) -> the same, with row i rolled left by shift[i]."""
    columns = torch.arange(rows.shape[1], device=rows.device)
    columns = columns + shift.to(rows.device).unsqueeze(1)  # (batch, tokens), between -tokens and 2 * tokens
    columns = torch.remainder(columns, torch.full_like(columns, rows.shape[1]))
    return rows[torch.arange(rows.shape[0], device=rows.device).unsqueeze(1), columns]


def _roll_attentions(weights: torch.FloatTensor, shift: torch.LongTensor) -> torch.FloatTensor:
    """(batch, heads, queries, keys) -> the same, with queries and keys of row i rolled left by shift[i]."""
    weights = _roll(weights.transpose(1, 2), shift)  # (batch, queries, heads, keys)
    return _roll(weights.transpose(1, 3), shift).permute(0, 2, 3, 1)
