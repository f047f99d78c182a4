"""The fuzz of corrupted images and configs: a sample here, 2,000 cases by `make test-slow`.

Our error is a ValueError (for a file that is missing or no JSON: an OSError, as in transformers) of at most 1,500
characters that names the image, the folder, the file or the key; of the commands, in one line.
"""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz import SECONDS, Failure, Hang, refusal, run, within
from PIL import Image

SUPPORT = Path(__file__).parents[1] / "support"
PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of the largest image that Pillow opens, whatever the file behind it
# What all cases together may add to the process: 16 bytes for each such pixel; a gigabyte.
MEMORY = {"image": 16 * PIXELS, "config": 10**9}
OUTCOMES = {
    "image": {"right", "empty file", "not an image", "broken image", "too many pixels", "too long", "one pixel"},
    "config": {
        f"{file} {outcome}"
        for file in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "train.yaml")
        for outcome in ("right", "refused")
    },
}


def test_the_fuzz_notices(tmp_path):
    with pytest.raises(Failure, match="KeyError"):
        refusal(lambda: {}["key"], "key")
    for message in ("something is wrong", "key " * 1000):
        with pytest.raises(Failure, match="names nothing or is too long"):
            refusal(lambda message=message: int(message), "name")
    assert refusal(lambda: int("key"), "key")[1]

    def cases(number: int, folder: Path) -> str:
        if number == 1:
            with within(0.05):
                time.sleep(5)
        if number == 2:
            input("go on?")
        if number == 3:
            raise Failure("no")
        return "right"

    report = run(cases, range(5))
    assert report["outcomes"] == {"right": 2} and [number for number, _ in report["failures"]] == [1, 2, 3]
    assert "0.05 seconds" in report["failures"][0][1] and "terminal" in report["failures"][1][1]
    with pytest.raises(Hang), within(0.05):
        refusal(lambda: [number for number in iter(int, 1)])


@pytest.mark.parametrize("kind", OUTCOMES)
def test_sample(kind):
    report = run(importlib.import_module(f"fuzz_{kind}_cases").Cases(), range(5_000, 5_030))
    assert report["failures"] == [] and sum(report["outcomes"].values()) == 30


@pytest.mark.slow
def test_two_thousand_cases(tmp_path):
    """In two processes of their own, whose memory is the cases' alone."""
    started = {}
    for kind in OUTCOMES:
        command = [sys.executable, str(SUPPORT / "fuzz.py"), kind, "0", "1000"]
        log = (tmp_path / kind).open("w")
        started[kind] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    for kind, process in started.items():
        printed, _ = process.communicate()
        assert process.returncode == 0, (tmp_path / kind).read_text()[-3000:]
        report = json.loads(printed.splitlines()[-1])  # tokenizers say things before
        print(f"\n{kind}: {report}")
        assert report["failures"] == [] and sum(report["outcomes"].values()) == 1000
        assert OUTCOMES[kind] <= report["outcomes"].keys()
        assert report["slowest"][0] < SECONDS and report["grown"] < MEMORY[kind]
