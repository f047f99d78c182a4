"""Which number format a device computes fastest in."""

import functools
import os
import time

import torch
from transformers.utils import logging

MARGIN = 1.2  # bfloat16 is called fast where a matrix product is at least this much faster than in float32
SIZE, RUNS = 256, 10  # smaller products do not separate the formats

logger = logging.get_logger(__name__)


@functools.cache
def cpu_bf16_speedup() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in bfloat16, measured once a process.

    The instructions that a CPU reports do not tell: oneDNN can be configured not to use them (`ONEDNN_MAX_CPU_ISA`),
    and it emulates bfloat16 on some CPUs that it supports. This takes the fastest of `RUNS` alternating runs on one
    thread, so that other processes do not disturb it. Measured: 1.9 with AVX-512 BF16, in 10 ms; 0.38 with AVX-512
    alone; 0.03 with AVX2, in 0.1 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrices = [torch.ones(SIZE, SIZE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
        seconds = [[_seconds(matrix) for matrix in matrices] for _ in range(1 + RUNS)][1:]  # the first one warms up
    finally:
        torch.set_num_threads(threads)
    float32, bfloat16 = (min(column) for column in zip(*seconds, strict=True))
    return float32 / bfloat16


def _seconds(matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - start


def is_bf16_fast(device: torch.device | str) -> bool:
    """Whether bfloat16 is faster than float32: by its kind for a CUDA or ROCm GPU, measured for a CPU.

    False for any other device, since we have measured none.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and cpu_bf16_speedup() >= MARGIN


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where `is_bf16_fast`, else float32."""
    return torch.bfloat16 if is_bf16_fast(device) else torch.float32


def find_device(name: str = "auto") -> torch.device:
    """`auto` is the accelerator, if there is one, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    available = torch.accelerator.is_available()
    found = torch.accelerator.current_accelerator() if available else torch.device("cpu")
    if name not in ("auto", "cpu", found.type):
        raise ValueError(f"--device {name}: PyTorch finds no such device here; the fastest it finds is {found.type}.")
    return found if name == "auto" else torch.device(name)


def training_bf16(bf16: bool | None, fp16: bool, device: torch.device) -> bool:
    """Whether to train in bfloat16 mixed precision: `bf16` if set, else what is fastest on the training device.

    `fp16`, and a mixed precision that `accelerate launch` was configured with, win over the automatic choice.
    """
    if bf16 is not None:
        return bf16
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if fp16 or launched != "no":
        return launched == "bf16" and not fp16
    return is_bf16_fast(device)


def log_training_precision(mixed: str, device: torch.device) -> None:
    """Log the precision, once a process; warn where it is slow.

    Args:
        mixed: `TrainingArguments.mixed_precision`: no, bf16, fp16 or fp8.
        device: the training device.
    """
    name = {"no": "float32", "bf16": "bfloat16 mixed precision", "fp16": "float16 mixed precision"}.get(mixed, mixed)
    text = f"Training precision: {name} on {device.type}."
    if mixed == "bf16" and not is_bf16_fast(device):
        text += " " + _how_slow(device)
    logger.warning_once(text)


def _how_slow(device: torch.device) -> str:
    if device.type == "cpu":
        return (
            f"This CPU is slow at it: expect steps up to {1 / cpu_bf16_speedup():.0f} times as long as in float32 (as "
            "measured for a matrix product). Leave bf16 unset to train in float32."
        )
    return "This device has no fast bfloat16 that we know of; leave bf16 unset to train in float32."
