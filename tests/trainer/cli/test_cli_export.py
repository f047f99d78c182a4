"""`vlkd export`: the folder is complete, runs by its name, on the Hub too, and without this package."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_caption
import pytest
import yaml
from loopback_hub import running_hub
from transformers import CLIPImageProcessorPil

from modeling_vlkd.image_loading_vlkd import read_image
from trainer.cli import main

ROOT = Path(__file__).parents[3]
PROGRAMS = ["decoder", "image_encoder", "image_projection", "memory_projection", "text_encoder"]


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def export(vlkd_dir, tmp_path_factory, request) -> Path:
    folder = tmp_path_factory.mktemp("exports") / request.param
    assert main(["export", "--model", vlkd_dir, "--output", str(folder), "--format", request.param]) == 0
    return folder


@pytest.fixture
def photo(images, tmp_path) -> str:
    images[0].resize((90, 70)).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def text_of(capsys, *argv: str) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_it_runs_by_its_name(export, vlkd_dir, photo, capsys):
    for command in (["caption", photo], ["caption", photo, "--num_beams", "3"], ["ask", photo, "what is it?"]):
        due = text_of(capsys, *command, "--model", vlkd_dir, "--dtype", "float32", "--device", "cpu")
        assert text_of(capsys, *command, "--model", str(export)) == due
    assert main(["caption", photo, "--model", str(export), "--backend", "onnx"]) == 2
    assert "is an export already; leave --backend out" in capsys.readouterr().err


@pytest.mark.slow
def test_an_index_is_searched_by_the_export_that_made_it(export, photo, tmp_path, capsys):
    index = str(tmp_path / "index")
    assert main(["embed", photo, "--model", str(export), "--output", index]) == 0
    capsys.readouterr()
    assert main(["search", "a dog", "--index", index]) == 0 and photo in capsys.readouterr().out
    assert main(["search", "a dog", "--index", index, "--dtype", "bfloat16"]) == 2
    assert f"'{export}' is an export; it runs on the CPU" in capsys.readouterr().err


@pytest.mark.slow
def test_files(export):
    suffixes = (".onnx", ".onnx.data") if export.name == "onnx" else (".xml", ".bin")
    prefix = "" if export.name == "onnx" else "openvino_"
    programs = {f"{prefix}{program}{suffix}" for program in PROGRAMS for suffix in suffixes}
    files = {file.name for file in export.iterdir()}
    assert programs | {"export.json", "tokenizer.json", "processor_config.json", "generation_config.json"} <= files
    assert not list(export.parent.glob("tmp*")) and export.stat().st_mode & 0o777 == 0o755


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [None, "Question: what is it? Answer: <mask>"])
def test_without_this_package(export, vlkd_dir, photo, capsys, prompt):
    """The example, which uses neither PyTorch nor transformers, writes what the model writes."""
    if export.name != "onnx":
        pytest.skip("the example runs ONNX")
    command = ["ask", photo, "what is it?"] if prompt else ["caption", photo]
    due = text_of(capsys, *command, "--model", vlkd_dir, "--dtype", "float32", "--device", "cpu")
    found = onnx_caption.main(str(export), photo, *([prompt] if prompt else []))
    assert f"{photo}\t{' '.join(found.split())}\n" == due


@pytest.mark.slow
def test_it_is_pushed_and_loaded_from_the_hub(export, photo, tmp_path, capsys):
    due = text_of(capsys, "caption", photo, "--model", str(export))
    with running_hub() as hub:
        environment = os.environ | hub.environment(str(tmp_path / "home"))

        def vlkd(*argv: str) -> str:
            command = [sys.executable, "-m", "trainer.cli", *argv]
            return subprocess.run(
                command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
            ).stdout

        vlkd("push", str(export), "user/fast")
        files = hub.files("user/fast")
        assert {file.name for file in export.iterdir()} | {"README.md"} == set(files)
        assert vlkd("caption", photo, "--model", "user/fast") == due
    card = files["README.md"].decode()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == export.name and export.name in header["tags"]
    assert 'VLKDExportedModel.from_pretrained("user/fast")' in card and "trust_remote_code" not in card
    assert "## Intended use" in card and "## How to use" in card


def test_an_export_overwrites_nothing(vlkd_dir, tmp_path, capsys):
    (tmp_path / "mine").write_text("text")
    for folder in (tmp_path / "mine", tmp_path):
        assert main(["export", "--model", vlkd_dir, "--output", str(folder)]) == 2
        assert f"--output {folder} exists. Give a new folder." in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "text"


@pytest.mark.parametrize("size", [(90, 70), (70, 90), (32, 32), (500, 33)])
def test_preprocessing_of_the_example(images, size):
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPImageProcessorPil(**settings)
    settings |= {"image_mean": processor.image_mean, "image_std": processor.image_std}
    image = images[0].resize(size)
    transparent = image.copy()
    transparent.putalpha(100)
    for one in (image, transparent):
        due = processor(read_image(one), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(onnx_caption.preprocess(one, settings), due, atol=1e-5)
