"""The demo's command line, table, page and pictures."""

import html
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import BartConfig, BartForConditionalGeneration, CLIPConfig, CLIPModel

from microworld.demo import __main__ as demo
from microworld.demo.gallery import GREEN, INK, RED, draw_gallery
from microworld.demo.page import SECTIONS, write_page
from microworld.demo.results import Card, Said, merge, sample_cards
from microworld.exam import Exam, sample_exam
from microworld.pretrain import bart, clip
from modeling_vlkd import VLKDForConditionalGeneration
from trainer.evaluation.metrics_file import load_metrics, write_metrics

ROOT = Path(__file__).parents[2]
MARKUP = '<b>"$x$'


def test_the_exam_has_at_least_a_pool_of_scenes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--exam_scenes", "99"])
    with pytest.raises(SystemExit) as error:
        demo.main()
    assert error.value.code == 2 and "--exam_scenes is 99; it must be 100 or more" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- table
def figure(metric: str, row: str, condition: str, value: float) -> dict:
    numbers = {"value": value, "n": 100, "low": value - 0.1, "high": value + 0.1}
    return {"metric": metric, "row": row, "condition": condition, **numbers}


CAPTIONS, CLIP = ("captions", "every object, nothing false"), "CLIP's own text tower"
RUNS = {
    "test": [
        figure("VQA", "yes/no", "direct", 0.82),
        figure("VQA", "all", "direct", 0.85),
        figure("VQA", "all", "blind", 0.31),
        figure("VQA", "knowledge, never two-step", "direct", 0.7),
        figure("VQA with shuffled images", "all", "direct", 0.3),
        figure("VQA by the majority answer", "all", "direct", 0.29),
        figure("captions", "two or three groups", "direct", 0.5),
        figure("captions", "one group", "direct", 0.9),
        figure(*CAPTIONS, "direct", 0.66),
        figure(*CAPTIONS, "blind", 0.01),
        figure("retrieval R@1 of 100", "text to image", "direct", 0.9),
        figure("retrieval R@1 of 100", "text to image", CLIP, 0.92),
    ],
    "before": [
        figure("VQA", "all", "direct", 0.05),
        figure(*CAPTIONS, "direct", 0.0),
        figure(*CAPTIONS, "blind", 0.02),
        figure("retrieval R@1 of 100", "text to image", "direct", 0.011),
        figure("retrieval R@1 of 100", "text to image", CLIP, 0.92),
    ],
    "unseen_artist": [
        figure("VQA", "all", "direct", 0.6),
        figure("VQA", "all", "blind", 0.32),
        figure("VQA", "size", "direct", 0.61),
        figure("retrieval R@1 of 100", "text to image", CLIP, 0.5),
    ],
    "unseen_pairs": [figure("VQA", "all", "direct", 0.8)],
    "text": [
        figure("denoising loss", "nats per token", "model", 0.4),
        figure("text QA", "exact match", "model", 0.97),
        figure("text QA", "exact match", "reference", 0.98),
        figure("text QA", "exact match, change", "model", -0.01),
    ],
}


def test_table():
    told = [(f["metric"], f["row"], f["condition"], f["value"]) for f in merge(RUNS)]
    assert told == [
        ("VQA", "all", "VLKD", 0.85),
        ("VQA", "all", "before VLKD", 0.05),
        ("VQA", "all", "blind", 0.31),
        ("VQA", "all", "shuffled images", 0.3),
        ("VQA", "all", "majority answer", 0.29),
        ("VQA", "yes/no", "VLKD", 0.82),
        ("VQA", "knowledge, never two-step", "VLKD", 0.7),
        (*CAPTIONS, "VLKD", 0.66),
        (*CAPTIONS, "before VLKD", 0.0),
        (*CAPTIONS, "blind", 0.01),
        ("captions", "one group", "VLKD", 0.9),
        ("captions", "two or three groups", "VLKD", 0.5),
        ("retrieval R@1 of 100", "text to image", "VLKD", 0.9),
        ("retrieval R@1 of 100", "text to image", "before VLKD", 0.011),
        ("retrieval R@1 of 100", "text to image", CLIP, 0.92),
        ("text QA", "exact match", "VLKD", 0.97),
        ("text QA", "exact match", "before VLKD", 0.98),
        ("text QA", "exact match, change", "VLKD", -0.01),
        ("VQA, unseen pairs", "all", "VLKD", 0.8),
        ("VQA, unseen artist", "all", "VLKD", 0.6),
        ("VQA, unseen artist", "all", "blind", 0.32),
        ("retrieval R@1 of 100, unseen artist", "text to image", CLIP, 0.5),
    ]


# ------------------------------------------------------------------------------------------------------------- cards
@pytest.fixture(scope="module")
def exam() -> Exam:
    return sample_exam("test", 12)


@pytest.fixture(scope="module")
def cards(exam, tmp_path_factory) -> list[Card]:
    """All scenes; of every second scene each answer is wrong, of every third scene the caption is empty."""
    folder = tmp_path_factory.mktemp("predictions")
    answers = [
        {"question_id": number, "answer": MARKUP if row % 2 else f"The {asked.accepted[0]}".replace("The the", "The")}
        for number, (row, asked) in enumerate(exam.questions)
    ]
    captions = [{"image_id": row, "caption": text if row % 3 else "."} for row, text in enumerate(exam.captions)]
    (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "captions.json").write_text(json.dumps(captions))
    return sample_cards(exam, 12, folder / "answers.json", folder / "captions.json")


def test_cards_are_scenes_with_all_their_answers(exam, cards):
    rows = [exam.captions.index(card.caption.truth) for card in cards]
    assert sorted(rows) == list(range(12)) and rows != list(range(12))
    for row, card in zip(rows, cards, strict=True):
        asked = [question for at, question in exam.questions if at == row]
        assert [(question, said.truth) for question, said in card.answers] == [(q.text, q.answer) for q in asked]
        assert {said.right for _, said in card.answers} == {row % 2 == 0}
        assert card.caption == Said(exam.captions[row] if row % 3 else "", row % 3 > 0, exam.captions[row])
        assert card.picture.size == (432, 432)
        assert card.picture.tobytes() == exam.picture(row, 3).tobytes()


@pytest.fixture
def page(cards, tmp_path) -> str:
    """The page of all cards and of two knowledge questions without a caption."""
    figures = merge(RUNS)
    metrics = write_metrics(
        tmp_path / "metrics.json", figures, command="make demo", dataset="microworld", split="test"
    )
    known = Card(cards[0].picture, None, [("what do the animals eat?", Said("hay", False, "cows eat hay & <grass>"))])
    write_page(metrics, {"scenes": cards, "knowledge": [known] * 2, "unseen_artist": cards[:3]}, tmp_path)
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def test_page_marks_right_and_wrong(exam, page):
    body = page.split("</style>")[1]
    scenes, knowledge, unseen = (part.split("<h2>")[0] for part in body.split('<div class="cards">')[1:])
    assert [part.count("<article>") for part in (scenes, knowledge, unseen)] == [12, 2, 3]
    assert scenes.count('<p><b class="wrong">✗ (nothing)</b><small>right: ') == 4
    assert scenes.count('<p><b class="right">✓ ') == 8
    wrong = sum(row % 2 for row, _ in exam.questions)
    assert scenes.count(f'<b class="wrong">✗ {html.escape(MARKUP)}</b><small>right: ') == wrong > 30
    assert scenes.count('<b class="right">✓ The ') == len(exam.questions) - wrong
    assert knowledge.count("<small>right: cows eat hay &amp; &lt;grass&gt;</small>") == 2 and "<p><b" not in knowledge
    assert all(title in body for title, _ in SECTIONS.values()) and "$" not in body.replace("$x$", "")


def test_page_names_the_artists(page):
    artists = re.findall(r'<figure class="(.*?)"><img src="pictures/(.+?)\.png".*?<figcaption>(.*?)<br>', page)
    assert len(artists) == 6 and artists[-1] == ("unseen", "noto", "Noto Emoji")
    assert {mark for mark, _, _ in artists[:-1]} == {""}
    licenses = re.findall(r'<li><a href="https://.+?">.+?</a> by .+?spdx.org/licenses/(.+?).html', page)
    assert len(licenses) == 6 and set(licenses) == {"Apache-2.0", "CC-BY-4.0", "MIT"}


def test_page_has_the_figures(page):
    short, full = page.split("<details>")
    assert '--value: 85.0%"><i style="left: 31.0%">' in short
    assert "<td>0.850</td><td>0.750–0.950</td><td>0.310</td>" in short
    assert "(BART before: 0.980)" in short and "<td>0.970</td><td>0.870–1.070</td><td>·</td>" in short
    assert "<tr><th></th><th>VLKD</th><th>95% interval</th><th>n</th><th>before VLKD</th>" in full
    assert "<td>VQA, unseen artist: all</td><td>0.600</td><td>0.500–0.700</td><td>100</td>" in full
    assert "Measured with <code>make demo</code> on" in full


def test_page_needs_no_network(page, tmp_path):
    sources = re.findall(r'src="(.+?)"', page)
    pictures = sorted(sources)
    assert len(pictures) == 6 + 12 + 2 + 3
    assert sorted(f"pictures/{file.name}" for file in (tmp_path / "pictures").iterdir()) == pictures
    assert "<script" not in page and "url(" not in page and "<link" not in page


# ---------------------------------------------------------------------------------------------------------- pictures
@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    saved, save = [], Figure.savefig

    def savefig(self, *args, **kwargs):
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def test_gallery(cards, tmp_path, drawn):
    draw_gallery(cards[:10], tmp_path / "gallery.png", columns=4)
    with Image.open(tmp_path / "gallery.png") as sheet:
        size, second = sheet.size, sheet.convert("RGB").crop((28 + 460, 28, 28 + 460 + 432, 28 + 432))
        assert second.tobytes() == cards[1].picture.tobytes()
    texts = [(text.get_text(), text.get_color()) for text in drawn[0].texts]
    assert len(texts) == 8 * 3
    heights = [30 * (text.count("\n") + 1) + 5 for text, _ in texts]
    tallest = [max(sum(heights[card : card + 3]) for card in range(row, row + 12, 3)) for row in (0, 12)]
    assert size == (4 * 460 + 28, sum(432 + 10 + text + 28 for text in tallest) + 28)
    for card, caption, question, answer in zip(cards[:8], texts[::3], texts[1::3], texts[2::3], strict=True):
        assert caption[1] == (GREEN if card.caption.right else RED) and question[1] == INK
        said = dict(card.answers)[question[0].replace("\n", " ")]
        assert answer[1] == (GREEN if said.right else RED) and answer[0][0] == ("✓" if said.right else "✗")
        assert ("(right:" in answer[0].replace("\n", " ")) != said.right


def test_long_text_of_the_gallery_stays_in_its_card(cards, tmp_path, drawn):
    long = Said("very long " * 60, False, "a very long truth " * 9)
    card = Card(cards[0].picture, long, [("a very long question " * 9, long)])
    draw_gallery([card] * 4, tmp_path / "gallery.png", columns=2)
    upper, lower = (drawn[0].texts[number].get_window_extent() for number in (2, -1))
    assert upper.y0 > drawn[0].images[2].get_window_extent().y1 and lower.y0 > 0
    assert max(text.get_window_extent().width for text in drawn[0].texts) < 460


# ------------------------------------------------------------------------------------------------------------ whole
@pytest.fixture
def teachers(tmp_path) -> Path:
    """A random CLIP and BART of one layer each, with tokenizers of the microworld."""
    torch.manual_seed(0)
    tokenizer, processor = bart.build_tokenizer(documents=1000), clip.build_processor(captions=1000)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 160, **heads}
    model = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **sizes))
    model.save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    tower = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 32}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": len(processor.tokenizer), "max_position_embeddings": 80},
        vision_config={**tower, "image_size": 144, "patch_size": 48},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    return tmp_path


@pytest.mark.slow  # CI runs a short demo
def test_whole_demo(teachers, tmp_path, monkeypatch, capsys):
    """The whole demo, with random teachers and two steps."""
    monkeypatch.chdir(ROOT)
    out, cache = tmp_path / "out", tmp_path / "cache"
    options = ["--split", "validation", "--exam_scenes", 100, "--max_steps", 2, "--logging_steps", 1]
    options += ["--dataset_kwargs", '{"size": 64}', "--teachers", teachers, "--output_dir", out, "--cache_dir", cache]
    monkeypatch.setattr(sys, "argv", ["demo", *map(str, options)])
    demo.main()
    metrics = load_metrics(out / "metrics.json")
    assert metrics["command"] == shlex.join(["python", "-m", "microworld.demo", *map(str, options)])
    assert {key: metrics[key] for key in ("dataset", "split", "recipe")} == {
        "dataset": "microworld",
        "split": "validation",
        "recipe": "microworld",
    }
    numbers = {(f["metric"], f["condition"]): f["n"] for f in metrics["figures"] if f["row"] == "all"}
    asked = len(sample_exam("validation", 100).questions)
    for condition in ("VLKD", "before VLKD", "blind", "shuffled images", "majority answer"):
        assert numbers.pop(("VQA", condition)) == asked
    assert set(numbers) == {("VQA, unseen artist", c) for c in ("VLKD", "blind")} | {
        ("VQA, unseen pairs", c) for c in ("VLKD", "blind")
    }
    found = {(f["metric"], f["row"], f["condition"]) for f in metrics["figures"]}
    assert {("text QA", "exact match, change", "VLKD"), ("captions, unseen artist", CAPTIONS[1], "VLKD")} <= found
    assert {("retrieval R@1 of 100", "image to text", c) for c in ("VLKD", "before VLKD", CLIP)} <= found
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 12 + 4 + 8 and (out / "gallery.png").is_file()
    assert "VQA, unseen pairs: all" in capsys.readouterr().out
    before, after = (
        VLKDForConditionalGeneration.from_pretrained(out / name).state_dict() for name in ("before", "model")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith("model.vision") for name in changed)
