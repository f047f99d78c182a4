"""Load a model for inference with one of the backends: PyTorch, or ONNX Runtime in float32 or int8."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub import cached_assets_path, hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError
from transformers import PreTrainedModel

import modeling_vlkd
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.models import load_vlkd

# Of a checkpoint, in its own folder: what an export depends on.
FILES = ["config.json", "generation_config.json", "*processor*.json", "*token*.json", "vocab.json", "merges.txt"]
FILES += ["adapter_config.json", "adapter_model.safetensors", "model*.safetensors*", "pytorch_model*.bin*"]
PRECISION = {"onnx": "fp32", "onnx-int8": "int8"}  # of each backend
ADAPTER = "adapter_config.json"
MANIFEST = "export.json"
EXPORT_FILES = [MANIFEST, "*.onnx", "*.onnx.data", "openvino_*.xml", "openvino_*.bin"]  # of an export


def load_for_inference(
    name: str, option: str, device: torch.device, dtype: torch.dtype, backend: str | None = None
) -> tuple[PreTrainedModel, VLKDProcessor]:
    """The model and processor of a folder or Hub name, which may be a PEFT adapter or an export.

    With ONNX Runtime, the model is exported once and kept in the assets cache of `huggingface_hub`.

    Args:
        name: the folder or Hub name.
        option: the option that gave `name`, for messages.
        device, dtype: device and dtype of the model with PyTorch. An export runs on the CPU, with its own dtype.
        backend: "torch" (the default), "onnx" or "onnx-int8", which need the extra "onnx".

    Raises:
        ValueError: `name` is not a VLKD checkpoint, or cannot be read.
        ImportError: the runtime of the export is not installed.
    """
    is_exported = is_export(name)
    if is_exported and backend is not None:
        raise ValueError(f"{option}: '{name}' is an export already; leave --backend out.")
    if not is_exported and backend in (None, "torch"):
        return load_vlkd(name, option, device, dtype)
    from trainer.inference.export import VLKDExportedModel  # transformers' exporters take a second to import

    folder = name if is_exported else _exported(name, option, PRECISION[backend])
    try:
        model, processor = VLKDExportedModel.from_pretrained(folder), VLKDProcessor.from_pretrained(folder)
    except ImportError:
        raise
    except Exception as error:  # the runtimes' own classes have no common one
        advice = (
            "Export it again with `vlkd export`."
            if is_exported
            else "Delete the folder; the next run exports the model again."
        )
        reason = shorten(f"{type(error).__name__}: {error}", 400).rstrip(".")
        raise ValueError(f"{option}: '{folder}' is an export that cannot be read: {reason}. {advice}") from error
    model.digest = checkpoint_digest(name, option) if is_exported else folder.name
    return model, processor


def is_export(name: str) -> bool:
    """Whether a folder or Hub name is an export."""
    if os.path.isdir(name):
        return Path(name, MANIFEST).is_file()
    try:
        hf_hub_download(name, MANIFEST)
    except (HTTPError, ConnectionError, OSError, ValueError):  # not found, offline, or no name: `load_vlkd` says so
        return False
    return True


def write_export(
    model: VLKDForConditionalGeneration,
    processor: VLKDProcessor,
    folder: Path,
    precision: str = "fp32",
    format: str = "onnx",
) -> None:
    """Export a model with its processor into a new folder, which is complete or not there.

    Raises:
        OSError: the folder exists and is not empty, or cannot be written.
    """
    from trainer.inference.export import export_model

    with TemporaryDirectory(dir=folder.parent) as scratch:
        export_model(model, precision, format).save_pretrained(scratch)
        processor.save_pretrained(scratch)
        os.chmod(scratch, 0o755)  # a temporary folder is private
        try:
            os.rename(scratch, folder)
        finally:
            Path(scratch).mkdir(exist_ok=True)  # for the end of `with`


def _exported(name: str, option: str, precision: str) -> Path:
    """The folder with the export of a model, which is made if it is not in the cache."""
    cache = cached_assets_path("vlkd", "exports")
    folder = cache / _digest(name, option, precision)
    if folder.is_dir():
        return folder
    for leftover in cache.glob("tmp*"):  # of an export that was killed
        if time.time() - leftover.stat().st_mtime > 24 * 3600:
            shutil.rmtree(leftover, ignore_errors=True)
    print(f"vlkd: exporting {name} to ONNX; the export is kept in {folder}", file=sys.stderr)
    model, processor = load_vlkd(name, option)
    try:
        write_export(model, processor, folder, precision)
    except OSError:
        if not folder.is_dir():  # else another process has exported the same model
            raise
    return folder


def _digest(name: str, option: str, precision: str) -> str:
    """A hash of a checkpoint and of the versions that export it.

    Raises:
        ValueError: `name` is not a VLKD checkpoint, or cannot be read.
        PackageNotFoundError: a package of the extra "onnx" is missing.
    """
    versions = [f"{package} {version(package)}" for package in ("torch", "transformers", "onnxruntime", "onnxscript")]
    digest = hashlib.sha256("\n".join([precision, *versions, checkpoint_digest(name, option)]).encode())
    _add_files(digest, [Path(__file__).with_name("export.py"), *Path(modeling_vlkd.__file__).parent.glob("*.py")])
    return digest.hexdigest()[:32]


def checkpoint_digest(name: str, option: str) -> str:
    """A hash of a checkpoint's files, and of its base model's if it is an adapter.

    Args:
        name: the folder or Hub name.
        option: the option that gave `name`, for messages.

    Raises:
        ValueError: `name` is not a VLKD checkpoint, or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for folder in _folders(name):
            _add_files(digest, {file for pattern in FILES + EXPORT_FILES for file in folder.glob(pattern)})
    except (OSError, ValueError, KeyError, TypeError):
        load_vlkd(name, option)  # raises the error that names what is wrong
        raise
    return digest.hexdigest()[:32]


def _add_files(digest: Any, files: Iterable[Path]) -> None:
    for file in sorted(files):
        with file.open("rb") as content:
            digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())


def _folders(name: str) -> list[Path]:
    """The local folder of a checkpoint or export, and of its base model if it is a PEFT adapter."""
    patterns = FILES + EXPORT_FILES if is_export(name) else FILES
    folder = Path(name if os.path.isdir(name) else snapshot_download(name, allow_patterns=patterns))
    if not (folder / ADAPTER).is_file():
        return [folder]
    base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return [folder, *_folders(base)]
