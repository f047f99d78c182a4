"""Generation for VLKD: the decoder starts with the prompt, and prompts of different lengths share a batch."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .processing_vlkd import check_same_number

# Inputs with one row for each prompt.
ROW_INPUTS = ("input_ids", "attention_mask", "inputs_embeds", "pixel_values", "image_features", "encoder_outputs")


class VLKDEncoder(nn.Module):
    """The composite encoder as a module, which `generate` requires. It has no parameters and calls the model."""

    main_input_name = "input_ids"

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.encode = model.encode_multimodal  # a bound method, so that the model does not become a submodule

    def forward(
        self, input_ids: torch.LongTensor | None = None, return_dict: bool | None = None, **kwargs
    ) -> ModelOutput:
        """See [`VLKDForConditionalGeneration.encode_multimodal`]."""
        return self.encode(input_ids, **kwargs)


class VLKDGenerationMixin(GenerationMixin):
    """Adds prompts and images to transformers' `generate`."""

    def default_prompt(self, batch_size: int) -> torch.LongTensor:
        """(batch_size, 3): the prompt `<mask>`, for images without a text."""
        return torch.tensor([self.config.default_prompt_ids], device=self.device).repeat(batch_size, 1)

    def decoder_prompt_ids(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> list[torch.LongTensor]:
        """
        Computes the tokens with which the decoder starts.

        Args:
            input_ids: (batch, text_tokens), prompts with one `<mask>` each. A row without `<mask>` is continued.
            attention_mask: (batch, text_tokens).

        Returns:
            One tensor of ids for each row: decoder start, `<s>`, and the tokens before `<mask>` (or before `</s>`).

        Raises:
            ValueError: A row has more than one `<mask>`.
        """
        text, mask_id = self.config.text_config, self.config.mask_token_id
        prompts = []
        kept = input_ids != text.pad_token_id if attention_mask is None else attention_mask.bool()
        for number, (row, keep) in enumerate(zip(input_ids, kept, strict=True)):
            tokens = row[keep].tolist()
            if tokens.count(mask_id) > 1:
                raise ValueError(
                    f"Row {number} of `input_ids` has {tokens.count(mask_id)} <mask> tokens; a prompt has one, where "
                    "the answer goes."
                )
            if mask_id in tokens:
                tokens = tokens[: tokens.index(mask_id)]
            elif tokens and tokens[-1] == text.eos_token_id:
                tokens = tokens[:-1]
            prompts.append(torch.tensor([text.decoder_start_token_id, *tokens], device=input_ids.device))
        return prompts

    def generate(
        self, inputs: torch.LongTensor | None = None, generation_config: GenerationConfig | None = None, **kwargs
    ) -> torch.LongTensor | ModelOutput:
        """
        Same as `GenerationMixin.generate`, with images.

        With an image, the decoder starts with the tokens before the prompt's `<mask>`. The returned ids include them;
        `processor.post_process_generation` removes them. `decoder_input_ids` may also be a list of 1-D tensors of
        different lengths, as `decoder_prompt_ids` returns it, which answers prompts without an image. A row's result
        does not depend on the other rows.

        Defaults come from `model.generation_config` with an image, and from `model.language_model.generation_config`,
        the BART checkpoint's own, without one.

        Raises:
            ValueError: Neither image nor text; see also `encode_multimodal` and `decoder_prompt_ids`.
        """
        if inputs is not None:
            kwargs["input_ids"] = inputs
        for name in (*ROW_INPUTS, "decoder_input_ids"):
            if name in kwargs and kwargs[name] is None:
                del kwargs[name]
        image = next((kwargs[name] for name in ("pixel_values", "image_features") if name in kwargs), None)
        if not {"input_ids", "inputs_embeds", "encoder_outputs"} & kwargs.keys():
            if image is None:
                raise ValueError(
                    "No image and no text; give `pixel_values`, `image_features`, `input_ids` or `inputs_embeds`."
                )
            kwargs["input_ids"] = self.default_prompt(image.shape[0])
        if image is not None and "input_ids" in kwargs:
            check_same_number(image.shape[0], kwargs["input_ids"].shape[0])
            if "decoder_input_ids" not in kwargs:
                prompts = self.decoder_prompt_ids(kwargs["input_ids"], kwargs.get("attention_mask"))
                kwargs["decoder_input_ids"] = prompts
        if image is None and getattr(kwargs.get("encoder_outputs"), "image_embeds", None) is None:
            generation_config, kwargs = self._text_generation_config(generation_config, kwargs)
        pad = self.config.text_config.pad_token_id
        return generate_by_prompt_length(super().generate, pad, generation_config=generation_config, **kwargs)

    def _text_generation_config(
        self, generation_config: GenerationConfig | None, kwargs: dict
    ) -> tuple[GenerationConfig, dict]:
        """Returns the user's options, completed with the BART checkpoint's defaults, and the other keywords."""
        config = GenerationConfig() if generation_config is None else copy.deepcopy(generation_config)
        defaults = self.language_model.generation_config.to_diff_dict()
        config.update(defaults_only=True, allow_custom_entries=True, **defaults)
        return config, config.update(**kwargs)


def default_generation_config(text_config: PreTrainedConfig) -> GenerationConfig:
    """Returns greedy decoding, the default with an image. BART checkpoints' own defaults are for summarization."""
    names = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")
    return GenerationConfig(do_sample=False, num_beams=1, **{name: getattr(text_config, name) for name in names})


def as_plain_dict(generation_config: GenerationConfig) -> dict:
    """Returns the options that differ from the defaults, without transformers' metadata."""
    options = generation_config.to_diff_dict()
    return {name: options[name] for name in options if name not in ("_from_model_config", "transformers_version")}


def generate_by_prompt_length(generate: Callable, fill: int, **kwargs) -> torch.LongTensor | ModelOutput:
    """
    Calls `generate` once for each length of the prompts in `decoder_input_ids`, and restores the order of the rows.

    BART's positions count from the decoder's first token, so prompts of different lengths cannot be padded.

    Returns:
        (batch * num_return_sequences, tokens), padded on the right with `fill`; or the output of `generate`, if all
        prompts have one length.

    Raises:
        ValueError: Different lengths, with an option that does not support several calls.
    """
    prompts = kwargs.pop("decoder_input_ids", None)
    if prompts is None:
        return generate(**kwargs)
    if len({len(prompt) for prompt in prompts}) == 1:
        prompts = prompts if isinstance(prompts, torch.Tensor) else torch.stack(prompts)
        return generate(decoder_input_ids=prompts, **kwargs)

    for name in ("past_key_values", "streamer", "prefix_allowed_tokens_fn"):
        if kwargs.get(name) is not None:
            raise ValueError(f"`{name}` requires prompts of one length; call `generate` once for each length.")
    shared = {name: value for name, value in kwargs.items() if name not in ROW_INPUTS}
    sequences: list[torch.LongTensor | None] = [None] * len(prompts)
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        inputs = {name: _take(kwargs[name], rows) for name in ROW_INPUTS if name in kwargs}
        ids = generate(decoder_input_ids=torch.stack([prompts[row] for row in rows]), **inputs, **shared)
        if not isinstance(ids, torch.Tensor):
            raise ValueError(
                "`return_dict_in_generate` requires prompts of one length; call `generate` once for each length."
            )
        for row, group in zip(rows, ids.view(len(rows), -1, ids.shape[-1]), strict=True):
            sequences[row] = group  # (num_return_sequences, tokens)
    width = max(group.shape[1] for group in sequences)
    return torch.cat([nn.functional.pad(group, (0, width - group.shape[1]), value=fill) for group in sequences])


def _take(value: torch.Tensor | ModelOutput, rows: list[int]) -> torch.Tensor | ModelOutput:
    """Selects rows of a tensor, or of every tensor in an output."""
    if isinstance(value, ModelOutput):
        return type(value)(**{name: tensor[rows] for name, tensor in value.items() if torch.is_tensor(tensor)})
    return value[rows]
