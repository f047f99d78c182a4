"""The exported programs give what the model gives."""

import random
from itertools import islice

import pytest
import torch
from finetune_data import micro_model, run_command, write_model

from microworld.world.rendering import render
from microworld.world.scenes import scenes


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with `my_vlkd`, `photo.png`, and `my_programs` as the documented command writes them."""
    folder = tmp_path_factory.mktemp("export")
    write_model(folder / "my_vlkd")
    rng = random.Random(0)
    images = [render(scene, rng) for scene in islice(scenes("test"), 3)]
    images[0].save(folder / "photo.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda text: (folder / "printed.txt").write_text(text))
        run_command("Export", patch)
    return folder, images


@pytest.fixture(scope="module")
def programs(workplace):
    names = ("image_encoder", "prompt_encoder", "decoder_step")
    return [torch.export.load(workplace[0] / "my_programs" / f"{name}.pt2").module() for name in names]


@torch.no_grad()
def test_programs_equal_the_model(workplace, programs):
    """At another batch size and with other numbers of tokens, and padding, than were exported."""
    model, processor = micro_model()
    image_encoder, prompt_encoder, decoder_step = programs
    texts = ["a photo of", "<mask>", processor.build_vqa_prompt("what is on the left?")]
    batch = processor(images=workplace[1], text=texts)
    expected = model.get_image_features(batch["pixel_values"])
    features, embedding = image_encoder(batch["pixel_values"])
    torch.testing.assert_close(features, expected.last_hidden_state)
    torch.testing.assert_close(embedding, expected.pooler_output)
    memory = prompt_encoder(features, batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(memory, model.encode_multimodal(**batch).last_hidden_state)
    for length in (1, 2, 7):
        words = torch.randint(5, 90, (3, length), generator=torch.Generator().manual_seed(length))
        logits = model(**batch, decoder_input_ids=words).logits[:, -1]
        torch.testing.assert_close(decoder_step(memory, batch["attention_mask"], words), logits)


def test_programs_write_the_words_of_generate(workplace):
    folder, images = workplace
    model, processor = micro_model()
    batch = processor(images=images[:1])
    ids = model.generate(**batch, max_new_tokens=40, do_sample=False)
    assert (folder / "printed.txt").read_text() == processor.post_process_generation(ids, batch["input_ids"])[0] != ""


def test_text_longer_than_bart_reads_is_refused(workplace, programs):
    """Exported at five tokens, the check of the length is part of the program."""
    model, _ = micro_model()
    limit, size = model.config.text_config.max_position_embeddings, model.config.vision_config.image_size
    features, _ = programs[0](torch.zeros(1, 3, size, size))
    ids = torch.full((1, limit + 1), 9)
    with pytest.raises((AssertionError, RuntimeError), match=str(limit)):
        programs[1](features, ids, torch.ones_like(ids))
