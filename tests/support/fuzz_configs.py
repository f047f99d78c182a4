"""What can become of a model's JSON files and of a train.yaml: keys dropped, other types and sizes, no JSON."""

import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

VALUES = (
    None,
    True,
    "",
    "many",
    "🐶",
    -1,
    0,
    1,
    7,
    0.5,
    -3.5,
    1e308,
    float("inf"),
    float("nan"),
    [],
    [1, 2],
    [[]],
    {},
    {"a": {"b": []}},
    "x" * 300,
)


NUMBERS = (-1, 0, 1, 3)  # a large size would build a large model, as in transformers


def places(node: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """The path of every value below the top, and the value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key), value
        yield from places(value, (*path, key))


def change(content: Any, rng: random.Random) -> str:
    """Changes a value in place; returns what was done, with the key."""
    found = list(places(content))[:400]
    sizes = [place for place in found if type(place[1]) is int]
    size = bool(sizes) and rng.random() < 0.3
    path, _ = rng.choice(sizes if size else found)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    name = ".".join(map(str, path))
    if size:
        parent[path[-1]] = rng.choice(NUMBERS)
        return f"{name} = {parent[path[-1]]}"
    harm = rng.randrange(4)
    if harm == 0:
        del parent[path[-1]]
        return f"{name} dropped"
    if harm == 1 and isinstance(parent, dict):
        parent[f"{path[-1]}_"] = parent.pop(path[-1])
        return f"{name} renamed"
    parent[path[-1]] = nested() if rng.random() < 0.05 else rng.choice(VALUES)
    return f"{name} = {str(parent[path[-1]])[:40]!r}"


def nested() -> list:
    deep: list = []
    for _ in range(200):
        deep = [deep]
    return deep


def spoil(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damage to the file as such."""
    harm = rng.choice(("truncated", "bits", "empty", "list", "not UTF-8", "bracket", "zeros", "BOM", "NaN", "nested"))
    if harm == "truncated":
        return data[: rng.randrange(len(data))], harm
    if harm == "bits":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 10))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(changed), harm
    others = {
        "empty": b"",
        "list": b"[1, 2]",
        "not UTF-8": data[:20] + b"\xff\xfe\xe9" + data[20:],
        "bracket": data.replace(b"}", b"", 1),
        "zeros": bytes(len(data)),
        "BOM": b"\xef\xbb\xbf" + data,
        "NaN": b"NaN",
        "nested": b"[" * 5_000,
    }
    return others[harm], harm


def spoilt_json(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One to three values changed, or the file itself damaged; and the story."""
    if rng.random() < 0.2:
        return spoil(data, rng)
    content = json.loads(data)
    story = [change(content, rng) for _ in range(rng.choice((1, 1, 3)))]
    return json.dumps(content).encode(), "; ".join(story)


def spoilt_yaml(options: dict[str, Any], rng: random.Random) -> tuple[bytes, str]:
    """As `spoilt_json`, of a train.yaml."""
    data = yaml.safe_dump(options).encode()
    if rng.random() < 0.2:
        return spoil(data, rng)
    content = yaml.safe_load(data)
    story = [change(content, rng) for _ in range(rng.choice((1, 1, 3)))]
    return yaml.safe_dump(content, allow_unicode=True).encode(), "; ".join(story)
