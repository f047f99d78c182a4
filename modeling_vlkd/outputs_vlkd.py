"""What the models return."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling, Seq2SeqLMOutput
from transformers.utils import ModelOutput


@dataclass
class VLKDOutput(ModelOutput):
    """
    Output of [`VLKDModel`], in the order of `CLIPModel`'s.

    Args:
        logits_per_image: (images, texts), similarities times CLIP's temperature factor; needs both.
        logits_per_text: (texts, images), its transpose.
        text_embeds: (texts, d_j), unit norm: BART's sentence embedding in CLIP's space; None without texts.
        image_embeds: (images, d_j), unit norm: CLIP's image embedding; None without images.
        text_model_output: what `get_text_features` gives.
        vision_model_output: what `get_image_features` gives.
    """

    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        """As `CLIPModel`'s: the two inner outputs become tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class VLKDEncoderOutput(BaseModelOutput):
    """
    Output of the composite encoder.

    Args:
        last_hidden_state: (batch, image_tokens + text_tokens, d_model), the decoder's memory [W_d V ; E(x)].
        image_embeds: (batch, d_j), unit norm; None without images.
        memory_mask: (batch, image_tokens + text_tokens), where `encode` read only a part of the prompts, so that the
            mask of `input_ids` does not fit; None otherwise.
    """

    image_embeds: torch.FloatTensor | None = None
    memory_mask: torch.LongTensor | None = None


@dataclass
class VLKDSeq2SeqLMOutput(Seq2SeqLMOutput):
    """
    Output of [`VLKDForConditionalGeneration`]: BART's, and the two embeddings.

    Args:
        loss: scalar, the language modelling loss; None without `labels`.
        logits: (batch, target_tokens, vocab_size); `logits[:, i]` predicts `labels[:, i]`.
        encoder_last_hidden_state: (batch, image_tokens + text_tokens, d_model), the decoder's memory.
        image_embeds: (batch, d_j), unit norm: CLIP's image embedding; None without images.
        text_embeds: (batch, d_j), unit norm: embedding of the caption; None without `caption_input_ids`.
        itdd_hidden_states: the decoder's states of each layer at the image, each (batch, itdd_tokens, d_model); None
            without `itdd_decoder_input_ids`.
    """

    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    itdd_hidden_states: tuple[torch.FloatTensor, ...] | None = None
