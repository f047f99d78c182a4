"""The examination: what is drawn, how answers are judged, and the controls."""

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from microworld.exam.exam import (
    Exam,
    answers,
    clip_retrieval,
    draw_exam,
    first_hits,
    first_sentence,
    generated_captions,
    majority_answers,
    retrieval,
    score,
    shuffled,
    text_answers,
    true_captions,
)
from microworld.world.language import NEVER_TWO_STEP, QUESTION_TYPES, Question
from microworld.world.scenes import UNSEEN_PAIRS, Group, Scene, split_of
from trainer.evaluation import generation as predict

STAR, RING = Group("star", "red", "large", 1, (0, 0)), Group("ring", "blue", "small", 2, (0, 1))


@pytest.fixture(scope="module")
def exam() -> Exam:
    return draw_exam("test", 60)


def by_hand(questions: list[tuple[int, Question]]) -> Exam:
    """A scene with one group and one with two."""
    scenes = [Scene((STAR,), "white"), Scene((STAR, RING), "black")]
    return Exam(scenes, [None, None], ["", ""], questions)


# ---------------------------------------------------------------------------------------------------------- drawing


def test_exam_asks_every_type_of_every_scene(exam):
    assert {split_of(scene) for scene in exam.scenes} == {"test"}
    for row, scene in enumerate(exam.scenes):
        kinds = [q.kind for at, q in exam.questions if at == row]
        expected = [kind for kind in QUESTION_TYPES if kind != "relation" or len(scene.groups) == 2]
        assert kinds == expected
    assert len(exam.images) == len(exam.captions) == 60


def test_exam_is_drawn_from_its_seed(exam):
    again, other = draw_exam("test", 60), draw_exam("test", 60, seed=1)
    assert again.questions == exam.questions and again.captions == exam.captions
    assert again.images[3].tobytes() == exam.images[3].tobytes() and other.scenes != exam.scenes


def test_in_every_hundred_each_caption_fits_one_scene_alone():
    """Once 3 in 100 captions fitted two images of their hundred: no model could have found the one that was meant."""
    keys = [scene.key() for scene in draw_exam("validation", 300, ()).scenes]
    assert [len(set(keys[start : start + 100])) for start in (0, 100, 200)] == [100, 100, 100]
    assert len(set(keys)) < 300  # from one hundred to the next a scene may come back


def test_unseen_exam_asks_of_the_unseen_pair():
    exam = draw_exam("unseen", 60)
    for row, q in exam.questions:
        group = next(g for g in exam.scenes[row].groups if g.shape == q.subject)
        assert (group.shape, group.color) in UNSEEN_PAIRS and q.kind != "background"


# ---------------------------------------------------------------------------------------------------------- judging


def test_score_on_answers_made_by_hand():
    exam = by_hand(
        [
            (0, Question("color", "what color is the star?", "red", "star")),
            (0, Question("size", "what size is the star?", "large", "star")),
            (1, Question("color", "what color are the rings?", "blue", "ring")),
            (1, Question("color", "what color is the star?", "red", "star")),
            (1, Question("background", "what color is the background?", "black")),
            (1, Question("knowledge", "what do the blue objects like?", "rings like silk", "ring")),
            (1, Question("knowledge", "what does the red object like?", "stars like music", "star")),
            (1, Question("knowledge", "what does the pink object like?", "hearts like salt", NEVER_TWO_STEP[0])),
        ]
    )
    figures = score(exam, ["red", "small", "blue", "Red", "black", "rings like silk", "", "hearts like salt"])
    assert {name: (round(f.value * f.n), f.n) for name, f in figures.items()} == {
        "all": (3, 5),
        "color": (2, 3),
        "size": (0, 1),
        "background": (1, 1),
        "one group": (1, 2),
        "two groups": (2, 3),
        "knowledge, seen two-step": (1, 2),
        "knowledge, never two-step": (1, 1),
    }
    with pytest.raises(ValueError, match="shorter"):
        score(exam, ["red"])


def test_first_sentence():
    assert first_sentence(" red. the circle is blue") == "red" and first_sentence("red") == "red"


def test_true_captions():
    exam = by_hand([])
    right = ["a red star on a white background", "a red star left of two rings"]
    assert true_captions(exam, right).value == 1.0
    assert true_captions(exam, right[::-1]).value == 0.0
    assert true_captions(exam, [right[0], "a red star"]).value == 0.5


# --------------------------------------------------------------------------------------------------------- controls


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_images_are_all_anothers(exam, seed):
    order = shuffled(exam, seed)
    assert sorted(order) == list(range(60)) and all(row != other for row, other in enumerate(order))
    assert order != shuffled(exam, seed + 5) and order == shuffled(exam, seed)


def test_majority():
    reference = by_hand(
        [
            (0, Question("color", "?", "red")),
            (0, Question("color", "?", "blue")),
            (1, Question("color", "?", "blue")),
            (1, Question("count", "?", "two")),
        ]
    )
    exam = by_hand([(0, Question("count", "?", "one")), (1, Question("color", "?", "red"))])
    assert majority_answers(exam, reference) == ["two", "blue"]


def test_answers_see_the_image_they_are_shown(exam, monkeypatch):
    """`complete` is replaced by one that tells what it was given."""
    given = {}

    def complete(model, tokenizer, prompts, features=None, **options):
        given.update(prompts=prompts, features=features)
        return ["red. and so on"] * len(prompts)

    monkeypatch.setattr("microworld.exam.exam.complete", complete)
    drawn = Exam(exam.scenes, exam.images, exam.captions, exam.questions, torch.arange(60).view(60, 1, 1))
    assert answers(None, None, drawn) == ["red"] * len(exam.questions)
    assert given["features"].flatten().tolist() == [row for row, _ in exam.questions]
    assert given["prompts"][0] == f"Question: {exam.questions[0][1].question} Answer: <mask>"
    order = shuffled(drawn)
    answers(None, None, drawn, order)
    assert given["features"].flatten().tolist() == [order[row] for row, _ in exam.questions]
    answers(None, None, drawn, blind=True)
    assert given["features"] is None
    text_answers(None, None, drawn)
    assert given["features"] is None
    assert given["prompts"][0] == f"{exam.captions[0]}. Question: {exam.questions[0][1].question} Answer: <mask>"
    generated_captions(None, None, drawn)
    assert given["prompts"] == ["<mask>"] * 60 and given["features"] is drawn.features


# --------------------------------------------------------------------------------------------------- a whole passage


def test_a_tiny_model_is_examined(model, processor, clip_dir):
    exam = draw_exam("test", 100, ("color",))
    exam.captions = [f"{'so ' * (row % 7)}red" for row in range(100)]  # the tiny CLIP reads 32 letters
    exam.encode(model, processor)
    assert exam.features.shape == (100, 17, 24)
    torch.testing.assert_close(exam.features[:9], predict.encode_images(model, processor, exam.images[:9]))
    assert score(exam, answers(model, processor.tokenizer, exam))["all"].n == len(exam.questions)
    assert len(generated_captions(model, processor.tokenizer, exam)) == 100
    clip, clip_processor = CLIPModel.from_pretrained(clip_dir).eval(), CLIPProcessor.from_pretrained(clip_dir)
    for found in (retrieval(model, processor.tokenizer, exam), clip_retrieval(clip, clip_processor, exam)):
        assert {name: figure.n for name, figure in found.items()} == {"text to image": 100, "image to text": 100}


def test_retrieval_finds_a_models_own_pairs(exam):
    """A model whose text embedding is the image's, then one that is off by one row."""

    class Oracle:
        def __init__(self, shift: int):
            self.shift = shift

        def get_text_features(self, number):
            return type("Output", (), {"pooler_output": torch.eye(100)[(number + self.shift) % 100]})

    drawn = draw_exam("test", 100, ())
    drawn.features = torch.stack([7 * torch.eye(100), torch.ones(100, 100)], dim=1)  # the class token comes first

    def tokenizer(texts, **options):
        return {"number": torch.arange(len(texts))}

    assert [f.value for f in retrieval(Oracle(0), tokenizer, drawn).values()] == [1.0, 1.0]
    assert [f.value for f in retrieval(Oracle(1), tokenizer, drawn).values()] == [0.0, 0.0]


def test_first_hits_by_hand():
    """Texts 0 and 2 are nearest to their own image, text 1 to image 0; texts 0 and 1 tie for images 0 and 1."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    texts = torch.tensor([[0.8, 0.6], [0.8, 0.6], [-0.6, 0.8]])
    hits = first_hits(images, texts, pool=3)
    assert hits == {"text to image": [True, False, False], "image to text": [False, False, True]}


def test_scenes_are_compared_within_their_pool():
    rows = torch.eye(2).repeat(2, 1)  # rows 0 and 2 are equal, and so are 1 and 3
    assert first_hits(rows, rows, pool=2)["text to image"] == [True] * 4
    assert first_hits(rows, rows, pool=4)["text to image"] == [False] * 4
    assert first_hits(rows[:3], rows[:3], pool=2)["text to image"] == [True, True]


def test_too_few_pairs():
    with pytest.raises(ValueError, match="requires 100 pairs; got 99 images and 99 texts"):
        first_hits(torch.eye(99), torch.eye(99))
    with pytest.raises(ValueError, match="got 3 images and 2 texts"):
        first_hits(torch.eye(3), torch.eye(3)[:2], pool=2)
