"""The VQA accuracy against the official evaluation, worked out by hand and recorded."""

import copy
import json

import pytest

from trainer.evaluation import scoring
from trainer.evaluation.metrics.answers import WITH_APOSTROPHE, accuracy, normalize

# What the official evaluation gave: vqaEval.py as of GT-Vision-Lab/VQA a013f004 (its text processing from the copy in
# salesforce-lavis 1.0.2). Prediction, who gave which answer, accuracy.
OFFICIAL = [
    ("yes", {"yes": 8, "no": 2}, 1.0),
    ("no", {"yes": 8, "no": 2}, 0.6),
    ("maybe", {"yes": 8, "no": 2}, 0.0),
    ("Yes.", {"yes": 10}, 0.0),
    ("yes", {"yes": 10}, 1.0),
    (" yes\n", {"yes": 10}, 1.0),
    ("YES", {"yes": 9, "no": 1}, 1.0),
    ("red", {"red": 1, "blue": 9}, 0.3),
    ("red", {"red": 3, "blue": 7}, 0.9),
    ("red", {"red": 4, "blue": 6}, 1.0),
    ("two", {"2": 4, "two": 3, "3": 3}, 1.0),
    ("Ten people", {"10 people": 5, "ten": 5}, 1.0),
    ("none", {"none": 1, "nothing": 9}, 0.3),
    ("zero", {"0": 3, "none": 2, "1": 5}, 1.0),
    ("the dog", {"dog": 2, "a dog": 2, "cat": 6}, 1.0),
    ("A", {"a": 5, "b": 5}, 1.0),
    ("the", {"a": 4, "the": 3, "an": 3}, 1.0),
    ("dont walk", {"don't walk": 5, "walk": 5}, 1.0),
    ("somebody'd", {"somebodyd": 5, "x": 5}, 1.0),
    ("Im here", {"i'm here": 5, "im here": 5}, 1.0),
    ("oclock", {"o'clock": 3, "5": 7}, 0.9),
    ("black/white", {"black white": 3, "black and white": 7}, 0.9),
    ("black / white", {"black white": 3, "x": 7}, 0.9),
    ("t-shirt", {"t shirt": 3, "tshirt": 7}, 0.9),
    ("t- shirt", {"t shirt": 5, "tshirt": 5}, 1.0),
    ("1,000", {"1000": 3, "1 000": 7}, 0.9),
    ("a-b 1,000", {"ab 1000": 4, "b 1000": 6}, 1.0),
    ("2, 3", {"2 3": 3, "23": 7}, 0.9),
    ("3.5", {"3.5": 5, "35": 5}, 1.0),
    ("St. Mary", {"st mary": 4, "st. mary": 3, "x": 3}, 1.0),
    ("5.", {"5": 3, "6": 7}, 0.9),
    ("u.s.a", {"usa": 4, "us": 6}, 1.0),
    ("." * 40 + "x", {"........x": 5, "y": 5}, 0.0),
    ("10:30", {"10:30": 2, "1030": 8}, 0.6),
    ("it's", {"it's": 2, "its": 8}, 0.6),
    ("hot  dog", {"hot dog": 3, "hotdog": 7}, 0.9),
    ("(left)", {"left": 3, "right": 7}, 0.9),
    ("what?!", {"what": 3, "x": 7}, 0.9),
    ("left\tright", {"left right": 3, "x": 7}, 0.9),
    ("naïve", {"NAÏVE": 3, "x": 7}, 0.9),
]


def people(votes: dict[str, int]) -> list[str]:
    return [answer for answer, number in votes.items() for _ in range(number)]


@pytest.mark.parametrize("prediction, votes, expected", OFFICIAL)
def test_accuracy_is_the_official_one(prediction, votes, expected):
    assert accuracy(prediction, people(votes)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("agree, expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_leaves_each_person_out_in_turn(agree, expected):
    # Two agree: left out once each, one other remains (1/3); left out eight times, two remain (2/3): 2/30 + 16/30.
    assert accuracy("x", ["x"] * agree + ["y"] * (10 - agree)) == pytest.approx(expected)


def test_accuracy_needs_ten_people():
    with pytest.raises(ValueError, match="9 answers, .* over 10"):
        accuracy("x", ["x"] * 9)


def test_normalization_puts_every_apostrophe_back_once():
    assert WITH_APOSTROPHE["couldnt've"] == WITH_APOSTROPHE["couldn'tve"] == "couldn't've"
    assert len(WITH_APOSTROPHE) == 114  # the official table's 120, less 4 with a capital, which no lowered word meets,
    assert "lets" not in WITH_APOSTROPHE  # and less let's and she's, which it maps to themselves
    assert normalize("Dont a; the Two  1,000-b.") == "don't 2 1000b"


def question(number: int, image: int, votes: dict[str, int], answer_type: str, question_type: str) -> dict:
    answers = [{"answer": text, "answer_id": i + 1} for i, text in enumerate(people(votes))]
    entry = {"question_id": number, "image_id": image, "answers": answers}
    return entry | {"answer_type": answer_type, "question_type": question_type}


def annotations() -> dict:
    return {
        "annotations": [
            question(10, 1, {"yes": 8, "no": 2}, "yes/no", "is the"),
            question(11, 1, {"2": 9, "3": 1}, "number", "how many"),
            question(20, 2, {"red": 3, "blue": 7}, "other", "what"),
            question(21, 2, {"no": 10}, "yes/no", "is the"),
        ]
    }


def results() -> list[dict]:
    said = {21: "No", 20: "red", 11: "Two.", 10: "no"}  # 0, 0.9, 1, 0.6
    return [{"question_id": number, "answer": answer} for number, answer in said.items()]


def questions() -> dict:
    asked = [(10, 1), (11, 1), (20, 2), (21, 2)]
    return {"questions": [{"question_id": q, "image_id": image, "question": "?"} for q, image in asked]}


def values(figures: list[dict]) -> dict[str, float]:
    return {figure["row"]: figure["value"] for figure in figures}


def test_score_vqa_overall_and_by_type():
    figures = scoring.score_vqa(annotations(), results(), questions())
    assert {figure["metric"] for figure in figures} == {"VQA accuracy"}
    assert values(figures) == pytest.approx(
        {
            "all": 0.625,
            "answer type: number": 1.0,
            "answer type: other": 0.9,
            "answer type: yes/no": 0.3,
            "question type: how many": 1.0,
            "question type: is the": 0.3,
            "question type: what": 0.9,
        }
    )
    assert [figure["n"] for figure in figures] == [4, 1, 1, 2, 1, 2, 1]
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures)


def test_interval_resamples_images_and_is_seeded():
    figure = scoring.score_vqa(annotations(), results())[0]
    # Image 1 has 0.8 on average, image 2 has 0.45: two images drawn together give 0.45, 0.625 or 0.8.
    assert (figure["low"], figure["high"]) == pytest.approx((0.45, 0.8))
    many = annotations()
    many["annotations"] = [question(i, i, {"yes": i % 5, "no": 10 - i % 5}, "yes/no", "is the") for i in range(60)]
    said = [{"question_id": i, "answer": "yes"} for i in range(60)]
    first, again = (scoring.score_vqa(many, said)[0] for _ in range(2))
    assert first == again
    # Accuracies 0, .3, .6, .9, 1 in equal number: mean 0.56, standard error 0.378 / sqrt(60) = 0.0489.
    assert first["value"] == pytest.approx(0.56)
    assert first["high"] - first["low"] == pytest.approx(2 * 1.96 * 0.0489, rel=0.1)


def test_ok_vqa_names_its_knowledge_types_and_does_not_stem():
    data = annotations()
    data["question_types"] = {"four": "Sports and Recreation"}
    data["annotations"] = [question(1, 1, {"race": 6, "ride": 2, "motocross": 2}, "other", "four")]
    said = [{"question_id": 1, "answer": "ride"}]
    figures = scoring.score_vqa(data, said, style="ok-vqa")
    # One of five people, each counted twice.
    assert values(figures) == pytest.approx({"all": 0.6, "question type: Sports and Recreation": 0.6})
    assert {figure["metric"] for figure in figures} == {"OK-VQA accuracy"}
    said[0]["answer"] = "racing"
    assert scoring.score_vqa(data, said, style="ok-vqa")[0]["value"] == 0


BAD_RESULTS = [
    (lambda r: r.pop(), "results has no question_id 10 .1 of the 4 in annotations are missing.*add the missing"),
    (lambda r: r.append(r[0]), "results: question_id 21 occurs twice"),
    (lambda r: r.append({"question_id": 99, "answer": "x"}), "question_id 99 is not in annotations.*one split"),
    (lambda r: r[0].update(question_id="21"), "question_id '21' is not in annotations.*write it as 21"),
    (lambda r: r[0].update(answer=" "), "question_id 21: `answer` is ' '; it must be a non-empty text"),
    (lambda r: r[0].update(answer=["two"]), "question_id 21: `answer` is ..two"),
    (lambda r: r[0].update(answer=None), "question_id 21: `answer` is None"),
    (lambda r: r[0].pop("question_id"), "results: record 0 has no `question_id`.*answer"),
    (lambda r: r.insert(0, "yes"), "results must hold a non-empty list"),
    (lambda r: r.clear(), "results must hold a non-empty list"),
]


@pytest.mark.parametrize("spoil, message", BAD_RESULTS)
def test_bad_results_are_named(spoil, message):
    said = results()
    spoil(said)
    with pytest.raises(ValueError, match=message):
        scoring.score_vqa(annotations(), said)


BAD_ANNOTATIONS = [
    (lambda a: a["annotations"][0].pop("answers"), "annotations: record 0 of `annotations` has no `answers`"),
    (lambda a: a["annotations"][0]["answers"].pop(), "question_id 10 has 9 answers.*needs 10"),
    (lambda a: a["annotations"][0]["answers"][0].pop("answer"), "question_id 10: `answers` must be a list of"),
    (lambda a: a["annotations"][0].pop("image_id"), "record 0 of `annotations` has no `image_id`"),
    (lambda a: a.pop("annotations"), "annotations must hold a non-empty list of `annotations`"),
]


@pytest.mark.parametrize("spoil, message", BAD_ANNOTATIONS)
def test_bad_annotations_are_named(spoil, message):
    data = annotations()
    spoil(data)
    with pytest.raises(ValueError, match=message):
        scoring.score_vqa(data, results())


def test_numbers_and_truth_values_are_read_as_text():
    data = copy.deepcopy(annotations())
    data["annotations"] = [question(1, 1, {"1984": 7, "true": 3}, "a", "b"), question(2, 1, {"true": 10}, "a", "b")]
    said = [{"question_id": 1, "answer": "1984"}, {"question_id": 2, "answer": "true"}]
    expected = scoring.score_vqa(data, said)
    for annotation in data["annotations"]:
        for answer in annotation["answers"]:
            answer["answer"] = json.loads(answer["answer"])
    assert scoring.score_vqa(data, [{**line, "answer": json.loads(line["answer"])} for line in said]) == expected
    assert expected[0]["value"] == 1


def test_questions_of_another_split_are_refused():
    asked = questions()
    asked["questions"][0]["image_id"] = 7
    with pytest.raises(ValueError, match="question_id 10 has image_id 7, but annotations has 1"):
        scoring.score_vqa(annotations(), results(), asked)
    asked["questions"].pop()
    with pytest.raises(ValueError, match="questions has no question_id 21"):
        scoring.score_vqa(annotations(), results(), asked)


def test_files_are_read_and_named(tmp_path):
    truth, said = tmp_path / "annotations.json", tmp_path / "results.json"
    truth.write_text(json.dumps(annotations()))
    said.write_text(json.dumps(results()))
    assert scoring.score_vqa(truth, str(said)) == scoring.score_vqa(annotations(), results())
    said.write_text("yes")
    with pytest.raises(ValueError, match="results.json cannot be read as JSON"):
        scoring.score_vqa(truth, said)
    with pytest.raises(ValueError, match="nowhere.json cannot be read as JSON: .*No such file"):
        scoring.score_vqa(truth, tmp_path / "nowhere.json")
