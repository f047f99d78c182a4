"""The shipped teachers are what their README says: small, and good enough to teach."""

import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import BartForConditionalGeneration, CLIPModel, CLIPProcessor

from microworld import TEACHERS
from microworld.exam import sample_exam, score_retrieval
from microworld.pretrain.measure import TRAITS, embed_texts, measure_bart
from microworld.world.language import QUESTION_TYPES
from microworld.world.scenes import CANVAS

KINDS = {"clip": CLIPModel, "bart": BartForConditionalGeneration}
ROWS = ("all", *QUESTION_TYPES, "one group", "two or three groups")
TEXT_QA = [f"text QA, {row}" for row in (*ROWS, "knowledge, seen two-step", "knowledge, never two-step")]
ARTISTS = ("seen artists", "unseen artist")


@pytest.fixture(scope="module")
def readme() -> str:
    return (TEACHERS / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def figures(readme) -> dict[str, float]:
    """The table of README.md."""
    return {name: float(value) for name, value in re.findall(r"^\| (.+?) \| (-?[\d.]+) \|", readme, re.M)}


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return CLIPModel.from_pretrained(TEACHERS / "clip", dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["clip", "bart"])
def test_a_teacher_is_as_small_as_the_readme_says(name, readme):
    file = TEACHERS / name / "model.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    parameters = sum(p.numel() for p in KINDS[name].from_pretrained(TEACHERS / name).parameters())
    size = file.stat().st_size
    assert 2 * parameters < size <= 16_000_000
    assert f"- `{name}`: {parameters:,} parameters, {size / 1e6:.1f} MB in fp16" in readme


def test_clip_has_the_layers_of_a_vision_transformer(clip):
    config = clip.config.vision_config
    assert config.num_hidden_layers >= 4 and config.image_size == CANVAS


def test_the_readme_has_every_figure(figures):
    ways = ("text to image", "image to text")
    expected = {*TEXT_QA} | {f"retrieval R@1 of 100, {way}, {artist}" for way in ways for artist in ARTISTS}
    for artist in ARTISTS:
        expected |= {f"linear {measure}, {trait}, {artist}" for measure in ("probe", "R²") for trait in TRAITS}
        expected.add(f"zero-shot kind of one drawing, {artist}")
    assert set(figures) == expected


@pytest.mark.parametrize("name", TEXT_QA)
def test_bart_answers_questions_about_held_out_passages(figures, name):
    assert figures[name] >= 0.95


def test_the_figures_of_bart_can_be_measured_again(figures):
    """On the first 40 of the 400 scenes, where a figure may differ by chance."""
    for name, text in measure_bart(TEACHERS / "bart", scenes=40).items():
        low, high = map(float, re.search(r"([\d.]+)–([\d.]+)", text).groups())
        assert low <= figures[name] <= high, name


def test_the_figures_of_clip_can_be_measured_again(figures, clip):
    """On the first 100 of the 500 scenes."""
    processor = CLIPProcessor.from_pretrained(TEACHERS / "clip")
    exam = sample_exam("validation", 100)
    with torch.no_grad():
        pixels = processor.image_processor([exam.picture(row) for row in range(100)], return_tensors="pt").pixel_values
        images = torch.nn.functional.normalize(clip.get_image_features(pixels).pooler_output, dim=-1)
        texts = embed_texts(clip, processor, exam.captions)
    for result in score_retrieval(images, texts, range(100)):
        assert result["low"] <= figures[f"{result['metric']}, {result['row']}, seen artists"] <= result["high"]


@pytest.mark.parametrize(
    ("trait", "accuracy", "r2"),
    [
        ("kind", 0.78, 0.32),
        ("size", 0.8, 0.42),
        ("count", 0.64, 0.28),
        ("background", 0.8, 0.45),
    ],
)
def test_a_linear_map_finds_the_traits_in_the_tokens(figures, trait, accuracy, r2):
    """Well above chance, which is 1/60 for a kind, 1/2 for a size, 1/3 for a count and 1/8 for a background."""
    assert figures[f"linear probe, {trait}, seen artists"] > accuracy
    assert figures[f"linear R², {trait}, seen artists"] > r2


def test_a_linear_map_finds_the_kinds_of_the_unseen_artist(figures):
    assert figures["linear probe, kind, unseen artist"] > 0.5
