"""Many prompts at once give what each gives alone: with images, without, and by a plain BART."""

import pytest
import torch

from trainer.evaluation.generation import complete, encode_images

PROMPTS = [
    "Question: what color is the circle? Answer: <mask>",
    "<mask>",
    "Question: how many squares are there? Answer: <mask>",
    "two dogs <mask> the grass",
    "a photo of<mask>",
    "Question: what color is the square? Answer: <mask>",
]


@pytest.fixture(scope="module")
def features(model, processor, images) -> torch.Tensor:
    """(6, 17, 24): the third image first, so that rows and images are in different orders."""
    return encode_images(model, processor, images, batch_size=3)[[2, 0, 1, 3, 0, 2]]


def alone(model, tokenizer, prompt: str, begin: list[int], **inputs) -> str:
    """One prompt by `generate`, with no help of ours: the decoder starts with `begin`, which is cut off.

    The tiny BART was saved with `no_repeat_ngram_size=3` and forced tokens, which no step of a task asks for.
    """
    plain = {"no_repeat_ngram_size": 0, "forced_bos_token_id": None, "forced_eos_token_id": None}
    tokens = tokenizer(prompt, return_tensors="pt")
    start = torch.tensor([[2, *begin]])
    written = model.generate(**tokens, **inputs, decoder_input_ids=start, max_new_tokens=8, **plain)
    return tokenizer.decode(written[0, start.shape[1] :], skip_special_tokens=True).strip()


def begins(tokenizer) -> list[list[int]]:
    return [tokenizer(prompt.split("<mask>")[0].rstrip()).input_ids[:-1] for prompt in PROMPTS]


@pytest.mark.parametrize("batch_size", [1, 2, 128])
def test_with_images(model, processor, images, features, batch_size):
    tokenizer = processor.tokenizer
    texts = complete(model, tokenizer, PROMPTS, features, batch_size=batch_size, max_new_tokens=8)
    pictures = [images[row] for row in (2, 0, 1, 3, 0, 2)]
    for text, prompt, picture, begin in zip(texts, PROMPTS, pictures, begins(tokenizer), strict=True):
        pixel_values = processor(images=picture)["pixel_values"]
        assert text == alone(model, tokenizer, prompt, begin, pixel_values=pixel_values)
    assert len(set(texts)) > 3


def test_as_the_processor_and_the_model_do_it(model, processor, images, features):
    batch = processor(images=[images[row] for row in (2, 0, 1, 3, 0, 2)], text=PROMPTS)
    written = model.generate(**batch, max_new_tokens=8)
    expected = processor.post_process_generation(written, batch["input_ids"])
    assert complete(model, processor.tokenizer, PROMPTS, features, max_new_tokens=8) == expected


@pytest.mark.parametrize("kind", ["vlkd", "bart"])
def test_without_images(model, processor, kind):
    speaker, tokenizer = model if kind == "vlkd" else model.to_bart(), processor.tokenizer
    texts = complete(speaker, tokenizer, PROMPTS, max_new_tokens=8, batch_size=2)
    for text, prompt, begin in zip(texts, PROMPTS, begins(tokenizer), strict=True):
        assert text == alone(speaker, tokenizer, prompt, begin)


def test_the_image_matters(model, processor, features):
    tokenizer = processor.tokenizer
    assert complete(model, tokenizer, PROMPTS, features) != complete(model, tokenizer, PROMPTS)
    assert complete(model, tokenizer, PROMPTS, features) != complete(model, tokenizer, PROMPTS, features.flip(0))


def test_options_reach_generate(model, processor, features):
    tokenizer = processor.tokenizer
    short = complete(model, tokenizer, PROMPTS[:1], features[:1], max_new_tokens=1)
    assert len(tokenizer(short[0]).input_ids) < 6
    greedy, beams = (complete(model, tokenizer, PROMPTS, features, num_beams=beams) for beams in (1, 4))
    assert greedy != beams


def test_features_are_those_of_the_model(model, processor, images):
    features = encode_images(model, processor, images, batch_size=3)
    pixel_values = processor(images=images)["pixel_values"]
    torch.testing.assert_close(features, model.get_image_features(pixel_values).last_hidden_state)


@pytest.mark.parametrize("prompt", ["a photo of", "a <mask> and a <mask>"])
def test_a_prompt_has_one_mask(model, processor, prompt):
    with pytest.raises(ValueError, match=r"has \d <mask>"):
        complete(model, processor.tokenizer, ["<mask>", prompt])


def test_one_image_for_each_prompt(model, processor, features):
    with pytest.raises(ValueError, match="6 rows of image_features for 5 prompts"):
        complete(model, processor.tokenizer, PROMPTS[:5], features)
