"""
`pipeline(task, model=...)` for VLKD.

Tasks: image-to-text, image-text-to-text, visual-question-answering, zero-shot-image-classification.
"""

from collections.abc import Iterable
from types import GeneratorType
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import GenerationConfig, ImageTextToTextPipeline, Pipeline, ZeroShotImageClassificationPipeline
from transformers.utils import ModelOutput

from .image_loading_vlkd import TIMEOUT, read_image
from .processing_vlkd import MASK

IMAGE_KEYS, TEXT_KEYS = ("image", "images"), ("text", "question", "prompt")  # of an example that is a dict


class VLKDImageTextToTextPipeline(ImageTextToTextPipeline):
    """
    Captions an image, or continues a prompt beside it: `image-to-text` and `image-text-to-text`.

        pipe(image)                               -> [{"generated_text": "a red circle"}]
        pipe(image, text="a photo of")            -> [{"input_text": ..., "generated_text": "a photo of a red circle"}]
        pipe([image, image], text=[..., ...])     -> a list of such lists
        pipe({"image": image, "text": "a photo of"}), and lists of such dicts
        pipe(a generator, dataset or column)      -> an iterator over what each would give

    An image is whatever the processor takes; a string is a path, URL or base64 image, never a prompt. The prompt is
    part of `generated_text` unless `return_full_text=False`. A URL may take `timeout` seconds. Every keyword that is
    not named in `__call__` goes to `generate`. A model of another kind gets transformers' own pipeline.
    """

    _default_generation_config = GenerationConfig(max_new_tokens=64)

    def __new__(cls, model, *args, **kwargs):
        if model.config.model_type != "vlkd":
            return ImageTextToTextPipeline(model, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        Pipeline.__init__(self, *args, **kwargs)  # the parent's checks the model against a list of its own

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
        twice = sorted(kwargs.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(f"`{twice[0]}` is given twice, by itself and in `generate_kwargs`; give it once.")
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
            images: an image, a dict with `image` and `text`, a list of either, or a generator or dataset of them.
            text: the prompt, or one for each image, or several for one image; alone, without images, it is BART's
                input.
            prompt: another name of `text`.
            kwargs: `return_full_text`, `timeout`, `truncation` (of a prompt that is longer than BART reads),
                `batch_size`, `num_workers`, `generate_kwargs`, and whatever `generate` takes.

        Raises:
            ValueError: no image and no text, not as many texts as images, or an image that cannot be read.
        """
        text = prompt if text is None else text
        one_text = text is None or isinstance(text, str)
        if images is None and text is None:
            raise ValueError("Neither `images` nor `text` is given; give an image, a text, or both.")
        if images is None:
            return Pipeline.__call__(self, {"text": text} if one_text else [{"text": one} for one in text], **kwargs)
        images = _as_inputs(images)
        images, text = (images, text) if one_text else (_as_pairs(images, text), None)
        if isinstance(images, list) and not images:
            return []  # transformers looks at the first
        return Pipeline.__call__(self, images, text=text, **kwargs)

    def preprocess(
        self, example, text: str | None = None, timeout: float = TIMEOUT, truncation: bool = False
    ) -> dict[str, Any]:
        """One image, or dict of image and text, -> the processor's features, and the prompt as a string."""
        example = example if isinstance(example, dict) else {"image": example}
        image = next((example[name] for name in IMAGE_KEYS if example.get(name) is not None), None)
        text = next((example[name] for name in TEXT_KEYS if example.get(name) is not None), text)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"`text`={text!r} is no string; give a prompt: VLKD reads prompts, not chats.")
        if image is None and text is None:
            raise ValueError(f"{list(example)} has neither an `image` nor a `text`; give one of them, or both.")
        if image is None:
            return {**self.processor(text=[text], truncation=truncation), "prompt": "", "input_text": text}
        prompt = self.build_prompt(text)
        features = self.processor(images=[read_image(image, timeout=timeout)], text=[prompt], truncation=truncation)
        return {**features, "prompt": prompt, "input_text": text or ""}

    def build_prompt(self, text: str | None) -> str:
        """The prompt that stands for the user's `text`."""
        return self.processor.build_prompt(text)

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict | None = None) -> ModelOutput:
        names = {name: model_inputs.pop(name) for name in ("prompt", "input_text")}
        options = self._prepare_generate_kwargs(generate_kwargs or {}, return_dict_in_generate=False)
        given = {**self._generate_kwargs, **(generate_kwargs or {})}.keys() & {"max_new_tokens", "generation_config"}
        if "pixel_values" not in model_inputs and not given and self.model.language_model.generation_config.max_length:
            options.pop("max_new_tokens", None)  # the pipeline's own default; a BART was published with another
        ids = self.model.generate(**model_inputs, **options)
        ids = ids.view(len(model_inputs["input_ids"]), -1, ids.shape[-1])  # (batch, num_return_sequences, tokens)
        return ModelOutput(generated=ids, input_ids=model_inputs["input_ids"], **names)

    def _new_texts(self, outputs: ModelOutput, first_sentence: bool = False) -> list[str]:
        """What the model wrote for one example, `num_return_sequences` times, without the prompt."""
        generated = outputs["generated"].flatten(0, 1)
        prompt_ids = outputs["input_ids"] if outputs["prompt"] else None  # a text alone is no prompt
        return self.processor.post_process_generation(generated, prompt_ids, first_sentence=first_sentence)

    def postprocess(self, outputs: ModelOutput, return_full_text: bool = True) -> list[dict[str, str]]:
        """One example's output -> a record for each returned sequence."""
        texts = self._new_texts(outputs)
        if return_full_text and outputs["prompt"]:
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

    The question is wrapped by `processor.question`; a question that has a `<mask>` is taken as the prompt itself.
    """

    def __new__(cls, model, *args, **kwargs):
        check_is_vlkd(model.config.model_type)
        return super().__new__(cls, model)

    def __init__(self, *args, top_k: int | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if top_k is not None:  # transformers would take it for the `top_k` of sampling
            self._forward_params |= self._sanitize_parameters(top_k=top_k)[1]

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if top_k is None:
            return preprocess, forward, postprocess
        if not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"`top_k`={top_k!r} is no number of answers; give 1 or more.")
        return preprocess, {**forward, "answers": top_k}, postprocess

    def __call__(self, image=None, question: str | Iterable[str] | None = None, **kwargs) -> Any:
        """
        Args:
            image: an image, a dict with `image` and `question`, a list of either, or a generator or dataset of them.
            question: the question, or one for each image, or several for one image.
            kwargs: `top_k`, `timeout`, `truncation`, `batch_size`, `num_workers`, `generate_kwargs`, and whatever
                `generate` takes. With `top_k` the answers of that many beams come with their scores, best first; beams
                that give one answer are one record, so there may be fewer. `score` is the probability, by the model
                without sampling or penalties, of all that was written, of which the answer is the first sentence.

        Raises:
            ValueError: no image, no question, not as many questions as images, or an image that cannot be read.
        """
        image = kwargs.pop("images", None) if image is None else image
        question = kwargs.pop("text", None) if question is None else question
        if image is None:
            raise ValueError("`image` is not given; a question needs an image: give one for each question.")
        return super().__call__(image, text=question, **kwargs)

    def preprocess(self, example, *args, **kwargs) -> dict[str, Any]:
        """One dict of image and question, or an image, -> the processor's features."""
        if isinstance(example, dict) and all(example.get(name) is None for name in IMAGE_KEYS):
            raise ValueError(f"`image` is not given: the question's dict has {list(example)}; a question needs one.")
        return super().preprocess(example, *args, **kwargs)

    def build_prompt(self, text: str | None) -> str:
        """The user's question as a prompt."""
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
        inputs = {name: value for name, value in model_inputs.items() if isinstance(value, torch.Tensor)}
        outputs = super()._forward(model_inputs, options)
        outputs["probabilities"] = self._probabilities(inputs, outputs["generated"])
        return outputs

    def _probabilities(self, inputs: dict[str, torch.Tensor], generated: torch.LongTensor) -> torch.FloatTensor:
        """(batch, answers, tokens) -> (batch, answers): the probability of what follows each one's prompt."""
        copies, ids = generated.shape[1], generated.flatten(0, 1)
        features = self.model.get_image_features(inputs.pop("pixel_values")).last_hidden_state
        prompts = self.model.decoder_prompt_ids(inputs["input_ids"], inputs["attention_mask"])
        inputs = {name: value.repeat_interleave(copies, dim=0) for name, value in inputs.items()}
        logits = self.model(
            **inputs, image_features=features.repeat_interleave(copies, dim=0), decoder_input_ids=ids[:, :-1]
        ).logits  # (batch * answers, tokens - 1, vocabulary)
        log_probs = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        starts = torch.tensor([len(prompt) for prompt in prompts], device=ids.device).repeat_interleave(copies)
        written = torch.arange(1, ids.shape[1], device=ids.device) >= starts[:, None]
        written &= ids[:, 1:] != self.processor.tokenizer.pad_token_id
        return (log_probs * written).sum(-1).exp().view(-1, copies)

    def postprocess(self, outputs: ModelOutput, return_full_text: bool = False) -> list[dict[str, Any]]:
        """One example's output -> the answers: the first sentence of each returned sequence."""
        texts = self._new_texts(outputs, first_sentence=True)
        if "probabilities" not in outputs:
            return [{"answer": text} for text in texts]
        scores: dict[str, float] = {}
        for text, probability in zip(texts, outputs["probabilities"].flatten().tolist(), strict=True):
            scores[text] = scores.get(text, 0.0) + probability
        return [{"score": score, "answer": text} for text, score in sorted(scores.items(), key=lambda item: -item[1])]


class VLKDZeroShotImageClassificationPipeline(ZeroShotImageClassificationPipeline):
    """
    transformers' own `zero-shot-image-classification`, with images read as the processor reads them, and datasets'
    columns. A model of another kind gets transformers' own.
    """

    def __new__(cls, model, *args, **kwargs):
        if model.config.model_type != "vlkd":
            return ZeroShotImageClassificationPipeline(model=model, **kwargs)
        if model.can_generate():
            raise ValueError(
                f"zero-shot-image-classification needs the dual encoder, and this is a {type(model).__name__}; load "
                "it by `AutoModelForZeroShotImageClassification`, or give the pipeline the name of its folder."
            )
        return super().__new__(cls)

    def __init__(self, **kwargs):
        Pipeline.__init__(self, **kwargs)

    def __call__(self, image=None, candidate_labels: list[str] | None = None, **kwargs) -> Any:
        """As the parent's."""
        image = kwargs.pop("images", None) if image is None else image
        if image is None or not candidate_labels:
            raise ValueError("`image` or `candidate_labels` is not given; give both.")
        return super().__call__(_as_inputs(image), candidate_labels=candidate_labels, **kwargs)

    def preprocess(self, image, *args, timeout: float | None = None, **kwargs) -> dict[str, Any]:
        """As the parent's."""
        return super().preprocess(read_image(image, timeout=timeout or TIMEOUT), *args, **kwargs)


def check_is_vlkd(model_type: str) -> None:
    """Raises, for every other kind of model, the KeyError that transformers raises for the task it has removed."""
    if model_type != "vlkd":
        raise KeyError(
            "The task visual-question-answering has been removed from transformers, and VLKD models alone have it "
            f"here; this is a {model_type!r}. Use the `image-text-to-text` pipeline with a vision-language "
            "chat model instead."
        )


def _as_inputs(images) -> Any:
    """One input, a list, a torch dataset or a generator, which are what `Pipeline.__call__` tells apart."""
    if isinstance(images, tuple) or getattr(images, "ndim", 0) == 4:
        return list(images)
    one = isinstance(images, (str, bytes, dict, Image.Image)) or hasattr(images, "ndim")
    if one or not isinstance(images, Iterable) or isinstance(images, (list, GeneratorType, Dataset)):
        return images
    return (image for image in images)  # one of `datasets`, or a column of it, or another iterator


def _as_pairs(images, texts: Iterable[str]) -> list[dict] | GeneratorType:
    """
    Images as `_as_inputs` gives them, with a text for each, or one image with several texts.

    Raises:
        ValueError: not as many texts as images.
    """
    if isinstance(images, (GeneratorType, Dataset)):
        return ({"image": image, "text": text} for image, text in zip(images, texts, strict=True))
    texts = list(texts)
    images = images if isinstance(images, list) else [images] * len(texts)
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} image(s) but {len(texts)} text(s) are given; give one text for each image.")
    return [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]
