"""`--backend`: exports that are made once, and again when the model changes."""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

from trainer.cli import main
from trainer.inference import backends
from trainer.inference.backends import PRECISION, _digest, load_for_inference
from trainer.precision import find_device


@pytest.fixture
def folder(vlkd_dir, tmp_path) -> Path:
    return Path(shutil.copytree(vlkd_dir, tmp_path / "model"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch) -> None:
    monkeypatch.setattr(backends, "cached_assets_path", lambda *names: cache)


def change_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_export_depends_on_everything_that_changes_texts(folder):
    digests = {_digest(str(folder), "--model", precision) for precision in PRECISION.values()}
    change_json(folder / "config.json", image_tokens="patch")
    digests.add(_digest(str(folder), "--model", "fp32"))
    change_json(folder / "processor_config.json", other=1)
    digests.add(_digest(str(folder), "--model", "fp32"))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    digests.add(_digest(str(folder), "--model", "fp32"))
    assert len(digests) == 5 and _digest(str(folder), "--model", "fp32") in digests
    change_json(folder / "config.json")
    (folder / "trainer_state.json").write_text("{}")  # changes no text
    assert _digest(str(folder), "--model", "fp32") in digests


def test_what_is_no_model_leaves_no_export(tmp_path, cache):
    (tmp_path / "empty").mkdir()
    before = list(cache.iterdir())
    for name in (str(tmp_path / "missing"), str(tmp_path / "empty")):
        with pytest.raises(ValueError, match="--model"):
            load_for_inference(name, "--model", find_device("cpu"), None, "onnx")
    assert list(cache.iterdir()) == before


@pytest.fixture(scope="module")
def export(model, processor, tmp_path_factory) -> Path:
    """The files of an export, with one small program."""
    pytest.importorskip("onnxruntime")
    from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter

    folder = tmp_path_factory.mktemp("export")
    program = OnnxExporter().export(torch.nn.Linear(64, 64), {"input": torch.zeros(2, 64)}, OnnxConfig())
    ExportedModel(program.components, "onnx", model.config, model.generation_config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


DAMAGES = [("export.json", content) for content in (b"{}", b"[]", b"no JSON")]
DAMAGES += [(name, None) for name in ("config.json", "generation_config.json", "processor_config.json")]
DAMAGES += [(name, None) for name in ("tokenizer.json", "model.onnx", "model.onnx.data")]
DAMAGES += [("model.onnx", b"\x08\x0a\x3a"), ("model.onnx.data", b"short")]


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_a_damaged_export(export, tmp_path, name, content):
    folder = Path(shutil.copytree(export, tmp_path / "export"))
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    start = re.escape(f"--model: '{folder}' is an export that cannot be read: ")
    with pytest.raises(ValueError, match=rf"^{start}\w.*[^.]\. Export it again with `vlkd export`\.$"):
        load_for_inference(str(folder), "--model", find_device("cpu"), torch.float32)


def test_a_missing_runtime_is_an_import_error(export, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="onnxruntime"):
        load_for_inference(str(export), "--model", find_device("cpu"), torch.float32)


@pytest.mark.parametrize("option", [["--dtype", "bfloat16"], ["--device", "cuda"]])
def test_an_export_has_its_own_device_and_dtype(images, tmp_path, capsys, option):
    (tmp_path / "export.json").write_text("{}")
    images[0].save(tmp_path / "a.png")
    assert main(["caption", str(tmp_path / "a.png"), "--model", str(tmp_path), *option]) == 2
    message = f"'{tmp_path}' is an export; it runs on the CPU, with its own dtype; omit --device and --dtype."
    assert message in capsys.readouterr().err


def test_what_killed_exports_left_is_removed_after_a_day(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "cached_assets_path", lambda *names: tmp_path)
    monkeypatch.setattr(backends, "write_export", lambda model, processor, folder, precision: None)
    for name in ("tmpold", "tmpnew", "0123old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "decoder.onnx").touch()
    for name in ("tmpold", "0123old"):
        os.utime(tmp_path / name, (time.time() - 25 * 3600,) * 2)
    backends._exported(str(folder), "--model", "fp32")
    assert {file.name for file in tmp_path.iterdir()} == {"tmpnew", "0123old", "model"}


@pytest.mark.slow  # an export takes half a minute
def test_captions_of_the_command(folder, cache, images, tmp_path, capsys):
    images[0].save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", str(folder), "--max_new_tokens", "5", "--device", "cpu"]
    lines = []
    for options in (["--dtype", "float32"], ["--backend", "onnx"], ["--backend", "onnx"]):
        assert main([*command, *options]) == 0
        lines.append(capsys.readouterr())
    assert lines[0].out == lines[1].out == lines[2].out != ""
    assert "exporting" in lines[1].err and "exporting" not in lines[2].err
    (export,) = cache.iterdir()
    assert {"export.json", "decoder.onnx", "config.json", "tokenizer.json"} <= {file.name for file in export.iterdir()}


def test_options_that_do_not_go_together(folder, images, tmp_path, capsys):
    images[0].save(tmp_path / "a.png")
    command = ["caption", str(tmp_path / "a.png"), "--model", str(folder), "--backend", "onnx"]
    assert main([*command, "--dtype", "bfloat16"]) == 2
    assert "--backend onnx runs on the CPU, with its own dtype; omit --device and --dtype" in capsys.readouterr().err
