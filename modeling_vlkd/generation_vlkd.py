"""Generation for VLKD: the decoder starts with the prompt, and prompts of different lengths share a batch."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from .processing_vlkd import check_same_number

# Options with which prompts of different lengths share a call of greedy decoding; others may depend on the length.
SHARED_OPTIONS = {"max_new_tokens", "max_length", "do_sample", "num_beams", "length_penalty", "use_cache"}
SHARED_OPTIONS |= {f"{name}_token_id" for name in ("bos", "pad", "eos", "decoder_start")}
# Options of the same kind with the one value that changes nothing.
NEUTRAL = {"return_dict_in_generate": False, "num_return_sequences": 1, "repetition_penalty": 1.0, "min_length": 0}
NEUTRAL |= {"no_repeat_ngram_size": 0, "output_scores": False}
DEFAULT_NEW_TOKENS = 20  # of transformers, if neither `max_new_tokens` nor `max_length` is set
SPREAD = 16  # tokens by which the prompts of one call may differ in length

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

    text_generation_config: GenerationConfig  # the defaults for texts without an image

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
        does not depend on the other rows. It ends at BART's last position, also if `max_new_tokens` or `max_length`
        would allow more.

        Defaults come from `model.generation_config` with an image, and from `model.text_generation_config`, the BART
        checkpoint's own, without one.

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
        defaults, fill = self.generation_config, self.config.text_config.pad_token_id
        limit = self.config.text_config.max_position_embeddings
        return generate_by_prompt_length(
            self._generate_within_positions, defaults, fill, generation_config, limit, **kwargs
        )

    def _generate_within_positions(
        self, generation_config: GenerationConfig | None = None, **kwargs
    ) -> torch.LongTensor | ModelOutput:
        """Same as `GenerationMixin.generate`, but a text ends at the decoder's last position at the latest."""
        limit, prompt = self.config.text_config.max_position_embeddings, kwargs.get("decoder_input_ids")
        start = 1 if prompt is None else prompt.shape[1]
        config = _completed(generation_config, self.generation_config)
        inputs = config.update(**kwargs)
        new_tokens = DEFAULT_NEW_TOKENS if config.max_new_tokens is None else config.max_new_tokens
        given = config.max_length if config.max_new_tokens is None else None  # `max_new_tokens` takes precedence
        if (start + new_tokens if given is None else given) <= limit:
            return super().generate(generation_config=generation_config, **kwargs)
        config.max_new_tokens, config.max_length = limit - start, None
        return super().generate(generation_config=config, **inputs)

    def _text_generation_config(
        self, generation_config: GenerationConfig | None, kwargs: dict
    ) -> tuple[GenerationConfig, dict]:
        """Returns the user's options, completed with the BART checkpoint's defaults, and the other keywords."""
        config = _completed(generation_config, self.text_generation_config)
        return config, config.update(**kwargs)


def _completed(generation_config: GenerationConfig | None, defaults: GenerationConfig) -> GenerationConfig:
    """Returns a copy of the config, in which the options that are not set have the values of `defaults`."""
    config = GenerationConfig() if generation_config is None else copy.deepcopy(generation_config)
    config.update(defaults_only=True, allow_custom_entries=True, **defaults.to_diff_dict())
    return config


def default_generation_config(text_config: PreTrainedConfig) -> GenerationConfig:
    """Returns greedy decoding, the default with an image. BART checkpoints' own defaults are for summarization."""
    names = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")
    return GenerationConfig(do_sample=False, num_beams=1, **{name: getattr(text_config, name) for name in names})


def as_plain_dict(generation_config: GenerationConfig) -> dict:
    """Returns the options that differ from the defaults, without transformers' metadata."""
    options = generation_config.to_diff_dict()
    return {name: options[name] for name in options if name not in ("_from_model_config", "transformers_version")}


class ForcedPrompts(LogitsProcessor):
    """Forces each row to continue with its own prompt, from the length of the shortest one."""

    def __init__(self, prompts: list[torch.LongTensor]):
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
        self.tokens = nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # (batch, longest prompt)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        position = input_ids.shape[1]
        if position >= self.tokens.shape[1]:
            return scores
        forced = torch.full_like(scores, -torch.inf).scatter(1, self.tokens[:, position, None], 0.0)
        return torch.where((position < self.lengths)[:, None], forced, scores)


def _shared_new_tokens(config: GenerationConfig, options: dict, prompts: list[torch.LongTensor]) -> int | None:
    """
    Returns `max_new_tokens`, or None if the prompts cannot share a call: by an option, or by a token that ends texts.

    Args:
        config: Complete, with the options of the call.
        options: The arguments of `generate` that are not options of a `GenerationConfig`.
    """
    values = {name: value for name, value in as_plain_dict(config).items() if name not in SHARED_OPTIONS}
    if options or any(value != NEUTRAL.get(name) for name, value in values.items()):
        return None
    if config.do_sample or config.num_beams not in (None, 1):
        return None
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if any(token in ends for prompt in prompts for token in prompt[1:].tolist()):  # the first one starts the decoder
        return None
    return config.max_new_tokens


def generate_by_prompt_length(
    generate: Callable,
    defaults: GenerationConfig,
    fill: int,
    generation_config: GenerationConfig | None = None,
    limit: int | None = None,
    **kwargs,
) -> torch.LongTensor | ModelOutput:
    """
    Calls `generate` for groups of rows, by the length of their prompts in `decoder_input_ids`, and restores the order.

    BART's positions count from the decoder's first token, so prompts of different lengths cannot be padded. In greedy
    decoding, the rows of a group start with as many tokens as their shortest prompt has, and each is forced to
    continue with the rest of its own. Otherwise, the prompts of a group have one length.

    Args:
        generate: `GenerationMixin.generate` of a model.
        defaults: The model's generation config.
        fill: Token that fills the rows on the right.
        generation_config: As in `generate`.
        limit: Number of the decoder's positions, which prompt and new tokens share; None does not check it.
        **kwargs: Inputs and options of `generate`.

    Returns:
        (batch * num_return_sequences, tokens), padded on the right with `fill`; or the output of `generate`, if all
        prompts have one length.

    Raises:
        ValueError: A prompt has no room for an answer; or different lengths, with an option that does not support
            several calls.
    """
    prompts = kwargs.pop("decoder_input_ids", None)
    if prompts is None:
        return generate(generation_config=generation_config, **kwargs)
    longest = max(map(len, prompts))
    if limit is not None and longest >= limit:
        raise ValueError(f"A prompt has {longest} tokens, and the decoder {limit} positions; shorten the prompt.")
    if len({len(prompt) for prompt in prompts}) == 1:
        prompts = prompts if isinstance(prompts, torch.Tensor) else torch.stack(prompts)
        return generate(decoder_input_ids=prompts, generation_config=generation_config, **kwargs)

    for name in ("past_key_values", "streamer", "prefix_allowed_tokens_fn"):
        if kwargs.get(name) is not None:
            raise ValueError(f"`{name}` requires prompts of one length; call `generate` once for each length.")
    config = _completed(generation_config, defaults)
    inputs = {name: kwargs.pop(name) for name in ROW_INPUTS if name in kwargs}
    known = {name: value for name, value in kwargs.items() if value is not None or hasattr(config, name)}
    options = config.update(**known)
    new_tokens = _shared_new_tokens(config, options, prompts)
    sequences: dict[int, torch.LongTensor] = {}
    for rows in _group([len(prompt) for prompt in prompts], 0 if new_tokens is None else SPREAD):
        own = [prompts[row] for row in rows]
        options |= {name: _take(value, rows) for name, value in inputs.items()}
        sequences |= zip(rows, _generate_group(generate, own, new_tokens, config, options), strict=True)
    return _pad([sequences[row] for row in range(len(prompts))], fill)


def _generate_group(
    generate: Callable,
    prompts: list[torch.LongTensor],
    new_tokens: int | None,
    config: GenerationConfig,
    options: dict,
) -> list[torch.LongTensor]:
    """
    Returns the texts of each prompt, (num_return_sequences, tokens), by one call of `generate`.

    Args:
        prompts: The shortest comes first. Without `new_tokens`, all have one length.
        new_tokens: The number of tokens after each prompt, if the prompts have different lengths.
    """
    start, longest = len(prompts[0]), len(prompts[-1])
    if new_tokens is not None:
        options = options | {"logits_processor": LogitsProcessorList([ForcedPrompts(prompts)])}
        config.max_new_tokens = longest + new_tokens - start
    decoder_input_ids = torch.stack([prompt[:start] for prompt in prompts])
    ids = generate(decoder_input_ids=decoder_input_ids, generation_config=config, **options)
    if not isinstance(ids, torch.Tensor):
        raise ValueError(
            "`return_dict_in_generate` requires prompts of one length; call `generate` once for each length."
        )
    groups = ids.view(len(prompts), -1, ids.shape[-1])
    ends = [None if new_tokens is None else len(prompt) + new_tokens for prompt in prompts]
    return [group[:, :end] for group, end in zip(groups, ends, strict=True)]


def _pad(groups: list[torch.LongTensor], fill: int) -> torch.LongTensor:
    """Concatenates groups of rows, padded on the right to one width."""
    width = max(group.shape[1] for group in groups)
    return torch.cat([nn.functional.pad(group, (0, width - group.shape[1]), value=fill) for group in groups])


def _group(lengths: list[int], spread: int) -> list[list[int]]:
    """Groups row numbers, in ascending order of length, so that the lengths of a group differ by `spread` at most."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if groups and lengths[row] - lengths[groups[-1][0]] <= spread:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _take(value: torch.Tensor | ModelOutput, rows: list[int]) -> torch.Tensor | ModelOutput:
    """Selects rows of a tensor, or of every tensor in an output."""
    if isinstance(value, ModelOutput):
        return type(value)(**{name: tensor[rows] for name, tensor in value.items() if torch.is_tensor(tensor)})
    return value[rows]
