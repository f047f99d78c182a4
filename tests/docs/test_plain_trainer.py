"""Fine-tuning with transformers' own `Trainer`: labels in, loss out."""

from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from finetune import build_trainer, collate, prompt_and_target
from finetune_data import blocks, micro_model, run_command, write_images, write_model
from PIL import Image
from safetensors.torch import load_file
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, pipeline

from modeling_vlkd import VLKDForConditionalGeneration


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "my_vlkd")
    return tmp_path


FAST = ("--learning-rate", "1e-3", "--batch-size", "10")


@pytest.mark.parametrize(("kind", "epochs"), [("caption", "30"), ("question", "20")])
def test_four_texts_are_learned_by_heart(workplace, monkeypatch, kind, epochs):
    lines = write_images(workplace / "my_images", kind, number=4)
    VLKDForConditionalGeneration.from_pretrained("my_vlkd", dtype=torch.float16).save_pretrained("my_vlkd")
    run_command("Fine-tune with transformers' own Trainer", monkeypatch, *FAST, "--epochs", epochs)
    files = [f"my_images/{line['file_name']}" for line in lines]
    assert {weights.dtype for weights in load_file("my_finetuned/model.safetensors").values()} == {torch.float32}
    if kind == "caption":
        said = pipeline("image-to-text", model="my_finetuned")(files)
        assert [one["generated_text"] for (one,) in said] == [line["caption"] for line in lines]
    else:
        asked = [{"image": file, "question": line["question"]} for file, line in zip(files, lines, strict=True)]
        said = pipeline("visual-question-answering", model="my_finetuned")(asked)
        assert [one["answer"] for (one,) in said] == [line["answer"] for line in lines]


def test_loss_on_the_answer_alone(workplace):
    """The documented block: the question stays in the decoder's input, and out of the loss."""
    write_images(workplace / "my_images", number=1)
    names = {}
    (code,) = blocks("Fine-tune with transformers' own Trainer", "python")
    exec(code, names)
    model, batch, target = names["model"], names["batch"], names["target"]
    kept = batch["labels"] != -100
    assert names["processor"].tokenizer.decode(target[kept]).strip() == "red</s>"
    assert torch.equal(batch["decoder_input_ids"][0, 1:], target[0, :-1])
    logits = model(**batch).logits
    expected = torch.nn.functional.cross_entropy(logits[kept], target[kept])
    torch.testing.assert_close(names["loss"], expected)


def test_texts_of_a_row():
    """Numbers are texts, and 0 is an answer; one of several captions is drawn."""
    processor = micro_model()[1]
    row = {"question": "how many?", "answer": 0}
    assert prompt_and_target(row, processor) == (
        "Question: how many? Answer: <mask>",
        "Question: how many? Answer: 0",
    )
    captions = {prompt_and_target({"caption": ["a dog", "a red dog"]}, processor) for _ in range(50)}
    assert captions == {("<mask>", "a dog"), ("<mask>", "a red dog")}
    for empty in ({"caption": ""}, {"caption": []}, {"caption": None, "question": "how many?", "answer": None}):
        with pytest.raises(ValueError, match="has no `caption` and no `question` with an `answer`"):
            prompt_and_target(empty, processor)


def test_label_smoothing(tmp_path):
    """(1 - ε) times the cross-entropy of the labels, and ε times the mean over the vocabulary of -log p."""
    (line,) = write_images(tmp_path / "images", number=1)
    rows = [{"image": Image.open(tmp_path / "images" / line["file_name"]), **line}]
    model, processor = micro_model()
    trainer = build_trainer(model, processor, rows, str(tmp_path), use_cpu=True, label_smoothing_factor=0.1)
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(batch))
        log_probs = model(**batch).logits.log_softmax(-1)[0]  # (target_tokens, vocabulary)
    of_labels = -log_probs[torch.arange(len(log_probs)), batch["labels"][0]].mean()
    torch.testing.assert_close(loss, 0.9 * of_labels - 0.1 * log_probs.mean())


def test_generation_in_evaluation(tmp_path):
    """`Seq2SeqTrainer` pads what the model wrote by the processor's padding token."""
    lines = write_images(tmp_path / "images", number=3)
    rows = [{"image": Image.open(tmp_path / "images" / line["file_name"]), **line} for line in lines]
    model, processor = micro_model()
    args = Seq2SeqTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        remove_unused_columns=False,
        label_names=["labels"],
        predict_with_generate=True,
        generation_max_length=12,
        report_to="none",
    )
    collator = partial(collate, processor=processor, model=model)
    trainer = Seq2SeqTrainer(model, args, eval_dataset=rows, data_collator=collator, processing_class=processor)
    written = trainer.predict(rows).predictions
    due = model.generate(
        **{k: v for k, v in collator(rows).items() if "labels" not in k and "decoder" not in k}, max_length=12
    )
    assert written.shape[0] == 3
    for row, expected in zip(written, due, strict=True):
        assert [t for t in row if t not in (-100, 1)] == [t for t in expected.tolist() if t != 1]


def test_accumulated_step_is_the_step_of_the_whole_batch(tmp_path):
    """Labels are ragged, so a mean of the batches' means would differ."""
    lines = write_images(tmp_path / "images", number=8)
    rows = [{"image": Image.open(tmp_path / "images" / line["file_name"]), **line} for line in lines]
    results = []
    for batch_size in (8, 2):
        model, processor = micro_model()
        for module in model.modules():
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        options = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}
        trainer = build_trainer(
            model,
            processor,
            Dataset.from_list(rows),
            str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            max_steps=1,
            save_strategy="no",
            lr_scheduler_type="constant",
            logging_steps=1,
            **options,
        )
        trainer.train()
        results.append((trainer.state.log_history[0]["loss"], model.image_projection[0].weight.detach()))
    (loss, weight), (accumulated_loss, accumulated_weight) = results
    assert accumulated_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(accumulated_weight, weight, rtol=1e-4, atol=1e-6)


def test_row_without_caption_and_question(workplace, monkeypatch):
    lines = write_images(workplace / "my_images", number=2)
    metadata = workplace / "my_images" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace(lines[1]["caption"], ""))
    with pytest.raises(ValueError, match="no `caption`"):
        run_command("Fine-tune with transformers' own Trainer", monkeypatch, *FAST)
