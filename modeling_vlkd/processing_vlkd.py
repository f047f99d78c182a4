"""Images and prompts for VLKD: CLIP's image processor, BART's tokenizer, and what a prompt is."""

import os
import re
import textwrap
from typing import Unpack

import torch
from PIL import Image
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

from .configuration_vlkd import AUTO_MAP, IS_REMOTE_CODE, copy_code
from .image_loading_vlkd import read_image

MAX_SIDE = 4096  # pixels that the image processor may be told to make of a side; CLIP's largest is 448
MASK = "<mask>"  # as written in a prompt; the tokenizer's own mask token takes its place
VQA_PROMPT = f"Question: {{question}} Answer: {MASK}"
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n")
# A full stop after these ends no sentence; after the second kind it ends none before a number, after the third (units)
# none that follows a number.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr jr sr prof st mt ft rev gen col capt lt sgt sen gov inc ltd bros vs ca approx e.g i.e ph.d".split()
)
BEFORE_NUMBERS = frozenset("no nos fig vol p pp ch jan feb mar apr jun jul aug sep sept oct nov dec".split())
AFTER_NUMBERS = frozenset("oz lb lbs in ft yd cm mm km kg min hr sec".split())
# A sentence begins with one of these where it might be a name: "in the U.S. It is cold".
FIRST_WORDS = frozenset("the a an it this that these there he she they we you i in on is are yes no question".split())


class VLKDProcessor(ProcessorMixin):
    """
    CLIP's image processor and BART's tokenizer as one.

    Args:
        image_processor: CLIP's.
        tokenizer: BART's.

    Raises:
        ValueError: the tokenizer is not a BART's (see `check_tokenizer`), or a number of either is out of its range.
    """

    # Defaults of a call, where neither the call nor the tokenizer says otherwise.
    text_kwargs = {"padding": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if tokenizer is not None:
            check_tokenizer(tokenizer)
            tokenizer.model_input_names = ["input_ids", "attention_mask"]  # BART takes no `token_type_ids` of BERT's
        if tokenizer is not None and not isinstance(tokenizer.model_max_length, (int, float)):
            raise ValueError(f"`model_max_length`={tokenizer.model_max_length!r} of the tokenizer is no number.")
        if image_processor is not None:
            _check_numbers(image_processor)
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "VLKDProcessor":
        """
        As every processor's.

        Raises:
            OSError: a file is not there, or is no JSON.
            ValueError: what one holds makes no processor.
        """
        kwargs.setdefault("trust_remote_code", False)  # its parts need none; a broken file must not make it ask
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError:
            raise
        except Exception as error:  # for a value of a wrong type, whatever first stumbles over it
            reason = textwrap.shorten(str(error), 500)
            raise ValueError(f"'{pretrained_model_name_or_path}' holds no VLKD processor: {reason}") from error

    @classmethod
    def from_vision_text_pretrained(cls, clip: str, bart: str) -> "VLKDProcessor":
        """
        The image processor of a CLIP checkpoint and the tokenizer of a BART checkpoint.

        Args:
            clip: Hub name or folder of a CLIP checkpoint.
            bart: Hub name or folder of a BART checkpoint.

        Raises:
            ValueError: `clip` has no image processor, or `bart` no tokenizer that fits its config; see
                `check_tokenizer`.
        """
        image_processor = _load(AutoImageProcessor, "clip", clip, "image processor of a CLIP checkpoint")
        tokenizer = _load(AutoTokenizer, "bart", bart, "tokenizer of a BART checkpoint")
        config = _load(AutoConfig, "bart", bart, "config of a BART checkpoint")
        check_tokenizer(tokenizer, config)
        limit = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
        return cls(image_processor, tokenizer)

    def __call__(
        self,
        images=None,
        text: str | list[str] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: a PIL image, path, URL, base64 string, array (height, width, 3) or tensor (3, height, width); or a
                list of them: whatever `read_image` takes.
            text: a prompt or a list of them. With images, a text without `<mask>` is continued ("a photo of" is read
                as "a photo of <mask>"), no text is the prompt `<mask>`, and one text serves all images. Without
                images it is tokenized as BART's tokenizer does.
            kwargs: options of the tokenizer and of the image processor, each by its name or in the dicts `text_kwargs`
                and `images_kwargs`; `truncation=True` cuts text that is longer than BART reads.

        Returns:
            `pixel_values` (batch, 3, height, width), where images are given; `input_ids` and `attention_mask`
            (batch, tokens).

        Raises:
            ValueError: no image and no text, not as many images as texts, an image that cannot be read, a prompt with
                two `<mask>`, or one that is longer than BART reads.
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
            text = self._prompts(text, len(images))
        tokens = self.tokenizer(text, **options["text_kwargs"])
        self._check_tokens(tokens["input_ids"], prompts=images is not None)
        return BatchFeature({**tokens, **features})

    def build_prompt(self, text: str | None = None) -> str:
        """
        The prompt that stands for `text` beside an image: with one `<mask>`, where the answer goes.

        Raises:
            ValueError: `text` has more than one `<mask>`.
        """
        mask = self.tokenizer.mask_token
        text = (text or "").replace(MASK, mask)
        if text.count(mask) > 1:
            raise ValueError(f"The prompt {text!r} holds {text.count(mask)} {mask}; keep one, where the answer goes.")
        return text if mask in text else f"{text.rstrip()} {mask}".lstrip()

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's, by which `Seq2SeqTrainer` pads generated ids."""
        return self.tokenizer.pad_token_id

    def build_vqa_prompt(self, text: str) -> str:
        """The prompt that asks a question: "Question: {text} Answer: <mask>"."""
        return self.build_prompt(VQA_PROMPT.format(question=text.strip()))

    def post_process_generation(
        self,
        generated_ids: torch.LongTensor,
        input_ids: torch.LongTensor | None = None,
        *,
        first_sentence: bool = False,
    ) -> list[str]:
        """
        What the model wrote, as text, without the prompt it started from.

        Args:
            generated_ids: (batch * num_return_sequences, tokens), as `generate` returns them.
            input_ids: (batch, tokens), the prompts that `generate` was given; None keeps the whole text.
            first_sentence: keeps the text up to the first sentence's end, without its mark: an answer.
        """
        generated = torch.as_tensor(generated_ids).tolist()
        prompts = [[]] if input_ids is None else torch.as_tensor(input_ids).tolist()
        copies = len(generated) // len(prompts)
        new = [self._without_prompt(row, prompts[number // copies]) for number, row in enumerate(generated)]
        texts = [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return [first_sentence_of(text) for text in texts] if first_sentence else texts

    def to_dict(self) -> dict:
        """As every processor's, with where remote code finds its class."""
        output = super().to_dict()
        if not IS_REMOTE_CODE:
            output["auto_map"] = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Writes processor and tokenizer and, beside them, the package's Python files."""
        os.makedirs(save_directory, exist_ok=True)
        # A truncation that the last call asked for would be saved as every later call's.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        copy_code(save_directory, origin=self.tokenizer.name_or_path)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _prompts(self, text: str | list[str] | None, images: int) -> list[str]:
        """One prompt for each image, as the tokenizer shall read it."""
        texts = [text] * images if text is None or isinstance(text, str) else list(text)
        if len(texts) != images:
            raise ValueError(f"{images} image(s) but {len(texts)} text(s) are given; give one text for each image.")
        # The space before the answer belongs to its first token, and must not stay behind as a token of its own.
        mask = self.tokenizer.mask_token
        return [re.sub(rf"\s+{re.escape(mask)}", mask, self.build_prompt(text)) for text in texts]

    def _check_tokens(self, input_ids, prompts: bool) -> None:
        """Raises a ValueError for rows that BART has no positions for, and for prompts that truncation spoilt."""
        rows = input_ids if isinstance(input_ids, list) else input_ids.tolist()
        rows = [rows] if rows and isinstance(rows[0], int) else rows
        longest, limit = max((len(row) for row in rows), default=0), self.tokenizer.model_max_length
        if longest > limit:
            raise ValueError(
                f"`text` has {longest} tokens, but BART reads at most {limit} (`max_position_embeddings`); shorten "
                "it, or pass `truncation=True`."
            )
        for number, row in enumerate(rows):
            if prompts and self.tokenizer.mask_token_id not in row:
                raise ValueError(
                    f"text[{number}] lost its {self.tokenizer.mask_token} to truncation; shorten it, or set "
                    "`processor.tokenizer.truncation_side = 'left'`."
                )

    def _without_prompt(self, generated: list[int], prompt: list[int]) -> list[int]:
        """Generated ids from after decoder start and the prompt's tokens before `<mask>`, if they begin so."""
        tokenizer = self.tokenizer
        end = prompt.index(tokenizer.mask_token_id) if tokenizer.mask_token_id in prompt else 0
        prefix = [token for token in prompt[:end] if token != tokenizer.pad_token_id]
        return generated[1 + len(prefix) :] if generated[1 : 1 + len(prefix)] == prefix else generated


def first_sentence_of(text: str) -> str:
    """The text up to the end of its first line or sentence, without the mark; "St. Bernard" and "No. 7" are whole."""
    text = text.strip()
    for end in SENTENCE_END.finditer(text):
        if end[0] != "." or not _is_abbreviated(text[: end.start()], text[end.end() :]):
            return text[: end.start()].strip()
    return text


def _is_abbreviated(before: str, after: str) -> bool:
    """Whether a full stop between the two belongs to an abbreviation, an initial or a number."""
    words, following = before.split(), after.split()
    if not words or not following or "\n" in after[: len(after) - len(after.lstrip())]:
        return False
    word, following = words[-1].strip("\"'([").lower(), following[0].strip("\"'([")
    if word in ABBREVIATIONS:
        return True
    if word in AFTER_NUMBERS and words[-2:-1] and words[-2].isdecimal():
        return following.lower() not in FIRST_WORDS
    if word in BEFORE_NUMBERS and re.fullmatch(r"[IVXLC]+|[A-Z]", following):
        return True
    if word in BEFORE_NUMBERS or word.isdecimal():
        return following[:1].isdecimal()
    if re.fullmatch(r"[^\W\d_](\.[^\W\d_])+", word):  # "U.S", "e.g"
        return following.lower() not in FIRST_WORDS
    if re.fullmatch(r"[^\W\d_]", word):  # an initial: before a name, or among others
        is_among_initials = re.fullmatch(r"[^\W\d_]\.", following) or re.fullmatch(
            r"[^\W\d_]\.", "".join(words[-2:-1])
        )
        return bool(is_among_initials or following[0:1].isupper()) and following.lower() not in FIRST_WORDS
    return False


def has_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it knows more than special tokens: transformers makes an empty one where tokenizer.json is missing."""
    return len(tokenizer) > len(set(tokenizer.all_special_ids))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None = None) -> None:
    """
    Args:
        tokenizer: of a BART checkpoint.
        config: of the same checkpoint.

    Raises:
        ValueError: the tokenizer has no mask token or no vocabulary, does not put a text between `<s>` and `</s>`, or
            its ids are not the config's.
    """
    kind = f"`tokenizer` ({type(tokenizer).__name__}, '{tokenizer.name_or_path}')"
    if tokenizer.mask_token is None:
        raise ValueError(f"{kind} has no mask token, which prompts need; give the tokenizer of a BART checkpoint.")
    if not has_vocabulary(tokenizer):
        raise ValueError(f"{kind} knows special tokens only; put its tokenizer.json into the folder.")
    ids, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    if ids[1:-1] != bare:
        raise ValueError(
            f"{kind} reads 'a' as {tokenizer.convert_ids_to_tokens(ids)}, but BART reads a text between `<s>` and "
            "`</s>`; give its tokenizer.json a post-processor that adds them, such as "
            "`tokenizers.processors.TemplateProcessing`."
        )
    if config is None:
        return
    found = {"bos_token_id": ids[0], "eos_token_id": ids[-1], "pad_token_id": tokenizer.pad_token_id}
    for name, value in found.items():
        if value != getattr(config, name):
            raise ValueError(
                f"{kind} has {tokenizer.convert_ids_to_tokens(value)!r} with id {value} where the config of the BART "
                f"has `{name}`={getattr(config, name)}; give the checkpoint its own tokenizer."
            )
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{kind} knows {len(tokenizer)} tokens, but the BART has embeddings of {config.vocab_size}; give the "
            "checkpoint its own tokenizer, or call `resize_token_embeddings` on the BART and save it."
        )


def _check_numbers(image_processor) -> None:
    """Raises a ValueError for sizes and colours that no image can be brought to; it names them."""
    for name in ("size", "crop_size"):
        sides = dict(getattr(image_processor, name, None) or {})
        if any(side is not None and not (_is_number(side) and 1 <= side <= MAX_SIDE) for side in sides.values()):
            raise ValueError(f"`{name}`={sides} of the image processor; sides are 1 to {MAX_SIDE} pixels.")
    for name in ("image_mean", "image_std"):
        values = getattr(image_processor, name, None)
        if values is not None and not (
            isinstance(values, (list, tuple)) and len(values) == 3 and all(_is_number(value) for value in values)
        ):
            raise ValueError(f"`{name}`={values!r} of the image processor; give three numbers, for red, green, blue.")
    if 0 in (image_processor.image_std or ()):
        raise ValueError(f"`image_std`={image_processor.image_std} of the image processor divides by 0.")
    factor, resample = image_processor.rescale_factor, image_processor.resample
    if factor is not None and not _is_number(factor):
        raise ValueError(f"`rescale_factor`={factor!r} of the image processor is no number.")
    if resample is not None and resample not in list(Image.Resampling):
        raise ValueError(f"`resample`={resample!r} of the image processor is none of Pillow's filters, 0 to 5.")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _as_list(images) -> list:
    """One image or many -> a list; a batch tensor or array (batch, ...) gives its rows."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
        return list(images)
    return [images]


def _load(auto_class, argument: str, path: str, kind: str):
    try:
        return auto_class.from_pretrained(path)
    except Exception as error:  # each library has its own kinds for a broken file
        raise ValueError(
            f"`{argument}`={str(path)!r} gives no {kind}: give a Hub name or a folder that holds one. ({error})"
        ) from error
