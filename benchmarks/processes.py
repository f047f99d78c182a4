"""One process compared with two: `vlkd train` alone and with torchrun (gloo), same total batch, one thread each.

    python benchmarks/processes.py

Trains the microworld's recipe with cached features, and reports the speed and the losses after the last step. The
losses differ by dropout only, which each process draws itself (tests/trainer/test_processes.py compares without it).
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from measure import parser, recipe, report, train


def measure(processes: int, batch: int, steps: int, folder: Path) -> dict[str, Any]:
    rows = {"size": 2 * steps * batch, "captions_per_image": 1}
    options = recipe("microworld") | {"cache_dir": str(folder / "cache"), "dataset_kwargs": rows}
    options |= {"per_device_train_batch_size": batch // processes}
    run = train(options, folder, steps, processes, threads=1)
    history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    logged = [log for log in history if "itcl" in log][-1]
    terms = {name: round(logged[name], 3) for name in ("ttdm", "itcl", "icti")}
    return {
        "processes": processes,
        "batch per process": batch // processes,
        "samples/s": run["samples_per_second"],
    } | terms


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--steps", type=int, default=8, help="measured steps; as many warm up before")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(processes, args.batch, args.steps, Path(folder)) for processes in (1, 2)]
    for row in rows:
        row["times one"] = row["samples/s"] / rows[0]["samples/s"]
    report("processes", rows, args.into)


if __name__ == "__main__":
    main()
