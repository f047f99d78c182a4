"""From rows to a batch: shapes, padding, seeds, and rows that cannot be used."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cached_data import add_image_features, add_teacher_embeds
from caption_data import load
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from trainer import EpochDataset, TextInfilling, VLKDDataCollator


@pytest.fixture(scope="module")
def collator(processor, clip_dir) -> VLKDDataCollator:
    return VLKDDataCollator(
        processor=processor,
        teacher_tokenizer=AutoTokenizer.from_pretrained(clip_dir, model_max_length=32),
        infilling=TextInfilling(processor.tokenizer.mask_token_id, 0.3, 0.3),
        decoder_start_token_id=2,
        projection_dim=24,
        max_text_length=40,
        seed=5,
    )


@pytest.fixture
def rows() -> EpochDataset:
    return EpochDataset(load(rows=8), seed=5)


def test_batch_is_what_the_model_takes(collator, rows, model):
    batch = collator([rows[index] for index in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert batch["labels"].shape == batch["decoder_input_ids"].shape == batch["caption_input_ids"].shape
    assert batch["teacher_input_ids"].shape == batch["teacher_attention_mask"].shape
    student = {
        name: tensor for name, tensor in batch.items() if not name.startswith(("teacher", "labels", "row_names"))
    }
    assert batch["row_names"] == [f"row {index} of epoch 0" for index in range(4)]
    outputs = model(**student)
    assert outputs.logits.shape[:2] == batch["labels"].shape


def test_caption_labels_and_decoder_inputs_agree(collator, rows, model):
    batch = collator([rows[index] for index in range(4)])
    ids, mask, labels = batch["caption_input_ids"], batch["caption_attention_mask"].bool(), batch["labels"]
    assert torch.equal(labels[mask], ids[mask]) and (labels[~mask] == -100).all()
    assert (ids[~mask] == collator.processor.tokenizer.pad_token_id).all()
    expected = model.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(batch["decoder_input_ids"][mask], expected[mask])
    texts = collator.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert all(text in rows[index]["caption"] for index, text in enumerate(texts))


def test_same_seed_epoch_and_index_in_any_batch(collator, rows):
    together = collator([rows[index] for index in range(4)])
    for index in range(4):
        alone = collator([rows[index]])
        for name in ("input_ids", "labels"):
            length = alone[name].shape[1]
            assert torch.equal(together[name][index, :length], alone[name][0])


def test_epochs_draw_other_captions_and_corruptions(collator, rows):
    def texts(epoch: int, name: str) -> list[list[int]]:
        rows.start_epoch(epoch)
        return collator([rows[index] for index in range(8)])[name].tolist()

    for name in ("input_ids", "caption_input_ids"):
        assert texts(0, name) != texts(1, name)
        assert texts(0, name) == texts(0, name)


def test_every_caption_of_a_row_is_drawn(collator, rows):
    seen = set()
    for epoch in range(20):
        rows.start_epoch(epoch)
        seen |= set(collator.processor.tokenizer.batch_decode(collator([rows[3]])["labels"].clamp(min=0)))
    assert len(seen) == len(rows[3]["caption"]) == 2


@pytest.mark.parametrize("workers", [{"num_workers": 0}, {"num_workers": 1, "persistent_workers": True}])
def test_workers_see_the_epoch(rows, workers):
    loader = DataLoader(rows, batch_size=4, collate_fn=lambda examples: [row["epoch"] for row in examples], **workers)
    for epoch in range(3):
        rows.start_epoch(epoch)
        assert sum(loader, []) == [epoch] * 8


@pytest.mark.parametrize(("number", "read"), [(3, 1), (5, 2)])
def test_readings_are_another_caption_and_the_caption_of_the_row_before(collator, rows, number, read):
    tokenizer = collator.processor.tokenizer
    """For the first of three rows, and the first two of five."""
    captions = [["a red circle", "red", "a red circle on white"], ["two blue stars"], ["a moon", "a moon on black"]]
    captions = (captions + captions[:2])[:number]
    batch = replace(collator, with_itdd_targets=True)(
        [{**rows[i], "caption": said} for i, said in enumerate(captions)]
    )
    drawn = tokenizer.batch_decode(batch["caption_input_ids"], skip_special_tokens=True)
    pairs = zip(captions, drawn, strict=True)
    longest = [max((text for text in said if text != own), key=len, default=own) for said, own in pairs][:read]
    expected = tokenizer([f"<mask>. {text}" for text in longest], padding=True, return_tensors="pt")
    assert torch.equal(batch["itdd_input_ids"], expected["input_ids"])
    assert torch.equal(batch["itdd_attention_mask"], expected["attention_mask"])
    for name, ids in (("itdd_labels", batch["labels"]), ("itdd_decoder_input_ids", batch["decoder_input_ids"])):
        width = batch[name].shape[1]
        assert torch.equal(batch[name], ids.roll(1, 0)[:read, :width]) and len(batch[name]) == read
    assert longest[1:] in ([], ["two blue stars"])  # its only caption


def test_long_texts_are_cut_and_still_end(collator, rows):
    row = {**rows[0], "caption": "a very long caption " * 30}
    for index in range(30):
        batch = collator([{**row, "index": index}])
        assert batch["labels"].shape == (1, 40) and batch["labels"][0, -1] == 2
        assert batch["input_ids"].shape[1] <= 40 and batch["input_ids"][0, -1] == 2
        assert batch["teacher_input_ids"].shape == (1, 32)


def test_a_cut_corruption_keeps_its_end(collator):
    assert collator._truncate([0, *[7] * 60, 2]) == [0, *[7] * 38, 2]
    assert collator._truncate([0, 7, 2]) == [0, 7, 2]


def test_cached_columns_are_read_back(collator, rows):
    embeds = np.arange(48, dtype=np.float32)
    features = np.arange(5 * 24, dtype=np.float32)
    row = {**rows[0], "teacher_embeds": embeds, "image_features": features}
    del row["image"]
    batch = collator([row, row])
    assert batch["image_features"].shape == (2, 5, 24) and batch["image_features"][0, 1, 0] == 24
    caption = collator.processor.tokenizer.decode(batch["caption_input_ids"][0], skip_special_tokens=True)
    choice = row["caption"].index(caption)
    assert batch["teacher_embeds"][0].tolist() == embeds.reshape(2, 24)[choice].tolist()
    assert not {"pixel_values", "teacher_input_ids"} & batch.keys()


@pytest.mark.parametrize("caption", [None, "", "  ", [], ["a photo", ""], [None]])
def test_missing_caption_names_row_and_column(collator, rows, caption):
    with pytest.raises(ValueError, match=r"row 3: column 'caption' holds"):
        collator([{**rows[3], "caption": caption}])


def test_missing_image_names_row_and_column(collator, rows):
    with pytest.raises(ValueError, match=r"row 2: the image in column 'image' cannot be read"):
        collator([{**rows[2], "image": None}])


@pytest.mark.parametrize(("old", "new"), [("caption", "text"), ("image", "image_path")])
def test_a_column_of_another_name_is_an_error_with_the_remedy(collator, rows, old, new):
    row = {**rows[0], new: rows[0][old]}
    del row[old]
    with pytest.raises(ValueError, match=rf"row 0 has no column '{old}'; it has .*{new}.*rename_column"):
        collator([row])
    message = rf"{old}_column: the dataset has no column '{old}'; it has .*{new}.*Set {old}_column to its name"
    with pytest.raises(ValueError, match=message):
        dataset = load(rows=2).rename_column(old, new)
        if old == "caption":
            add_teacher_embeds(dataset, None, None)
        else:
            add_image_features(dataset, None, None)


def test_texts_are_padded_to_a_multiple(collator, rows):
    plain, padded = (replace(collator, pad_to_multiple_of=n)([rows[0], rows[1]]) for n in (1, 8))
    texts = ("input_ids", "attention_mask", "caption_input_ids", "caption_attention_mask", "labels")
    fill = {"attention_mask": 0, "caption_attention_mask": 0, "labels": -100}
    for name in (*texts, "decoder_input_ids"):
        width = plain[name].shape[1]
        assert padded[name].shape[1] == min(-(-width // 8) * 8, 40) and padded[name][:, :width].equal(plain[name])
        assert (padded[name][:, width:] == fill.get(name, collator.processor.tokenizer.pad_token_id)).all()
