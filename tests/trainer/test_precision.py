"""The choice of the number format: on this CPU, and with its bfloat16 instructions masked."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from trainer import VLKDTrainingArguments, precision
from trainer.precision import MARGIN, cpu_bf16_speedup, fastest_dtype, find_device, is_bf16_fast, training_bf16

CPU = torch.device("cpu")
SLOW = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # as on a CPU without bfloat16 instructions
CHOOSE = """
import json, sys
from trainer import VLKDTrainingArguments
from trainer.precision import cpu_bf16_speedup
chosen = VLKDTrainingArguments(sys.argv[1], use_cpu=True)
VLKDTrainingArguments(sys.argv[1], use_cpu=True)
asked = VLKDTrainingArguments(sys.argv[1], use_cpu=True, bf16=True)
print(json.dumps([chosen.bf16, asked.bf16, cpu_bf16_speedup()]))
"""


@pytest.fixture
def fast(monkeypatch):
    """Says what the CPU is fast at, in place of the measurement."""
    precision.logger.warning_once.__func__.cache_clear()

    def is_fast(speedup: float) -> None:
        monkeypatch.setattr(precision, "cpu_bf16_speedup", lambda: speedup)

    return is_fast


def warned(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_it_is_measured_once_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    assert cpu_bf16_speedup() is cpu_bf16_speedup() and torch.get_num_threads() == threads


def test_float16_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="fp16=True needs a GPU"):
        VLKDTrainingArguments(str(tmp_path), use_cpu=True, fp16=True)


def test_a_cpu_without_bfloat16_instructions(tmp_path):
    """Measured in a separate process. An explicit bf16 is kept, with a warning; each message is logged once."""
    environment = {**os.environ, **SLOW, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHOOSE, str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    chosen, asked, speedup = json.loads(ran.stdout)
    if speedup >= MARGIN:
        pytest.skip("this machine's bfloat16 cannot be masked")
    assert (chosen, asked) == (False, True) and speedup < 0.8
    lines = [line for line in ran.stderr.splitlines() if line.startswith("Training precision")]
    assert lines[0] == "Training precision: float32 on cpu." and len(lines) == 2
    assert "slow at bfloat16; leave bf16 unset" in lines[1]


@pytest.mark.parametrize(("speedup", "dtype"), [(1.9, torch.bfloat16), (1.1, torch.float32), (0.03, torch.float32)])
def test_what_is_fast_enough(fast, tmp_path, speedup, dtype):
    fast(speedup)
    assert fastest_dtype("cpu") == dtype and is_bf16_fast("cpu") == (dtype == torch.bfloat16)
    assert VLKDTrainingArguments(str(tmp_path), use_cpu=True).bf16 == (dtype == torch.bfloat16)


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_is_asked_without_emulation(monkeypatch, supported):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert is_bf16_fast("cuda:0") is supported and not is_bf16_fast("mps")


@pytest.mark.parametrize(
    ("bf16", "fp16", "launched", "chosen"),
    [
        (None, False, None, True),
        (None, False, "no", True),
        (None, True, None, False),
        (None, False, "fp16", False),
        (None, False, "bf16", True),
        (None, True, "bf16", False),
        (False, False, "bf16", False),
        (True, False, "fp16", True),
    ],
)
def test_what_wins(fast, monkeypatch, bf16, fp16, launched, chosen):
    """An option, then fp16, then what `accelerate launch` says, then the device."""
    fast(1.9)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert training_bf16(bf16, fp16, CPU) is chosen


def test_one_line_is_logged(fast, tmp_path, caplog, monkeypatch):
    fast(1.9)
    VLKDTrainingArguments(str(tmp_path), use_cpu=True)
    VLKDTrainingArguments(str(tmp_path), use_cpu=True)
    assert warned(caplog) == ["Training precision: bf16 mixed precision on cpu."]
    fast(0.03)
    VLKDTrainingArguments(str(tmp_path), use_cpu=True, bf16=False)
    monkeypatch.setattr(VLKDTrainingArguments, "process_index", 1)  # a process beside the main one is silent
    VLKDTrainingArguments(str(tmp_path), use_cpu=True, bf16=True)
    assert warned(caplog)[1:] == ["Training precision: float32 on cpu."]


def test_without_a_gpu_bf16_needs_no_use_cpu(fast, tmp_path):
    """`TrainingArguments` refuses bf16 where there is no GPU, unless use_cpu is set."""
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    fast(1.9)
    args = VLKDTrainingArguments(str(tmp_path))
    assert args.bf16 and args.use_cpu and args.device == CPU


def test_devices(monkeypatch):
    assert find_device("cpu") == CPU
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match=f"--device {missing}: PyTorch finds no such device"):
        find_device(missing)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert find_device().type == find_device("mps").type == "mps" and find_device("cpu") == CPU
