"""The round trip through a loopback Hub, over HTTP by the real client: pushed in every way, loaded, and offline."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from loopback_hub import Hub, check_card, running_hub

from modeling_vlkd import VLKDConfig
from modeling_vlkd.card_vlkd import MARK, NO_RECIPE, NO_RESULTS
from modeling_vlkd.configuration_vlkd import AUTO_MAP, CUSTOM_PIPELINES
from trainer.cli import main
from trainer.evaluation.intervals import Proportion
from trainer.evaluation.metrics_file import SCHEMA, MetricTable, load_metrics
from trainer.hub.model_card import make_card
from trainer.hub.repository import repository_files, weights_digest
from trainer.hub.train_config import load_train_config, published

SUPPORT = Path(__file__).parents[2] / "support"
CODE = {file.name for file in (SUPPORT.parents[1] / "modeling_vlkd").glob("*.py")}
PARTS = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
REPOSITORY = {*CODE, *PARTS, "README.md"}
STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")


def metrics() -> dict:
    """A metrics.json as `make demo` writes it."""
    figures = MetricTable()
    figures.add("VQA", "VLKD", {"all": Proportion(0.75, 400, 0.705, 0.79), "color": Proportion(1.0, 8, 0.6756, 1.0)})
    figures.add("VQA", "blind", {"all": Proportion(0.25, 400, 0.21, 0.295)})
    figures.add("captions", "VLKD", {"all objects": Proportion(0.5, 10, 0.2366, 0.7634)})
    figures.add("VQA", "majority", {"count": Proportion(0.0, 9, 0.0, 0.3)})
    return {
        "schema": SCHEMA,
        "command": "make demo",
        "commit": "1234567-dirty",
        "recipe": "paper",
        "split": "test",
        "dataset": "microworld",
        "figures": figures.as_list(),
    }


TABLE = """\
|  | VLKD | 95% interval | n | blind | majority |
| --- | ---: | ---: | ---: | ---: | ---: |
| VQA: all | 0.750 | 0.705–0.790 | 400 | 0.250 | · |
| VQA: color | 1.000 | 0.676–1.000 | 8 | · | · |
| captions: all objects | 0.500 | 0.237–0.763 | 10 | · | · |
| VQA: count | · | · | 9 | · | 0.000 |

Measured with `make demo` on commit `1234567-dirty`."""


def client(script: str, *argv: str, cwd: Path, **environment: str) -> dict:
    """What a client process reports."""
    environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(SUPPORT / script), *argv]
    run = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def home(tmp_path_factory, batch, image) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    (folder / "metrics.json").write_text(json.dumps(metrics()))
    torch.save(dict(batch), folder / "inputs.pt")
    image.save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def pushed(hub: Hub, home, clip_dir, bart_dir) -> dict:
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    environment = hub.environment(str(home / "pusher"))
    return client("hub_client_push.py", str(home), clip_dir, bart_dir, cwd=home, PYTHONPATH=path, **environment)


@pytest.fixture(scope="module")
def pinned(hub: Hub, pushed) -> str:
    """The commit that the model pushed; the branch goes on to weights of zero and code that raises."""
    repo = hub.repos["user/by-method"]
    first = repo.branches["main"]
    broken = {"modeling_vlkd.py": b"raise RuntimeError('newer code')", "model.safetensors": b"newer weights"}
    repo.commit("main", "Newer", {**repo.commits[first], **broken})
    return first


@pytest.fixture(scope="module")
def loaded(hub: Hub, home, pinned) -> dict:
    environment = hub.environment(str(home / "user"))
    return client("hub_client_load.py", str(home), pinned, cwd=home, PYTHONPATH="", **environment)


# ------------------------------------------------------------------------------------------------------------- pushed


def card(hub: Hub, name: str, revision: str = "main") -> ModelCard:
    text = hub.files(name, revision)["README.md"].decode()
    assert check_card(text) == []
    return ModelCard(text)


def test_model_and_processor_push_themselves(hub, pinned):
    assert hub.files("user/by-method", pinned).keys() == REPOSITORY
    made = card(hub, "user/by-method", pinned)
    assert made.data.base_model == ["tiny/clip", "tiny/bart"] and made.data.pipeline_tag == "image-to-text"
    assert NO_RESULTS in made.text and NO_RECIPE in made.text and MARK in made.text
    config = json.loads(hub.files("user/by-method", pinned)["config.json"])
    assert config["auto_map"] == AUTO_MAP and config["custom_pipelines"] == CUSTOM_PIPELINES


def test_command_pushes_what_belongs(hub, pushed, home):
    sha = hub.repos["user/by-command"].branches["main"]
    assert (
        pushed["command"]["out"] == f"{hub.url}/user/by-command/commit/{sha}\n"
        and hub.repos["user/by-command"].private
    )
    files = hub.files("user/by-command")
    assert files.keys() == {*REPOSITORY, "metrics.json"}  # no pickle, no checkpoint, no note
    assert json.loads(files["metrics.json"]) == metrics()
    assert {file.name for file in (home / "run" / "model").iterdir()} == {
        *REPOSITORY,
        "training_args.bin",
        "notes.md",
        "checkpoint-1",
    }


def test_card_of_the_command(hub, pushed):
    made = card(hub, "user/by-command")
    data = made.data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", "en", "transformers")
    assert (data.pipeline_tag, data.base_model) == ("image-to-text", ["tiny/clip", "tiny/bart"])
    assert {"vlkd", "image-captioning", "visual-question-answering"} <= set(data.tags)
    found = [(r.task_type, r.dataset_name, r.dataset_split, r.metric_name, r.metric_value) for r in data.eval_results]
    assert found == [
        ("visual-question-answering", "microworld", "test", "VQA: all", 0.75),
        ("visual-question-answering", "microworld", "test", "VQA: color", 1.0),
        ("image-to-text", "microworld", "test", "captions: all objects", 0.5),
    ]
    assert data.eval_results[0].metric_args == {"n": 400, "low": 0.705, "high": 0.79}
    assert TABLE in made.text and data.model_name == "by-command"
    sections = ("How to use", "Intended use", "Out of scope", "Training recipe", "Evaluation", "Limits", "License")
    assert all(f"\n## {section}\n" in made.text for section in sections) and "${" not in made.text


def test_branch_and_card_without_figures(hub, pushed):
    assert pushed["without figures"]["err"] == "metrics: none\n"
    assert hub.files("user/without-figures") == {}
    assert hub.files("user/without-figures", "draft").keys() == REPOSITORY
    made = card(hub, "user/without-figures", "draft")
    assert NO_RESULTS in made.text and made.data.eval_results is None


def test_public_repository_is_no_private_one(hub, pushed):
    assert pushed["public"]["code"] == 2 and "exists and is public" in pushed["public"]["err"]


def test_refusal_is_one_line(hub, pushed):
    assert pushed["wrong token"]["code"] == 2 and "user/refused" not in hub.repos
    last = pushed["wrong token"]["err"].splitlines()[-1]
    assert last.startswith("vlkd: error: user/refused was not pushed: Client error '401 Unauthorized'")
    assert "hf auth login" in last


def test_card_written_by_hand_is_kept(hub, pushed):
    assert hub.files("user/by-hand")["README.md"] == b"---\nlicense: mit\n---\n# My own words\n"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trainer_pushes(hub, pushed, strategy):
    files = hub.files(f"user/{strategy}")
    places = {"checkpoint": ["last-checkpoint/"], "all_checkpoints": ["checkpoint-1/", "checkpoint-2/"]}
    expected = {*REPOSITORY, "train.yaml"}
    for place in places.get(strategy, ()):
        expected |= {place + name for name in (*CODE, *PARTS, "train.yaml")}
    assert files.keys() == expected
    made = card(hub, f"user/{strategy}")
    assert made.data.pipeline_tag == "image-to-text" and made.data.base_model == ["tiny/clip", "tiny/bart"]
    assert made.data.datasets == ["tiny/captions"] and ("mine" in made.data.tags) is (strategy == "end")
    assert "| learning_rate | `5e-05` |" in made.text and NO_RESULTS in made.text
    messages = list(hub.repos[f"user/{strategy}"].messages.values())[1:]
    step = "Training in progress, step {}".format
    twice = [step(1), step(1), step(2), step(2)]
    last = {"end": ["End of training"], "every_save": [step(1), step(2), "Model save"], "checkpoint": twice}
    assert messages == last.get(strategy, [*twice, "Model save"])


def test_recipe_beside_the_weights(hub, pushed):
    recipe = yaml.safe_load(hub.files("user/end")["train.yaml"])
    assert (recipe["clip"], recipe["dataset_name"], recipe["image_dir"]) == ("tiny/clip", "tiny/captions", "images")
    assert (recipe["max_steps"], recipe["per_device_train_batch_size"], recipe["mask_ratio"]) == (2, 4, 0.5)
    assert not recipe.keys() & {"output_dir", "hub_token", "cache_dir"}


# ------------------------------------------------------------------------------------------------------------- loaded


def test_revision_pins_weights_and_code(loaded):
    assert loaded["pinned"] and not loaded["package"]
    assert loaded["newest"] == "RuntimeError: newer code"


def test_untrusted_code_is_refused(loaded):
    assert "trust_remote_code=True" in loaded["untrusted"]


def test_snapshot(loaded):
    assert loaded["snapshot"] and loaded["by hand"] and set(loaded["files"]) >= REPOSITORY


@pytest.mark.parametrize("strategy", [*STRATEGIES, "last-checkpoint"])
def test_what_the_trainer_pushed_loads(loaded, strategy):
    assert loaded[strategy]


def test_examples_of_the_card(loaded, model, processor, image):
    caption, answer, similarity = loaded["snippets"]
    inputs = processor(images=image)
    written = processor.post_process_generation(model.generate(**inputs, max_new_tokens=40), inputs["input_ids"])
    assert [caption] == written
    inputs = processor(images=image, text=processor.build_vqa_prompt("what is in the picture?"))
    ids = model.generate(**inputs, max_new_tokens=10)
    assert [answer] == processor.post_process_generation(ids, inputs["input_ids"], first_sentence=True)
    assert len(similarity) == 1 and len(similarity[0]) == 2 and sum(similarity[0]) == pytest.approx(1)


def test_offline_afterwards(hub, home, pinned, loaded):
    environment = {**hub.environment(str(home / "user")), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    offline = client("hub_client_load.py", str(home), pinned, cwd=home, PYTHONPATH="", **environment)
    same = ("pinned", "ids", "caption", "package")
    assert {name: offline[name] for name in same} == {name: loaded[name] for name in same}


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def complete(tmp_path_factory, model, processor) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.safetensors", "has no model.safetensors; write it with `model.save_pretrained`"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("pipeline_vlkd.py", "has no pipeline_vlkd.py"),
        ("config.json", "has no readable config.json"),
    ],
)
def test_incomplete_folder(complete, tmp_path, capsys, missing, message):
    for file in complete.iterdir():
        if file.name != missing:
            (tmp_path / file.name).symlink_to(file)
    assert main(["push", str(tmp_path), "user/name"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bart"}, "is a model of type 'bart', not 'vlkd'"),
        ({"auto_map": None}, "has no auto_map in config.json"),
        (
            {"auto_map": {"AutoConfig": "a/b--configuration_vlkd.VLKDConfig"}},
            "code of its own: config.json names a",
        ),
    ],
)
def test_foreign_config(complete, tmp_path, capsys, change, message):
    for file in complete.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((complete / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    assert main(["push", str(tmp_path), "user/name"]) == 2
    assert message in capsys.readouterr().err


def test_other_mistakes(complete, tmp_path, capsys):
    assert main(["push", str(complete), "user/na me"]) == 2
    assert "user/na me" in capsys.readouterr().err
    assert main(["push", str(complete), "user/name", "--metrics", str(tmp_path / "none.json")]) == 2
    assert "none.json' cannot be read as JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "cannot be read as JSON"),
        ("[]", "a list of `figures`"),
    ],
)
def test_metrics_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_metrics(tmp_path / "metrics.json")


def test_figures_of_other_weights_are_refused(complete, tmp_path, capsys):
    folder = shutil.copytree(complete, tmp_path / "model")
    figures = tmp_path / "metrics.json"
    figures.write_text(json.dumps(metrics() | {"weights": weights_digest(folder)}))
    assert weights_digest(folder) == weights_digest(complete) and len(weights_digest(folder)) == 16
    assert weights_digest(tmp_path) is None
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert main(["push", str(folder), "user/name", "--metrics", str(figures)]) == 2
    assert "was measured with other weights than those in" in capsys.readouterr().err


def test_only_the_files_of_a_model_are_pushed(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "model")
    for name in ("predictions.json", "token.json", "all_results.json", "trainer_state.json", "optimizer.safetensors"):
        (folder / name).write_text("{}")
    for name in ("notes.md", "my_vlkd.py", "training_args.bin", "metrics.json", "events.out.tfevents.1.host"):
        (folder / name).write_text("private")
    more = {"train.yaml", "adapter_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    for name in more:
        (folder / name).write_text("{}")
    assert set(repository_files(folder)) == REPOSITORY - {"README.md"} | more


def test_local_paths_are_not_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "model").mkdir(parents=True)
    command = (
        "vlkd evaluate --task vqav2 --model out/model --dataset_name '/home/me/my photos' --images ../secret/images"
    )
    found = published(
        {
            "command": f"{command} --clip openai/clip-vit-base-patch16 --questions C:\\\\me\\\\q.json --limit 10 "
            "--image_dir='/home/me/my photos' --columns '{image: /home/me/x}'",
            "dataset": "/home/me/my photos",
            "model": "~/runs/a/model/",
            "settings": {"metric": "own.module:score", "steps": {"answer": {"prompt": "Is it </s> a/b or c? <mask>"}}},
            "remarks": ["CLIP is left out: '/home/me/clip' is no checkpoint", "see https://host/a/b/c.html, 1/2"],
            "figures": [{"row": "all", "value": 0.5}],
            "limit": None,
        }
    )
    assert found == {
        "command": "vlkd evaluate --task vqav2 --model model --dataset_name 'my photos' --images images "
        "--clip openai/clip-vit-base-patch16 --questions q.json --limit 10 '--image_dir=my photos' "
        "--columns '{image: x}'",
        "dataset": "my photos",
        "model": "model",
        "settings": {"metric": "own.module:score", "steps": {"answer": {"prompt": "Is it </s> a/b or c? <mask>"}}},
        "remarks": ["CLIP is left out: 'clip' is no checkpoint", "see https://host/a/b/c.html, 1/2"],
        "figures": [{"row": "all", "value": 0.5}],
        "limit": None,
    }


def test_local_checkpoints_have_no_place_in_the_metadata(tmp_path):
    (tmp_path / "train.yaml").write_text("clip: microworld/teachers/clip\nbart: b\ndataset: microworld.dataset:load\n")
    made = make_card(tmp_path, VLKDConfig(), "user/name")
    assert made.data.base_model is None and made.data.datasets is None and check_card(str(made)) == []
    assert "| clip | `clip` |" in made.text and "from local folders" in made.text


def test_broken_recipe(tmp_path):
    (tmp_path / "train.yaml").write_text("- a")
    with pytest.raises(ValueError, match="holds no `key: value` lines"):
        load_train_config(tmp_path)
