"""The device of a run, and its fastest number format."""

import functools
import os
import timeit

import torch
from transformers.utils import logging

DTYPES = ("auto", "float32", "bfloat16", "float16")
MARGIN = 1.2  # bfloat16 counts as fast if a matrix product is at least this many times as fast as in float32
SIZE, RUNS = 256, 10  # with smaller matrices the formats are equally fast

logger = logging.get_logger(__name__)


@functools.cache
def cpu_bf16_speedup() -> float:
    """How many times as fast as float32 a matrix product in bfloat16 is on this CPU, measured once per process.

    CPU flags are not enough: oneDNN can be configured not to use the instructions (`ONEDNN_MAX_CPU_ISA`), and emulates
    bfloat16 on some CPUs. The runs alternate on one thread and the fastest counts, so that other processes disturb the
    result little. Measured: 1.9 with AVX-512 BF16, in 10 ms; 0.38 with AVX-512 alone; 0.03 with AVX2, in 0.1 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrices = [torch.ones(SIZE, SIZE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
        seconds = [[timeit.timeit("m @ m", globals={"m": m}, number=1) for m in matrices] for _ in range(1 + RUNS)]
    finally:
        torch.set_num_threads(threads)
    float32, bfloat16 = (min(column) for column in zip(*seconds[1:], strict=True))  # the first run warms up
    return float32 / bfloat16


def is_bf16_fast(device: torch.device | str) -> bool:
    """Whether bfloat16 is faster than float32: known for CUDA and ROCm GPUs, measured for CPUs, else False."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and cpu_bf16_speedup() >= MARGIN


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 if `is_bf16_fast`, else float32."""
    return torch.bfloat16 if is_bf16_fast(device) else torch.float32


def read_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The dtype of one of the names `DTYPES`; `auto` is the fastest one of the device."""
    return fastest_dtype(device) if name == "auto" else getattr(torch, name)


def find_device(name: str = "auto") -> torch.device:
    """The device of this name; `auto` is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: PyTorch does not find the device.
    """
    available = torch.accelerator.is_available()
    found = torch.accelerator.current_accelerator() if available else torch.device("cpu")
    if name not in ("auto", "cpu", found.type):
        raise ValueError(f"--device {name}: PyTorch finds no such device; use {found.type}.")
    return found if name == "auto" else torch.device(name)


def training_bf16(bf16: bool | None, fp16: bool, device: torch.device) -> bool:
    """Whether to train in bfloat16 mixed precision: `bf16` if set, else whether the device is fast at it.

    `fp16` and the mixed precision of `accelerate launch` take precedence over the automatic choice.
    """
    if bf16 is not None:
        return bf16
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if fp16 or launched != "no":
        return launched == "bf16" and not fp16
    return is_bf16_fast(device)


def log_training_precision(mixed: str, device: torch.device) -> None:
    """Log `TrainingArguments.mixed_precision` (no, bf16, fp16 or fp8) once per process, and warn if it is slow."""
    text = f"Training precision: {'float32' if mixed == 'no' else f'{mixed} mixed precision'} on {device.type}."
    if mixed == "bf16" and not is_bf16_fast(device):
        text += " This device is slow at bfloat16; leave bf16 unset to train in float32."
    logger.warning_once(text)
