"""Check, select and upload the files of a repository."""

import json
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id

import modeling_vlkd
from modeling_vlkd import VLKDConfig
from trainer.evaluation.metrics_file import load_metrics
from trainer.hub.model_card import handwritten_card, make_card
from trainer.hub.train_config import FILE as TRAIN_CONFIG
from trainer.hub.train_config import published, published_train_config
from trainer.inference.backends import EXPORT_FILES, MANIFEST
from trainer.models import weights_digest

CONFIGS = ("config.json", "generation_config.json", "processor_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", MANIFEST)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# Only these files are uploaded: no pickles, checkpoints, logs, predictions or notes.
CODE = tuple(file.name for file in Path(modeling_vlkd.__file__).parent.glob("*.py"))
FILES = (*CONFIGS, *TOKENIZER, *WEIGHTS, "model-*-of-*.safetensors", *ADAPTER, *EXPORT_FILES, *CODE, TRAIN_CONFIG)
METRICS = "metrics.json"
HUB = HfApi()  # only one, so that background uploads stay in order


def push_folder(
    folder: str | Path,
    repo_id: str,
    metrics: str | Path | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
) -> CommitInfo:
    """Upload a model folder as a complete repository: code, weights, processor, card. The folder is not changed.

    Args:
        folder: written by `vlkd train`, or by `save_pretrained` of model and processor.
        repo_id: "user/name".
        metrics: a metrics.json for the card; None for a card without results.
        private: whether a new repository is private.
        revision: branch; created if it does not exist.

    Raises:
        ValueError: a file is missing, `repo_id` or `metrics` is invalid, `metrics` was measured with other weights, or
            the Hub rejects the upload.
    """
    validate_repo_id(repo_id)
    check_complete(folder)
    files: dict[str, Path | bytes] = dict(repository_files(folder))
    found = None if metrics is None else published(load_metrics(metrics))
    if found and found.get("weights") not in (None, weights_digest(folder)):
        raise ValueError(
            f"metrics: '{metrics}' was measured with other weights than those in '{folder}'; run the evaluation again."
        )
    card = handwritten_card(folder) or str(make_card(folder, VLKDConfig.from_pretrained(folder), repo_id, found))
    files["README.md"] = card.encode()
    if found is not None:
        files[METRICS] = (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode()
    return create_and_upload(files, repo_id, message="Upload VLKD", private=private, revision=revision)


def create_and_upload(
    files: dict[str, Path | bytes],
    repo_id: str,
    *,
    private: bool = False,
    repo_type: str = "model",
    space_sdk: str | None = None,
    **options: Any,
) -> CommitInfo:
    """Create a repository if it does not exist, and upload files to it.

    Args:
        files: by their paths in the repository.
        repo_id: "user/name".
        private: whether a new repository is private.
        repo_type: "model", "dataset" or "space".
        space_sdk: of a Space.
        options: of `upload`.

    Raises:
        ValueError: the repository should be private and is public, or the Hub rejects the upload.
    """
    kind = {"repo_type": repo_type, "space_sdk": space_sdk}
    try:
        repo_id = HUB.create_repo(repo_id, private=private or None, exist_ok=True, **kind).repo_id
        if private and not HUB.repo_info(repo_id, repo_type=repo_type).private:
            raise ValueError(f"{repo_id} exists and is public; make it private on the Hub, or choose another name.")
        return upload(files, repo_id, repo_type=repo_type, **options)
    except (HTTPError, ConnectionError) as error:  # rejected, unreachable, or offline
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{repo_id} was not pushed: {reason}. Check the connection, and that `hf auth login` or HF_TOKEN gives a "
            "token with write access."
        ) from error


def repository_files(folder: str | Path) -> dict[str, Path]:
    """The files of a folder that are uploaded, by name, without the card."""
    files = sorted(file for file in Path(folder).iterdir() if file.is_file())
    return {file.name: file for file in files if any(fnmatch(file.name, name) for name in FILES)}


def check_complete(folder: str | Path) -> None:
    """Raise a ValueError that names what is missing if a folder would not load from the Hub as a VLKD checkpoint."""
    remedy = "write it with `model.save_pretrained` and `processor.save_pretrained` of the installed package."
    try:
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"DIR: '{folder}' has no readable config.json: {error}; {remedy}") from error
    if config.get("model_type") != "vlkd":
        raise ValueError(f"DIR: '{folder}' is a model of type {config.get('model_type')!r}, not 'vlkd'.")
    pipelines = config.get("custom_pipelines") or {}
    classes = [*(config.get("auto_map") or {}).values(), *(pipeline["impl"] for pipeline in pipelines.values())]
    missing = [f"{key} in config.json" for key in ("auto_map", "custom_pipelines") if not config.get(key)]
    missing += [f"code of its own: config.json names {name}" for name in classes if "--" in name][:1]
    code = {f"{name.partition('.')[0]}.py" for name in classes if "--" not in name}
    missing += [name for name in (*CONFIGS, *TOKENIZER, *sorted(code)) if not Path(folder, name).is_file()]
    missing += [] if any(Path(folder, name).is_file() for name in WEIGHTS) else [WEIGHTS[0]]
    if missing:
        raise ValueError(f"DIR: '{folder}' has no {', '.join(missing)}; {remedy}")


def upload(
    files: dict[str, Path | bytes],
    repo_id: str,
    *,
    message: str,
    token: str | None = None,
    revision: str | None = None,
    run_as_future: bool = False,
    repo_type: str = "model",
) -> CommitInfo | Future:
    """Upload files, by their paths in the repository, as one commit."""
    if revision is not None:
        HUB.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    configs = {path: published_train_config(file) for path, file in files.items() if Path(path).name == TRAIN_CONFIG}
    return HUB.create_commit(
        repo_id,
        [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in (files | configs).items()],
        commit_message=message,
        token=token,
        revision=revision,
        run_as_future=run_as_future,
        repo_type=repo_type,
    )
