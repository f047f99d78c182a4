"""The study's report: its intervals, its sentences, its tables and its page, of results that nobody trained."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats
from study_data import made_up

from microworld.study.page import markdown, page, section_table, write_report
from microworld.study.results import as_json, estimate, scene_values
from microworld.study.rows import ROWS
from microworld.study.sections import SECTIONS, glance, present
from microworld.study.words import VQA, changes, forgetting, number, summary

# ---- intervals


def test_interval_by_hand():
    # Two seeds, two scenes: means over scenes 0.3 and 0.5, over seeds 0.2 and 0.6.
    values = np.array([[0.1, 0.5], [0.3, 0.7]])
    of_seeds, of_scenes = 0.02 / 2, 0.08 / 2  # variances 0.02 and 0.08, each over its number
    freedom = (of_seeds + of_scenes) ** 2 / (of_seeds**2 + of_scenes**2)
    assert freedom == pytest.approx(0.05**2 / (0.0001 + 0.0016)) and freedom == pytest.approx(1.470588, abs=1e-6)
    spread = stats.t.ppf(0.975, 1.470588) * 0.05**0.5
    found = estimate(values, 4, (-9, 9))
    assert (found.value, found.n) == (pytest.approx(0.4), 4)
    assert (found.low, found.high) == (pytest.approx(0.4 - spread, 1e-4), pytest.approx(0.4 + spread, 1e-4))
    cut = estimate(values, 4, (0, 1))
    assert (cut.low, cut.high) == (0, 1)


def test_interval_is_students_where_only_the_seeds_differ():
    # 0.70, 0.72 and 0.74 in every scene: mean 0.72, standard error 0.02 / sqrt(3), t(0.975, 2) = 4.302653.
    found = estimate(np.repeat([[0.70], [0.72], [0.74]], 50, axis=1), 50, (0, 1))
    assert found.high - found.value == pytest.approx(4.302653 * 0.02 / 3**0.5, abs=1e-6)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values = 0.1 * rng.normal(size=(3, 1)) + rng.normal(size=(1, 60)) + rng.normal(size=(3, 60))
        found = estimate(values, 60, (-9, 9))
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / 400 <= 1.0


def test_one_seed_has_no_interval_and_what_never_varies_no_width():
    with pytest.raises(ValueError, match="at least two"):
        estimate(np.ones((1, 9)), 9, (0, 1))
    found = estimate(np.zeros((3, 9)), 9, (0, 1))
    assert (found.low, found.high, found.is_apart_from_zero) == (0, 0, False)


def test_scenes_that_are_asked_more_weigh_more():
    right, asked = np.array([[3.0, 0.0], [4.0, 1.0]]), np.array([4.0, 1.0])
    values = scene_values(right, asked)
    assert values.mean(axis=1) == pytest.approx([3 / 5, 5 / 5])  # each seed's share, not 0.375 and 1.0
    assert values.mean() == pytest.approx(0.8)


def test_rows_are_compared_pair_by_pair():
    # Each row's own interval is wide, for scenes differ; the difference, which is alike everywhere, is sharp.
    results = made_up({"paper": {"VQA": 0.70}, "mlp": {"VQA": 0.75}}, noise=0.0)
    own, difference = results.of("mlp", VQA), results.difference("mlp", "paper", VQA)
    assert difference.value == pytest.approx(own.value - results.of("paper", VQA).value)
    assert difference.low > 0 and difference.high - difference.low < own.high - own.low


# ---- words


def test_numbers_in_words():
    assert [number(value) for value in (0.714, 0.0, 1.0)] == ["0.71", "0.00", "1.00"]
    signed = [number(value, sign=True) for value in (-0.414, 0.414, 0.0042, -0.0001, 0.0)]
    assert signed == ["−0.41", "+0.41", "+0.004", "0", "0"]


def test_sentences_turn_with_the_figures():
    falls = made_up({"without-icti": {"VQA": 0.3}})
    before, after = (number(falls.of(name, VQA).value) for name in ("paper", "without-icti"))
    gap = falls.difference("without-icti", "paper", VQA)
    assert changes(falls, ["without-icti"]) == (
        f"Without ICTI, VQA falls from {before} to {after} "
        f"({number(gap.value, True)}, {number(gap.low, True)} to {number(gap.high, True)})."
    )
    assert "Without ICTI, VQA rises from" in changes(made_up({"without-icti": {"VQA": 0.9}}), ["without-icti"])
    same = changes(made_up({}), ["without-icti", "without-itcl"])
    assert same.startswith("No difference in VQA is detected without ICTI (") and ") or without ITCL (" in same

    both = changes(made_up({"mlp": {"VQA": 0.9}, "pooled-token": {"VQA": 0.2}}), ["mlp", "pooled-token"])
    assert re.match(
        r"From 0\.\d\d by the paper's recipe, VQA rises to 0\.\d\d with an MLP.* and falls to 0\.\d\d", both
    )


def test_summary_says_so_where_the_image_does_not_help():
    assert "above the same models' answers without the image" in summary(made_up({}))[0]
    useless = summary(made_up({"paper": {"VQA": 0.3, "blind VQA": 0.3}}))[0]
    assert "cannot be told from the same models' answers without the image" in useless


def test_forgetting_is_told_where_it_is():
    results = made_up({"lr-1e-3": {"text QA": 0.4}}, noise=0.0)
    said = forgetting(results, ["paper", "lr-1e-3"])
    assert said.startswith(
        "No loss in text QA is detected at a learning rate of 2e\N{NON-BREAKING HYPHEN}5 (0, 0 to 0)."
    )
    assert "BART forgets how to answer questions about a text at 1e\N{NON-BREAKING HYPHEN}3 (−0." in said


def test_validation_chooses_and_test_is_reported():
    results = made_up({"lr-1e-4": {"VQA": 0.8}})
    for run in results.runs["lr-3e-4"].values():  # the best on test is not what validation shows to be best
        best = {measure: {**found, "right": found["asked"]} for measure, found in run["by_scene"]["test"].items()}
        run["by_scene"] = {"test": best, "validation": run["by_scene"]["validation"]}
    section, names = next(pair for pair in present(results) if pair[0].name == "learning-rate")
    (marked,) = [line for line in section_table(results, section, names) if any(cell.is_chosen for cell in line)]
    assert marked[0].text == "learning rate 1e-4"
    assert "validation chooses 1e\N{NON-BREAKING HYPHEN}4" in section.answer(results, names)[0]


# ---- report


class Tags(HTMLParser):
    """The page's tags in order, and whatever it takes from outside."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "li" or self.open[-1] == "li":
            assert self.open.pop() == tag


def test_report_of_everything(tmp_path):
    results = made_up({"ours": {"VQA": 0.9}, "without-icti": {"VQA": 0.25}})
    line = write_report(results, tmp_path, "python -m microworld.study --seeds 3")
    assert str(tmp_path / "study.html") in line and "Not complete" not in line
    tags = Tags((tmp_path / "study.html").read_text())
    assert tags.open == [] and all(
        source.startswith("#") or (tmp_path / source).is_file() for source in tags.sources
    )  # nothing from outside
    assert len(list((tmp_path / "study").glob("*.png"))) == 2 * (1 + len(SECTIONS))
    text = (tmp_path / "study.md").read_text()
    for point in summary(results):
        assert f"- {point}" in text
    assert (
        "`python -m microworld.study --seeds 3` on commit `abc1234`" in text and "every row trains 400 steps" in text
    )

    metrics = json.loads((tmp_path / "study.json").read_text())
    figure = next(f for f in metrics["figures"] if (f["metric"], f["row"], f["condition"]) == ("VQA", "all", "ours"))
    assert figure["value"] == pytest.approx(results.of("ours", VQA).value, abs=5e-5) and figure["n"] == 800
    assert {pair["row"] for pair in metrics["differences"]} == {row.name for row in ROWS if row.against}
    assert metrics["schema"] == 1 and metrics["split"] == "test" and len(metrics["rows"]) == len(ROWS)


def test_report_of_a_few_rows():
    results = made_up({}, names=("paper", "without-icti"))
    results.missing.append("ours (0 of 3 seeds)")
    assert [section.name for section, _ in present(results)] == ["losses"]
    assert glance(results) == {"the losses": ["without-icti"]}
    assert "Not complete: ours (0 of 3 seeds)." in markdown(results, "x")
    assert "What does each loss carry?" in page(results, "x") and "learning-rate" not in page(results, "x")
    lonely = made_up({}, names=("paper",))
    assert "VQA reaches" in markdown(lonely, "x") and list(present(lonely)) == []
    assert as_json(lonely, "x")["differences"] == []
