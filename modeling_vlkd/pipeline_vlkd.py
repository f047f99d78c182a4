"""`pipeline("image-to-text" | "image-text-to-text" | "visual-question-answering", model=...)` for VLKD."""

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import GenerationConfig, ImageTextToTextPipeline, Pipeline
from transformers.utils import ModelOutput

from .processing_vlkd import MASK


class VLKDImageTextToTextPipeline(ImageTextToTextPipeline):
    """
    Captions an image, or continues a prompt beside it: `image-to-text` and `image-text-to-text`.

        pipe(image)                               -> [{"generated_text": "a red circle"}]
        pipe(image, text="a photo of")            -> [{"input_text": ..., "generated_text": "a photo of a red circle"}]
        pipe([image, image], text=[..., ...])     -> a list of such lists
        pipe({"image": image, "text": "a photo of"}), and lists, generators and datasets of such dicts

    An image is whatever the processor takes; a string is a path or URL of one, never a prompt. The prompt is part of
    `generated_text` unless `return_full_text=False`. Every other keyword goes to `generate`. A model of another kind
    gets transformers' own pipeline.
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
        return_full_text: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        generate_kwargs = {**(generate_kwargs or {}), **kwargs}
        return (
            {} if text is None else {"text": text},
            {"generate_kwargs": generate_kwargs} if generate_kwargs else {},
            {} if return_full_text is None else {"return_full_text": return_full_text},
        )

    def __call__(self, images=None, text: str | list[str] | None = None, prompt: str | None = None, **kwargs) -> Any:
        """
        Args:
            images: an image, a dict with `image` and `text`, a list of either, or a generator or dataset of them.
            text: the prompt, or one for each image; alone, without images, it is BART's input.
            prompt: another name of `text`.
            kwargs: `return_full_text`, `batch_size`, `num_workers`, and whatever `generate` takes.

        Raises:
            ValueError: no image and no text, or not as many texts as images.
        """
        text = prompt if text is None else text
        if images is None:
            if text is None:
                raise ValueError("Neither `images` nor `text` is given; give an image, a text, or both.")
            inputs = {"text": text} if isinstance(text, str) else [{"text": one} for one in text]
            return Pipeline.__call__(self, inputs, **kwargs)
        if isinstance(text, (list, tuple)):
            if not isinstance(images, (list, tuple)):
                images = [images] * len(text)
            if len(images) != len(text):
                raise ValueError(
                    f"{len(images)} image(s) but {len(text)} text(s) are given; give one text for each image."
                )
            images = [{"image": image, "text": one} for image, one in zip(images, text, strict=True)]
            text = None
        if isinstance(images, (str, Path, Image.Image)):
            images = {"image": images}
        return Pipeline.__call__(self, list(images) if isinstance(images, tuple) else images, text=text, **kwargs)

    def preprocess(self, example, text: str | None = None) -> dict[str, Any]:
        """One image, or dict of image and text, -> the processor's features, and the prompt as a string."""
        example = example if isinstance(example, dict) else {"image": example}
        image = next((example[name] for name in ("image", "images") if example.get(name) is not None), None)
        text = next((example[name] for name in ("text", "question", "prompt") if example.get(name) is not None), text)
        if text is not None and not isinstance(text, str):
            raise ValueError(f"`text`={text!r} is no string; give a prompt: VLKD reads prompts, not chats.")
        if image is None:
            return {**self.processor(text=[text]), "prompt": "", "input_text": text}
        prompt = self.prompt(text)
        return {**self.processor(images=[image], text=[prompt]), "prompt": prompt, "input_text": text or ""}

    def prompt(self, text: str | None) -> str:
        """The prompt that stands for the user's `text`."""
        return self.processor.prompt(text)

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict | None = None) -> ModelOutput:
        names = {name: model_inputs.pop(name) for name in ("prompt", "input_text")}
        options = self._prepare_generate_kwargs(generate_kwargs or {}, return_dict_in_generate=False)
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
        pipe({"image": image, "question": "what color is it?"}), and lists, generators and datasets of such dicts

    The question is wrapped by `processor.question`; a question that has a `<mask>` is taken as the prompt itself.
    """

    def __new__(cls, model, *args, **kwargs):
        if model.config.model_type != "vlkd":
            raise KeyError(
                f"The task visual-question-answering has been removed from transformers; here it serves VLKD models "
                f"alone, and this is a {model.config.model_type!r}. Use the `image-text-to-text` pipeline."
            )
        return super().__new__(cls, model)

    def __call__(self, image=None, question: str | list[str] | None = None, **kwargs) -> Any:
        """
        Args:
            image: an image, a dict with `image` and `question`, a list of either, or a generator or dataset of them.
            question: the question, or one for each image.
            kwargs: `batch_size`, `num_workers`, and whatever `generate` takes.

        Raises:
            ValueError: no image, no question, or not as many questions as images.
        """
        image = kwargs.pop("images", None) if image is None else image
        question = kwargs.pop("text", None) if question is None else question
        if image is None:
            raise ValueError("`image` is not given; a question needs an image: give one for each question.")
        return super().__call__(image, text=question, **kwargs)

    def prompt(self, text: str | None) -> str:
        """The user's question as a prompt."""
        if not text:
            raise ValueError("`question` is not given; give a question for each image, or dicts with `question`.")
        return self.processor.prompt(text) if MASK in text else self.processor.question(text)

    def postprocess(self, outputs: ModelOutput, return_full_text: bool = False) -> list[dict[str, str]]:
        """One example's output -> the answers: the first sentence of each returned sequence."""
        return [{"answer": text} for text in self._new_texts(outputs, first_sentence=True)]
