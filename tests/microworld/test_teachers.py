"""The shipped teachers are what their README says: small, and good enough to teach."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import BartForConditionalGeneration, BartTokenizer, CLIPModel, CLIPProcessor

from microworld.exam.exam import Exam, clip_retrieval, draw_exam, score, text_answers
from microworld.pretrain.__main__ import TEACHERS
from microworld.pretrain.measure import TRAITS, group_tokens, linear_r2
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor


@pytest.mark.parametrize("name", ["clip", "bart"])
def test_a_teacher_weighs_at_most_8_megabytes(name):
    assert (TEACHERS / name / "model.safetensors").stat().st_size <= 8_000_000


def test_bart_answers_questions_about_held_out_passages():
    model = BartForConditionalGeneration.from_pretrained(TEACHERS / "bart", dtype=torch.float32)
    tokenizer = BartTokenizer.from_pretrained(TEACHERS / "bart")
    exam = draw_exam("validation", 60, seed=5)
    figures = score(exam, text_answers(model, tokenizer, exam))
    assert all(figure.value >= 0.95 for figure in figures.values()), figures  # 57 of 60; the bar on 400 is 0.97


def test_bart_takes_two_steps_for_shapes_it_never_took_them_for():
    model = BartForConditionalGeneration.from_pretrained(TEACHERS / "bart", dtype=torch.float32)
    tokenizer = BartTokenizer.from_pretrained(TEACHERS / "bart")
    exam = draw_exam("validation", 100, ("knowledge",), seed=5)
    assert score(exam, text_answers(model, tokenizer, exam))["knowledge, never two-step"].value >= 0.9  # once 0.6


def test_clip_finds_the_caption_of_held_out_images():
    clip = CLIPModel.from_pretrained(TEACHERS / "clip", dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(TEACHERS / "clip")
    exam = draw_exam("validation", 100, (), seed=5)
    pixel_values = processor(images=exam.images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        exam.features = clip.get_image_features(pixel_values).pooler_output.unsqueeze(1)  # (scenes, 1, d_j)
    assert all(figure.value >= 0.9 for figure in clip_retrieval(clip, processor, exam).values())


@pytest.fixture(scope="module")
def exams() -> tuple[Exam, Exam]:
    """Scenes to learn a probe from, and held-out ones, with their image tokens as both recipes read them."""
    learn, held_out = draw_exam("train", 2000, (), seed=5), draw_exam("validation", 200, (), seed=5)
    clip, bart = str(TEACHERS / "clip"), str(TEACHERS / "bart")
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(clip, bart, patch_attention="self")
    for exam in (learn, held_out):
        exam.encode(model, VLKDProcessor.from_vision_text_pretrained(clip, bart))
    return learn, held_out


def test_a_token_tells_where_its_group_stands(exams):
    """CLIP's position embedding once drowned in its patch embedding: what stood where was lost, unnoticed."""
    learn, held_out = exams
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(*group_tokens(learn, "cell"))
    assert probe.score(*group_tokens(held_out, "cell")) >= 0.97


@pytest.mark.parametrize("trait", TRAITS)
def test_a_token_holds_a_trait_that_a_linear_map_can_copy(exams, trait):
    """A probe that only separates traits is not enough for the paper's W_d. Colour was once at 0.6."""
    assert linear_r2(*exams, trait) >= 0.8
