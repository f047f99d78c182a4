"""`pipeline(...)` with the package and as remote code, for folders and model objects."""

import base64
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
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
QUESTIONS = [QUESTION, "how many?", QUESTION, "is there a very long caption about nothing at all?"]
VQA_PROMPT = "Question: {} Answer: <mask>"
LABELS = ["red circle", "blue square"]


@pytest.fixture(scope="module", params=["folder", "object"])
def source(request, vlkd_dir, model, processor) -> dict:
    return {"model": vlkd_dir} if request.param == "folder" else {"model": model, "processor": processor}


@pytest.fixture(scope="module")
def captioner(model, processor):
    return pipeline("image-to-text", model=model, processor=processor, device="cpu", max_new_tokens=6)


@pytest.fixture(scope="module")
def answerer(model, processor):
    return pipeline("visual-question-answering", model=model, processor=processor, device="cpu", max_new_tokens=6)


def expected(model, processor, images, texts, first_sentence=False, **options) -> list[str]:
    """What `generate` gives, called by hand."""
    batch = processor(images=images, text=texts)
    written = model.generate(**batch, **{"max_new_tokens": 6, **options})
    return processor.post_process_generation(written, batch["input_ids"], first_sentence=first_sentence)


def answers(model, processor, images, questions, **options) -> list[list[dict]]:
    texts = expected(model, processor, images, [VQA_PROMPT.format(one) for one in questions], True, **options)
    return [[{"answer": text}] for text in texts]


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


# questions


@pytest.mark.parametrize("task", ["visual-question-answering", "vqa"])
def test_a_question_is_answered(task, source, model, processor, images):
    pipe = pipeline(task, **source, device="cpu", max_new_tokens=6)
    due = answers(model, processor, images, QUESTIONS)
    assert pipe(images[0], QUESTION) == pipe(image=images[0], question=QUESTION) == due[0]
    assert pipe({"image": images[0], "question": QUESTION}) == due[0]
    assert pipe(images[0], VQA_PROMPT.format(QUESTION)) == due[0]
    dicts = [{"image": image, "question": question} for image, question in zip(images, QUESTIONS, strict=True)]
    for batch_size in (1, 4):
        assert pipe(dicts, batch_size=batch_size) == pipe(images, QUESTIONS, batch_size=batch_size) == due


def test_questions_come_in_any_container(answerer, model, processor, images):
    due = answers(model, processor, images, QUESTIONS)
    data = Dataset.from_dict({"image": list(images), "question": QUESTIONS})
    pairs = zip(images, QUESTIONS, strict=True)
    assert list(answerer(data)) == list(answerer(data["image"], data["question"], batch_size=2)) == due
    assert list(answerer({"image": image, "question": question} for image, question in pairs)) == due
    assert list(answerer(KeyDataset(data, "image"), QUESTIONS)) == due
    one_image = answers(model, processor, images[:1] * 4, QUESTIONS)
    assert answerer(images[0], QUESTIONS) == answerer(images[0], data["question"]) == one_image
    one_question = answers(model, processor, images, [QUESTION] * 4)
    assert answerer(images, QUESTION) == list(answerer(data["image"], QUESTION)) == one_question
    beams = answers(model, processor, images[:1], QUESTIONS[:1], num_beams=4)
    assert answerer(images[0], QUESTION, num_beams=4) == beams[0]


def texts_of(outputs) -> list[list[str]]:
    return [[record["answer"] for record in records] for records in outputs]


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"top_k": 2}])
def test_an_image_is_encoded_once_for_all_its_questions(answerer, model, images, monkeypatch, options):
    encoded = []

    def count(pixel_values, **kwargs):
        encoded.append(len(pixel_values))
        return type(model).get_image_features(model, pixel_values, **kwargs)

    monkeypatch.setattr(model, "get_image_features", count)
    together = answerer(images[0], QUESTIONS, **options)
    assert encoded == [1]
    assert texts_of(together) == texts_of(answerer(images[0], question, **options) for question in QUESTIONS)
    encoded.clear()
    asked = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 3), (0, 3)]  # image 0 comes back after image 1
    pairs = [{"image": images[image], "question": QUESTIONS[question]} for image, question in asked]
    mixed = answerer(pairs, **options)
    assert sum(encoded) == 3
    assert texts_of(mixed) == texts_of(answerer(pair, **options) for pair in pairs)


def test_options_for_one_text_at_a_time_work_with_several_questions(answerer, images):
    class Streamer:
        def __init__(self):
            self.ended = 0

        def put(self, ids):
            assert ids.numel() < 20

        def end(self):
            self.ended += 1

    streamer = Streamer()
    streamed = answerer(images[0], QUESTIONS, streamer=streamer)
    assert streamer.ended == len(QUESTIONS) and texts_of(streamed) == texts_of(answerer(images[0], QUESTIONS))


def scored_by_hand(model, processor, image, question, count, **options) -> list[dict]:
    """The answers of `count` beams, and the product of the model's probabilities of each one's tokens."""
    batch = processor(images=image, text=VQA_PROMPT.format(question))
    options = {"num_beams": count, **options}
    written = model.generate(**batch, max_new_tokens=6, num_return_sequences=count, **options)
    start = len(model.decoder_prompt_ids(batch["input_ids"])[0])
    scores: dict[str, float] = {}
    for row in written:
        ids = row[: int((row != 1).nonzero().max()) + 1][None]  # without padding
        with torch.no_grad():
            steps = model(**batch, decoder_input_ids=ids[:, :-1]).logits.softmax(-1)[0, start - 1 :]
        answer = processor.post_process_generation(row[None], batch["input_ids"], first_sentence=True)[0]
        probability = torch.prod(steps[range(len(steps)), ids[0, start:]]).item()
        scores[answer] = scores.get(answer, 0) + probability
    return [
        {"score": pytest.approx(scores[one], rel=1e-3), "answer": one}
        for one in sorted(scores, key=lambda k: -scores[k])
    ]


def test_top_k_answers_come_with_their_probability(answerer, model, processor, images):
    due = [scored_by_hand(model, processor, images[number], QUESTIONS[number], 3) for number in range(4)]
    assert sum(len(records) > 1 for records in due) > 1
    for batch_size in (1, 4):
        assert answerer(images, QUESTIONS, top_k=3, batch_size=batch_size) == due
    one = answerer(images[0], QUESTION, top_k=1)
    assert one == scored_by_hand(model, processor, images[0], QUESTION, 1)
    assert [{"answer": one[0]["answer"]}] == answerer(images[0], QUESTION)
    wide = scored_by_hand(model, processor, images[0], QUESTION, 2, num_beams=5)
    assert answerer(images[0], QUESTION, top_k=2, num_beams=5) == wide
    three = pipeline("vqa", model=model, processor=processor, device="cpu", max_new_tokens=6, top_k=3)
    assert three(images[0], QUESTION) == due[0] and len(three(images[0], QUESTION, top_k=1)) == 1
    for top_k in (0, -1, 1.5, "all"):
        with pytest.raises(ValueError, match=f"`top_k`={top_k!r} must be a positive integer"):
            answerer(images[0], QUESTION, top_k=top_k)


def test_answers_that_are_the_same_are_one(answerer, images):
    """Scores of one answer add up: with so many beams, several begin with the same sentence."""
    records = answerer(images[0], QUESTION, top_k=20, max_new_tokens=2)
    texts = [record["answer"] for record in records]
    assert len(texts) == len(set(texts)) <= 20 and 0 < sum(record["score"] for record in records) <= 1
    assert records == sorted(records, key=lambda record: -record["score"])


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
