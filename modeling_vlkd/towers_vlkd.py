"""The two towers that both models share: CLIP's frozen vision tower and BART, with the two embeddings."""

from typing import Unpack

import torch
from torch import nn
from transformers import BartForConditionalGeneration, CLIPVisionModel, GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.utils import TransformersKwargs, can_return_tuple

from .card_vlkd import CardMixin
from .configuration_vlkd import VLKDConfig
from .loading_vlkd import StrictLoadingMixin
from .padding_vlkd import encode_from_left, left_padding


class VLKDPreTrainedModel(StrictLoadingMixin, CardMixin, PreTrainedModel):
    """What `VLKDModel` and `VLKDForConditionalGeneration` share; neither is made of it alone."""

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

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    def train(self, mode: bool = True) -> "VLKDPreTrainedModel":
        """
        As every module's, but CLIP stays frozen and in eval mode: its tower, its projection and its temperature.

        Loading a checkpoint makes every parameter learn again; as it ends in `eval()`, this is the place to undo it.

        Raises:
            ValueError: `mode` is True and PEFT has put adapters on CLIP, which would not learn.
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
        """As `BartForConditionalGeneration.resize_token_embeddings`, which also resizes `final_logits_bias`."""
        embeddings = self.language_model.resize_token_embeddings(*args, **kwargs)
        self.vocab_size = self.config.text_config.vocab_size  # as transformers' own method sets it
        return embeddings

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        What CLIP sees.

        Args:
            pixel_values: (images, 3, height, width).

        Returns:
            `last_hidden_state` (images, image_tokens, d_j): V, every token in the joint space, class token first;
            `pooler_output` (images, d_j), unit norm: v, CLIP's image embedding;
            `hidden_states` and `attentions` of CLIP's layers, where asked for.
        """
        keep_layers = kwargs.pop("output_hidden_states", None)
        keep_layers = self.config.output_hidden_states if keep_layers is None else keep_layers
        local = self.config.patch_attention == "self"
        # Gradient checkpointing makes CLIP's embeddings require a gradient, which nothing learns from.
        learns = pixel_values.requires_grad or any(p.requires_grad for p in self.vision_model.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            output = self.vision_model(
                pixel_values=pixel_values, return_dict=True, output_hidden_states=keep_layers or local, **kwargs
            )
            states = output.last_hidden_state
            if local:
                patches = self._attend_to_self(output.hidden_states[-2][:, 1:])
                states = torch.cat([states[:, :1], patches], dim=1)
            states = self.vision_model.post_layernorm(states)
        tokens = self.visual_projection(states)  # (images, image_tokens, d_j)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=unit(tokens[:, 0]),
            hidden_states=output.hidden_states if keep_layers else None,
            attentions=output.attentions,
        )

    def _attend_to_self(self, states: torch.FloatTensor) -> torch.FloatTensor:
        """
        CLIP's last layer where each token attends to itself alone, so that its value is all it gets: (images, tokens,
        hidden) -> the same. MaskCLIP (Zhou et al., ECCV 2022) reads dense features off CLIP in this way.
        """
        layer = self.vision_model.encoder.layers[-1]
        states = states + layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(states)))
        return states + layer.mlp(layer.layer_norm2(states))

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        What BART's encoder reads.

        Args:
            input_ids: (texts, text_tokens), with `<s>` first.
            attention_mask: (texts, text_tokens), 0 at padding, on either side.

        Returns:
            `last_hidden_state` (texts, text_tokens, d_model): E(x);
            `pooler_output` (texts, d_j), unit norm: s, the state at `<s>` in the joint space;
            `hidden_states` and `attentions` of the encoder's layers, where asked for.
        """
        output = self._encode_text(input_ids, attention_mask, **kwargs)
        states = output.last_hidden_state
        first = torch.zeros_like(input_ids[:, 0]) if attention_mask is None else left_padding(attention_mask)
        start = states[torch.arange(states.shape[0], device=states.device), first]  # (texts, d_model)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=unit(self.text_projection(start)),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _encode_text(self, input_ids, attention_mask=None, inputs_embeds=None, **kwargs) -> BaseModelOutput:
        """E(x), with padding on either side."""
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        self._check_length(input_ids=input_ids, inputs_embeds=inputs_embeds)
        encoder = self.language_model.get_encoder()
        if attention_mask is None or attention_mask.dim() != 2:
            return encoder(**inputs, return_dict=True, **kwargs)
        return encode_from_left(encoder, inputs, return_dict=True, **kwargs)

    def _check_length(self, **tokens: torch.Tensor | None) -> None:
        """Raises a ValueError for a (batch, tokens, ...) that is longer than BART has positions."""
        limit = self.config.text_config.max_position_embeddings
        for name, value in tokens.items():
            if value is not None and value.shape[1] > limit:
                raise ValueError(
                    f"`{name}` holds {value.shape[1]} tokens, but BART has `max_position_embeddings`={limit}; shorten "
                    "the text, or pass `truncation=True` to the processor."
                )


def _check_no_adapter(part: nn.Module, name: str) -> None:
    adapted = [inner for inner, module in part.named_modules() if hasattr(module, "adapter_layer_names")]  # PEFT's
    if adapted:
        raise ValueError(
            f"The adapter has {len(adapted)} layers on CLIP (first {'.'.join([name, adapted[0]]).rstrip('.')}), which "
            "is frozen; give PEFT's config `exclude_modules=r'(vision_model|visual_projection)(\\..*)?'`."
        )


def unit(vectors: torch.FloatTensor) -> torch.FloatTensor:
    """The vectors (..., d_j) at norm 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True)
