"""Recognize local paths."""

import re
from pathlib import Path

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_missing_path(name: str) -> bool:
    """Whether `name` is a local path (not a name on the Hub) that does not exist."""
    is_path = name.startswith((".", "~")) or not HUB_NAME.fullmatch(name)
    return is_path and not Path(name).exists()
