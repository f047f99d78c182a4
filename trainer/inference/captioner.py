"""Write a text for each image of a batch, with one prompt."""

import torch
from transformers import PreTrainedModel

from modeling_vlkd import VLKDProcessor

MAX_BATCH = 64  # images
CACHE_BYTES = 256 * 2**20  # for the keys and values of a batch, at most


class Captioner:
    """Captions images, or answers a question about each.

    Args:
        model, processor: what `load_for_inference` returns. The model is in eval mode afterwards.
        prompt: a text with one `<mask>`.
        first_sentence: whether to keep only the first sentence, as of an answer.
        max_new_tokens: maximum number of generated tokens.
        num_beams: number of beams; 1 is greedy decoding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: VLKDProcessor,
        prompt: str,
        first_sentence: bool,
        max_new_tokens: int,
        num_beams: int,
    ):
        self.model, self.processor = model.eval(), processor
        self.prompt, self.first_sentence = prompt, first_sentence
        self.options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": False}
        self.most = MAX_BATCH  # images that the memory is known to hold

    @property
    def batch_size(self) -> int:
        """As many images as `CACHE_BYTES` hold keys and values of, `MAX_BATCH` at most."""
        config, text = self.model.config, self.model.config.text_config
        tokens = 1 + config.num_patches + self.options["max_new_tokens"]
        beam_bytes = 2 * text.decoder_layers * text.d_model * tokens * self.model.dtype.itemsize
        return max(1, min(MAX_BATCH, CACHE_BYTES // (beam_bytes * self.options["num_beams"])))

    def __call__(self, pixel_values: torch.FloatTensor) -> list[str]:
        """A text for each image, (images, 3, height, width).

        If a GPU's memory is too small for the images, they and later ones are done in smaller batches.
        """
        return [text for images in pixel_values.split(self.most) for text in self._generate(images)]

    @torch.no_grad()
    def _generate(self, pixel_values: torch.FloatTensor) -> list[str]:
        inputs = self.processor.encode_prompts(self.prompt, len(pixel_values)).to(self.model.device)
        pixels = pixel_values.to(self.model.device, self.model.dtype)
        try:
            ids = self.model.generate(**inputs, pixel_values=pixels, **self.options)
            return self.processor.post_process_generation(ids, inputs["input_ids"], first_sentence=self.first_sentence)
        except torch.OutOfMemoryError:
            if len(pixel_values) == 1:
                raise
        # After the `except`, so that the failed call's tensors are freed.
        self.most = len(pixel_values) // 2
        return self(pixel_values)
