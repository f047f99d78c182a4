"""Prompts and images, as the processor hands them to the model."""

import warnings

import numpy as np
import pytest
import torch

from modeling_vlkd import VLKDProcessor
from modeling_vlkd.processing_vlkd import VQA_PROMPT, first_sentence_of


def tokens(processor, **kwargs) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens(processor(**kwargs)["input_ids"][0])


# prompts


def test_prompt_rules(processor, image):
    assert processor.build_prompt(None) == processor.build_prompt("") == "<mask>"
    assert processor.build_prompt("a photo of") == processor.build_prompt("a photo of ") == "a photo of <mask>"
    assert processor.build_prompt("two <mask> here") == "two <mask> here"
    assert processor.build_vqa_prompt(" what is it? ") == "Question: what is it? Answer: <mask>"
    assert VQA_PROMPT == "Question: {question} Answer: <mask>"
    with pytest.raises(ValueError, match="'a <mask> b <mask>' has 2 <mask>; keep one"):
        processor.build_prompt("a <mask> b <mask>")
    with pytest.raises(ValueError, match="has 2 <mask>"):
        processor(images=image, text="a <mask> b <mask>")


def test_text_alone_is_tokenized_as_bart_does(processor):
    texts = ["a photo of", "two <mask> and <mask>", ""]
    expected = processor.tokenizer(texts, padding=True, return_tensors="pt")
    batch = processor(text=texts)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert processor(text="a photo of", return_tensors=None)["input_ids"] == processor.tokenizer(texts[0])["input_ids"]


def test_a_call_that_truncates_leaves_no_trace_in_what_is_saved(processor, tmp_path):
    processor(text="a photo of a dog", truncation=True, max_length=4)
    processor.save_pretrained(tmp_path)
    reloaded = VLKDProcessor.from_pretrained(tmp_path)
    assert "max_length" not in reloaded.tokenizer.init_kwargs
    assert reloaded.tokenizer.backend_tokenizer.truncation is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(reloaded(text="a photo of a dog")["input_ids"][0]) > 4


def test_text_beside_an_image_is_a_prompt(processor, image):
    mask = processor.tokenizer.mask_token
    assert tokens(processor, images=image) == ["<s>", mask, "</s>"]
    assert tokens(processor, images=image, text="a photo of") == ["<s>", "a", "Ġphoto", "Ġof", mask, "</s>"]
    assert tokens(processor, images=image, text="a photo of   <mask>")[-3:] == ["Ġof", mask, "</s>"]


def test_one_text_serves_all_images(processor, images):
    batch = processor(images=images, text="a photo of")
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert (batch["input_ids"] == batch["input_ids"][0]).all() and len(batch["input_ids"]) == 4


def test_no_space_is_left_before_the_mask_whatever_the_tokenizer(processor, image):
    """A mask token that leaves the space before it alone would leave a token "Ġ" at the end of the prefix."""
    tokenizer = type(processor.tokenizer)(tokenizer_object=processor.tokenizer._tokenizer)
    tokenizer.add_special_tokens({"mask_token": "<blank>", "bos_token": "<s>", "pad_token": "<pad>"})
    other = VLKDProcessor(processor.image_processor, tokenizer)
    assert tokens(other, images=image, text="a photo of <mask>") == ["<s>", "a", "Ġphoto", "Ġof", "<blank>", "</s>"]


def test_bad_text_is_a_value_error(processor, images):
    with pytest.raises(ValueError, match="Neither `images` nor `text`"):
        processor()
    with pytest.raises(ValueError, match=r"4 image\(s\) but 2 text\(s\)"):
        processor(images=images, text=["a", "b"])
    with pytest.raises(ValueError, match=r"has \d+ tokens, but BART accepts at most 64 .* `truncation=True`"):
        processor(text=" ".join(["two"] * 100))
    assert processor(text=" ".join(["two"] * 100), truncation=True)["input_ids"].shape == (1, 64)
    with pytest.raises(ValueError, match=r"<mask> from text\[1\]"):
        processor(images=images[:2], text=["a", " ".join(["two"] * 100)], truncation=True)
    for wrong, shown in ((5, "5"), ([5, "a", "b", "c"], "5"), (b"hi", "b'hi'"), (np.array("x"), "array")):
        with pytest.raises(ValueError, match=f"`text` contains {shown}.*, not a string; pass a prompt"):
            processor(images=images, text=wrong)
    for none in ([], ()):
        with pytest.raises(ValueError, match="`images` is empty; pass at least one image"):
            processor(images=none)
        with pytest.raises(ValueError, match="`text` is empty; pass at least one text"):
            processor(text=none)


def test_new_text_is_what_follows_the_prompt(processor, images):
    tokenizer = processor.tokenizer
    prompts = processor(images=images[:2], text=["Question: what? Answer: <mask>", "<mask>"])["input_ids"]
    texts = ["Question: what? Answer: red. Question: how many?", "a photo of two dogs"]
    written = [[2, *ids] for ids in tokenizer(texts, padding=True)["input_ids"]]
    assert processor.post_process_generation(written, prompts) == ["red. Question: how many?", texts[1]]
    assert processor.post_process_generation(written, prompts, first_sentence=True) == ["red", texts[1]]
    assert processor.post_process_generation(written) == texts
    assert processor.post_process_generation([]) == processor.post_process_generation([], prompts[:0]) == []
    twice = [row for row in written for _ in range(2)]  # num_return_sequences=2
    assert processor.post_process_generation(twice, prompts) == ["red. Question: how many?"] * 2 + [texts[1]] * 2
    padded = torch.nn.functional.pad(prompts, (3, 0), value=tokenizer.pad_token_id)
    assert processor.post_process_generation(torch.tensor(written), padded)[0] == "red. Question: how many?"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_with_a_pad_token_is_removed(model, processor, images, side):
    texts = ["Question: what <pad> is it? Answer: <mask>", "a <pad> photo, and a longer prompt with more words <mask>"]
    batch = processor(images=images[:2], text=texts, padding_side=side)
    written = model.generate(**batch, max_new_tokens=5)
    new = [
        row[len(prompt) :]
        for row, prompt in zip(
            written, model.decoder_prompt_ids(batch["input_ids"], batch["attention_mask"]), strict=True
        )
    ]
    answers = [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    assert processor.post_process_generation(written, batch["input_ids"]) == answers


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("red. blue", "red"), ("3.5 meters", "3.5 meters"), ("yes!", "yes"), ("two\nmore", "two"), ("red", "red")],
)
def test_an_answer_is_one_sentence(processor, text, sentence):
    written = [[2, *processor.tokenizer(text)["input_ids"]]]
    assert processor.post_process_generation(written, first_sentence=True) == [sentence]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("St. Bernard", "St. Bernard"),
        ("st. bernard. the dog is big", "st. bernard"),
        ("Mt. Everest. It is high", "Mt. Everest"),
        ("Dr. Smith", "Dr. Smith"),
        ("dr. seuss wrote it. red", "dr. seuss wrote it"),
        ("No. 7", "No. 7"),
        ("No. The circle is red", "No"),
        ("no. it is red", "no"),
        ("yes. Question: how", "yes"),
        ("a U.S. flag", "a U.S. flag"),
        ("u.s. flag", "u.s. flag"),
        ("the U.S. It is cold", "the U.S"),
        ("J. K. Rowling", "J. K. Rowling"),
        ("Samuel L. Jackson", "Samuel L. Jackson"),
        ("A. The circle", "A"),
        ("letter a. it is red", "letter a"),
        ("e.g. this", "e.g. this"),
        ("red vs. blue", "red vs. blue"),
        ("approx. 3", "approx. 3"),
        ("approx. 3. blue", "approx. 3"),
        ("there are 3. the rest is blue", "there are 3"),
        ("fig. 2. Question", "fig. 2"),
        ("St. Bernard?", "St. Bernard"),
        ("dr.", "dr"),
        ("Martin Luther King Jr. and his wife", "Martin Luther King Jr. and his wife"),
        ("Sept. 11", "Sept. 11"),
        ("a 10 oz. can", "a 10 oz. can"),
        ("it weighs 10 oz. It is red", "it weighs 10 oz"),
        ("Vol. IV", "Vol. IV"),
        ("in Jan. It is cold", "in Jan"),
        ("there are 3 in. The rest is out", "there are 3 in"),
        ("there are 3. A dog is here", "there are 3"),
        ("a Ph.D. student", "a Ph.D. student"),
        ("red... blue", "red"),
        ("wow! St. Bernard", "wow"),
        ("", ""),
    ],
)
def test_abbreviations_end_no_sentence(text, sentence):
    assert first_sentence_of(text) == sentence


# images: see also test_image_loading.py


def test_arrays_and_tensors_are_the_image(processor, image):
    expected = processor(images=image)["pixel_values"]
    tensor = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(40, 48, 3)
    floating = tensor.permute(2, 0, 1) / 255  # 0 to 1, channels first
    for source in (tensor, tensor.numpy(), floating, floating.numpy(), floating[None], tensor.float()):
        assert torch.equal(processor(images=source)["pixel_values"], expected)


# checkpoints


def test_processor_of_two_checkpoints(processor, bart_dir):
    assert processor.tokenizer.model_max_length == 64
    assert processor.batch_decode([[0, 2]], skip_special_tokens=True) == [""]


def test_wrong_checkpoints_are_value_errors(clip_dir, bart_dir, tmp_path):
    with pytest.raises(ValueError, match="Cannot load the image processor of `clip`="):
        VLKDProcessor.from_vision_text_pretrained(bart_dir, bart_dir)
    with pytest.raises(ValueError, match="has no mask token.* BART"):
        VLKDProcessor.from_vision_text_pretrained(clip_dir, clip_dir)
    with pytest.raises(ValueError, match="Cannot load the tokenizer of `bart`="):
        VLKDProcessor.from_vision_text_pretrained(clip_dir, str(tmp_path))


def test_options_reach_their_part_by_name_or_in_its_dict(processor, image):
    raw = processor(images=image, do_rescale=False, do_normalize=False, padding="max_length", max_length=9)
    assert raw["pixel_values"].max() > 1 and raw["input_ids"].shape == (1, 9)
    parts = {"images_kwargs": {"do_rescale": False, "do_normalize": False}, "text_kwargs": {"padding": "max_length"}}
    again = processor(images=image, **parts, max_length=9)
    assert all(torch.equal(again[name], raw[name]) for name in raw)
    assert isinstance(processor(images=image, return_tensors="np")["input_ids"], np.ndarray)
    with pytest.raises(ValueError, match="do_rescale was passed two times"):
        processor(images=image, do_rescale=False, images_kwargs={"do_rescale": False})
