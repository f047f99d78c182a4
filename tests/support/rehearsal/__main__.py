"""The rehearsal: serve the repositories, run the commands, check what each leaves, and write docs/rehearsal.md."""

import argparse
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loopback_hub import Hub, running_hub

from rehearsal.sizes import SIZES, Size

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "rehearsal.md"
REPO = "user/my-vlkd"
WITHOUT_PACKAGE = f"""\
import sys
sys.modules |= dict.fromkeys(["modeling_vlkd", "trainer", "microworld"])  # as if the package were not installed
from transformers import pipeline
caption = pipeline("image-to-text", model="{REPO}", trust_remote_code=True)
print(caption("photo.jpg", max_new_tokens=20))
answer = pipeline("visual-question-answering", model="{REPO}", trust_remote_code=True)
print(answer(image="photo.jpg", question="what is in the river?"))
"""
WITH_PACKAGE = f"""\
import modeling_vlkd
from transformers import pipeline
caption = pipeline("image-to-text", model="{REPO}")
print(caption("photo.jpg", max_new_tokens=20))
answer = pipeline("visual-question-answering", model="{REPO}")
print(answer(image="photo.jpg", question="what is in the river?"))
"""
SCRIPTS = {"without_package.py": WITHOUT_PACKAGE, "with_package.py": WITH_PACKAGE}


@dataclass(frozen=True)
class Step:
    """A command as a user types it, and a check of its work folder and of what it printed.

    `kill_at`: the path that, once it is there, has the command killed (SIGKILL, its workers too).
    """

    command: str
    check: Callable[[Path, str], None]
    kill_at: str | None = None


@dataclass(frozen=True)
class Measured:
    """One row of the table: times in seconds, sizes in bytes."""

    command: str
    killed: bool
    seconds: float
    peak: int  # memory of the largest process
    downloaded: int
    written: int  # by all processes, to any file; on Linux
    cached: int  # by how much the caches grew
    output: int  # by how much the other files grew


def steps_of(size: Size, steps: int, batch: int, images: int) -> list[Step]:
    """README's commands for real checkpoints, each with few steps, images or rows."""
    config = f"--config hub_configs/{size.recipe}/train.yaml --dataloader_num_workers 1"
    few = f"--per_device_train_batch_size {batch} --per_device_eval_batch_size {batch} --logging_steps 1"
    features = "--cache_image_features all --cache_dir feature_cache"
    half = steps // 2
    cached = f"vlkd train {config} {features} --output_dir outputs/cached {few} --max_steps {half}"
    streamed = f"vlkd train {config} --streaming true --shuffle_buffer_size 100 --output_dir outputs/streamed {few}"
    streamed += f" --max_steps {steps} --save_steps {half}"
    simple = f"vlkd train --clip {size.clip} --bart {size.bart} --dataset_name my_images --output_dir my_vlkd"
    simple += f" --per_device_train_batch_size {batch} --logging_steps 1 --max_steps {half}"
    simple += " --learning_rate 2e-5 --projector_learning_rate 1e-3"
    model = "--model outputs/streamed"
    return [
        Step(f"vlkd cache {config} {features}", check_cache),
        Step(cached, partial(check_cached_training, output_dir="outputs/cached", steps=half)),
        Step(streamed, check_killed, kill_at=f"outputs/streamed/checkpoint-{half}"),
        Step(
            f"{streamed} --resume_from_checkpoint true",
            partial(check_training, output_dir="outputs/streamed", steps=steps),
        ),
        Step(simple, partial(check_training, output_dir="my_vlkd", steps=half, evaluated=False)),
        Step(f"vlkd evaluate {model} --task vqav2 --limit {images}", partial(check_task, task="vqav2")),
        Step(f"vlkd evaluate {model} --task coco-caption --limit {images}", partial(check_task, task="coco-caption")),
        Step(
            f"vlkd evaluate --task text-retention --model outputs/streamed --reference_model {size.bart} "
            f"--limit {images}",
            partial(check_task, task="text-retention"),
        ),
        Step(f"vlkd push outputs/streamed {REPO} --metrics evaluation/vqav2/metrics.json", check_push),
        Step(f"vlkd caption photo.jpg --model {REPO}", check_printed),
        Step(f'vlkd ask photo.jpg "what is in the river?" --model {REPO} --json', check_printed),
        Step("python without_package.py", partial(check_pipelines, name="without_package")),
        Step("python with_package.py", partial(check_pipelines, name="with_package")),
    ]


# -------------------------------------------------------------------------------------------------------------- checks


def check_cache(folder: Path, printed: str) -> None:
    for split in ("train", "validation"):
        assert re.search(rf"^{split}: [\d,]+ rows are cached in ", printed, re.MULTILINE), f"nothing about {split}"


def check_training(folder: Path, printed: str, *, output_dir: str, steps: int, evaluated: bool = True) -> None:
    output = folder / output_dir
    state = json.loads((output / "trainer_state.json").read_text())
    losses = {log["step"]: log["loss"] for log in state["log_history"] if "loss" in log}
    assert state["global_step"] == steps and sorted(losses) == list(range(1, steps + 1)), f"steps: {losses}"
    assert all(map(math.isfinite, losses.values())), f"losses: {losses}"
    assert evaluated == any("eval_loss" in log for log in state["log_history"]), f"evaluated: {not evaluated}"
    for name in ("model.safetensors", "config.json", "processor_config.json", "modeling_vlkd.py"):
        assert (output / name).is_file(), f"{output} has no {name}"


def check_cached_training(folder: Path, printed: str, **expected: Any) -> None:
    check_training(folder, printed, **expected)
    assert "image_features: " not in printed, "training computed the image features again"


def check_killed(folder: Path, printed: str) -> None:
    output = folder / "outputs" / "streamed"
    assert not (output / "model.safetensors").exists(), "training ended before it was killed"


def check_task(folder: Path, printed: str, *, task: str) -> None:
    figures = json.loads((folder / "evaluation" / task / "metrics.json").read_text())["figures"]
    assert figures and all(math.isfinite(figure["value"]) for figure in figures), f"figures: {figures}"


def check_push(folder: Path, printed: str) -> None:
    assert f"/{REPO}/commit/" in printed, "no commit was printed"


def check_printed(folder: Path, printed: str) -> None:
    assert "photo.jpg" in printed, "nothing was printed of photo.jpg"


def check_pipelines(folder: Path, printed: str, *, name: str) -> None:
    found = [line for line in printed.splitlines() if line.startswith("[{")]
    assert len(found) == 2 and "generated_text" in found[0] and "answer" in found[1], f"printed: {found}"
    (folder / f"{name}.txt").write_text("\n".join(found))
    other = folder / "without_package.txt"
    assert other.read_text() == "\n".join(found), f"with the package: {found}, without it: {other.read_text()}"


# ------------------------------------------------------------------------------------------------------------- running


def rehearse(steps: list[Step], hub: Hub, folder: Path) -> list[Measured]:
    """Run the commands in `folder`, a user's, and check each. The environment lets nothing but the Hub be reached.

    Raises:
        SystemExit: a command fails, or leaves something else than it should.
    """
    shutil.copytree(ROOT / "hub_configs", folder / "hub_configs")
    for name, text in SCRIPTS.items():
        (folder / name).write_text(text)
    images = folder / "my_images"
    images.mkdir()
    for number, path in enumerate(hub.web.values(), start=1):
        shutil.copy(path, images / f"{number}.jpg")
    names = sorted(path.name for path in images.iterdir())
    lines = [json.dumps({"file_name": name, "caption": f"photo {name} on a beach"}) for name in names]
    (images / "metadata.jsonl").write_text("\n".join(lines))
    shutil.copy(next(iter(hub.web.values())), folder / "photo.jpg")
    environment = {**os.environ, **hub.environment(str(folder / "hf")), "http_proxy": hub.url, "https_proxy": hub.url}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment.pop("PYTHONPATH", None)
    measured = []
    for number, step in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] {step.command}" + (" (killed)" if step.kill_at else ""), flush=True)
        log = folder / f"{number}.log"
        measured.append(run(step, hub, folder, environment, log))
        try:
            step.check(folder, log.read_text(errors="replace"))
        except (AssertionError, OSError, ValueError, KeyError) as error:
            sys.exit(f"{step.command}\nis not what it should be: {error}\n{tail(log)}")
        print(f"    {measured[-1].seconds:.0f} s, {measured[-1].peak / 1e9:.2f} GB", flush=True)
    return measured


def run(step: Step, hub: Hub, folder: Path, environment: dict[str, str], log: Path) -> Measured:
    """Run one command to its end, or to its death, and measure it.

    Raises:
        SystemExit: it ends otherwise.
    """
    caches = (folder / "hf", folder / "feature_cache")
    sent, cached, whole = hub.sent, sum(map(size_on_disk, caches)), size_on_disk(folder)
    start, kill_at = time.time(), step.kill_at and folder / step.kill_at
    with open(log, "wb") as file:
        process = subprocess.Popen(
            shlex.split(step.command),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                if kill_at and kill_at.exists():
                    os.killpg(process.pid, signal.SIGKILL)
                    kill_at = None
                time.sleep(0.1)
        except BaseException:  # Ctrl-C: the command has a session of its own
            os.killpg(process.pid, signal.SIGKILL)
            raise
    _, status, usage = ended
    seconds = time.time() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (-signal.SIGKILL if step.kill_at else 0):
        sys.exit(f"{step.command}\nended with exit code {process.returncode}:\n{tail(log)}")
    grown = sum(map(size_on_disk, caches)) - cached
    return Measured(
        command=step.command,
        killed=step.kill_at is not None,
        seconds=seconds,
        peak=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        downloaded=hub.sent - sent,
        written=usage.ru_oublock * 512,
        cached=grown,
        output=size_on_disk(folder) - whole - grown,
    )


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def size_on_disk(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


# -------------------------------------------------------------------------------------------------------------- report


def table(measured: list[Measured]) -> str:
    """The commands as they were typed, and a GitHub table of what they took, sizes in GB."""
    typed = [f"# {number}\n{row.command}" for number, row in enumerate(measured, start=1)]
    lines = [
        "| command | seconds | peak memory | downloaded | written | caches | output |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, row in enumerate(measured, start=1):
        name = " ".join(row.command.split()[:2])
        killed = " (killed)" if row.killed else ""
        sizes = (row.peak, row.downloaded, row.written, row.cached, row.output)
        cells = [f"{number}. `{name}`{killed}", f"{row.seconds:.0f}", *(f"{size / 1e9:.2f}" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["```bash", *typed, "```", "", *lines])


def write_page(page: Path, size: str, measured: list[Measured], command: str) -> None:
    """Put the table of one size between its marks."""
    from trainer.cli.report import replace_figures
    from trainer.evaluation.metrics_file import checkout_commit

    machine = f"{os.cpu_count()} cores, Python {sys.version.split()[0]}"
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "datasets", "huggingface_hub")
    )
    total = sum(row.seconds for row in measured) / 60
    how = f"Measured with `{command}` on commit `{checkout_commit()}`; {total:.0f} minutes; {machine}, {versions}."
    replace_figures(page, f"rehearsal-{size}", f"{table(measured)}\n\n{how}\n")


def serve(hub: Hub, folder: Path) -> None:
    """Serve what `repositories.write_repositories` wrote."""
    for kind, prefix in (("models", ""), ("datasets", "datasets/")):
        for repository in sorted((folder / kind).glob("*/*")):
            hub.add_folder(prefix + repository.relative_to(folder / kind).as_posix(), repository)
    web = folder / "web"
    files = sorted(path for path in web.rglob("*") if path.is_file())
    hub.web |= {f"http://{path.relative_to(web).as_posix()}": path for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make rehearsal", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="base", help="of CLIP and BART")
    parser.add_argument("--steps", type=int, default=4, help="training steps, 2 or more; half of them before the kill")
    parser.add_argument("--batch", type=int, default=4, help="images a step")
    parser.add_argument("--images", type=int, default=8, help="rows of each evaluation")
    parser.add_argument("--keep", action="store_true", help="keep the work folder, with the commands' output")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error(f"--steps {args.steps} must be 2 or more.")
    base = ROOT / "outputs" / "rehearsal"
    content, work = base / "hub" / args.size, base / args.size
    builder = [sys.executable, "-m", "rehearsal.repositories", str(content), args.size, str(base / "vocabularies")]
    if subprocess.run(builder).returncode:
        sys.exit("The repositories could not be written.")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with running_hub() as hub:
        serve(hub, content)
        measured = rehearse(steps_of(SIZES[args.size], args.steps, args.batch, args.images), hub, work)
        print(*(f"no answer to {request}" for request in dict.fromkeys(hub.unknown)), sep="\n")
    print(table(measured))
    if not args.keep:
        shutil.rmtree(work)
    if args.size != "tiny":
        command = "make rehearsal" + (f' ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else "")
        write_page(PAGE, args.size, measured, command)


if __name__ == "__main__":
    main()
