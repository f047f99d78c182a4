"""The processor of VLKD: CLIP's image processor, BART's tokenizer, and prompts with a `<mask>`."""

import os
import re
from collections.abc import Iterable
from itertools import dropwhile
from typing import Unpack

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.processing_utils import ProcessingKwargs

from .configuration_vlkd import AUTO_MAP, IS_REMOTE_CODE, copy_code, value_errors
from .image_loading_vlkd import read_image

MASK = "<mask>"  # as written in a prompt; replaced by the tokenizer's own mask token
VQA_PROMPT = f"Question: {{question}} Answer: {MASK}"
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
# A period after these words does not end a sentence: always, before a number, and after a number.
ABBREVIATIONS = frozenset("mr mrs ms dr jr sr prof st mt ft rev gen col capt lt sgt sen gov inc ltd bros vs".split())
BEFORE_NUMBERS = frozenset("no fig vol p ch jan feb mar apr jun jul aug sept oct nov dec approx ca".split())
AFTER_NUMBERS = frozenset("oz lb lbs in ft yd cm mm km kg min hr sec".split())


class VLKDProcessor(ProcessorMixin):
    """
    Wraps CLIP's image processor and BART's tokenizer into one processor.

    Args:
        image_processor: CLIP's image processor.
        tokenizer: BART's tokenizer.

    Raises:
        ValueError: The tokenizer is not BART's (see `check_tokenizer`).
    """

    # Defaults of a call, unless the call or the tokenizer sets another value.
    text_kwargs = {"padding": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if tokenizer is not None:
            check_tokenizer(tokenizer)
            tokenizer.model_input_names = ["input_ids", "attention_mask"]  # BART has no `token_type_ids`
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "VLKDProcessor":
        """Same as `ProcessorMixin.from_pretrained`; raises a ValueError for an invalid value in a file."""
        kwargs.setdefault("trust_remote_code", False)  # otherwise transformers may prompt for it on the terminal
        with value_errors(f"'{pretrained_model_name_or_path}' has no valid VLKD processor"):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_vision_text_pretrained(cls, clip: str, bart: str) -> "VLKDProcessor":
        """
        Combines the image processor of a CLIP checkpoint and the tokenizer of a BART checkpoint.

        Args:
            clip: Hub name or folder of a CLIP checkpoint.
            bart: Hub name or folder of a BART checkpoint.

        Raises:
            ValueError: `clip` has no image processor, or `bart` has no tokenizer that matches its config (see
                `check_tokenizer`).
        """
        with value_errors(f"Cannot load the image processor of `clip`={str(clip)!r}", keep=()):
            image_processor = AutoImageProcessor.from_pretrained(clip)
        return cls(image_processor, load_tokenizer(bart))

    def __call__(
        self,
        images=None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: An image or a list of images, of any kind that `read_image` accepts: PIL image, path, URL, base64
                string, array (height, width, 3) or tensor (3, height, width).
            text: A prompt or a list of prompts. With images, a text without `<mask>` is continued ("a photo of" means
                "a photo of <mask>"), no text means `<mask>`, and one text applies to all images. Without images, the
                text is tokenized as BART does.
            kwargs: Options of the tokenizer and the image processor, by name or in the dicts `text_kwargs` and
                `images_kwargs`. `truncation=True` cuts text that is longer than BART's limit.

        Returns:
            `pixel_values` (batch, 3, height, width), if images are given; `input_ids` and `attention_mask`
            (batch, tokens).

        Raises:
            ValueError: Neither images nor text, different numbers of them, an image that cannot be read, a prompt that
                is not a string or has two `<mask>`, or one that is longer than BART's limit.
        """
        if images is None and text is None:
            raise ValueError("Neither `images` nor `text` is given; give images, texts, or both.")
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        features = {}
        if images is not None:
            images = _as_list(images)
            pixels = self.image_processor(
                [read_image(image, f"images[{number}]") for number, image in enumerate(images)],
                **options["images_kwargs"],
            )
            features.update(pixels)
            return BatchFeature({**self.encode_prompts(text, len(images), **options["text_kwargs"]), **features})
        if isinstance(text, (list, tuple)) and not text:
            raise ValueError("`text` is empty; pass at least one text.")
        tokens = self.tokenizer(text, **options["text_kwargs"])
        self._check_tokens(tokens["input_ids"], prompts=False)
        return BatchFeature(tokens)

    def encode_prompts(self, text: str | list[str] | None, images: int, **kwargs) -> BatchFeature:
        """
        Tokenizes prompts as `__call__` does with images: for images whose features are known.

        Args:
            text: A prompt, or one for each image, or None for `<mask>`.
            images: The number of images.
            kwargs: Options of the tokenizer.

        Returns:
            `input_ids` and `attention_mask` (images, tokens).

        Raises:
            ValueError: Another number of prompts, one with two `<mask>`, or one longer than BART's limit.
        """
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)["text_kwargs"]
        tokens = self.tokenizer(self._prompts(text, images), **options)
        self._check_tokens(tokens["input_ids"], prompts=True)
        return BatchFeature(tokens)

    def build_prompt(self, text: str | None = None) -> str:
        """Returns the prompt for a text with an image: it has one `<mask>`, for the answer; two are an error."""
        mask = self.tokenizer.mask_token
        text = (text or "").replace(MASK, mask)
        if text.count(mask) > 1:
            raise ValueError(f"The prompt {text!r} has {text.count(mask)} {mask}; keep one, where the answer goes.")
        return text if mask in text else f"{text.rstrip()} {mask}".lstrip()

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's padding id; `Seq2SeqTrainer` pads generated ids with it."""
        return self.tokenizer.pad_token_id

    def build_vqa_prompt(self, text: str) -> str:
        """Returns the prompt for a question: "Question: {text} Answer: <mask>"."""
        return self.build_prompt(VQA_PROMPT.format(question=text.strip()))

    def post_process_generation(
        self,
        generated_ids: torch.LongTensor,
        input_ids: torch.LongTensor | None = None,
        *,
        first_sentence: bool = False,
    ) -> list[str]:
        """
        Decodes generated ids, without the prompt.

        Args:
            generated_ids: (batch * num_return_sequences, tokens), the output of `generate`.
            input_ids: (batch, tokens), the prompts given to `generate`. None keeps the whole text. A prompt without
                `<mask>` is kept too.
            first_sentence: Whether to keep only the first sentence, without its punctuation mark.
        """
        generated = torch.as_tensor(generated_ids).tolist()
        if not generated:  # `batch_decode` would return one empty text
            return []
        prompts = [[]] if input_ids is None else torch.as_tensor(input_ids).tolist()
        copies = len(generated) // len(prompts)
        new = [self._without_prompt(row, prompts[number // copies]) for number, row in enumerate(generated)]
        texts = [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return [first_sentence_of(text) for text in texts] if first_sentence else texts

    def to_dict(self) -> dict:
        """Same as `ProcessorMixin.to_dict`, with the remote-code class."""
        output = super().to_dict()
        if not IS_REMOTE_CODE:
            output["auto_map"] = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Writes the processor, the tokenizer and the package's Python files."""
        os.makedirs(save_directory, exist_ok=True)
        # The fast tokenizer would save the truncation and padding of its last call as defaults.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        copy_code(save_directory, origin=self.tokenizer.name_or_path)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _prompts(self, text: str | list[str] | None, images: int) -> list[str]:
        """Returns one prompt for each image, ready for the tokenizer."""
        are_many = isinstance(text, Iterable) and not isinstance(text, (str, bytes)) and getattr(text, "ndim", 1) > 0
        texts = list(text) if are_many else [text] * images
        for one in texts:
            if not (one is None or isinstance(one, str)):
                raise ValueError(f"`text` contains {one!r}, not a string; pass a prompt or a list of prompts.")
        check_same_number(images, len(texts))
        # The space before the answer belongs to the answer's first token, so it must not become a token itself.
        mask = self.tokenizer.mask_token
        return [re.sub(rf"\s+{re.escape(mask)}", mask, self.build_prompt(text)) for text in texts]

    def _check_tokens(self, input_ids, prompts: bool) -> None:
        """Raises a ValueError for rows longer than BART's limit, and for prompts whose `<mask>` was truncated."""
        rows = input_ids if isinstance(input_ids, list) else input_ids.tolist()
        rows = [rows] if rows and isinstance(rows[0], int) else rows
        longest, limit = max((len(row) for row in rows), default=0), self.tokenizer.model_max_length
        if longest > limit:
            raise ValueError(
                f"`text` has {longest} tokens, but BART accepts at most {limit} (`max_position_embeddings`); shorten "
                "it, or pass `truncation=True`."
            )
        for number, row in enumerate(rows):
            if prompts and self.tokenizer.mask_token_id not in row:
                raise ValueError(
                    f"Truncation removed {self.tokenizer.mask_token} from text[{number}]; shorten the text, or set "
                    "`processor.tokenizer.truncation_side = 'left'`."
                )

    def _without_prompt(self, generated: list[int], prompt: list[int]) -> list[int]:
        """Removes the decoder start and the prompt's tokens before `<mask>`, if the generated ids start with them."""
        tokenizer = self.tokenizer
        end = prompt.index(tokenizer.mask_token_id) if tokenizer.mask_token_id in prompt else 0
        # Only padding is left out: a `<pad>` that the prompt itself has is in the generated ids too.
        prefix = list(dropwhile(lambda token: token == tokenizer.pad_token_id, prompt[:end]))
        return generated[1 + len(prefix) :] if generated[1 : 1 + len(prefix)] == prefix else generated


def check_same_number(images: int, texts: int) -> None:
    """Raises a ValueError unless there is one text for each image."""
    if images != texts:
        raise ValueError(f"{images} image(s) but {texts} text(s) are given; give one text for each image.")


def first_sentence_of(text: str) -> str:
    """Returns the first line or sentence without its punctuation mark. "St. Bernard" and "No. 7" are not split."""
    line = text.strip().split("\n")[0].strip()
    for end in SENTENCE_END.finditer(line):
        if end[0] != "." or not _is_abbreviation(line[: end.start()], line[end.end() :].lstrip()):
            return line[: end.start()]
    return line


def _is_abbreviation(before: str, after: str) -> bool:
    """Whether the period between the two texts belongs to an abbreviation or an initial."""
    if not before or not after:
        return False
    words, next_is_capital = before.split(), after[0].isupper()
    word = words[-1].lower()
    if word in BEFORE_NUMBERS or word.isdecimal():
        return after[0].isdecimal() or (word in BEFORE_NUMBERS and re.match(r"[IVXLC]+\b", after) is not None)
    if word in AFTER_NUMBERS:
        return words[-2:-1] != [] and words[-2].isdecimal() and not next_is_capital
    if re.fullmatch(r"[^\W\d_]+(\.[^\W\d_])+", word):  # "U.S", "e.g", "Ph.D"
        return not next_is_capital
    is_initial = len(word) == 1 and words[-1].isupper() and next_is_capital  # "Samuel L. Jackson", "J. K. Rowling"
    return word in ABBREVIATIONS or (is_initial and (len(words) > 1 or after[1:2] == "."))


def load_tokenizer(bart: str) -> PreTrainedTokenizerBase:
    """Loads a BART checkpoint's tokenizer; raises a ValueError if there is none that matches the config."""
    with value_errors(f"Cannot load the tokenizer of `bart`={str(bart)!r}", keep=()):
        tokenizer, config = AutoTokenizer.from_pretrained(bart), AutoConfig.from_pretrained(bart)
    check_tokenizer(tokenizer, config)
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return tokenizer


def has_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer is complete. Without tokenizer.json, transformers creates one with only special tokens."""
    return len(tokenizer) > len(set(tokenizer.all_special_ids))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None = None) -> None:
    """
    Checks a BART tokenizer, and that it matches the config of its checkpoint.

    Raises:
        ValueError: The tokenizer has no mask token or no vocabulary, does not add `<s>` and `</s>`, or its ids differ
            from the config's.
    """
    name = f"`tokenizer` ({type(tokenizer).__name__}, '{tokenizer.name_or_path}')"
    if tokenizer.mask_token is None:
        raise ValueError(f"{name} has no mask token, which prompts require; use the tokenizer of a BART checkpoint.")
    if not has_vocabulary(tokenizer):
        raise ValueError(f"{name} has only special tokens; put its tokenizer.json into the folder.")
    ids, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    if ids[1:-1] != bare:
        raise ValueError(
            f"{name} tokenizes 'a' as {tokenizer.convert_ids_to_tokens(ids)}, but BART requires `<s>` and `</s>` "
            "around a text; add a post-processor to its tokenizer.json, such as "
            "`tokenizers.processors.TemplateProcessing`."
        )
    if config is None:
        return
    found = {"bos_token_id": ids[0], "eos_token_id": ids[-1], "pad_token_id": tokenizer.pad_token_id}
    for key, value in found.items():
        if value != getattr(config, key):
            raise ValueError(
                f"{name} has id {value} for {tokenizer.convert_ids_to_tokens(value)!r}, but BART's config has "
                f"`{key}`={getattr(config, key)}; use the checkpoint's own tokenizer."
            )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{name} has {len(tokenizer)} tokens, but BART has {config.vocab_size} embeddings; use a BART with an "
            "embedding for each token, such as bart-base or bart-large (bart-large-cnn has none for <mask>)."
        )


def _as_list(images) -> list:
    """Returns a list of images, of which there must be one at least; a tensor or array (batch, ...) is split."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) in (1, 4):  # an array of paths, or of images
        images = list(images)
        if not images:
            raise ValueError("`images` is empty; pass at least one image.")
        return images
    return [images]
