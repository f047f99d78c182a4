"""`pipeline(...)` with the package and as remote code, by folder and by model object."""

import os
import subprocess
import sys

import pytest
from transformers import BlipConfig, BlipForConditionalGeneration, ImageTextToTextPipeline, pipeline

QUESTION = "what color is the circle?"


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny-vlkd")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["folder", "object"])
def source(request, folder, model, processor) -> dict:
    return {"model": folder} if request.param == "folder" else {"model": model, "processor": processor}


def expected(model, processor, images, texts, **options) -> list[str]:
    batch = processor(images=images, text=texts)
    written = model.generate(**batch, **{"max_new_tokens": 6, **options})
    return processor.post_process_generation(written, batch["input_ids"])


@pytest.mark.parametrize("task", ["image-to-text", "image-text-to-text"])
def test_an_image_is_captioned(task, source, model, processor, images, tmp_path):
    pipe = pipeline(task, **source, device="cpu")
    captions = expected(model, processor, images, None)
    assert len(set(captions)) > 1
    path = tmp_path / "image.png"
    images[0].save(path)
    for image in (images[0], str(path), path):
        assert pipe(image, max_new_tokens=6) == [{"generated_text": captions[0]}]
    for batch_size in (1, 3):
        output = pipe(list(images), max_new_tokens=6, batch_size=batch_size)
        assert output == [[{"generated_text": caption}] for caption in captions]
    assert list(pipe((image for image in images), max_new_tokens=6)) == output
    two = pipe(images[0], max_new_tokens=6, num_beams=2, num_return_sequences=2)
    beams = expected(model, processor, images[:1], None, num_beams=2, num_return_sequences=2)
    assert [record["generated_text"] for record in two] == beams


def test_a_prompt_is_continued(source, model, processor, images):
    pipe = pipeline("image-text-to-text", **source, device="cpu", max_new_tokens=6)
    prompts = ["a photo of", "two <mask> on the grass"]
    new = expected(model, processor, images[:2], prompts)
    full = [f"a photo of {new[0]}", f"two {new[1]} on the grass"]
    assert pipe(images[0], text=prompts[0]) == [{"input_text": prompts[0], "generated_text": full[0]}]
    assert pipe(images[0], prompt=prompts[0])[0]["generated_text"] == full[0]
    assert pipe({"image": images[0], "text": prompts[0]})[0]["generated_text"] == full[0]
    assert pipe(images[0], text=prompts[0], return_full_text=False)[0]["generated_text"] == new[0]
    for batch_size in (1, 2):
        both = pipe(images[:2], text=prompts, batch_size=batch_size)
        assert [records[0]["generated_text"] for records in both] == full
    same = pipe(images[:2], text=prompts[0])
    assert [records[0]["input_text"] for records in same] == [prompts[0]] * 2


def test_a_text_alone_is_barts(source, model, processor):
    pipe = pipeline("image-text-to-text", **source, device="cpu", max_new_tokens=6)
    text = "two dogs on the <mask>"
    written = model.generate(**processor(text=text), max_new_tokens=6)
    assert pipe(text=text)[0]["generated_text"] == processor.post_process_generation(written)[0]


def test_a_question_is_answered(source, model, processor, images):
    pipe = pipeline("visual-question-answering", **source, device="cpu", max_new_tokens=6)
    prompt = f"Question: {QUESTION} Answer: <mask>"
    batch = processor(images=images, text=prompt)
    written = model.generate(**batch, max_new_tokens=6)
    answers = processor.post_process_generation(written, batch["input_ids"], first_sentence=True)
    assert pipe(images[0], QUESTION) == pipe(image=images[0], question=QUESTION) == [{"answer": answers[0]}]
    assert pipe({"image": images[0], "question": QUESTION}) == [{"answer": answers[0]}]
    assert pipe(images[0], prompt) == [{"answer": answers[0]}]
    dicts = [{"image": image, "question": QUESTION} for image in images]
    for batch_size in (1, 4):
        assert pipe(dicts, batch_size=batch_size) == [[{"answer": answer}] for answer in answers]
    assert pipe(images, QUESTION) == pipe(images, [QUESTION] * 4) == [[{"answer": answer}] for answer in answers]


def test_bad_input_is_a_value_error(folder, images):
    pipe = pipeline("image-text-to-text", model=folder, device="cpu")
    with pytest.raises(ValueError, match="Neither `images` nor `text`"):
        pipe()
    with pytest.raises(ValueError, match=r"2 image\(s\) but 1 text\(s\)"):
        pipe(images[:2], text=["a"])
    with pytest.raises(ValueError, match=r"images\[0\] \(nowhere.png\) cannot be read"):
        pipe("nowhere.png")
    with pytest.raises(ValueError, match="reads prompts, not chats"):
        pipe(images[0], text=[{"role": "user", "content": "hello"}])
    vqa = pipeline("visual-question-answering", model=folder, device="cpu")
    with pytest.raises(ValueError, match="`question` is not given"):
        vqa(images[0])
    with pytest.raises(ValueError, match="`image` is not given"):
        vqa(question=QUESTION)


def test_other_models_get_transformers_own_pipeline(processor):
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 1}
    blip = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config={**tower, "image_size": 32}))
    pipe = pipeline("image-text-to-text", model=blip, processor=processor, device="cpu")
    assert type(pipe) is ImageTextToTextPipeline
    with pytest.raises(KeyError, match="serves VLKD models alone.*'blip'"):
        pipeline("visual-question-answering", model=blip, processor=processor, device="cpu")


def test_zero_shot_classification_uses_the_dual_encoder(folder, model, processor, image):
    pipe = pipeline("zero-shot-image-classification", model=folder, device="cpu")
    output = pipe(image, candidate_labels=["red circle", "blue square"], hypothesis_template="a photo of a {}")
    texts = processor(text=["a photo of a red circle", "a photo of a blue square"])
    v = model.get_image_features(processor(images=image)["pixel_values"]).pooler_output
    expected = (model.logit_scale.exp() * v @ model.get_text_features(**texts).pooler_output.T).softmax(-1)[0]
    scores = {record["label"]: record["score"] for record in output}
    assert [scores["red circle"], scores["blue square"]] == pytest.approx(expected.tolist(), abs=1e-5)


REMOTE = """
import sys
from transformers import pipeline
folder, image = sys.argv[1:]
options = {"model": folder, "trust_remote_code": True, "device": "cpu", "max_new_tokens": 6}
print(pipeline("image-to-text", **options)(image))
print(pipeline("image-text-to-text", **options)([image], text="a photo of"))
print(pipeline("visual-question-answering", **options)({"image": image, "question": "what color is the circle?"}))
assert "modeling_vlkd" not in sys.modules
"""


def test_pipelines_as_remote_code_give_the_same(folder, images, tmp_path):
    image = str(tmp_path / "image.png")
    images[0].save(image)
    options = {"model": folder, "device": "cpu", "max_new_tokens": 6}
    expected = [
        pipeline("image-to-text", **options)(image),
        pipeline("image-text-to-text", **options)([image], text="a photo of"),
        pipeline("visual-question-answering", **options)({"image": image, "question": QUESTION}),
    ]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-P", "-c", REMOTE, folder, image]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.splitlines() == [str(output) for output in expected], run.stderr
