"""VLKD for lmms-eval: `lmms-eval --model vlkd`. The entry point "lmms_eval.models" in setup.py names MANIFEST."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from modeling_vlkd.processing_vlkd import MASK, first_sentence_of
from trainer.evaluation.generation import CHUNK_BATCHES, complete, encode_images
from trainer.models import load_vlkd
from trainer.precision import DTYPES, read_dtype

MANIFEST = ModelManifest("vlkd", simple_class_path=f"{__name__}.VLKD")
SAMPLING = ("temperature", "top_p", "top_k")


class VLKD(lmms):
    """
    A VLKD checkpoint as a model of lmms-eval, with one image for each request.

    A context with a `<mask>` is a prompt, and an empty one asks for a caption. Any other context is a question: it
    gets the prompt of `build_vqa_prompt`, and the first sentence of the answer is kept.

    Args:
        pretrained: folder or Hub name of a VLKD checkpoint or PEFT adapter.
        batch_size: images and prompts in a batch.
        device: a PyTorch device; by default accelerate's.
        dtype: "float32", "bfloat16", "float16" or "auto", which is bfloat16 where the device is fast at it.

    Raises:
        ValueError: `pretrained` is not a VLKD checkpoint, or an unknown `dtype`.
    """

    def __init__(
        self, pretrained: str, batch_size: int | str = 1, device: str | None = None, dtype: str = "auto"
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}.")
        self.accelerator = Accelerator()  # the evaluator gathers the results of several processes with it
        self.device = torch.device(device) if device else self.accelerator.device
        self.batch_size = int(batch_size)
        self.model, self.processor = load_vlkd(pretrained, "pretrained", self.device, read_dtype(dtype, self.device))
        self.model.eval()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The text for each request, up to the first of the stop sequences in `until`.

        Raises:
            ValueError: a request does not have exactly one image, or an option of generation is unknown.
        """
        texts: list[str] = []
        for given, group in groupby(requests, key=lambda request: request.args[1]):
            rows, size = list(group), CHUNK_BATCHES * self.batch_size
            for chunk in (rows[start : start + size] for start in range(0, len(rows), size)):
                prompts, features = self._prompts(chunk), self._image_features(chunk)
                options, until = self._generation_options(given, prompts)
                tokenizer = self.processor.tokenizer
                for request, text in zip(
                    chunk, complete(self.model, tokenizer, prompts, features, self.batch_size, **options), strict=True
                ):
                    for stop in until:
                        text = text.split(stop)[0]
                    texts.append(first_sentence_of(text) if _is_question(request.args[0]) else text.strip())
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "VLKD runs tasks of output_type generate_until. lmms-eval 0.7.3 turns log-probabilities into strings, "
            "so its tasks of type multiple_choice and loglikelihood fail with every model."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("VLKD reads one prompt and no chats; choose a task of output_type generate_until.")

    def _prompts(self, requests: Sequence[Instance]) -> list[str]:
        build, build_vqa = self.processor.build_prompt, self.processor.build_vqa_prompt
        contexts = [request.args[0] for request in requests]
        return [build_vqa(context) if _is_question(context) else build(context.strip()) for context in contexts]

    def _image_features(self, requests: Sequence[Instance]) -> torch.Tensor:
        """V of each request's image: (requests, N, d_j)."""
        images = []
        for request in requests:
            _, _, doc_to_visual, doc_id, task, split = request.args
            found = doc_to_visual(self.task_dict[task][split][doc_id])
            if len(found) != 1:
                raise ValueError(f"VLKD reads one image for each question; {task} has {len(found)} in row {doc_id}.")
            images += found
        return encode_images(self.model, self.processor, images, self.batch_size)

    def _generation_options(self, given: dict[str, Any], prompts: list[str]) -> tuple[dict[str, Any], list[str]]:
        """The options of `generate`, without those of sampling if the task is greedy, and the stop sequences."""
        options = {name: value for name, value in given.items() if value is not None}
        until = options.pop("until", [])
        temperature = options.get("temperature", 1.0 if options.get("do_sample") else 0.0)
        options["do_sample"] = temperature > 0 and options.get("do_sample", True)
        if not options["do_sample"]:
            options = {name: value for name, value in options.items() if name not in SAMPLING}
        if "max_new_tokens" in options:  # tasks written for LLMs allow more than BART has positions
            longest = max(map(len, self.processor.tokenizer(prompts)["input_ids"]))
            room = self.processor.tokenizer.model_max_length - longest
            options["max_new_tokens"] = max(1, min(options["max_new_tokens"], room))
        return options, [until] if isinstance(until, str) else until


def _is_question(context: str) -> bool:
    return bool(context.strip()) and MASK not in context
