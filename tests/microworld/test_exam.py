"""The exam: what is drawn, how answers, captions and retrieval are judged, and the controls."""

from itertools import islice
from statistics import mode

import numpy as np
import pytest
import torch
from PIL import Image

from microworld.exam import (
    captions,
    held_out_text,
    questions,
    sample_exam,
    score_answers,
    score_captions,
    score_retrieval,
    score_shuffled,
    table_rows,
    text_questions,
)
from microworld.world.caption_reader import caption_is_true
from microworld.world.kinds import NEVER_TWO_STEP
from microworld.world.language import QUESTION_TYPES, Question, is_right
from microworld.world.scenes import SPLITS, Group, Scene, scenes, split_of

FROG, SNAIL = Group("frog", "noto", "small", 1, False, 30, 30), Group("snail", "noto", "large", 2, False, 100, 40)
SIZE = 30


def shares(results: list[dict]) -> dict[str, tuple[float, int]]:
    return {result["row"]: (result["value"], result["n"]) for result in results}


# -------------------------------------------------------------------------------------------------------- drawing
@pytest.mark.parametrize("split", SPLITS)
def test_an_exam_asks_every_type_that_a_scene_allows(split):
    exam = sample_exam(split, SIZE)
    assert {split_of(scene) for scene in exam.scenes} == {split.replace("unseen_artist", "test")}
    for row, scene in enumerate(exam.scenes):
        types = [asked.type for at, asked in exam.questions if at == row]
        assert types == [type for type in QUESTION_TYPES if type in types]
        assert set(types) >= {"count", "size", "yes/no", "background"}
        assert ("relation" in types) == (len(scene.groups) > 1)
        assert caption_is_true(exam.captions[row], scene)


def test_a_knowledge_exam_asks_about_every_group_that_can_be_told_apart():
    exam = sample_exam("test", SIZE, knowledge=True)
    assert exam.scenes == sample_exam("test", SIZE).scenes and len(exam.questions) > SIZE
    for row, asked in exam.questions:
        assert asked.type == "knowledge" and asked.subject in {group.kind for group in exam.scenes[row].groups}
    assert len({(row, asked.subject) for row, asked in exam.questions}) == len(exam.questions)


def test_the_exam_is_not_what_others_see():
    """The scenes of a split that the trainer reads are drawn from another seed."""
    first = list(islice(scenes("validation"), SIZE))
    assert sample_exam("validation", SIZE).scenes != first != sample_exam("validation", SIZE, seed=1).scenes


def test_in_every_hundred_each_caption_fits_one_scene_alone():
    keys = [scene.key() for scene in sample_exam("validation", 300).scenes]
    assert [len(set(keys[start : start + 100])) for start in (0, 100, 200)] == [100, 100, 100]


def test_pictures_are_the_same_composition_at_any_scale():
    exam = sample_exam("test", SIZE)
    small, large = exam.picture(3), exam.picture(3, scale=3)
    assert small.size == (144, 144) and large.size == (432, 432)
    shrunk = np.asarray(large.resize((144, 144), Image.Resampling.BOX)).astype(int)
    differences = [np.abs(shrunk - np.asarray(exam.picture(row))).mean() for row in range(6)]
    assert differences[3] == min(differences) < 8
    assert small.tobytes() == sample_exam("test", SIZE + 1).picture(3).tobytes()


# ------------------------------------------------------------------------------------------------------- datasets
def test_rows_of_the_questions():
    exam, data = sample_exam("test", SIZE), questions(size=SIZE)
    assert data.column_names == ["image", "image_id", "question_id", "question", "answers", "table_rows", "majority"]
    assert data["question_id"][:] == list(range(len(exam.questions)))
    assert data["image_id"][:] == [row for row, _ in exam.questions]
    for i in (0, 50, len(data) - 1):
        row, asked = exam.questions[i]
        assert data[i]["question"] == asked.text and data[i]["answers"] == list(asked.accepted)
        assert data[i]["table_rows"] == table_rows(exam.scenes[row], asked)
        assert data[i]["image"].tobytes() == exam.picture(row).tobytes()


def test_ids_are_the_same_in_a_shorter_exam():
    """So that an interrupted evaluation can go on, and a limit keeps the first questions."""
    whole, part = questions(size=SIZE).remove_columns("image"), questions(size=10).remove_columns("image")
    assert part[:] == whole[: len(part)]


def test_shuffled_questions_show_another_image():
    own, shuffled = questions(size=SIZE), questions(size=SIZE, shuffled=True)
    assert own["question"][:] == shuffled["question"][:] and own["answers"][:] == shuffled["answers"][:]
    assert not any(a == b for a, b in zip(own["image_id"], shuffled["image_id"], strict=True))
    assert set(shuffled["image_id"]) == set(range(SIZE))
    exam = sample_exam("test", SIZE)
    assert shuffled[7]["image"].tobytes() == exam.picture(shuffled[7]["image_id"]).tobytes()


def test_rows_of_the_captions():
    exam, data = sample_exam("unseen_pairs", SIZE, 2), captions("unseen_pairs", SIZE, 2)
    assert data["image_id"][:] == list(range(SIZE)) and set(data["exam"]) == {f"unseen_pairs {SIZE} 2"}
    assert data["captions"][:] == [[text] for text in exam.captions]
    assert data[4]["image"].tobytes() == exam.picture(4).tobytes()


def test_knowledge_questions_tell_which_kinds_were_never_asked_in_two_steps():
    exam, data = sample_exam("test", SIZE, 1, knowledge=True), questions(size=SIZE, seed=1, knowledge=True)
    assert data["question"][:] == [asked.text for _, asked in exam.questions]
    never = [asked.subject in NEVER_TWO_STEP for _, asked in exam.questions]
    names = {True: ["knowledge, never two-step"], False: ["knowledge, seen two-step"]}
    assert data["table_rows"][:] == [names[each] for each in never] and 0 < sum(never) < len(never)


def test_text_of_the_held_out_scenes():
    asked = text_questions("validation", SIZE)
    exam = sample_exam("validation", SIZE)
    assert asked["caption"][:] == [exam.captions[row] for row, _ in exam.questions]
    assert all(is_right(row["answer"], row["answers"]) for row in asked)
    texts = held_out_text("test", 9)["text"][:]
    drawn = list(islice(scenes("test", seed=2_000_000), 9))
    assert all(caption_is_true(texts[i], drawn[i]) for i in (0, 3, 6))
    assert all("Question:" in texts[i] for i in (2, 5, 8)) and not any("Question:" in texts[i] for i in (1, 4, 7))


# -------------------------------------------------------------------------------------------------------- metrics
def test_kinds_of_questions():
    one, two = Scene((FROG,), "snow"), Scene((FROG, SNAIL), "snow")
    assert table_rows(one, Question("size", "", "", ())) == ["all", "size", "one group"]
    assert table_rows(two, Question("yes/no", "", "", ())) == ["all", "yes/no", "two or three groups"]
    never, seen = sorted(NEVER_TWO_STEP)[0], "frog"
    assert table_rows(one, Question("knowledge", "", "", (), seen)) == ["knowledge, seen two-step"]
    assert table_rows(two, Question("knowledge", "", "", (), never)) == ["knowledge, never two-step"]


ROWS = [
    {"answers": ["frog", "frogs"], "table_rows": ["all", "kind"], "majority": "a bee"},
    {"answers": ["two"], "table_rows": ["all", "count"], "majority": "two"},
    {"answers": ["snow"], "table_rows": ["all", "background"], "majority": "the snow"},
    {"answers": ["three"], "table_rows": ["all", "count"], "majority": "two"},
]


def test_score_answers():
    results = score_answers(ROWS, ["The Frog", "two", "the sea", "two"])
    assert shares(results) == {"all": (0.5, 4), "kind": (1.0, 1), "count": (0.5, 2), "background": (0.0, 1)}
    assert {result["metric"] for result in results} == {"VQA"}
    # Wilson's interval of 2 in 4: (0.5 + z²/8 ± z √(1/16 + z²/64)) / (1 + z²/4) with z = 1.96.
    assert (results[0]["low"], results[0]["high"]) == (0.15, 0.85)
    with pytest.raises(ValueError, match="shorter"):
        score_answers(ROWS, ["frog"])


def test_score_shuffled_also_scores_the_majority():
    results = score_shuffled(ROWS, ["", "two", "snow", "three"])
    assert shares(results[:4])["all"] == (0.75, 4) and shares(results[4:])["all"] == (0.5, 4)
    assert [results[i]["metric"] for i in (0, 4)] == ["VQA with shuffled images", "VQA by the majority answer"]


def test_the_majority_is_that_of_training_scenes():
    asked = sample_exam("train", 1000).questions
    expected = {type: mode(each.answer for _, each in asked if each.type == type) for type in QUESTION_TYPES}
    data = questions(size=SIZE)
    types = [each.type for _, each in sample_exam("test", SIZE).questions]
    assert data["majority"][:] == [expected[type] for type in types]
    assert expected["count"] == "one" and expected["yes/no"] in ("yes", "no")


def test_score_captions():
    exam, data = sample_exam("test", SIZE), captions(size=SIZE)
    rows = [{"image_id": i, "exam": data["exam"][i]} for i in range(SIZE)]
    single = sum(len(scene.groups) == 1 for scene in exam.scenes)
    numbers = {"every object, nothing false": SIZE, "one group": single, "two or three groups": SIZE - single}
    assert 0 < single < SIZE
    assert shares(score_captions(rows, exam.captions)) == {row: (1.0, number) for row, number in numbers.items()}
    texts = exam.captions[:12] + [f"{text} and" for text in exam.captions[12:24]] + [""] * 6
    assert score_captions(rows, texts)[0]["value"] == 0.4
    assert score_captions(rows[::-1], exam.captions[::-1])[0]["value"] == 1.0  # by id, not by place


def test_score_retrieval():
    """Of 100 pairs, 60 embeddings are equal; ten others are exchanged in pairs; thirty texts equal text 0."""
    images = torch.eye(100)
    texts = images.clone()
    texts[60:70] = images[[61, 60, 63, 62, 65, 64, 67, 66, 69, 68]]
    texts[70:] = images[0]
    # Image 0 is as near to texts 70 to 99 as to its own, and ties count against it.
    assert shares(score_retrieval(images, texts, range(100))) == {
        "text to image": (0.6, 100),
        "image to text": (0.59, 100),
    }


def test_retrieval_searches_within_complete_pools_of_100():
    embeds = torch.eye(100).repeat(2, 1)  # rows 0 and 100 are equal
    assert shares(score_retrieval(embeds, embeds, range(200)))["text to image"] == (1.0, 200)
    assert shares(score_retrieval(embeds[:150], embeds[:150], range(150)))["image to text"] == (1.0, 100)


def test_retrieval_among_fewer_pairs_says_so():
    found = score_retrieval(torch.eye(3), torch.eye(3)[[0, 2, 1]], range(3))
    assert {figure["metric"] for figure in found} == {"retrieval R@1 of 3"}
    assert shares(found) == {"text to image": (0.3333, 3), "image to text": (0.3333, 3)}
