"""`pipeline("visual-question-answering")`: containers, one encoding of an image for all its questions, scores."""

import pytest
import torch
from datasets import Dataset
from generated import expected
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

QUESTION = "what color is the circle?"
QUESTIONS = [QUESTION, "how many?", QUESTION, "is there a very long caption about nothing at all?"]
VQA_PROMPT = "Question: {} Answer: <mask>"


def answers(model, processor, images, questions, **options) -> list[list[dict]]:
    texts = expected(model, processor, images, [VQA_PROMPT.format(one) for one in questions], True, **options)
    return [[{"answer": text}] for text in texts]


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
