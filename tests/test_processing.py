"""Prompts and images, as the processor hands them to the model."""

import io

import pytest
import torch
from PIL import Image

from modeling_vlkd import VLKDProcessor
from modeling_vlkd.processing_vlkd import VQA_PROMPT, read_image, to_rgb


def tokens(processor, **kwargs) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens(processor(**kwargs)["input_ids"][0])


# prompts


def test_prompt_rules(processor, image):
    assert processor.prompt(None) == processor.prompt("") == "<mask>"
    assert processor.prompt("a photo of") == processor.prompt("a photo of ") == "a photo of <mask>"
    assert processor.prompt("two <mask> here") == "two <mask> here"
    assert processor.question(" what is it? ") == "Question: what is it? Answer: <mask>"
    assert VQA_PROMPT == "Question: {question} Answer: <mask>"
    with pytest.raises(ValueError, match="'a <mask> b <mask>' holds 2 <mask>; keep one"):
        processor.prompt("a <mask> b <mask>")
    with pytest.raises(ValueError, match="holds 2 <mask>"):
        processor(images=image, text="a <mask> b <mask>")


def test_text_alone_is_tokenized_as_bart_does(processor):
    texts = ["a photo of", "two <mask> and <mask>", ""]
    expected = processor.tokenizer(texts, padding=True, return_tensors="pt")
    batch = processor(text=texts)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert processor(text="a photo of", return_tensors=None)["input_ids"] == processor.tokenizer(texts[0])["input_ids"]


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
    with pytest.raises(ValueError, match=r"has \d+ tokens, but BART reads at most 64 .* `truncation=True`"):
        processor(text=" ".join(["two"] * 100))
    assert processor(text=" ".join(["two"] * 100), truncation=True)["input_ids"].shape == (1, 64)
    with pytest.raises(ValueError, match=r"text\[1\] lost its <mask> to truncation"):
        processor(images=images[:2], text=["a", " ".join(["two"] * 100)], truncation=True)


def test_new_text_is_what_follows_the_prompt(processor, images):
    tokenizer = processor.tokenizer
    prompts = processor(images=images[:2], text=["Question: what? Answer: <mask>", "<mask>"])["input_ids"]
    texts = ["Question: what? Answer: red. Question: how many?", "a photo of two dogs"]
    written = [[2, *ids] for ids in tokenizer(texts, padding=True)["input_ids"]]
    assert processor.post_process_generation(written, prompts) == ["red. Question: how many?", texts[1]]
    assert processor.post_process_generation(written, prompts, first_sentence=True) == ["red", texts[1]]
    assert processor.post_process_generation(written) == texts
    twice = [row for row in written for _ in range(2)]  # num_return_sequences=2
    assert processor.post_process_generation(twice, prompts) == ["red. Question: how many?"] * 2 + [texts[1]] * 2
    padded = torch.nn.functional.pad(prompts, (3, 0), value=tokenizer.pad_token_id)
    assert processor.post_process_generation(torch.tensor(written), padded)[0] == "red. Question: how many?"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("red. blue", "red"), ("3.5 meters", "3.5 meters"), ("yes!", "yes"), ("two\nmore", "two"), ("red", "red")],
)
def test_an_answer_is_one_sentence(processor, text, sentence):
    written = [[2, *processor.tokenizer(text)["input_ids"]]]
    assert processor.post_process_generation(written, first_sentence=True) == [sentence]


# images

RED, BLUE = (200, 30, 30), (30, 30, 200)


def two_coloured() -> Image.Image:
    """Red on the left, blue on the right, 8 wide and 4 high."""
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLUE, (4, 0, 8, 4))
    return image


def with_exif(image: Image.Image, orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "png", exif=exif)
    return Image.open(file)


def test_exif_rotation_is_applied_to_images_and_paths(processor, tmp_path):
    turned = with_exif(two_coloured(), 6)  # to be turned by 90 degrees to the right
    upright = two_coloured().rotate(-90, expand=True)
    assert to_rgb(turned).tobytes() == upright.tobytes()
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    for source in (turned, str(tmp_path / "turned.png"), tmp_path / "turned.png"):
        assert read_image(source).tobytes() == upright.tobytes()
        pixels = processor(images=source)["pixel_values"]
        assert torch.equal(pixels, processor(images=upright)["pixel_values"])


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 255))
    assert [to_rgb(image).getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 255)]
    grey = Image.new("LA", (1, 1), (10, 0))
    assert to_rgb(grey).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    assert [read_image(tmp_path / "palette.png").getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 255, 0)]


def test_sixteen_bits_are_scaled(tmp_path):
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 32768, 65535)):
        image.putpixel((x, 0), value)
    image.save(tmp_path / "deep.png")
    for source in (image, str(tmp_path / "deep.png")):
        assert [read_image(source).getpixel((x, 0))[0] for x in range(3)] == [0, 127, 255]
    assert [to_rgb(image.convert("I")).getpixel((x, 0))[0] for x in range(3)] == [0, 127, 255]
    assert to_rgb(Image.new("I", (1, 1), 200)).getpixel((0, 0)) == (200, 200, 200)
    assert to_rgb(Image.new("F", (1, 1), 1.0)).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("F", (1, 1), 200.0)).getpixel((0, 0)) == (200, 200, 200)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_every_mode_becomes_rgb(mode, processor):
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    assert to_rgb(image).getpixel((0, 0)) == pytest.approx((255, 255, 255), abs=1)
    assert processor(images=image)["pixel_values"].shape == (1, 3, 32, 32)


def test_arrays_and_tensors_are_the_image(processor, image):
    expected = processor(images=image)["pixel_values"]
    tensor = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(40, 48, 3)
    floating = tensor.permute(2, 0, 1) / 255  # 0 to 1, channels first
    for source in (tensor, tensor.numpy(), floating, floating.numpy(), floating[None], tensor.float()):
        assert torch.equal(processor(images=source)["pixel_values"], expected)


def test_unreadable_images_are_named(processor, image, tmp_path):
    broken = tmp_path / "broken.png"
    file = io.BytesIO()
    image.save(file, "png")
    broken.write_bytes(file.getvalue()[:200])
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    for source, name in ((broken, "broken.png"), (str(text), "notes.txt"), (tmp_path / "none.png", "none.png")):
        with pytest.raises(ValueError, match=rf"images\[1\] .*{name}.* cannot be read as an image"):
            processor(images=[image, source])
    with pytest.raises(ValueError, match=r"images\[0\] .*broken.png"):
        processor(images=Image.open(broken))
    with pytest.raises(ValueError, match=r"images\[0\] \(dict\)"):
        processor(images={"image": image})


# checkpoints


def test_processor_of_two_checkpoints(processor, bart_dir):
    assert processor.tokenizer.model_max_length == 64
    assert processor.batch_decode([[0, 2]], skip_special_tokens=True) == [""]


def test_wrong_checkpoints_are_value_errors(clip_dir, bart_dir, tmp_path):
    with pytest.raises(ValueError, match="`clip`=.* gives no image processor"):
        VLKDProcessor.from_vision_text_pretrained(bart_dir, bart_dir)
    with pytest.raises(ValueError, match="has no mask token.* BART"):
        VLKDProcessor.from_vision_text_pretrained(clip_dir, clip_dir)
    with pytest.raises(ValueError, match="`bart`=.* gives no tokenizer"):
        VLKDProcessor.from_vision_text_pretrained(clip_dir, str(tmp_path))
