"""The model against the two checkpoints it is made of."""

import copy

import pytest
import torch
from transformers import BartForConditionalGeneration, CLIPModel

TEXTS = ["a photo of a red circle", "two dogs", "Question: how many squares are there? Answer: <mask>"]


@pytest.fixture(scope="module")
def bart(bart_dir):
    return BartForConditionalGeneration.from_pretrained(bart_dir)


@pytest.fixture(scope="module")
def clip(clip_dir):
    return CLIPModel.from_pretrained(clip_dir)


@pytest.fixture
def own_model(model):
    """A copy that a test may change."""
    return copy.deepcopy(model)


# text only: BART


def test_text_only_is_bart_to_the_bit(model, bart, processor):
    batch = processor(text=TEXTS)
    labels = processor(text=["red", "a blue square and a green triangle", "two."])["input_ids"].clone()
    labels[labels == 1] = -100
    ours, theirs = model(**batch, labels=labels), bart(**batch, labels=labels)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(ours.encoder_last_hidden_state, theirs.encoder_last_hidden_state)
    assert ours.image_embeds is None and ours.text_embeds is None
    assert torch.equal(model(**batch).logits, bart(**batch).logits)  # decoder inputs shifted from input_ids
    embeds = bart.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(
        model(inputs_embeds=embeds, labels=labels).logits, bart(inputs_embeds=embeds, labels=labels).logits
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}])
def test_text_only_generates_what_bart_generates(model, bart, processor, options):
    batch = processor(text=TEXTS)
    ours = model.generate(**batch, max_new_tokens=12, **options)
    assert torch.equal(ours, bart.generate(**batch, max_new_tokens=12, **options))
    assert len({tuple(row) for row in ours.tolist()}) == len(ours)  # the tiny BART does not say the same to all


def test_gradient_of_the_loss_is_that_of_bart(own_model, bart, processor):
    batch = processor(text=TEXTS)
    bart = copy.deepcopy(bart)
    own_model(**batch, labels=batch["input_ids"]).loss.backward()
    bart(**batch, labels=batch["input_ids"]).loss.backward()
    assert torch.equal(own_model.language_model.model.shared.weight.grad, bart.model.shared.weight.grad)


# image embedding: CLIP


def test_image_embedding_is_that_of_clip(model, clip, batch):
    expected = clip.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    expected = expected / expected.norm(dim=-1, keepdim=True)
    features = model.get_image_features(batch["pixel_values"])
    assert features.last_hidden_state.shape == (4, 17, 24)
    torch.testing.assert_close(features.pooler_output, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(**batch).image_embeds, expected, rtol=0, atol=1e-6)
    assert torch.equal(model.logit_scale, clip.logit_scale.reshape(1))


# padding, batch composition


def pad(batch, processor, left=0, right=0):
    fill = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0}
    return {
        **batch,
        **{name: torch.nn.functional.pad(batch[name], (left, right), value=value) for name, value in fill.items()},
    }


@pytest.mark.parametrize("sides", [{"left": 3}, {"right": 3}, {"left": 2, "right": 4}])
@pytest.mark.parametrize("with_image", [True, False])
def test_padding_changes_nothing(model, processor, images, sides, with_image):
    caption = processor(text=["a red circle"])
    plain = processor(images=images[:1] if with_image else None, text=["Question: what is it? Answer: <mask>"])
    padded = pad(plain, processor, **sides)
    labels = caption["input_ids"]
    one = model(**plain, labels=labels, caption_input_ids=labels)
    wide = pad(caption, processor, **sides)
    two = model(
        **padded, labels=labels, caption_input_ids=wide["input_ids"], caption_attention_mask=wide["attention_mask"]
    )
    torch.testing.assert_close(two.logits, one.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(two.text_embeds, one.text_embeds, rtol=0, atol=1e-5)
    expected = model.generate(**plain, max_new_tokens=8)
    assert torch.equal(model.generate(**padded, max_new_tokens=8), expected)
    assert torch.equal(
        model.generate(**padded, max_new_tokens=8, num_beams=2), model.generate(**plain, max_new_tokens=8, num_beams=2)
    )


def test_a_row_is_the_same_alone_and_in_a_batch(model, processor, images, batch):
    labels = processor(text=["a red circle and a blue square"] * 4)["input_ids"]
    together = model(**batch, labels=labels).logits
    for row, image in enumerate(images):
        prompt = processor.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()][1:-1])
        alone = model(**processor(images=image, text=prompt), labels=labels[:1]).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_cache_changes_nothing(model, batch):
    ids = torch.tensor([[2, 0, 7, 9, 11, 13]] * 4)
    full = model(**batch, decoder_input_ids=ids, use_cache=False).logits
    first = model(**batch, decoder_input_ids=ids[:, :3], use_cache=True)
    rest = model(**batch, decoder_input_ids=ids[:, 3:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], dim=1), full, rtol=0, atol=1e-5)


# what may be given


def test_image_changes_the_text_and_text_changes_it_too(model, batch, images):
    labels = batch["input_ids"]
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with_image, without = model(**batch, labels=labels).logits, model(**text, labels=labels).logits
    other_text = model(**{**batch, "input_ids": batch["input_ids"].flip(0)}, labels=labels).logits
    assert (with_image - without).abs().max() > 1e-2
    assert (with_image - other_text).abs().max() > 1e-2


def test_precomputed_features_are_the_image(model, batch):
    features = model.get_image_features(batch["pixel_values"]).last_hidden_state
    cached = {**batch, "image_features": features}
    del cached["pixel_values"]
    live, cache = model(**batch, labels=batch["input_ids"]), model(**cached, labels=batch["input_ids"])
    assert torch.equal(live.logits, cache.logits)
    assert torch.equal(live.image_embeds, cache.image_embeds)
    half = model(**{**cached, "image_features": features.half()}, labels=batch["input_ids"])
    torch.testing.assert_close(half.logits, live.logits, rtol=0, atol=5e-2)


def test_image_alone_is_the_default_prompt(model, processor, images):
    batch = processor(images=images)
    assert batch["input_ids"].tolist() == [model.config.default_prompt_ids] * 4
    alone = model(pixel_values=batch["pixel_values"])
    assert torch.equal(alone.logits, model(**batch).logits)


def test_encoder_outputs_stand_for_image_and_text(model, batch):
    encoder_outputs = model.get_encoder()(**batch)
    given = model(encoder_outputs=encoder_outputs, attention_mask=batch["attention_mask"], labels=batch["input_ids"])
    assert torch.equal(given.logits, model(**batch, labels=batch["input_ids"]).logits)
    assert torch.equal(given.image_embeds, encoder_outputs.image_embeds)
    as_tuple = model(
        encoder_outputs=encoder_outputs.to_tuple(), attention_mask=batch["attention_mask"], labels=batch["input_ids"]
    )
    assert torch.equal(as_tuple.logits, given.logits)


def test_return_dict_false_gives_a_tuple(model, batch):
    output = model(**batch, labels=batch["input_ids"])
    assert list(output)[:2] == ["loss", "logits"]
    as_tuple = model(**batch, labels=batch["input_ids"], return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None, "pixel_values": None}, "No image and no text"),
        ({"image_features": torch.zeros(4, 17, 24)}, "both given"),
        ({"pixel_values": torch.zeros(3, 3, 32, 32)}, r"3 image\(s\) but 4 text\(s\)"),
        (
            {"pixel_values": None, "image_features": torch.zeros(4, 1, 24)},
            r"shape \(4, 1, 24\).*requires \(batch, 17, 24",
        ),
        ({"input_ids": torch.zeros(4, 65, dtype=torch.long), "attention_mask": None}, "65 tokens.*=64"),
        ({"labels": torch.zeros(4, 65, dtype=torch.long)}, "`labels` has 65 tokens"),
        ({"decoder_inputs_embeds": torch.zeros(4, 65, 1)}, "`decoder_inputs_embeds` has 65 tokens"),
    ],
)
def test_bad_input_is_a_value_error(model, batch, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{**batch, "labels": batch["input_ids"], **change})


# the losses' inputs


def test_loss_is_not_shifted_twice_and_can_be_scaled(model, batch):
    labels = batch["input_ids"].clone()
    labels[labels == 1] = -100
    output = model(**batch, labels=labels)
    by_hand = -output.logits.log_softmax(-1).gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
    by_hand = by_hand[labels != -100]
    torch.testing.assert_close(output.loss, by_hand.mean())
    scaled = model(**batch, labels=labels, num_items_in_batch=torch.tensor(100))
    torch.testing.assert_close(scaled.loss, by_hand.sum() / 100)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_in_half_precision_is_computed_in_float32(own_model, batch, dtype):
    """The sum over 18,000 tokens exceeds fp16's largest number, 65,504."""
    model = copy.deepcopy(own_model).to(dtype)
    texts = batch["input_ids"][:1].repeat(300, 1)
    labels = torch.full((300, 60), model.config.text_config.eos_token_id)
    output = model(input_ids=texts, labels=labels)
    by_hand = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1).float(), labels.flatten())
    torch.testing.assert_close(output.loss, by_hand)
    scaled = model(input_ids=texts, labels=labels, num_items_in_batch=torch.tensor(9000))
    torch.testing.assert_close(scaled.loss, 2 * by_hand)


def test_itdd_hidden_states_are_the_decoders_on_the_image(own_model, processor, batch):
    written = processor(text=["a blue", "the red square", "two", "a"])["input_ids"]
    features = own_model.get_image_features(batch["pixel_values"]).last_hidden_state.requires_grad_()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"image_features": features}
    ours = own_model(**inputs, itdd_decoder_input_ids=written)

    options = {"decoder_input_ids": written, "output_hidden_states": True}
    at_image = own_model(image_features=features, **options).decoder_hidden_states
    assert len(ours.itdd_hidden_states) == len(at_image) - 1 and ours.itdd_hidden_states[0].requires_grad
    alone = own_model(image_features=features, labels=written, itdd_decoder_input_ids=written)
    first = own_model(**inputs, itdd_decoder_input_ids=written[:1]).itdd_hidden_states[-1]
    torch.testing.assert_close(first, at_image[-1][:1], atol=1e-6, rtol=1e-5)
    for state, other, expected in zip(ours.itdd_hidden_states, alone.itdd_hidden_states, at_image[1:], strict=True):
        torch.testing.assert_close(state, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(other, expected, atol=1e-6, rtol=1e-5)


def test_text_embedding_is_the_start_state_in_the_joint_space(model, bart, processor):
    batch = processor(text=TEXTS)
    start = bart.get_encoder()(**batch).last_hidden_state[:, 0]
    expected = start @ model.text_projection.weight.T
    expected = expected / expected.norm(dim=-1, keepdim=True)
    features = model.get_text_features(**batch)
    torch.testing.assert_close(features.pooler_output, expected, rtol=0, atol=1e-6)
    output = model(
        **batch,
        labels=batch["input_ids"],
        caption_input_ids=batch["input_ids"],
        caption_attention_mask=batch["attention_mask"],
    )
    torch.testing.assert_close(output.text_embeds, expected, rtol=0, atol=1e-6)


# what learns


def test_clip_is_frozen_and_stays_in_eval_mode(own_model, batch):
    own_model.train()
    assert own_model.training and own_model.language_model.training
    assert not any(module.training for module in own_model.vision_model.modules())
    before = {name: value.clone() for name, value in own_model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in own_model.parameters() if p.requires_grad], lr=0.1)
    output = own_model(**batch, labels=batch["input_ids"], caption_input_ids=batch["input_ids"])
    (output.loss + (output.text_embeds - output.image_embeds).square().sum()).backward()
    optimizer.step()
    clip = ("vision_model.", "visual_projection.", "logit_scale")
    for name, value in own_model.state_dict().items():
        frozen = name.startswith(clip) or name.endswith("final_logits_bias")
        assert torch.equal(value, before[name]) == frozen, name


def test_freezing_the_language_model(own_model):
    maps = own_model.projection_parameter_names()
    assert maps == {"text_projection.weight", "image_projection.weight"}

    def learning():
        return {name for name, parameter in own_model.named_parameters() if parameter.requires_grad}

    everything = learning()
    own_model.freeze_language_model("all")
    assert learning() == maps
    own_model.freeze_language_model("decoder")
    encoder = {name for name in everything if ".model.encoder." in name}
    assert learning() == maps | encoder and encoder
    own_model.freeze_language_model("none")
    assert learning() == everything
    with pytest.raises(ValueError, match="'encoder' is unknown"):
        own_model.freeze_language_model("encoder")


def test_embeddings_can_be_resized(own_model, batch):
    before = own_model(**batch, labels=batch["input_ids"]).logits
    vocabulary = before.shape[-1]
    own_model.resize_token_embeddings(vocabulary + 5)
    after = own_model(**batch, labels=batch["input_ids"]).logits
    assert after.shape[-1] == vocabulary + 5 == own_model.config.text_config.vocab_size
    assert torch.equal(after[..., :vocabulary], before)


def test_gradient_checkpointing_changes_nothing(own_model, batch):
    def gradient():
        own_model.zero_grad()
        own_model(**batch, labels=batch["input_ids"]).loss.backward()
        return own_model.image_projection.weight.grad.clone()

    plain = gradient()
    own_model.gradient_checkpointing_enable()
    own_model.train()
    for module in own_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    torch.testing.assert_close(gradient(), plain, rtol=1e-4, atol=1e-6)


def test_no_graph_goes_through_the_frozen_clip(own_model, batch):
    """Gradient checkpointing makes every embedding require a gradient, CLIP's too."""
    model = own_model.train()
    went_back = []
    for layer in model.vision_model.encoder.layers:
        layer.mlp.fc1.register_full_backward_hook(lambda *_: went_back.append(1))

    def kept_bytes() -> int:
        tensors = {}

        def pack(tensor):
            tensors[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        return sum(tensors.values())

    plain = kept_bytes()
    model.gradient_checkpointing_enable()
    assert kept_bytes() < plain and not went_back
    assert model.image_projection.weight.grad is not None
    model.gradient_checkpointing_disable()
    pixels = batch["pixel_values"].clone().requires_grad_()
    model(**{**batch, "pixel_values": pixels}, labels=batch["input_ids"]).loss.backward()
    assert pixels.grad.abs().sum() > 0 and len(went_back) == 2
    model.vision_model.encoder.layers[-1].requires_grad_(True)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.vision_model.encoder.layers[-1].mlp.fc1.weight.grad.abs().sum() > 0
