"""The cache: what it holds, when it is read again, and when it must not be."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from caption_data import load
from transformers import CLIPModel, CLIPTokenizer

from trainer.feature_cache import add_image_features, add_teacher_embeds, load_teacher, teacher_embeds


@pytest.fixture(scope="module")
def teacher_and_tokenizer(clip_dir):
    return load_teacher(clip_dir)


@pytest.fixture
def files(tmp_path):
    return lambda: sorted(file.name for file in tmp_path.iterdir())


def test_teacher_is_clip_text_tower(clip_dir, teacher_and_tokenizer):
    teacher, tokenizer = teacher_and_tokenizer
    tokens = CLIPTokenizer.from_pretrained(clip_dir)(["a red square", "blue"], padding=True, return_tensors="pt")
    clip = CLIPModel.from_pretrained(clip_dir)
    with torch.no_grad():
        expected = clip.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(teacher_embeds(teacher, **tokens), torch.nn.functional.normalize(expected, dim=-1))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert tokenizer.model_max_length == 32


def test_teacher_embeds_of_every_caption(teacher_and_tokenizer, tmp_path):
    teacher, tokenizer = teacher_and_tokenizer
    dataset = load(rows=6)
    ragged = [captions[: 1 + index % 2] for index, captions in enumerate(dataset["caption"])]
    dataset = dataset.remove_columns("caption").add_column("caption", ragged)
    cached = add_teacher_embeds(dataset, teacher, tokenizer, cache_dir=str(tmp_path))
    for captions, row in zip(ragged, cached, strict=True):
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        expected = teacher_embeds(teacher, tokens["input_ids"], tokens["attention_mask"]).numpy()
        np.testing.assert_allclose(row["teacher_embeds"].reshape(-1, 24), expected, atol=1e-3)
        assert row["caption"] == captions and row["image"].size == (32, 32)


@pytest.mark.parametrize(("tokens", "count"), [("all", 17), ("pooled", 1)])
def test_image_features_are_the_models(model, processor, tmp_path, tokens, count):
    dataset = load(rows=6)
    cached = add_image_features(dataset, model, processor, tokens, cache_dir=str(tmp_path))
    with torch.no_grad():
        pixels = processor(images=list(dataset["image"]))["pixel_values"]
        expected = model.get_image_features(pixels).last_hidden_state[:, :count]
    features = torch.from_numpy(np.stack([row["image_features"] for row in cached])).view(6, count, 24)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-2)
    assert "image" not in cached.column_names


def test_columns_lie_on_disk_and_rows_keep_their_order(model, processor, teacher_and_tokenizer, tmp_path):
    dataset = load(rows=12).filter(lambda row: row["extra"] % 3 != 0).shuffle(seed=1)
    cached = add_image_features(dataset, model, processor, cache_dir=str(tmp_path))
    cached = add_teacher_embeds(cached, *teacher_and_tokenizer, cache_dir=str(tmp_path))
    assert list(cached["extra"]) == list(dataset["extra"])
    assert {Path(file["filename"]).parent for file in cached.cache_files} >= {tmp_path}
    rows = cached.__getitems__([2, 5])
    assert all(row["image_features"].dtype == row["teacher_embeds"].dtype == np.float32 for row in rows)


def test_second_run_computes_nothing(model, processor, clip_dir, tmp_path, files, monkeypatch):
    def cache():
        for split in ("train", "validation"):
            dataset = add_image_features(load(split, rows=4), model, processor, cache_dir=str(tmp_path))
            add_teacher_embeds(dataset, *load_teacher(clip_dir), cache_dir=str(tmp_path))

    cache()
    before = files()
    monkeypatch.setattr("trainer.feature_cache.teacher_embeds", None)  # would fail if it were called
    cache()
    assert files() == before and len(before) == 4


def test_other_data_weights_or_settings_are_computed_anew(
    model, processor, teacher_and_tokenizer, clip_dir, tmp_path, files
):
    teacher, tokenizer = teacher_and_tokenizer
    add_teacher_embeds(load(rows=4), teacher, tokenizer, cache_dir=str(tmp_path))
    add_teacher_embeds(load(rows=5), teacher, tokenizer, cache_dir=str(tmp_path))
    other = copy.deepcopy(teacher)
    other.text_projection.weight.data[0, 0] += 1
    add_teacher_embeds(load(rows=4), other, tokenizer, cache_dir=str(tmp_path))
    shorter = copy.deepcopy(tokenizer)
    shorter.model_max_length = 5
    add_teacher_embeds(load(rows=4), teacher, shorter, cache_dir=str(tmp_path))
    assert len(files()) == 4

    add_image_features(load(rows=4), model, processor, cache_dir=str(tmp_path))
    add_image_features(load(rows=4), model, processor, "pooled", cache_dir=str(tmp_path))
    grey = copy.deepcopy(processor)
    grey.image_processor.image_mean = [0.5, 0.5, 0.5]
    add_image_features(load(rows=4), model, grey, cache_dir=str(tmp_path))
    assert len(files()) == 7


def test_bart_does_not_change_the_key_of_images(model, processor, tmp_path, files):
    add_image_features(load(rows=4), model, processor, cache_dir=str(tmp_path))
    trained = copy.deepcopy(model)
    for parameter in trained.parameters():
        parameter.data += float(parameter.requires_grad)
    add_image_features(load(rows=4), trained, processor, cache_dir=str(tmp_path))
    assert len(files()) == 1


def test_missing_caption_names_row_and_column(teacher_and_tokenizer, tmp_path):
    captions = [["a photo"]] * 5
    captions[3] = []
    dataset = load(rows=5).remove_columns("caption").add_column("caption", captions)
    with pytest.raises(ValueError, match=r"row 3: column 'caption'"):
        add_teacher_embeds(dataset, *teacher_and_tokenizer, cache_dir=str(tmp_path))


def test_teacher_must_be_a_clip_checkpoint(bart_dir):
    with pytest.raises(ValueError, match="clip"):
        load_teacher(bart_dir)
