"""`pipeline(task, model=...)` for VLKD: image-to-text, image-text-to-text and visual-question-answering."""

from collections.abc import Iterable
from types import GeneratorType
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import GenerationConfig, ImageTextToTextPipeline, Pipeline
from transformers.utils import ModelOutput

from .image_loading_vlkd import TIMEOUT, read_image
from .processing_vlkd import MASK, check_same_number

MANY_TEXTS = 32  # texts of one image in a batch, by default


class VLKDImageTextToTextPipeline(ImageTextToTextPipeline):
    """
    Captions an image or continues a prompt about it: `image-to-text` and `image-text-to-text`.

        pipe(image)                               -> [{"generated_text": "two frogs in a meadow"}]
        pipe(image, text="a picture of")          -> [{"input_text": ..., "generated_text": "a picture of two frogs"}]
        pipe([image, image], text=[..., ...])     -> a list of such lists
        pipe({"image": image, "text": "a picture of"}), and lists of such dicts
        pipe(a generator, dataset or column)      -> an iterator over the results

    An image is anything that the processor accepts. A string is a path, URL or base64 image, never a prompt. For other
    models, the constructor returns transformers' own pipeline.
    """

    _default_generation_config = GenerationConfig(max_new_tokens=64)

    def __new__(cls, model, *args, **kwargs):
        if model.config.model_type != "vlkd":
            return ImageTextToTextPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        Pipeline.__init__(self, *args, **kwargs)  # the parent accepts only transformers' own models
        self._encoded: tuple[torch.Tensor, torch.Tensor] | None = None  # the last image's pixel values and V

    def _sanitize_parameters(
        self,
        text: str | None = None,
        timeout: float | None = None,
        truncation: bool | None = None,
        return_full_text: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        preprocess = {"text": text, "timeout": timeout, "truncation": truncation}
        if twice := sorted((generate_kwargs or {}).keys() & kwargs.keys()):
            raise ValueError(f"`{twice[0]}` is given twice, as a keyword and in `generate_kwargs`; give it once.")
        generate_kwargs = {**(generate_kwargs or {}), **kwargs}
        return (
            {name: value for name, value in preprocess.items() if value is not None},
            {"generate_kwargs": generate_kwargs} if generate_kwargs else {},
            {} if return_full_text is None else {"return_full_text": return_full_text},
        )

    def __call__(
        self, images=None, text: str | Iterable[str] | None = None, prompt: str | Iterable[str] | None = None, **kwargs
    ) -> Any:
        """
        Args:
            images: An image, a dict with `image` and `text`, a list of either, or a generator or dataset of them.
            text: One prompt for all images, or one for each image, or several for one image.
            prompt: Another name for `text`.
            kwargs: `return_full_text` (False returns the text without the prompt), `timeout` (seconds for a URL),
                `truncation` (of prompts longer than BART's limit), `batch_size`, `num_workers`, `generate_kwargs`, and
                any argument of `generate`.

        Raises:
            ValueError: Different numbers of images and texts, or an image that is missing or cannot be read.
        """
        self._encoded = None
        text = prompt if text is None else text
        if images is None:
            raise ValueError(
                "`images` is not given. Give an image and, if needed, a prompt as `text`; VLKD reads no chats. Use "
                "`model.to_bart()` for a text without an image."
            )
        images = _as_inputs(images)
        if text is not None and not isinstance(text, str):
            if isinstance(images, (list, GeneratorType, Dataset)):
                images = _as_pairs(images, text)
            else:
                shared = self._read_once(images, kwargs.get("timeout"))
                images = [{**shared, "text": one} for one in text]
                kwargs.setdefault("batch_size", self._batch_size or self._texts_at_once(len(images), kwargs))
            text = None
        if isinstance(images, list) and not images:
            return []  # `Pipeline.__call__` looks at the first input
        return Pipeline.__call__(self, images, text=text, **kwargs)

    def _texts_at_once(self, number: int, kwargs: dict[str, Any]) -> int:
        """Returns the batch size for several texts of one image: 1 with options of `generate` that take one text."""
        options = {
            **self._forward_params.get("generate_kwargs", {}),
            **kwargs,
            **(kwargs.get("generate_kwargs") or {}),
        }
        if any(options.get(name) is not None for name in ("streamer", "assistant_model", "prefix_allowed_tokens_fn")):
            return 1
        beams = max(options.get(name) or 1 for name in ("num_beams", "num_return_sequences", "top_k"))
        return max(1, min(number, MANY_TEXTS // beams))

    def _read_once(self, example, timeout: float | None = None) -> dict[str, torch.FloatTensor]:
        """Returns the pixel values of an input's image, which several inputs of `preprocess` can share."""
        image = example.get("image") if isinstance(example, dict) else example
        if image is None:
            raise ValueError(f"The input {list(example)} has no image; give `image`.")
        timeout = timeout or self._preprocess_params.get("timeout", TIMEOUT)
        pixels = self.processor.image_processor(read_image(image, timeout=timeout), return_tensors="pt")
        return {"pixel_values": pixels["pixel_values"]}

    def preprocess(
        self, example, text: str | None = None, timeout: float = TIMEOUT, truncation: bool = False
    ) -> dict[str, Any]:
        """Converts an image, or a dict of image and text, to model inputs; keeps the prompt as a string."""
        example = example if isinstance(example, dict) else {"image": example}
        text = next((example[name] for name in ("text", "question") if example.get(name) is not None), text)
        if "pixel_values" not in example:
            example = self._read_once(example, timeout)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"`text`={text!r} is not a string; VLKD takes prompts, not chats.")
        prompt = self.build_prompt(text)
        features = self.processor.encode_prompts(prompt, 1, truncation=truncation)
        return {**features, "pixel_values": example["pixel_values"], "prompt": prompt, "input_text": text or ""}

    def build_prompt(self, text: str | None) -> str:
        """Returns the prompt for the user's `text`."""
        return self.processor.build_prompt(text)

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict | None = None) -> ModelOutput:
        names = {name: model_inputs.pop(name) for name in ("prompt", "input_text")}
        options = self._prepare_generate_kwargs(generate_kwargs or {}, return_dict_in_generate=False)
        if "pixel_values" in model_inputs:
            model_inputs["image_features"] = self._encode(model_inputs.pop("pixel_values"))
        ids = self.model.generate(**model_inputs, **options)
        ids = ids.view(len(model_inputs["input_ids"]), -1, ids.shape[-1])  # (batch, num_return_sequences, tokens)
        return ModelOutput(generated=ids, input_ids=model_inputs["input_ids"], **names)

    def _encode(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """Returns V of each image. Equal images in a row, also in the previous batch, are encoded once."""
        last_image, last_features = self._encoded or (None, None)  # read once: another thread may change it
        previous = [last_image, *pixel_values[:-1]]
        is_new = [
            last is None or not torch.equal(image, last) for image, last in zip(pixel_values, previous, strict=True)
        ]
        features = [] if is_new[0] else [last_features]
        if any(is_new):
            features += self.model.get_image_features(pixel_values[is_new]).last_hidden_state
        numbers = torch.tensor(is_new).cumsum(0) - int(is_new[0])
        self._encoded = (pixel_values[-1].clone(), features[-1].clone())  # copies, so that the batch is freed
        return torch.stack([features[number] for number in numbers])

    def _new_texts(self, outputs: ModelOutput, first_sentence: bool = False) -> list[str]:
        """Returns the generated texts of one input, without the prompt."""
        generated = outputs["generated"].flatten(0, 1)
        return self.processor.post_process_generation(generated, outputs["input_ids"], first_sentence=first_sentence)

    def postprocess(self, outputs: ModelOutput, return_full_text: bool = True) -> list[dict[str, str]]:
        """Returns one record for each generated sequence of an input."""
        texts = self._new_texts(outputs)
        if return_full_text:
            before, after = outputs["prompt"].split(self.processor.tokenizer.mask_token)
            texts = [f"{before.rstrip()} {text}{after}".strip() for text in texts]
        given = {"input_text": outputs["input_text"]} if outputs["input_text"] else {}
        return [{**given, "generated_text": text} for text in texts]


class VLKDVisualQuestionAnsweringPipeline(VLKDImageTextToTextPipeline):
    """
    Answers questions about images: `visual-question-answering`.

        pipe(image, "what color is it?")                       -> [{"answer": "red"}]
        pipe(image, "what color is it?", top_k=2)              -> [{"score": 0.9, "answer": "red"}, {"score": ...}]
        pipe({"image": image, "question": "what color is it?"}), and lists, generators and datasets of such dicts
        pipe(image, [question, question]), pipe([image, image], question), pipe([image, image], [question, question])

    `processor.build_vqa_prompt` makes the prompt of a question; a question with a `<mask>` is already a prompt.
    """

    def __new__(cls, model, *args, **kwargs):
        if model.config.model_type != "vlkd":
            raise KeyError(
                "transformers removed the task visual-question-answering; only VLKD models support it, not "
                f"{model.config.model_type!r}. Use the `image-text-to-text` pipeline."
            )
        return super().__new__(cls, model)

    def __init__(self, *args, top_k: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if top_k is not None:  # transformers would pass it to sampling
            self._forward_params |= self._sanitize_parameters(top_k=top_k)[1]

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if top_k is None:
            return preprocess, forward, postprocess
        if not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"`top_k`={top_k!r} must be a positive integer, the number of answers.")
        return preprocess, {**forward, "answers": top_k}, postprocess

    def __call__(self, image, question: str | Iterable[str] | None = None, **kwargs) -> Any:
        """
        Args:
            image: An image, a dict with `image` and `question`, a list of either, or a generator or dataset of them.
            question: One question for all images, or one for each image, or several for one image.
            kwargs: As in the parent class. In addition, `top_k` returns the answers of that many beams with scores,
                best first. Equal answers are merged, so there may be fewer. `score` is the model's probability of the
                generated text, whose first sentence is the answer, without sampling or penalties.

        Raises:
            ValueError: No image, no question, different numbers of them, or an image that cannot be read.
        """
        return super().__call__(image, text=question, **kwargs)

    def build_prompt(self, text: str | None) -> str:
        """Returns the prompt for the user's question."""
        if not text:
            raise ValueError("`question` is not given; give a question for each image, or dicts with `question`.")
        return self.processor.build_prompt(text) if MASK in text else self.processor.build_vqa_prompt(text)

    def _forward(
        self, model_inputs: dict[str, Any], generate_kwargs: dict | None = None, answers: int | None = None
    ) -> ModelOutput:
        if answers is None:
            return super()._forward(model_inputs, generate_kwargs)
        options = self._prepare_generate_kwargs(generate_kwargs or {})
        config = options.get("generation_config", self.model.generation_config)
        beams = options.get("num_beams") or config.num_beams or 1
        options.update(num_beams=max(beams, answers), num_return_sequences=answers)
        model_inputs["image_features"] = self._encode(model_inputs.pop("pixel_values"))
        inputs = {name: model_inputs[name] for name in ("input_ids", "attention_mask", "image_features")}
        outputs = super()._forward(model_inputs, options)
        outputs["probabilities"] = self._probabilities(inputs, outputs["generated"])
        return outputs

    def _probabilities(self, inputs: dict[str, torch.Tensor], generated: torch.LongTensor) -> torch.FloatTensor:
        """(batch, answers, tokens) -> (batch, answers): the probability of the tokens after each prompt."""
        copies, ids = generated.shape[1], generated.flatten(0, 1)
        prompts = self.model.decoder_prompt_ids(inputs["input_ids"], inputs["attention_mask"])
        inputs = {name: value.repeat_interleave(copies, dim=0) for name, value in inputs.items()}
        logits = self.model(
            **inputs, decoder_input_ids=ids[:, :-1]
        ).logits  # (batch * answers, tokens - 1, vocabulary)
        log_probs = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        starts = torch.tensor([len(prompt) for prompt in prompts], device=ids.device).repeat_interleave(copies)
        is_new = torch.arange(1, ids.shape[1], device=ids.device) >= starts[:, None]
        is_new &= ids[:, 1:] != self.processor.tokenizer.pad_token_id
        return (log_probs * is_new).sum(-1).exp().view(-1, copies)

    def postprocess(self, outputs: ModelOutput, return_full_text: bool = False) -> list[dict[str, Any]]:
        """Returns the answers to one input: the first sentence of each generated sequence."""
        texts = self._new_texts(outputs, first_sentence=True)
        if "probabilities" not in outputs:
            return [{"answer": text} for text in texts]
        scores: dict[str, float] = {}
        for text, probability in zip(texts, outputs["probabilities"].flatten().tolist(), strict=True):
            scores[text] = scores.get(text, 0.0) + probability
        return [{"score": score, "answer": text} for text, score in sorted(scores.items(), key=lambda item: -item[1])]


def _as_inputs(images) -> Any:
    """Returns what `Pipeline.__call__` accepts: one input, a list, a torch dataset or a generator."""
    if isinstance(images, tuple) or getattr(images, "ndim", 0) in (1, 4):  # an array of paths, or of images
        return list(images)
    is_one = isinstance(images, (str, bytes, dict, Image.Image)) or hasattr(images, "ndim")
    if is_one or not isinstance(images, Iterable) or isinstance(images, (list, GeneratorType, Dataset)):
        return images
    return (image for image in images)  # a dataset or column of the library `datasets`, or an iterator


def _as_pairs(images, texts: Iterable[str]) -> list[dict] | GeneratorType:
    """Pairs each of several images that `_as_inputs` returned with a text."""
    if isinstance(images, (GeneratorType, Dataset)):
        return ({"image": image, "text": text} for image, text in zip(images, texts, strict=True))
    texts = list(texts)
    check_same_number(len(images), len(texts))
    return [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]
