"""examples/quickstart.ipynb runs from top to bottom, with a tiny random model."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from transformers import pipeline

from microworld.dataset import load
from vlkd import VLKDModel, VLKDProcessor

FILE = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
PLACES = {
    '"../demo_output/model"': "model",
    '"../microworld/teachers/clip"': "clip",
    '"../demo_output/quickstart"': "out",
}
RESULTS = """import json
print(json.dumps({
    "before": before, "after": after, "answers": answers, "similarity": similarity.tolist(),
    "losses": [log["icti"] for log in logs],
}))"""


@pytest.fixture(scope="module")
def results(vlkd_dir, clip_dir, tmp_path_factory) -> dict:
    """What a cell behind the last one prints of the results of the others."""
    folder = tmp_path_factory.mktemp("notebook")
    places = {"model": vlkd_dir, "clip": clip_dir, "out": str(folder / "out")}
    book = nbformat.read(FILE, as_version=4)
    for shown, place in PLACES.items():
        (cell,) = (cell for cell in book.cells if cell.cell_type == "code" and shown in cell.source)
        cell.source = cell.source.replace(shown, json.dumps(places[place]))
    book.cells.append(new_code_cell(RESULTS))
    # The running Python as the kernel, whatever kernels are registered on this machine.
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    assert kernel.format_kernel_cmd()[0] == sys.executable
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(book, km=kernel, timeout=300, resources=resources).execute()
    return json.loads(book.cells[-1].outputs[0].text)


def test_captions_and_answers_are_those_of_the_pipelines(results, vlkd_dir):
    images = load("test", size=10, captions_per_image=1)["image"][:]
    caption = pipeline("image-to-text", model=vlkd_dir)
    assert results["before"] == [found[0]["generated_text"] for found in caption(images, max_new_tokens=40)]
    answer = pipeline("visual-question-answering", model=vlkd_dir)
    questions = ["what is in the picture?", "how many things are there?"]
    found = [answer(image=images[0], question=question, max_new_tokens=20)[0] for question in questions]
    assert results["answers"] == [one["answer"] for one in found]


def test_similarity_is_that_of_the_dual_encoder(results, vlkd_dir):
    data = load("test", size=10, captions_per_image=1)
    model, processor = VLKDModel.from_pretrained(vlkd_dir).eval(), VLKDProcessor.from_pretrained(vlkd_dir)
    inputs = processor(images=data["image"][:]) | processor(
        text=[texts[0] for texts in data["captions"]], truncation=True
    )
    logits = model(**inputs).logits_per_image / model.logit_scale.exp()
    assert results["similarity"] == [pytest.approx(row, abs=1e-5) for row in logits.tolist()]


def test_fine_tuning_learns(results):
    assert len(results["losses"]) == 12 and results["losses"][-1] < results["losses"][0]
    assert results["after"] != results["before"]


def test_kept_outputs():
    """They are of a run without errors, small, and name no place of the machine that made them."""
    book = nbformat.read(FILE, as_version=4)
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert len(outputs) >= 6 and {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert FILE.stat().st_size < 300_000
    texts = [output.text if output.output_type == "stream" else json.dumps(dict(output.data)) for output in outputs]
    assert not [
        text
        for text in texts
        if any(f"{quote}/{name}" in text for quote in ' "' for name in ("root/", "home/", "tmp/"))
    ]
