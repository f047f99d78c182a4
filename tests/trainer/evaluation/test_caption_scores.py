"""Caption metrics against pycocoevalcap's own, by hand, and the Python tokenizer against the Java one."""

import random
import shutil

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from trainer.evaluation import scoring
from trainer.evaluation.metrics.coco import caption_scores
from trainer.evaluation.metrics.ptb_tokenizer import tokenize

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="compares with a Java program")
FAST = ["BLEU", "ROUGE-L", "CIDEr"]

# What CoreNLP 3.4.1 gave through pycocoevalcap 1.2, punctuation dropped.
JAVA_TOKENS = [
    ("A man's dog isn't on the couch.", "a man 's dog is n't on the couch"),
    ("He can't, won't and shouldn't've; it's cannot!", "he ca n't wo n't and should n't 've it 's can not"),
    ("it’s a “smart” quote and the dogs’ toys", "it 's a smart quote and the dogs toys"),
    (
        'The sign reads "STOP" / "GO" (in red) [on a pole]',
        "the sign reads stop / go -lrb- in red -rrb- -lsb- on a pole -rsb-",
    ),
    ("a 3-year-old boy, two-story building, 1/2 pizza", "a 3-year-old boy two-story building 1/2 pizza"),
    ("5 1/2 inches, 3½ pies", "5\u00a01/2 inches 3 1/2 pies"),
    ("a U.S. Navy plane at 10:30 a.m. with $5.00, 50% off", "a u.s. navy plane at 10:30 a.m. with $ 5.00 50 % off"),
    ("Mr. Smith at St. Mary's Ave. vs. them.", "mr. smith at st. mary 's ave. vs. them"),
    ("and/or black/white w/ a dog 24/7", "and/or black/white w / a dog 24/7"),
    ("rock 'n' roll '90s 1990's o'clock ma'am y'all", "rock 'n' roll '90s 1990 's o'clock ma'am y' all"),
    ("dog&cat AT&T *star* a*b |pipe|", "dog & cat at&t * star * a * b | pipe |"),
    ("café 東京 😀 dog🐶cat ♥ €5 £3 20°", "café 東京 dog cat ♥ $ 5 # 3 20 °"),
    ("hello... what?! no!! -- yes - ok — dash", "hello what ?! no !! yes ok dash"),
    ('6\'2" tall in a 12" T-shirt #23 @home', "6 2 tall in a 12 t-shirt # 23 @home"),
    ("no. 5 is no. Miss. miss. ill. ft. lb. in.", "no. 5 is no miss. miss ill ft. lb in"),
    ("gonna-be gonna plays.A girl :) <3 <b>bold</b>", "gonna-be gon na plays.a girl :-rrb- < 3 <b> bold </b>"),
]


@pytest.mark.parametrize("caption, tokens", JAVA_TOKENS)
def test_tokenizer_gives_the_java_tokens(caption, tokens):
    assert tokenize(caption) == tokens


def varied_captions(number: int) -> list[str]:
    """Sentences with hyphens, quotes, abbreviations, numbers, possessives, slashes, emoji and other scripts."""
    rng = random.Random(7)
    who = ["a man", "Two dogs", "the boys'", "James's cat", "a 3-year-old", "St. Bernard", "O'Neil", "someone's café"]
    does = ["is riding", "isn't near", "can't reach", "sits/stands by", "that's on", "looks at", "we've seen with"]
    what = ["a tv", "an old T-shirt", "two-tone bikes", "the U.S. flag", "50% of it", "$5.00", "1,000 people", "it"]
    more = [
        "(in red)",
        'a "STOP" sign',
        "at 5 p.m.",
        "no. 7",
        "and/or tea",
        "#1",
        "naïve",
        "東京",
        "😀",
        "♥",
        "- ok",
        "etc.",
    ]
    more += [
        "6 ft. tall",
        "in the '90s",
        "½ cup",
        "AT&T",
        "o'clock",
        "'quoted'",
        "“smart”",
        "it’s",
        "…",
        "x-ray",
        "w/ a",
        "24/7",
    ]
    return [
        " ".join([rng.choice(who), rng.choice(does), rng.choice(what), *rng.sample(more, rng.randrange(3))])
        + rng.choice([".", "", "!", "...", " ."])
        for _ in range(number)
    ]


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return varied_captions(2000)


@pytest.fixture(scope="session")
def java_corpus(corpus) -> list[str]:
    """The corpus in the Java tokenizer's tokens, from one start of the program."""
    found = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(corpus)})
    return [found[i][0] for i in range(len(corpus))]


@needs_java
def test_tokenizer_agrees_with_java_on_varied_captions(corpus, java_corpus):
    different = [(c, j) for c, j in zip(corpus, java_corpus, strict=True) if tokenize(c) != j]
    assert len(different) <= 0.005 * len(corpus), different[:5]


def test_bleu_and_rouge_by_hand():
    scores = caption_scores(["a dog runs", "two cats"], [["a dog sits"], ["two cats"]], FAST, "python")["scores"]
    # Words: 2 + 2 of 3 + 2 right; pairs: 1 + 1 of 2 + 1; lengths are equal, so there is no brevity penalty.
    assert scores["BLEU-1"]["value"] == pytest.approx(4 / 5)
    assert scores["BLEU-2"]["value"] == pytest.approx((4 / 5 * 2 / 3) ** 0.5)
    # The longest common subsequences have 2 of 3 and 2 of 2 words.
    assert scores["ROUGE-L"]["value"] == pytest.approx((2 / 3 + 1) / 2)
    # Resamples are the first image twice, both, or the second twice.
    assert (scores["BLEU-1"]["low"], scores["BLEU-1"]["high"]) == pytest.approx((2 / 3, 1))


def test_bleu_punishes_brevity():
    scores = caption_scores(["a dog", "a cat"], [["a dog runs fast"], ["a cat runs"]], ["BLEU"], "python")["scores"]
    assert scores["BLEU-1"]["value"] == pytest.approx(2.718281828 ** (1 - 7 / 4))


def test_cider_of_perfect_captions_is_ten():
    texts = ["a red dog runs home", "two blue cats sleep here", "some old man eats pizza"]
    scores = caption_scores(texts, [[text] for text in texts], ["CIDEr"], "python")["scores"]
    assert scores["CIDEr"] == pytest.approx({"value": 10, "n": 3, "low": 10, "high": 10})


def coco(corpus: list[str]) -> tuple[dict, list[dict]]:
    """40 images with two or three references, one of them near the caption."""
    entries, said = [], []
    for i in range(40):
        said.append({"image_id": i, "caption": corpus[i]})
        words = corpus[i].split()
        near = " ".join(words[: len(words) * 2 // 3] + ["by", "a", "tree"])
        entries += [{"image_id": i, "caption": text} for text in [near, *corpus[100 + 2 * i : 101 + 2 * i + i % 2]]]
    return {"images": [{"id": i} for i in range(40)], "annotations": entries}, said


def pycocoevalcap_tokens(references: dict, said: list[dict]) -> tuple[dict, dict]:
    meant: dict[int, list] = {}
    for entry in references["annotations"]:
        meant.setdefault(entry["image_id"], []).append({"caption": entry["caption"]})
    tokenizer = PTBTokenizer()
    return tokenizer.tokenize(meant), tokenizer.tokenize({entry["image_id"]: [entry] for entry in said})


@needs_java
def test_figures_equal_pycocoevalcap_with_and_without_java(corpus):
    references, said = coco(corpus)
    meant, hypotheses = pycocoevalcap_tokens(references, said)
    expected = dict(
        zip(["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"], Bleu(4).compute_score(meant, hypotheses, 0)[0], strict=True)
    )
    expected["ROUGE-L"] = Rouge().compute_score(meant, hypotheses)[0]
    expected["CIDEr"] = Cider().compute_score(meant, hypotheses)[0]
    for tokenizer, name in (("java", "PTB (Java)"), ("python", "PTB (Python)")):
        report = scoring.caption_report(references, said, FAST, tokenizer)
        assert {figure["row"]: figure["value"] for figure in report["figures"]} == pytest.approx(expected, abs=1e-9)
        assert report["tokenizer"] == name
        assert all(f["low"] < f["value"] < f["high"] and f["n"] == 40 for f in report["figures"])


@needs_java
@pytest.mark.slow
def test_meteor_equals_pycocoevalcap(corpus):
    references, said = coco(corpus)
    report = scoring.caption_report(references, said, ["METEOR"], "java")
    assert report["figures"][0]["value"] == Meteor().compute_score(*pycocoevalcap_tokens(references, said))[0]
    assert report["figures"][0]["low"] < report["figures"][0]["value"] < report["figures"][0]["high"]


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setenv("PATH", "")


def test_without_java_two_metrics_are_named_and_the_others_given(no_java, corpus):
    report = scoring.caption_report(*coco(corpus))
    assert report["tokenizer"] == "PTB (Python)"
    assert [figure["row"] for figure in report["figures"]] == [
        *(f"BLEU-{n}" for n in (1, 2, 3, 4)),
        "ROUGE-L",
        "CIDEr",
    ]
    assert {name: "install Java" in why for name, why in report["not_computed"].items()} == {
        "METEOR": True,
        "SPICE": True,
    }


def test_without_java_what_is_asked_for_by_name_is_an_error(no_java, corpus):
    with pytest.raises(ValueError, match="METEOR cannot be computed: it is a Java program"):
        scoring.caption_report(*coco(corpus), metrics=["METEOR"])
    with pytest.raises(ValueError, match="tokenizer='java' requires Java"):
        scoring.caption_report(*coco(corpus), metrics=["CIDEr"], tokenizer="java")


def test_cider_of_one_image_is_not_computed():
    found = caption_scores(["a dog"], [["a dog"]], tokenizer="python", metrics=["ROUGE-L"])
    assert found["scores"]["ROUGE-L"]["value"] == 1
    with pytest.raises(ValueError, match="CIDEr cannot be computed.*at least two images"):
        caption_scores(["a dog"], [["a dog"]], tokenizer="python", metrics=["CIDEr"])


@needs_java
def test_a_line_break_in_a_caption_does_not_shift_the_others():
    captions = ["a dog\u2028on\r\na bed", "two cats", "a\x0bred\x85bus"]
    for tokenizer in ("java", "python"):
        scores = caption_scores(captions, [["a dog on a bed"], ["two cats"], ["a red bus"]], ["BLEU"], tokenizer)
        assert scores["scores"]["BLEU-1"]["value"] == pytest.approx(1)


BAD = [
    (lambda refs, said: said.pop(), "results has no image_id 39 .1 of the 40"),
    (lambda refs, said: said.append(said[3]), "results: image_id 3 occurs twice"),
    (lambda refs, said: said[0].update(image_id=99), "results: image_id 99 is not in references"),
    (lambda refs, said: said[0].update(caption=["a dog"]), "results: image_id 0: `caption` is .'a dog'.; it must be"),
    (lambda refs, said: said[0].update(caption=""), "results: image_id 0: `caption` is ''"),
    (
        lambda refs, said: refs["annotations"][0].update(caption=None),
        "references: image_id 0: `caption` is None",
    ),
    (lambda refs, said: refs["images"].append({"id": 40}), "`annotations` of references has no image_id 40"),
    (lambda refs, said: refs.pop("annotations"), "references must hold a non-empty list of `annotations`"),
]


@pytest.mark.parametrize("spoil, message", BAD)
def test_bad_files_are_named(corpus, spoil, message):
    references, said = coco(corpus)
    spoil(references, said)
    with pytest.raises(ValueError, match=message):
        scoring.caption_report(references, said)
