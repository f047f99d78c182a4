"""The pretraining of the teachers runs and leaves whole checkpoints; test_teachers.py has how good they are."""

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import r2_score
from transformers import BartForConditionalGeneration, BartTokenizer, CLIPModel, CLIPProcessor

from microworld.exam import Exam
from microworld.pretrain import bart, clip
from microworld.pretrain.common import build_optimizer
from microworld.pretrain.measure import group_tokens, read_linearly
from microworld.world.caption_reader import caption_is_true
from microworld.world.kinds import FACTS, KINDS, PLURAL
from microworld.world.language import caption
from microworld.world.scenes import CANVAS, Group, Scene, relation, scenes

DETAILS = ("brief", "some", "full")
SMALL = clip.Stage(48, 4, 2, {"numbers": (1,), "counts": (1,)}, negatives=0)
POSITIONS = "vision_model.embeddings.position_embedding.weight"


def assert_half(folder):
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}


@pytest.fixture(scope="module")
def processor() -> CLIPProcessor:
    return clip.build_processor(captions=1000)


@pytest.fixture(scope="module")
def tokenizer() -> BartTokenizer:
    return bart.build_tokenizer(documents=1000)


# ----------------------------------------------------------------------------------------------------------- CLIP
def test_clip(tmp_path):
    clip.pretrain_clip(tmp_path, stages=(SMALL, clip.Stage(96, 4, 2, {}, tokens=("phrases",))), captions=1000)
    assert_half(tmp_path)
    model = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.vision_config.image_size == 96
    texts = ["one small frog", "two keys in the snow"]
    inputs = CLIPProcessor.from_pretrained(tmp_path)(text=texts, padding=True, return_tensors="pt")
    assert model.get_text_features(**inputs).pooler_output.shape == (2, 256)


@pytest.mark.parametrize("tokens", [("phrases",), ("captions", "phrases")])
def test_patches_are_compared_with_texts(processor, tmp_path, monkeypatch, tokens):
    """An image's score of a text is the logarithm of the sum over its patches, without the class token."""
    seen = {}
    monkeypatch.setattr(clip, "is_bf16_fast", lambda device: False)
    monkeypatch.setattr(
        clip, "fit", lambda *args, **options: seen.update(batch=(own := next(args[3])), loss=args[4](own))
    )
    model = clip.with_canvas(clip.build_model(processor.tokenizer, 48), 48).eval()
    clip.train(model, processor, SMALL._replace(tokens=tokens), tmp_path, seed=0)
    (pixels, *texts), (loss, parts) = seen["batch"], seen["loss"]
    states = model.vision_model.post_layernorm(model.vision_model(pixels).last_hidden_state)
    patches = torch.nn.functional.normalize(model.visual_projection(states), dim=-1)[:, 1:]  # (4, 9, 256)
    for name, part in zip(("captions", "phrases"), texts, strict=True):
        if name in tokens:
            embeds = model.logit_scale.exp() * clip.embed_texts(model, processor, part.texts)
            scores = [[(own @ text).exp().sum().log().item() for text in embeds] for own in patches]
            expected = clip.contrastive_loss(torch.tensor(scores), part.owners, part.is_true)
            torch.testing.assert_close(parts[f"tokens, {name}"], expected)
    assert len(parts) == 2 + len(tokens)
    torch.testing.assert_close(loss, sum(parts.values()))


def test_clip_is_small_but_has_the_layers_of_a_vision_transformer(processor):
    assert clip.STAGES[-1].canvas == CANVAS
    model = clip.build_model(processor.tokenizer, CANVAS)
    assert model.config.vision_config.num_hidden_layers >= 4
    assert sum(p.numel() for p in model.parameters()) * 2 < 16_000_000  # bytes in fp16


@pytest.mark.parametrize("detail", DETAILS)
def test_captions_of_hard_negatives_are_false_of_the_picture(detail):
    rng = random.Random(0)
    for scene in islice(scenes("train", "hard negatives"), 150):
        others = clip.hard_negatives(scene, detail, rng, 4)
        assert len(others) == 4
        for other in others:
            assert not caption_is_true(caption(other, rng, detail), scene)


def test_hard_negatives_are_scenes_that_a_caption_can_describe():
    """A group that becomes larger must not come so near to another that neither word for their relation holds."""
    rng = random.Random(0)
    for scene in islice(scenes("train", "hard negatives"), 300):
        for other in clip.hard_negatives(scene, "full", rng, 4):
            assert all(relation(a, b) for a in other.groups for b in other.groups if a is not b)
            assert "None" not in caption(other, rng, "full")


def test_a_batch_has_captions_and_phrases_with_their_hard_negatives(processor):
    stage = clip.Stage(96, 8, 1, {"numbers": (2,)}, negatives=3)
    pixels, (captions, *_), (phrases, owners, is_true) = next(clip.batches(processor, stage, seed=0))
    assert pixels.shape == (8, 3, 96, 96) and len(captions) == 8 + 3 * 8
    assert all(captions[i] not in captions[8 + 3 * i : 11 + 3 * i] for i in range(8))
    number = len(owners)
    assert number == 16 and len(phrases) == 2 * number and is_true.shape == (8, 2 * number)
    assert is_true[owners, torch.arange(number)].all()
    assert not is_true[owners, torch.arange(number, 2 * number)].any()
    _, (captions, owners, is_true), _ = next(clip.batches(processor, SMALL, seed=0))
    assert len(captions) == 4 and owners.tolist() == [0, 1, 2, 3] and torch.equal(is_true, torch.eye(4).bool())


def test_a_phrase_is_true_of_every_picture_that_holds_what_it_tells():
    """Half of the phrases tell the size. "two frogs" is true of small and of large frogs."""
    small = Group("frog", "noto", "small", 2, False, 30, 30)
    drawn = [Scene((small,), "sea"), Scene((replace(small, size="large"),), "snow")] * 20
    texts, owners, is_true = clip._phrases(drawn, random.Random(0))
    of_small_and_large = {
        "two frogs": [True, True],
        "two small frogs": [True, False],
        "two large frogs": [False, True],
    }
    assert owners.tolist() == list(range(40)) and set(texts[:40]) == set(of_small_and_large)
    for text, truth in zip(texts, is_true.T.tolist(), strict=True):
        assert truth == of_small_and_large.get(text, [False, False]) * 20, text


def test_contrastive_loss_leaves_out_what_is_true_as_well():
    """Two images, three texts and a negative; the first two texts are of the first image, the third is of both."""
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.5], [0.1, 0.2, 4.0, 0.3]])
    is_true = torch.tensor([[True, True, True, False], [False, False, True, False]])

    def cross_entropy(right: float, *wrong: float) -> float:
        return math.log(sum(map(math.exp, (right, *wrong)))) - right

    of_image = (cross_entropy(3, 0.5) + cross_entropy(2, 0.5) + cross_entropy(4, 0.1, 0.2, 0.3)) / 3
    of_text = (cross_entropy(3, 0.1) + cross_entropy(2, 0.2) + cross_entropy(4)) / 3
    loss = clip.contrastive_loss(scores, torch.tensor([0, 0, 1]), is_true)
    assert loss.item() == pytest.approx((of_image + of_text) / 2)


def test_contrastive_loss_of_one_caption_for_each_image_is_that_of_clip():
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(4)
    expected = sum(torch.nn.functional.cross_entropy(each, rows) for each in (scores, scores.T)) / 2
    torch.testing.assert_close(clip.contrastive_loss(scores, rows, torch.eye(4, dtype=torch.bool)), expected)


def test_tokenizer_merges_each_word_from_the_left():
    """Of "bab" and "ab": a b</w>; then b ab</w>. Other words stay in parts."""
    tokenizer = clip.build_tokenizer(["bab", "ab bab"])
    assert len(tokenizer) == 516
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<|startoftext|>", "<|endoftext|>"]
    assert tokenizer.convert_ids_to_tokens([514, 515]) == ["ab</w>", "bab</w>"]
    assert tokenizer.tokenize("bab, AB abc") == ["bab</w>", ",</w>", "ab</w>", "a", "b", "c</w>"]


def test_every_word_of_the_world_is_one_token_of_the_clip_tokenizer(processor):
    """A word with an unknown part would end there: the text encoder reads up to the first end token."""
    for kind in KINDS:
        words = f"a small {kind} left of two large {PLURAL[kind]}"
        assert len(processor.tokenizer.tokenize(words)) == len(words.split())
    ids = processor.tokenizer("a fox, or 2 zebras?").input_ids
    assert ids.count(processor.tokenizer.eos_token_id) == 1 and processor.tokenizer.unk_token_id not in ids[:-1]


def test_texts_are_embedded_in_their_order(processor):
    model = clip.build_model(processor.tokenizer, 48).eval()
    texts = ["two keys in the snow", "a frog", "one large palm tree on a brick wall", "three bees"]
    with torch.no_grad():
        inputs = processor.tokenizer(texts, padding=True, return_tensors="pt")
        expected = torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)
        torch.testing.assert_close(clip.embed_texts(model, processor, texts, chunk=2), expected)


def test_enlarge_changes_only_the_positions(processor):
    """From 3 × 3 to 9 × 9 patches: the middle nine keep their positions, which are sines and cosines."""
    model = clip.with_canvas(clip.build_model(processor.tokenizer, 48), 48)
    larger = clip.with_canvas(model, 144)
    assert larger.config.vision_config.image_size == 144 and model.config.vision_config.image_size == 48
    small, large = model.state_dict(), larger.state_dict()
    assert large[POSITIONS].shape == (1 + 81, 256) and not large[POSITIONS][0].any()
    grid = large[POSITIONS][1:].view(9, 9, 256)
    torch.testing.assert_close(grid[3:6, 3:6].reshape(9, 256), small[POSITIONS][1:])
    # The first half is the row's, the second the column's, each sines before cosines; the first frequency is 1.
    row, column = 4, 1
    angles = [math.sin(row), math.cos(row), math.sin(column), math.cos(column)]
    torch.testing.assert_close(grid[row, column, ::64], 1.5 * torch.tensor(angles))
    assert not larger.get_parameter(POSITIONS).requires_grad
    rest = {name: tensor for name, tensor in large.items() if "position" not in name}
    assert all(torch.equal(tensor, small[name]) for name, tensor in rest.items())


def test_muon_trains_the_matrices_of_layers_and_projections(processor):
    model = clip.build_model(processor.tokenizer, 48)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adamw, muon = build_optimizer(model, 1e-3).pair
    groups = [[[names.pop(id(p)) for p in group["params"]] for group in part.param_groups] for part in (adamw, muon)]
    assert not names and [[group["lr"] for group in part.param_groups] for part in (adamw, muon)] == [[1e-3], [2e-3]]
    by_muon = set(groups[1][0])
    assert {"visual_projection.weight", "text_model.encoder.layers.2.mlp.fc1.weight"} <= by_muon
    assert len(by_muon) == 6 * (3 + 4) + 2  # the four of attention and two of the MLP, in each layer
    assert {"logit_scale", POSITIONS} <= set(groups[0][0])


# ----------------------------------------------------------------------------------------------------------- BART
def test_bart(tmp_path, monkeypatch):
    monkeypatch.setattr(bart, "BATCH_SIZE", 8)
    bart.pretrain_bart(tmp_path, [(2, 1e-3, 0.0), (2, 5e-4, 0.1)], documents=1000)
    assert_half(tmp_path)
    model = BartForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.dropout == 0
    ids = BartTokenizer.from_pretrained(tmp_path)("two small frogs", return_tensors="pt").input_ids
    bart.set_dropout(model, 0.1)
    layers = (model.get_encoder(), *model.get_encoder().layers, model.get_decoder(), *model.get_decoder().layers)
    assert {part.dropout for part in layers} == {0.1}
    with torch.no_grad():
        assert not torch.equal(model.train()(ids).logits, model(ids).logits)
        assert torch.equal(model.eval()(ids).logits, model(ids).logits)


def test_what_is_masked():
    """A question of two tokens, an answer of one and a passage of three; the rest is text infilling."""
    segments, roles = [[11, 12], [13], [14, 15, 16]], ["question", "answer", "passage"]
    found = Counter(tuple(bart.corrupt(segments, roles, 4, random.Random(seed))) for seed in range(4000))
    expected = {(4, 14, 15, 16): 0.45, (11, 12, 4, 14, 15, 16): 0.37, (11, 12, 13, 4): 0.08}
    for corrupted, share in expected.items():
        assert found[corrupted] / 4000 == pytest.approx(share, abs=0.04)
    for seed in range(50):  # a passage alone is infilled: in order, with a mask for each hidden span
        corrupted = bart.corrupt([list(range(10, 40))], ["passage"], 4, random.Random(seed))
        kept = [token for token in corrupted if token != 4]
        assert kept == sorted(kept) and set(kept) < set(range(10, 40)) and 4 in corrupted


def test_batches_of_documents(tokenizer):
    stream = bart.batches(tokenizer, batch_size=8, seed=0, pair_batches=2, pool=2)
    for number in range(4):
        batch = next(stream)
        shape = batch["labels"].shape
        assert shape[0] == 8 and batch["weights"].shape == shape
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == tokenizer.pad_token_id)
        assert torch.equal(batch["weights"] == 0, batch["labels"] == -100)
        texts = tokenizer.batch_decode(batch["labels"].clamp(min=tokenizer.pad_token_id), skip_special_tokens=True)
        assert all(tokenizer.unk_token not in text and len(text) > 10 for text in texts)
        has_answer = (batch["weights"] == bart.ANSWER_WEIGHT).any(dim=1)
        assert number > 1 or has_answer.all()  # the first two batches are of pair documents


def test_the_tokenizer_has_a_token_for_every_common_word(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    for text in (" small", " large", " left", " snow", " animal", " two", " yes"):
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == 1, text
    sentence = FACTS["octopus"][0].sentence("octopus", plural=False)
    assert tokenizer.decode(tokenizer(sentence).input_ids, skip_special_tokens=True) == sentence


# -------------------------------------------------------------------------------------------------------- measure
def test_tokens_of_groups():
    """Patches of 16 pixels, 9 a row: (30, 30) is in row 1, column 1; the first snail at (100 - 21.6, 40) in (2, 4)."""
    frog, snails = Group("frog", "noto", "small", 1, False, 30, 30), Group("snail", "noto", "large", 2, False, 100, 40)
    exam = Exam("", [Scene((frog,), "sea"), Scene((frog, snails), "snow")], [], [])
    tokens = torch.arange(2 * 82.0).view(2, 82, 1)
    found, kinds = group_tokens(exam, tokens, "kind")
    assert found.tolist() == [[1 + 9 + 1], [82 + 1 + 9 + 1], [82 + 1 + 18 + 4]] and kinds == ["frog", "frog", "snail"]
    assert group_tokens(exam, tokens, "count")[1] == ["1", "1", "2"]
    assert group_tokens(exam, tokens, "background")[1] == ["sea", "snow", "snow"]


def test_r2_is_that_of_scikit_learn_and_its_interval_covers_the_true_value():
    """One token in ten of the held-out scenes shows the other trait: R² is 1 - 0.1 / 0.25 = 0.6."""
    rng = np.random.default_rng(0)
    traits = [rng.choice(["one", "two"], n) for n in (4000, 1000)]
    train, held_out = ((np.where(trait == "two", 1.0, -1.0)[:, None], trait) for trait in traits)
    flipped = np.where(rng.random(1000) < 0.1, -held_out[0][:, 0], held_out[0][:, 0])[:, None]
    accuracy, r2 = read_linearly(train, (flipped, list(held_out[1])))
    assert accuracy["value"] == pytest.approx((flipped == held_out[0]).mean(), abs=1e-4)
    predicted = (flipped[:, 0] + 1) / 2
    assert r2["value"] == pytest.approx(r2_score(held_out[1] == "two", predicted), abs=1e-3)
    assert r2["low"] < 0.6 < r2["high"] and r2["high"] - r2["low"] < 0.2 and r2["n"] == 1000
