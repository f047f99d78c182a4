"""A web page that captions an image, answers questions about it, and compares texts with it.

It imports only gradio, torch and transformers: `vlkd push --space` copies this file into a Space.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

MAX_TOKENS = 40  # of a caption or an answer
MAX_TEXTS = 20  # compared at once
MAX_LETTERS = 1000  # of a question, and of all compared texts
MAX_UPLOAD = "20mb"
MAX_PIXELS = 25_000_000  # of an image, before Pillow warns; it refuses twice as many
MAX_WAITING = 32  # requests in the queue
KEPT = 3600  # seconds for which an uploaded file is kept

HEAD = """\
# Ask about an image
Choose an image to get a caption. Then ask a question about it, or compare texts with it."""
NOTES = """\
Model: {name}. A percentage is the model's own estimate, and can be wrong: for a caption or an answer, its probability
per token; for compared texts, shares that add up to 100%. Images are used only for these results, and deleted after
about an hour."""
CSS = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important}
#image {height: 400px !important}
#image .image-frame, #image .image-frame img {width: 100%; height: 100%; object-fit: contain}
.result .empty {min-height: 72px}
.result .container {padding-top: 8px}
.result dl.label, .result dd.confidence {font-family: var(--font)}
.result .text {font-size: var(--text-lg); white-space: normal; overflow-wrap: anywhere}
.notes p {opacity: 0.75; font-size: var(--text-sm)}
@media (max-width: 600px) {
  #image {height: 280px !important}
  div.gallery:has(button) {display: grid; grid-template-columns: repeat(5, minmax(0, 1fr))}
  .gallery-item .container {width: 100% !important; height: 60px !important}
}
"""


class Page(gr.Blocks):
    """Blocks that take no file from a client but an upload or an example."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Refuse other files, before Gradio notes them to delete them later: it fails for a folder, and then stops."""
        super().validate_inputs(block_fn, inputs)
        if not all(self._is_stored(value) for value in inputs if isinstance(value, (dict, list))):
            raise _message("The server does not have this image. Upload it.")

    def _is_stored(self, value: dict[str, Any] | list[Any]) -> bool:
        """Whether `value` is a file in Gradio's folder. Without `meta`, Gradio would look for files inside `value`."""
        if not isinstance(value, dict) or value.get("meta") != {"_type": "gradio.FileData"}:
            return False
        path = value.get("path")
        if not isinstance(path, str) or not os.path.isfile(path):
            return False
        return Path(path).resolve().is_relative_to(Path(self.GRADIO_CACHE).resolve())


class ImageTasks:
    """What the page computes. A file is what Gradio makes of an upload: a dict with `path` and `orig_name`.

    Args:
        model: a `VLKDForConditionalGeneration`.
        processor: its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model, self.processor = model, processor

    def caption(self, file: dict[str, Any] | None) -> dict[str, float] | None:
        """The caption of an image, with its confidence. None without a file."""
        return None if file is None else self._write(file)

    def ask(self, file: dict[str, Any] | None, question: str) -> dict[str, float]:
        """The answer to a question, with its confidence."""
        if not question.strip():
            raise _message("Write a question.")
        return self._write(file, _short(question))

    @torch.no_grad()
    def _write(self, file: dict[str, Any] | None, question: str | None = None) -> dict[str, float]:
        """A caption or an answer, and the geometric mean of the probabilities of its tokens."""
        with _readable(file) as path:
            prompt = None if question is None else self.processor.build_vqa_prompt(question)
            inputs = self.processor(images=path, text=prompt).to(self.model.device, self.model.dtype)
        room = self.processor.tokenizer.model_max_length - inputs["input_ids"].shape[1] + 1  # after a long question
        options = {"max_new_tokens": min(MAX_TOKENS, room), "return_dict_in_generate": True, "output_logits": True}
        output = self.model.generate(**inputs, **options)
        ids, start = output.sequences, output.sequences.shape[1] - len(output.logits)
        read = partial(self.processor.post_process_generation, input_ids=inputs["input_ids"])
        texts = [read(ids[:, :end], first_sentence=question is not None)[0] for end in range(start, ids.shape[1] + 1)]
        count = max(1, texts.index(texts[-1]))  # tokens of the text: not what follows its first sentence
        log_probs = self.model.compute_transition_scores(ids, output.logits, normalize_logits=True)[0, :count]
        return {texts[-1]: log_probs.float().mean().exp().item()}

    @torch.no_grad()
    def compare(self, file: dict[str, Any] | None, texts: str) -> dict[str, float]:
        """How well each line of `texts` fits an image: the softmax of CLIP's similarities."""
        lines = [*dict.fromkeys(line.strip() for line in _short(texts).splitlines() if line.strip())]
        if not 2 <= len(lines) <= MAX_TEXTS:
            raise _message(f"Write 2 to {MAX_TEXTS} different texts, one on each line.")
        with _readable(file) as path:
            pixels = self.processor(images=path)["pixel_values"].to(self.model.device, self.model.dtype)
            tokens = self.processor(text=lines).to(self.model.device)
        image = self.model.get_image_features(pixels).pooler_output
        text = self.model.get_text_features(**tokens).pooler_output
        shares = (self.model.logit_scale.exp() * image @ text.T).float().softmax(-1)
        return dict(zip(lines, shares[0].tolist(), strict=True))


@contextmanager
def _readable(file: dict[str, Any] | None) -> Iterator[Path]:
    """The path of an uploaded file. A ValueError about it, or about a text, becomes a message for the visitor."""
    if file is None:
        raise _message("Choose an image first.")
    try:
        yield Path(file["path"])
    except ValueError as error:
        if error.__cause__ is None:
            raise _message(str(error)) from error
        name = file.get("orig_name") or "The file"
        raise _message(f"{name} cannot be read as an image: {error.__cause__}.") from error


def _short(text: str) -> str:
    if len(text) > MAX_LETTERS:
        raise _message(f"The text has {len(text)} characters; shorten it to {MAX_LETTERS}.")
    return text.strip()


def _message(text: str) -> gr.Error:
    return gr.Error(text, print_exception=False)


def build_page(tasks: ImageTasks, name: str, examples: Sequence[Path | Image.Image] = ()) -> gr.Blocks:
    """The page, for a model called `name`, with images to try."""
    with Page(title=f"{name}: ask about an image", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(HEAD)
        with gr.Row(equal_height=False):
            with gr.Column():
                sources, buttons = ["upload", "clipboard"], ["fullscreen"]
                image = gr.Image(label="Image", format="png", sources=sources, buttons=buttons, elem_id="image")
                if examples:
                    gr.Examples([[one] for one in examples], image, label="Examples", cache_examples=False)
            with gr.Column():
                caption = _results("Caption")
                with gr.Tab("Ask a question"):
                    question = gr.Textbox(label="Question", placeholder="what is in the picture?", max_lines=3)
                    ask = gr.Button("Ask", variant="primary")
                    answer = _results("Answer")
                with gr.Tab("Compare texts"):
                    texts = gr.Textbox(label="Texts, one on each line", lines=3, placeholder="a dog\na cat")
                    compare = gr.Button("Compare", variant="primary")
                    shares = _results("Which text fits best")
        gr.Markdown(NOTES.format(name=name), elem_classes="notes")
        # One request at a time uses the model. The functions get the uploaded file itself, not decoded by Gradio.
        options = {"preprocess": False, "concurrency_id": "model", "concurrency_limit": 1}
        cleared = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        changed = image.change(lambda: (None, None, None), None, [caption, answer, shares], **cleared)
        changed.then(tasks.caption, image, caption, api_name="caption", **options)
        gr.on([ask.click, question.submit], tasks.ask, [image, question], answer, api_name="ask", **options)
        compare.click(tasks.compare, [image, texts], shares, api_name="compare", **options)
    return page.queue(max_size=MAX_WAITING)


def _results(label: str) -> gr.Label:
    return gr.Label(label=label, show_heading=False, elem_classes="result")


def limit_images() -> None:
    """Let Pillow refuse large images, and EPS files, which it would run in Ghostscript. Holds for the process."""
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    Image.init()
    Image.register_open("EPS", _refuse_eps, Image.OPEN["EPS"][1])


def _refuse_eps(*file: Any) -> Image.Image:
    raise ValueError("it is an EPS file; use JPEG or PNG")


def launch(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    name: str,
    examples: Sequence[Path | Image.Image] = (),
    **options: Any,
) -> gr.Blocks:
    """Serve the page. Pillow's limits change as `limit_images` says.

    Args:
        model: a `VLKDForConditionalGeneration`.
        processor: its processor.
        name: the model's name, for the visitor.
        examples: images to try: files, or PIL images.
        options: of `gradio.Blocks.launch`.

    Returns:
        The page, once it is served; without `prevent_thread_lock=True`, once it is closed.

    Raises:
        OSError: `server_port` is in use.
    """
    limit_images()
    page = build_page(ImageTasks(model, processor), name, examples)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing from the web
    style = {"theme": gr.themes.Default(primary_hue="indigo", **fonts), "css": CSS, "footer_links": ["api", "gradio"]}
    page.launch(max_file_size=MAX_UPLOAD, ssr_mode=False, **style, **options)
    return page
