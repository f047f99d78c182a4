"""The cache: what it holds, when it is read again, and when it must not be."""

import copy
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from cached_data import add_image_features, add_teacher_embeds
from caption_data import load
from transformers import CLIPModel, CLIPTokenizer

from trainer.cache import columns as column_cache
from trainer.cache.clip_features import ImageFeatures, TeacherEmbeds
from trainer.models import load_teacher, teacher_embeds


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
    assert {file["filename"] for file in cached.cache_files} >= set(map(str, tmp_path.glob("*/*.arrow")))
    rows = cached.__getitems__([2, 5])
    assert all(row["image_features"].dtype == row["teacher_embeds"].dtype == np.float32 for row in rows)


def test_second_run_computes_nothing(model, processor, clip_dir, tmp_path, files, monkeypatch):
    def cache():
        for split in ("train", "validation"):
            dataset = add_image_features(load(split, rows=4), model, processor, cache_dir=str(tmp_path))
            add_teacher_embeds(dataset, *load_teacher(clip_dir), cache_dir=str(tmp_path))

    cache()
    before = files()
    monkeypatch.setattr("trainer.cache.clip_features.teacher_embeds", None)  # would fail if it were called
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
    sharper = copy.deepcopy(teacher)
    sharper.config.hidden_act = "gelu"
    add_teacher_embeds(load(rows=4), sharper, tokenizer, cache_dir=str(tmp_path))
    assert len(files()) == 5

    add_image_features(load(rows=4), model, processor, cache_dir=str(tmp_path))
    add_image_features(load(rows=4), model, processor, "pooled", cache_dir=str(tmp_path))
    gray = copy.deepcopy(processor)
    gray.image_processor.image_mean = [0.5, 0.5, 0.5]
    add_image_features(load(rows=4), model, gray, cache_dir=str(tmp_path))
    assert len(files()) == 8
    headed = copy.deepcopy(model)
    headed.config.vision_config.num_attention_heads = 2
    add_image_features(load(rows=4), headed, processor, cache_dir=str(tmp_path))
    other = copy.deepcopy(model)
    other.vision_model.post_layernorm.weight.data[0] += 1
    add_image_features(load(rows=4), other, processor, cache_dir=str(tmp_path))
    assert len(files()) == 10


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


# ---- shards


@pytest.fixture
def small_shards(monkeypatch):
    """Of four rows, computed two at a time."""
    monkeypatch.setattr(column_cache, "SHARD_ROWS", 4)
    monkeypatch.setattr(column_cache, "BATCH_SIZE", 2)


def features_of(model, processor, tmp_path, dataset, workers: int = 0) -> column_cache.CachedColumn:
    return ImageFeatures(model, processor, cache_dir=str(tmp_path), workers=workers).column(dataset)


def values(column: column_cache.CachedColumn) -> np.ndarray:
    return np.stack(column.open().with_format("numpy")["image_features"][:])


def stop_at_image(number: int, processor, monkeypatch) -> list[int]:
    """From now on preparing that image is interrupted; the list holds how many images were prepared each time."""
    prepared, prepare = [], type(processor).__call__

    def interrupted(self, images, **options):
        if sum(prepared) + len(images) > number:
            raise KeyboardInterrupt
        prepared.append(len(images))
        return prepare(self, images=images, **options)

    monkeypatch.setattr(type(processor), "__call__", interrupted)
    return prepared


def test_shards_are_the_whole(model, processor, tmp_path, small_shards, monkeypatch):
    dataset = load(rows=11)
    sharded = features_of(model, processor, tmp_path / "sharded", dataset)
    sharded.compute_missing()
    names = ["0000000000-0000000004.arrow", "0000000004-0000000008.arrow", "0000000008-0000000011.arrow"]
    assert sorted(path.name for path in sharded.folder.glob("*.arrow")) == names
    sharded = values(sharded)
    monkeypatch.undo()
    whole = features_of(model, processor, tmp_path / "whole", dataset)
    whole.compute_missing()
    assert len(list(whole.folder.glob("*.arrow"))) == 1
    np.testing.assert_allclose(sharded, values(whole), rtol=2e-3, atol=2e-3)  # other batches, other rounding


def test_interrupted_it_goes_on_with_the_next_shard(model, processor, tmp_path, small_shards, monkeypatch):
    dataset = load(rows=11)
    column = features_of(model, processor, tmp_path, dataset)
    with monkeypatch.context() as context:
        stop_at_image(7, processor, context)
        with pytest.raises(KeyboardInterrupt):
            column.compute_missing()
    assert [len(shard) for shard in column.missing()] == [4, 3]
    assert column.missing_bytes() == 7 * 17 * 24 * 2
    written = {file: file.stat().st_mtime_ns for file in column.folder.glob("*.arrow")}
    (column.folder / "0000000004-0000000008.tmp").write_bytes(b"half a shard")
    prepared = stop_at_image(7, processor, monkeypatch)
    features_of(model, processor, tmp_path, dataset).compute_missing()
    assert prepared == [2, 2, 2, 1]
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert not column.missing() and not list(column.folder.glob("*.tmp"))
    fresh = features_of(model, processor, tmp_path / "fresh", dataset)
    monkeypatch.undo()
    monkeypatch.setattr(column_cache, "SHARD_ROWS", 4)
    monkeypatch.setattr(column_cache, "BATCH_SIZE", 2)
    fresh.compute_missing()
    assert np.array_equal(values(column), values(fresh))


def test_other_data_takes_no_shard(model, processor, tmp_path, small_shards):
    """Eleven rows of which the first eight are those of another dataset: nothing is taken over."""
    features_of(model, processor, tmp_path, load(rows=11)).compute_missing()
    assert len(features_of(model, processor, tmp_path, load(rows=11).select(range(8))).missing()) == 2


def test_shards_of_another_length_are_not_taken_for_these(model, processor, tmp_path, small_shards, monkeypatch):
    column = features_of(model, processor, tmp_path, load(rows=11))
    column.compute_missing()
    monkeypatch.setattr(column_cache, "SHARD_ROWS", 5)  # three shards again
    assert len(column.missing()) == 3


def test_workers_compute_the_same(model, processor, tmp_path, small_shards):
    alone, helped = (features_of(model, processor, tmp_path / str(n), load(rows=11), workers=n) for n in (0, 2))
    alone.compute_missing()
    helped.compute_missing()
    assert np.array_equal(values(alone), values(helped))


def test_damaged_shard_is_named(model, processor, tmp_path):
    column = features_of(model, processor, tmp_path, load(rows=4))
    column.compute_missing()
    (file,) = column.folder.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{file} .*delete it"):
        column.open()


def test_no_rows(model, processor, teacher_and_tokenizer, tmp_path):
    dataset = add_image_features(load(rows=4).select([]), model, processor, cache_dir=str(tmp_path))
    assert len(add_teacher_embeds(dataset, *teacher_and_tokenizer, cache_dir=str(tmp_path))) == 0


def test_features_that_float16_cannot_hold(model, processor, tmp_path):
    huge = copy.deepcopy(model)
    huge.visual_projection.weight.data *= 1e6
    with pytest.raises(ValueError, match="clip: its outputs for rows 0 to 3 are not finite in float16"):
        add_image_features(load(rows=4), huge, processor, cache_dir=str(tmp_path))
    assert not list(tmp_path.glob("*/*.arrow"))


# ---- size


def test_size_is_that_of_the_files(model, processor, teacher_and_tokenizer, tmp_path):
    dataset = load(rows=200)
    text = TeacherEmbeds(*teacher_and_tokenizer, cache_dir=str(tmp_path)).column(dataset)
    assert text.missing_bytes() == 200 * 2 * 24 * 2  # two captions of 24 numbers of two bytes
    for column in (text, features_of(model, processor, tmp_path, dataset)):
        announced = column.missing_bytes()
        column.compute_missing()
        assert announced <= sum(file.stat().st_size for file in column.folder.glob("*.arrow")) < 1.2 * announced + 4096
        assert column.missing_bytes() == 0


def test_size_is_announced(model, processor, tmp_path, caplog):
    add_image_features(load(rows=4), model, processor, cache_dir=str(tmp_path))
    (record,) = caplog.records
    # 17 tokens of 24 numbers of two bytes
    assert "needs 3.26kB (image_features 3.26kB)" in record.getMessage()
    assert str(tmp_path) in record.getMessage()
    caplog.clear()
    add_image_features(load(rows=4), model, processor, cache_dir=str(tmp_path))
    assert not caplog.records


def test_disk_too_small(model, processor, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10_000, 7_000, 3_000))
    with pytest.raises(ValueError, match=r"needs 3.26kB .* has 3.00kB free.*set cache_dir to a larger disk"):
        add_image_features(load(rows=4), model, processor, cache_dir=str(tmp_path))
    assert not list(tmp_path.glob("*/*.arrow"))
    add_image_features(load(rows=4), model, processor, "pooled", cache_dir=str(tmp_path))  # 192 bytes
