from collections.abc import Callable

import pytest
import torch
import yaml


@pytest.fixture
def write_config(clip_dir, bart_dir, tmp_path) -> Callable[..., str]:
    """Writes the YAML file of a short run with some options changed, and returns its path."""

    def write(**changes) -> str:
        options = {
            "clip": clip_dir,
            "bart": bart_dir,
            "output_dir": str(tmp_path / "out"),
            "cache_dir": str(tmp_path / "cache"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "attn_implementation": "eager",
        }
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump({**options, **changes}))
        return str(path)

    yield write
    torch.set_flush_denormal(False)
