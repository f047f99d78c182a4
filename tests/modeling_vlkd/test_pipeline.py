"""`pipeline(...)` for captions, with the package and as remote code, for folders and model objects; bad input."""

import base64
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from datasets import Dataset
from generated import expected
from PIL import Image
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    ImageTextToTextPipeline,
    ZeroShotImageClassificationPipeline,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

QUESTION = "what color is the circle?"
LABELS = ["red circle", "blue square"]


# captions


@pytest.mark.parametrize("task", ["image-to-text", "image-text-to-text"])
def test_an_image_is_captioned(task, source, model, processor, images):
    pipe = pipeline(task, **source, device="cpu")
    captions = expected(model, processor, images, None)
    assert len(set(captions)) > 1
    assert pipe(images[0], max_new_tokens=6) == [{"generated_text": captions[0]}]
    for batch_size in (1, 3):
        output = pipe(list(images), max_new_tokens=6, batch_size=batch_size)
        assert output == [[{"generated_text": caption}] for caption in captions]
    two = pipe(images[0], max_new_tokens=6, num_beams=2, num_return_sequences=2)
    beams = expected(model, processor, images[:1], None, num_beams=2, num_return_sequences=2)
    assert [record["generated_text"] for record in two] == beams


def test_an_image_comes_from_anywhere(captioner, images, tmp_path, web):
    due = captioner(images[0])
    path = tmp_path / "image.png"
    images[0].save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    pixels = torch.frombuffer(bytearray(images[0].tobytes()), dtype=torch.uint8).view(40, 48, 3)
    url = web.add("/image.png", path.read_bytes())
    for image in (
        str(path),
        path,
        url,
        text,
        f"data:image/png;base64,{text}",
        pixels,
        pixels.numpy(),
        Image.open(path),
    ):
        assert captioner(image) == captioner(images=image) == captioner({"image": image}) == due
    with pytest.raises(ValueError, match=r"image \(http://127.*404"):
        captioner(url + ".gone")
    with pytest.raises(ValueError, match="timed out"):
        captioner(web.add("/silent", lambda handler: handler.connection.recv(1)), timeout=0.2)


def test_many_images_come_in_any_container(captioner, images, processor):
    due = captioner(list(images))
    data = Dataset.from_dict({"image": list(images), "label": [1, 2, 3, 4]})
    assert captioner(tuple(images)) == captioner(torch.stack([pixels(image) for image in images])) == due
    lazy = (
        (image for image in images),
        map(Image.Image.copy, images),
        data["image"],
        data.to_iterable_dataset()["image"],
        KeyDataset(data, "image"),
        data,
        ({"image": image} for image in images),
    )
    for several in lazy:
        assert list(captioner(several, batch_size=3)) == due
    assert captioner([]) == captioner(()) == captioner([], text=[]) == []


def test_paths_in_an_array_or_a_series(captioner, images, tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    assert captioner(np.array(paths)) == captioner(pd.Series(paths)) == captioner(paths)
    pixels = captioner.processor(images=paths)["pixel_values"]
    assert torch.equal(captioner.processor(images=np.array(paths))["pixel_values"], pixels)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def test_a_generator_is_read_as_it_is_needed(captioner, images):
    read = []

    def stream():
        for number, image in enumerate(images):
            read.append(number)
            yield image

    captions = captioner(stream())
    next(iter(captions))
    assert len(read) < len(images)


def test_a_prompt_is_continued(source, model, processor, images):
    pipe = pipeline("image-text-to-text", **source, device="cpu", max_new_tokens=6)
    prompts = ["a photo of", "two <mask> on the grass"]
    new = expected(model, processor, images[:2], prompts)
    full = [f"a photo of {new[0]}", f"two {new[1]} on the grass"]
    assert pipe(images[0], text=prompts[0]) == [{"input_text": prompts[0], "generated_text": full[0]}]
    assert pipe({"image": images[0], "text": prompts[0]})[0]["generated_text"] == full[0]
    assert pipe(images[0], text=prompts[0], return_full_text=False)[0]["generated_text"] == new[0]
    for batch_size in (1, 2):
        both = pipe(images[:2], text=prompts, batch_size=batch_size)
        assert [records[0]["generated_text"] for records in both] == full
    lazy = pipe((image for image in images[:2]), text=(prompt for prompt in prompts))
    assert [records[0]["generated_text"] for records in lazy] == full
    same = pipe(images[:2], text=prompts[0])
    assert [records[0]["input_text"] for records in same] == [prompts[0]] * 2


def test_what_is_given_to_generate_reaches_it(captioner, model, processor, images):
    def caption(**options):
        return captioner(images[0], **options)[0]["generated_text"]

    beams = expected(model, processor, images[:1], None, num_beams=3)[0]
    assert caption(num_beams=3) == caption(generate_kwargs={"num_beams": 3}) == beams  # and max_new_tokens=6 is kept
    assert caption(max_new_tokens=3) == expected(model, processor, images[:1], None, max_new_tokens=3)[0]
    sampling = {"do_sample": True, "top_k": 50, "temperature": 3.0}
    torch.manual_seed(5)
    sampled = expected(model, processor, images[:1], None, **sampling)[0]
    torch.manual_seed(5)
    assert caption(generate_kwargs={"do_sample": True, "top_k": 50}, temperature=3.0) == sampled != beams
    with pytest.raises(ValueError, match="return_everything"):
        caption(return_everything=True)


def test_a_long_prompt_is_cut_where_that_is_asked_for(vlkd_dir, images):
    pipe = pipeline("image-to-text", model=vlkd_dir, device="cpu", max_new_tokens=6)
    pipe.processor.tokenizer.truncation_side = "left"
    long = " ".join(["two"] * 100)
    with pytest.raises(ValueError, match="pass `truncation=True`"):
        pipe(images[0], text=long)
    assert pipe(images[0], text=long, truncation=True, max_new_tokens=1)[0]["generated_text"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, vlkd_dir, images):
    pipe = pipeline("image-to-text", model=vlkd_dir, dtype=dtype, device="cpu", max_new_tokens=6)
    assert pipe.model.dtype == dtype
    assert pipe(images[0])[0]["generated_text"] == expected(pipe.model, pipe.processor, images[:1], None)[0]


# zero-shot classification


def test_zero_shot_classification_uses_the_dual_encoder(vlkd_dir, model, processor, images):
    """With transformers' own pipeline."""
    pipe = pipeline("zero-shot-image-classification", model=vlkd_dir, device="cpu")
    assert type(pipe) is ZeroShotImageClassificationPipeline
    output = pipe(images[0], candidate_labels=LABELS, hypothesis_template="a photo of a {}")
    texts = processor(text=["a photo of a red circle", "a photo of a blue square"])
    v = model.get_image_features(processor(images=images[0])["pixel_values"]).pooler_output
    due = (model.logit_scale.exp() * v @ model.get_text_features(**texts).pooler_output.T).softmax(-1)[0]
    scores = {record["label"]: record["score"] for record in output}
    assert [scores[label] for label in LABELS] == pytest.approx(due.tolist(), abs=1e-5)


# bad input


def test_bad_input_is_a_value_error(captioner, answerer, images):
    for text in (["a"], iter(["a"])):
        with pytest.raises(ValueError, match=r"2 image\(s\) but 1 text\(s\)"):
            captioner(images[:2], text=text)
    with pytest.raises(ValueError, match="shorter"):
        list(captioner((image for image in images), text=["a"]))
    with pytest.raises(ValueError, match=r"image \(nowhere.png\) cannot be read"):
        captioner("nowhere.png")
    with pytest.raises(ValueError, match=r"image \(bytes\) cannot be read"):
        captioner(b"bytes")
    with pytest.raises(ValueError, match="takes prompts, not chats"):
        captioner(images[0], text=[{"role": "user", "content": "hello"}])
    for texts in ({"text": "a <mask>"}, {"text": [[{"role": "user", "content": "hello"}]]}):
        with pytest.raises(ValueError, match="`images` is not given.*no chats.*to_bart"):
            captioner(**texts)
    with pytest.raises(ValueError, match="`max_new_tokens` is given twice"):
        captioner(images[0], max_new_tokens=2, generate_kwargs={"max_new_tokens": 9})
    assert captioner(images[0], prompt="a photo of") == captioner(images[0], text="a photo of")
    with pytest.raises(ValueError, match=r"\['img'\] has no image"):
        captioner({"img": images[0]})
    with pytest.raises(ValueError, match="`question` is not given"):
        answerer(images[0])
    with pytest.raises(ValueError, match=r"\['question'\] has no image"):
        answerer([{"question": QUESTION}])


# other people's models, and remote code


@pytest.fixture(scope="module")
def blip_dir(tmp_path_factory) -> str:
    """A BLIP of another maker, with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **tower,
        "vocab_size": len(words),
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config={**tower, "image_size": 32})
    BlipForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return str(folder)


def test_other_models_get_transformers_own_pipelines(blip_dir):
    blip = pipeline("image-text-to-text", model=blip_dir, device="cpu")
    assert type(blip) is ImageTextToTextPipeline
    with pytest.raises(KeyError, match="only VLKD models support it, not 'blip'"):
        pipeline("visual-question-answering", model=blip.model, processor=blip.processor)


def test_image_to_text_logs_no_warning(model, processor, caplog):
    """transformers warns that the task was removed, with arguments that its own logger cannot format."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    transformers.utils.logging.warning_once.cache_clear()
    pipeline("image-to-text", model=model, processor=processor, device="cpu")
    logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if "image-to-text" in str(record.msg)]


ISOLATED = """
import sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

folder, image, blip, clip, bart, root = sys.argv[1:]
labels = ["red circle", "blue square"]
options = {"model": folder, "trust_remote_code": True, "device": "cpu"}
print(pipeline("image-to-text", **options, max_new_tokens=6)(image))
print(pipeline("image-text-to-text", **options, max_new_tokens=6)([image], text="a photo of"))
vqa = pipeline("visual-question-answering", **options, max_new_tokens=6)
print(vqa({"image": image, "question": "what color is the circle?"}))
print(pipeline("vqa", **options, max_new_tokens=6, top_k=2)(image, "what color is the circle?"))
print(pipeline("zero-shot-image-classification", **options)(image, candidate_labels=labels))
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
implementation = get_class_from_dynamic_module("pipeline_vlkd.VLKDImageTextToTextPipeline", folder)
objects = {"model": model, "processor": processor, "pipeline_class": implementation, "max_new_tokens": 6}
print(pipeline("image-to-text", **objects)(image))

def error_of(task, **options):
    try:
        return pipeline(task, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error.args[0]}"

print(repr(error_of("image-to-text", model=folder, trust_remote_code=False)))

def others():
    torch.manual_seed(0)
    yield pipeline("image-text-to-text", model=blip, device="cpu")(image, text="a", max_new_tokens=4)
    yield pipeline("image-to-text", model=blip, device="cpu")([image], text=["a"], max_new_tokens=4)
    yield pipeline("zero-shot-image-classification", model=clip, device="cpu")(image, candidate_labels=labels)
    for name in (blip, bart):
        yield type(error_of("visual-question-answering", model=name, device="cpu"))

assert "modeling_vlkd" not in sys.modules
before = list(others())
sys.path.insert(0, root)
import modeling_vlkd
after = list(others())
print([pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]])
"""


def test_without_the_package_the_same_and_others_are_left_alone(
    vlkd_dir, blip_dir, clip_dir, bart_dir, images, tmp_path
):
    image = str(tmp_path / "image.png")
    images[0].save(image)
    options = {"model": vlkd_dir, "device": "cpu", "max_new_tokens": 6}
    caption = pipeline("image-to-text", **options)(image)
    due = [
        caption,
        pipeline("image-text-to-text", **options)([image], text="a photo of"),
        pipeline("visual-question-answering", **options)(image, QUESTION),
        pipeline("vqa", **options)(image, QUESTION, top_k=2),
        pipeline("zero-shot-image-classification", model=vlkd_dir, device="cpu")(image, candidate_labels=LABELS),
        caption,
    ]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-P", "-c", ISOLATED, vlkd_dir, image, blip_dir, clip_dir, bart_dir, root]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    *printed, refusal, unchanged = run.stdout.splitlines() or [run.stderr]
    assert printed == [str(output) for output in due], run.stderr
    assert "ValueError: The repository" in refusal and "Please pass the argument `trust_remote_code=True`" in refusal
    assert unchanged == "[]"
