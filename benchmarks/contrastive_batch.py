"""Peak memory and speed of a training step: contrastive batches of 256 and 1,024 rows, and 4,096 rows in chunks.

    python benchmarks/contrastive_batch.py

The model joins the microworld's CLIP and BART, and reads the microworld's captions with random image features. Each
batch is measured in a separate process. Memory is the peak of the process minus its peak before the step.
"""

import json
import random
import resource
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

TEACHERS = Path(__file__).parents[1] / "microworld" / "teachers"


def measure(rows: int, chunk: int | None) -> dict[str, float]:
    """Memory and speed of one step on one core."""
    import torch

    from microworld.world.language import caption
    from microworld.world.scenes import scenes
    from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
    from trainer import VLKDTrainer, VLKDTrainingArguments

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    teachers = (str(TEACHERS / "clip"), str(TEACHERS / "bart"))
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(*teachers)
    model.set_attn_implementation("eager")
    args = VLKDTrainingArguments("unused", use_cpu=True, bf16=False, contrastive_chunk_size=chunk)
    trainer = VLKDTrainer(model, args, processing_class=VLKDProcessor.from_vision_text_pretrained(*teachers))
    trainer.current_gradient_accumulation_steps = 1
    width, image_tokens = model.config.projection_dim, 1 + model.config.num_patches
    rng, drawn = random.Random(0), enumerate(islice(scenes("train"), rows))
    batch = trainer.data_collator(
        [
            {
                "caption": caption(scene, rng),
                "image_features": torch.randn(image_tokens * width).numpy(),
                "teacher_embeds": torch.randn(width).numpy(),
                "epoch": 0,
                "index": index,
            }
            for index, scene in drawn
        ]
    )
    labels = batch["labels"].ne(-100).sum()
    before = peak_bytes()
    start = time.perf_counter()
    trainer.training_step(model, batch, labels)
    seconds = time.perf_counter() - start
    return {"megabytes": (peak_bytes() - before) / 2**20, "rows_per_second": rows / seconds}


def peak_bytes() -> int:
    """The peak resident memory of this process. On Linux, `ru_maxrss` includes the parent's peak, VmHWM does not."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def in_process(rows: int, chunk: int | None) -> dict[str, float]:
    command = [sys.executable, __file__, "--rows", str(rows), *(["--chunk", str(chunk)] if chunk else [])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    from measure import parser, report

    options = parser(__doc__.splitlines()[0])
    options.add_argument("--batches", nargs="+", default=["256", "1024", "4096/256"], help="rows, or rows/chunk")
    options.add_argument("--rows", type=int, help="measure only this batch, in this process, and print JSON")
    options.add_argument("--chunk", type=int)
    args = options.parse_args()
    if args.rows:
        print(json.dumps(measure(args.rows, args.chunk)))
        return
    rows = []
    for batch in args.batches:
        size, _, chunk = batch.partition("/")
        result = in_process(int(size), int(chunk) if chunk else None)
        rows.append(
            {
                "batch": int(size),
                "chunk": int(chunk) if chunk else None,
                "MB per step": result["megabytes"],
                "rows/s": result["rows_per_second"],
            }
        )
    for row in rows:
        row |= {f"{name}, relative to the first": row[name] / rows[0][name] for name in ("MB per step", "rows/s")}
    report("contrastive-batch", rows, args.into)


if __name__ == "__main__":
    main()
