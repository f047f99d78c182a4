"""generate(): prompts beside images, alone and together, in every mode of decoding."""

import pytest
import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
)

PROMPTS = ["a photo of", "<mask>", "Question: what color is the circle? Answer: <mask>", "a red"]


@pytest.fixture(scope="module")
def batch(processor, images):
    return processor(images=images, text=PROMPTS)


def test_decoder_starts_with_the_tokens_before_the_mask(model, processor, batch):
    tokenizer = processor.tokenizer
    written = model.generate(**batch, max_new_tokens=5)
    for row, prompt in zip(written, PROMPTS, strict=True):
        before = tokenizer(prompt.split("<mask>")[0].rstrip())["input_ids"][:-1]  # <s> and the prompt, no </s>
        assert row[: 1 + len(before)].tolist() == [2, *before]


def test_answer_continues_as_the_whole_text_is_tokenized(model, processor):
    """The decoder's prefix is what the tokens of "prompt answer" begin with, so that the next token is " red"."""
    ids = processor(images=None, text="Question: what color is the circle? Answer: <mask>")["input_ids"]
    with_mask = model.decoder_prompt_ids(ids)[0].tolist()
    whole = processor.tokenizer("Question: what color is the circle? Answer: red")["input_ids"]
    assert [2, *whole[: len(with_mask) - 1]] == with_mask
    assert processor.tokenizer.decode(whole[len(with_mask) - 1 : -1]) == " red"


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_prompts_of_different_lengths_give_what_each_gives_alone(model, processor, images, batch, options):
    together = model.generate(**batch, max_new_tokens=7, **options)
    copies = options.get("num_return_sequences", 1)
    assert len(together) == 4 * copies
    for row, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        alone = model.generate(**processor(images=image, text=prompt), max_new_tokens=7, **options)
        group = together[row * copies : (row + 1) * copies]
        assert torch.equal(group[:, : alone.shape[1]], alone)
        assert (group[:, alone.shape[1] :] == 1).all()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_a_text_ends_at_the_last_position(model, processor, images, options):
    limit = model.config.text_config.max_position_embeddings
    prompt = "Question: " + "why " * 8 + "? Answer: <mask>"
    inputs = processor(images=images[0], text=prompt)
    room = limit - len(model.decoder_prompt_ids(inputs["input_ids"])[0])
    assert 0 < room < 40
    due = model.generate(**inputs, max_new_tokens=room, **options)
    assert torch.equal(model.generate(**inputs, max_new_tokens=1000, **options), due)
    config = GenerationConfig.from_dict({**model.generation_config.to_dict(), "max_new_tokens": 1000, **options})
    assert torch.equal(model.generate(**inputs, generation_config=config), due)
    both = model.generate(**processor(images=images[:2], text=["<mask>", prompt]), max_new_tokens=1000, **options)
    alone = model.generate(**processor(images=images[0], text="<mask>"), max_new_tokens=1000, **options)
    assert both.shape[1] <= limit and torch.equal(both[0, : alone.shape[1]], alone[0])


@pytest.mark.parametrize("options", [{}, {"max_length": 300}, {"max_length": 300, "num_beams": 2}])
def test_a_default_or_total_length_ends_at_the_last_position(model, processor, images, options):
    limit = model.config.text_config.max_position_embeddings
    inputs = processor(images=images[0], text="Question: " + "why " * 12 + "? Answer: <mask>")
    room = limit - len(model.decoder_prompt_ids(inputs["input_ids"])[0])
    assert 0 < room < 20
    beams = {"num_beams": options.get("num_beams", 1), "min_length": limit}
    due = model.generate(**inputs, max_new_tokens=room, **beams)
    assert due.shape[1] == limit
    assert torch.equal(model.generate(**inputs, **options | beams), due)


@pytest.mark.parametrize("length", ["max_new_tokens", "max_length"])
def test_a_text_without_a_decoder_prompt_ends_at_the_last_position(model, processor, images, length):
    limit = model.config.text_config.max_position_embeddings
    text, encoded = processor(text="a red circle"), model.get_encoder()(**processor(images=images[0]))
    for inputs in (text, {"encoder_outputs": encoded}):
        due = model.generate(**inputs, max_length=limit, min_length=limit, num_beams=1)
        assert due.shape[1] == limit
        assert torch.equal(model.generate(**inputs, **{length: 500}, min_length=limit, num_beams=1), due)
        config = GenerationConfig(**{length: 500}, min_length=limit, num_beams=1)
        assert torch.equal(model.generate(**inputs, generation_config=config), due)


def test_a_prompt_leaves_room_for_an_answer(model, image, processor):
    limit = model.config.text_config.max_position_embeddings
    inputs = processor(images=image, text="<mask>")
    with pytest.raises(ValueError, match=f"A prompt has {limit} tokens, and the decoder {limit} positions"):
        model.generate(**inputs, decoder_input_ids=torch.full((1, limit), 9), max_new_tokens=5)


def test_prompts_of_different_lengths_share_the_steps_of_greedy_decoding(model, batch):
    """After the 2 tokens of the shortest prompt: 10 steps to the end of the longest, and 7 for the new tokens."""
    assert [len(prompt) for prompt in model.decoder_prompt_ids(batch["input_ids"])] == [5, 2, 12, 4]
    steps = []
    hook = model.get_decoder().register_forward_hook(lambda *_: steps.append(1))
    model.generate(**batch, max_new_tokens=7)
    together = len(steps)
    model.generate(**batch, max_new_tokens=7, repetition_penalty=1.1)  # counts the prompt's tokens: one call each
    hook.remove()
    assert together <= 10 + 7 and len(steps) - together > together


def test_cache_batch_and_static_cache_change_nothing(model, batch):
    expected = model.generate(**batch, max_new_tokens=8)
    assert torch.equal(model.generate(**batch, max_new_tokens=8, use_cache=False), expected)
    static = model.generate(**batch, max_new_tokens=8, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}])
def test_padding_on_the_left_gives_what_padding_on_the_right_gives(model, processor, images, batch, options):
    left = processor(images=images, text=PROMPTS, padding_side="left")
    assert left["attention_mask"][:, 0].sum() == 1 and batch["attention_mask"][:, 0].all()
    expected = model.generate(**batch, max_new_tokens=7, **options)
    assert torch.equal(model.generate(**left, max_new_tokens=7, **options), expected)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "num_return_sequences": 2, "top_k": 0}])
def test_a_user_s_own_cache_changes_nothing(model, processor, images, options):
    batch = processor(images=images[:2], text=["a photo of", "a photo of"])
    config = model.config.text_config
    memory, rows = 17 + batch["input_ids"].shape[1], 2 * options.get("num_return_sequences", 1)

    def write(**cache):
        torch.manual_seed(0)
        return model.generate(**batch, max_new_tokens=6, min_new_tokens=6, **cache, **options)

    expected = write()
    dynamic = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    assert torch.equal(write(past_key_values=dynamic), expected)
    assert dynamic.self_attention_cache.get_seq_length() == expected.shape[1] - 1  # it was used
    assert dynamic.cross_attention_cache.layers[0].keys.shape[:3] == (rows, 4, memory)
    static = EncoderDecoderCache(
        StaticCache(config=config, max_cache_len=32), StaticCache(config=config, max_cache_len=memory)
    )
    assert torch.equal(write(past_key_values=static, disable_compile=True), expected)
    assert static.cross_attention_cache.layers[0].keys.shape[:3] == (rows, 4, memory)


def test_embeddings_stand_for_the_prompt(model, batch):
    embeds = model.get_input_embeddings()(batch["input_ids"])
    inputs = {**batch, "inputs_embeds": embeds}
    ids = inputs.pop("input_ids")
    prompts = model.decoder_prompt_ids(ids, batch["attention_mask"])
    given = model.generate(**inputs, decoder_input_ids=prompts, max_new_tokens=6)
    assert torch.equal(given, model.generate(**batch, max_new_tokens=6))


def test_tokens_are_streamed(model, processor, image):
    class Streamer(list):
        put, end = list.append, lambda self: None

    streamer = Streamer()
    batch = processor(images=image, text="a photo of")
    written = model.generate(**batch, max_new_tokens=5, streamer=streamer)
    assert torch.equal(torch.cat([tokens.flatten() for tokens in streamer]), written[0])


def test_greedy_is_the_argmax_of_forward(model, processor, image):
    batch = processor(images=image, text="a photo of")
    model_config = GenerationConfig(max_new_tokens=4, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    model_config.decoder_start_token_id = 2
    plain = GenerationConfig(**{**model_config.to_diff_dict(), "no_repeat_ngram_size": 0})
    written = model.generate(**batch, generation_config=plain)[0]
    prefix = model.decoder_prompt_ids(batch["input_ids"])[0]
    for position in range(len(prefix), len(written)):
        logits = model(**batch, decoder_input_ids=written[None, :position]).logits
        assert logits[0, -1].argmax() == written[position]


def test_sampling_is_seeded_and_returns_several(model, processor, image):
    batch = processor(images=image)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8, "top_k": 0}
    torch.manual_seed(0)
    first = model.generate(**batch, **options)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**batch, **options), first)
    assert len({tuple(row) for row in first.tolist()}) == 3


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_image_alone_is_the_default_prompt(model, processor, images, options):
    batch = processor(images=images)
    expected = model.generate(**batch, max_new_tokens=6, **options)
    assert torch.equal(model.generate(pixel_values=batch["pixel_values"], max_new_tokens=6, **options), expected)
    features = model.get_image_features(batch["pixel_values"]).last_hidden_state
    assert torch.equal(model.generate(image_features=features, max_new_tokens=6, **options), expected)
    assert len({tuple(row) for row in expected.tolist()}) > 1  # images make a difference


def test_precomputed_features_and_encoder_outputs_are_the_image(model, batch):
    expected = model.generate(**batch, max_new_tokens=6, num_beams=2)
    features = model.get_image_features(batch["pixel_values"]).last_hidden_state
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model.generate(**text, image_features=features, max_new_tokens=6, num_beams=2), expected)
    encoded = model.get_encoder()(**batch)
    prompts = model.decoder_prompt_ids(**text)
    mask = text["attention_mask"]
    given = model.generate(
        encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=prompts, max_new_tokens=6, num_beams=2
    )
    assert torch.equal(given, expected)


def test_a_prompt_is_answered_without_an_image_too(model, processor):
    """The blind control: the same prefix, no image."""
    batch = processor(text=["Question: how many? Answer: <mask>", "a photo of <mask>"])
    prompts = model.decoder_prompt_ids(**batch)
    written = model.generate(**batch, decoder_input_ids=prompts, max_new_tokens=6)
    bart = model.to_bart()
    for row, prompt in enumerate(prompts):
        text = {name: value[row : row + 1] for name, value in batch.items()}
        alone = bart.generate(**text, decoder_input_ids=prompt[None], max_new_tokens=6)
        assert torch.equal(written[row : row + 1, : alone.shape[1]], alone)


def test_the_image_is_encoded_once(model, batch):
    calls = []
    handle = model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    same_length = {name: value[:1] for name, value in batch.items()}
    model.generate(**same_length, max_new_tokens=6, num_beams=3, num_return_sequences=2)
    handle.remove()
    assert len(calls) == 1


def test_prompt_lookup_and_assisted_decoding_are_greedy(model, processor, images):
    batch = processor(images=images[0], text="a photo of")
    expected = model.generate(**batch, max_new_tokens=8, no_repeat_ngram_size=0)
    lookup = model.generate(**batch, max_new_tokens=8, no_repeat_ngram_size=0, prompt_lookup_num_tokens=2)
    assert torch.equal(lookup, expected)
    assisted = model.generate(**batch, max_new_tokens=8, no_repeat_ngram_size=0, assistant_model=model)
    assert torch.equal(assisted, expected)


def test_scores_are_returned_for_prompts_of_one_length(model, processor, images):
    batch = processor(images=images[:2], text=["a photo of", "a photo of"])
    output = model.generate(**batch, max_new_tokens=4, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(output.sequences, model.generate(**batch, max_new_tokens=4))
    assert len(output.scores) == output.sequences.shape[1] - 5  # decoder start, <s>, three tokens of the prompt
    assert output.encoder_attentions is None


def test_logits_processors_reach_every_group(model, batch):
    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([7]), 0.0)

    written = model.generate(
        **batch, max_new_tokens=3, no_repeat_ngram_size=0, logits_processor=LogitsProcessorList([Only()])
    )
    for row, prompt in zip(written, model.decoder_prompt_ids(batch["input_ids"]), strict=True):
        assert row[len(prompt) : len(prompt) + 2].tolist() == [7, 7]


def test_a_prompt_without_a_mask_is_continued(model):
    assert model.decoder_prompt_ids(torch.tensor([[0, 8, 9, 2, 1]]))[0].tolist() == [2, 0, 8, 9]
    left = torch.tensor([[1, 1, 0, 8, 9, model.config.mask_token_id, 5, 2]])
    assert model.decoder_prompt_ids(left, left.ne(1))[0].tolist() == [2, 0, 8, 9]


def test_bad_input_is_a_value_error(model, batch):
    mask = model.config.mask_token_id
    with pytest.raises(ValueError, match="No image and no text"):
        model.generate(max_new_tokens=3)
    with pytest.raises(ValueError, match=r"4 image\(s\) but 2 text\(s\)"):
        model.generate(pixel_values=batch["pixel_values"], input_ids=batch["input_ids"][:2])
    with pytest.raises(ValueError, match="Row 1 of `input_ids` has 2 <mask>"):
        ids = torch.tensor([[0, mask, 2, 1], [0, mask, mask, 2]])
        model.generate(pixel_values=batch["pixel_values"][:2], input_ids=ids)
    with pytest.raises(ValueError, match="both given"):
        model.generate(**batch, image_features=torch.zeros(4, 17, 24))
    with pytest.raises(ValueError, match="one length"):
        model.generate(**batch, max_new_tokens=3, return_dict_in_generate=True)
    with pytest.raises(ValueError, match="`streamer` requires prompts of one length"):
        model.generate(**batch, max_new_tokens=3, streamer=object())
    with pytest.raises(ValueError, match="not used by the model.*max_new_token'"):
        model.generate(**batch, max_new_token=3)
