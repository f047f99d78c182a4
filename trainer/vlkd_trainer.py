"""`VLKDTrainer`: transformers' `Trainer` with the losses of VLKD."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import CLIPTextModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import ModelOutput

from trainer.arguments import VLKDTrainingArguments
from trainer.cache.clip_features import TeacherEmbeds, add_cached_columns
from trainer.callbacks import FiniteCheck, RunningMeans, StartTraining
from trainer.checkpoints import AtomicCheckpointMixin
from trainer.checks import check_dataset, check_dtypes, check_trainer_arguments, column_names
from trainer.data.collator import VLKDDataCollator
from trainer.data.epoch_dataset import EpochDataset
from trainer.data.length_grouping import LengthGroupedSampler
from trainer.data.rows import check_column
from trainer.data.streaming import StreamingDataset, load_stream_state, save_stream_state, stream_loader
from trainer.eval_samples import EvalSamples
from trainer.grad_cache import draw_seeds, embed, seeded, split
from trainer.hub.train_config import check_same_optimizer, save_train_config
from trainer.hub.trainer_mixin import HubUploadMixin
from trainer.losses import icti, itcl, itdd, ttdm
from trainer.models import load_teacher, teacher_embeds, teacher_name
from trainer.optimizers import split_projector_groups, with_muon

TOKEN_LOSSES = {"icti": "labels", "itdd": "itdd_labels"}  # and the name of their labels in a batch


class VLKDTrainer(AtomicCheckpointMixin, HubUploadMixin):
    """Trains a `VLKDForConditionalGeneration` on images and captions.

    `loss` is λ₁ ttdm + λ₂ itcl + λ₃ icti (+ λ₄ itdd). The raw terms are logged too: in training, the mean over the
    logging window, all processes and accumulated batches; in evaluation (`eval_ttdm`, …), the mean over the split, for
    icti and itdd over its tokens. Evaluation always draws captions and corruptions as in epoch 0. `eval_itcl` depends
    on the batch size, which is the number of candidates.

    The teacher is the text tower of `args.clip`, or else of the CLIP in `model.config.base_models`. The trainer embeds
    the captions of a `datasets.Dataset` once and caches the result. To use a teacher of your own, add the column
    `teacher_embeds`: for each row, the embeddings of its captions, concatenated.

    A loss or gradient that is not finite raises a FloatingPointError that names the rows. It changes no weights.

    Args:
        model: the model to train.
        args: the training arguments; the recommended ones if None, with the checkpoints in `trainer_output`.
        train_dataset: a `datasets.Dataset` with the columns `image` and `caption` (a string, or a list of strings of
            which one is drawn in each epoch), an `EpochDataset`, or a `StreamingDataset`. Rows with a transform
            (`set_transform`) need an `EpochDataset`.
        eval_dataset: as `train_dataset`, but not a `StreamingDataset`; or a dict of several by name.
        sample_dataset: the images and captions for `args.eval_samples`; by default `eval_dataset`, or the first of
            several.
        processing_class: the `VLKDProcessor`; saved with the model.
        data_collator: replaces the `VLKDDataCollator` that is built from `args`; the two must agree.
        teacher: CLIP's text tower and its tokenizer, as from `load_teacher`; replaces the checkpoint `args.clip`.
        run_config: checkpoints and data by their keys in `train.yaml`, which is saved with the model.
        **kwargs: other arguments of `Trainer`, except `compute_loss_func` and `model_init`.

    Raises:
        ValueError: an argument is of the wrong kind, two contradict each other, or a column is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: VLKDTrainingArguments | None = None,
        *,
        train_dataset: Dataset | EpochDataset | StreamingDataset | None = None,
        eval_dataset: Dataset | EpochDataset | dict[str, Dataset | EpochDataset] | None = None,
        sample_dataset: Dataset | EpochDataset | None = None,
        processing_class: ProcessorMixin | None = None,
        data_collator: Callable | None = None,
        teacher: tuple[CLIPTextModelWithProjection, PreTrainedTokenizerBase] | None = None,
        run_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        args = VLKDTrainingArguments("trainer_output") if args is None else args
        check_trainer_arguments(model, args, train_dataset, processing_class, data_collator, teacher, kwargs)
        self.run_config = run_config or {}
        self.builds_collator = data_collator is None
        self.teacher, self.teacher_tokenizer = teacher or (None, None)  # see load_teacher
        self.finite_check = FiniteCheck(self)
        self.reset_logs()
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.loss_is_scaled_for_ga = True  # compute_loss divides each term by the accumulation steps in its own way
        self.add_callback(self.finite_check)
        self.add_callback(StartTraining(self))
        self.prepare_model()
        self.prepare_datasets()
        if args.eval_samples:
            self.add_callback(EvalSamples(self, sample_dataset))

    # ---- model and teacher

    def prepare_model(self) -> None:
        """Freeze the model as `args` say, and build the ITDD teacher and the collator."""
        model, args = self.model, self.args
        if args.freeze != "none":  # "none" keeps what the caller froze, such as the base model of an adapter
            if hasattr(model, "peft_config"):
                raise ValueError(
                    f"freeze={args.freeze!r} would change which parameters of the adapter are trained; set "
                    "freeze='none'."
                )
            model.freeze_language_model(args.freeze)
        if self.train_dataset is not None:
            check_dtypes(model)
        # The original BART, which reads captions for ITDD.
        self.reader = model.to_bart().to(args.device).eval().requires_grad_(False) if args.itdd_weight else None
        if args.torch_compile and args.itdd_weight:
            # transformers installs hooks in the first call with hidden states, under a lock that breaks the graph.
            token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            with torch.no_grad():
                model.get_decoder()(input_ids=token, output_hidden_states=True, use_cache=False)
        self.logit_scale = model.logit_scale.detach().clone()  # frozen; read before anything shards the model
        if self.builds_collator:
            self.data_collator = VLKDDataCollator.from_args(
                args, model.config, self.processing_class, self.teacher_tokenizer
            )

    def load_teacher(self) -> None:
        """Load CLIP's text tower and tokenizer, once.

        Raises:
            ValueError: its name is unknown, it cannot be read, or it is not the CLIP of the model.
        """
        if self.teacher is None:
            clip = teacher_name(self.args.clip, self.model.config)
            self.teacher, self.teacher_tokenizer = load_teacher(clip, self.model)
        self.teacher.eval().to(self.args.device)
        if self.builds_collator:
            self.data_collator.teacher_tokenizer = self.teacher_tokenizer

    # ---- data

    def prepare_datasets(self) -> None:
        """Prepare the datasets of training and evaluation."""
        self.train_dataset = self.prepare_dataset(self.train_dataset)
        self.eval_dataset = self.prepare_dataset(self.eval_dataset)
        if isinstance(self.eval_dataset, EpochDataset) and self.eval_dataset is self.train_dataset:
            shared = self.eval_dataset  # evaluation stays in epoch 0
            self.eval_dataset = EpochDataset(shared.dataset, shared.seed, shared.decode)
        if isinstance(self.train_dataset, StreamingDataset):
            self.args.ignore_data_skip = True  # a stream restores its own position

    def prepare_dataset(self, dataset: Any) -> Any:
        """Wrap a dataset for the collator, and add the teacher's embeddings of the captions of a `datasets.Dataset`.

        Raises:
            ValueError: it is empty, it has a transform, or a column or a caption is missing.
        """
        if isinstance(dataset, dict):
            return {name: self.prepare_dataset(part) for name, part in dataset.items()}
        if dataset is None:
            return None
        check_dataset(dataset)
        if self.builds_collator and "teacher_embeds" not in column_names(dataset):
            self.load_teacher()
            if isinstance(dataset, Dataset):
                check_column("caption", dataset.column_names)
                if "image_features" not in dataset.column_names:
                    check_column("image", dataset.column_names)
                with self.args.main_process_first(desc="caption embeddings"):
                    (dataset,) = add_cached_columns([dataset], [TeacherEmbeds(self.teacher, self.teacher_tokenizer)])
        return dataset if isinstance(dataset, EpochDataset | StreamingDataset) else EpochDataset(dataset)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """As `Trainer`'s; a stream, which splits itself over processes and workers, bypasses accelerate."""
        if not isinstance(self.train_dataset, StreamingDataset):
            return super().get_train_dataloader()
        self.stream = stream_loader(self.train_dataset, self.data_collator, self.args, self._train_batch_size)
        if self.resumed_from is not None:
            load_stream_state(self.stream, self.resumed_from, self.args)
        return self.stream

    def _get_train_sampler(self, train_dataset: EpochDataset | None = None) -> torch.utils.data.Sampler | None:
        """As `Trainer`'s; `group_by_length` uses the lengths of the captions that are drawn in each epoch."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        dataset, rows = train_dataset or self.train_dataset, self.get_total_train_batch_size(self.args)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedSampler(dataset, rows, seed, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: EpochDataset) -> None:
        """None, for rows in order also with `group_by_length`: `eval_itcl` depends on which rows share a batch."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        named = eval_dataset is None or isinstance(eval_dataset, str)
        return super().get_eval_dataloader(eval_dataset if named else self.prepare_dataset(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        return super().get_test_dataloader(self.prepare_dataset(test_dataset))

    # ---- loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """The weighted sum of the losses: the batch's share of the step in training, its mean in evaluation."""
        inputs = dict(inputs)
        names = inputs.pop("row_names", None)
        if self.args.itdd_weight and "itdd_labels" not in inputs:
            raise ValueError(
                "itdd_weight needs ITDD targets in the batch; set with_itdd_targets=True in the collator."
            )
        counts = {}  # of the labels of each token loss in the step; the Trainer has counted those of ICTI
        if model.training and num_items_in_batch is not None:
            rows = {loss: len(inputs[name]) for loss, name in TOKEN_LOSSES.items() if name in inputs}
            counts = {loss: num_items_in_batch * number / rows["icti"] for loss, number in rows.items()}
        size = self.args.contrastive_chunk_size
        if model.training and size and size < len(inputs["labels"]):
            return self._chunked_loss(model, split(inputs, size), counts, names)

        labels, text_states = _pop_labels(inputs), self._read_captions(inputs)
        teacher = self._teacher_embeds(inputs)
        outputs = model(**inputs, use_cache=False)  # the only call of a step: DDP and FSDP allow no second one
        embeds = (outputs.text_embeds.float(), outputs.image_embeds.float(), teacher)  # bf16_full_eval casts the model
        if model.training:
            terms = self._contrastive_terms(*embeds) | _token_terms(outputs, labels, counts, text_states)
            terms = self._share_of_step(terms)
            self._record(terms, embeds, names)
        else:
            terms = self._eval_terms(outputs, embeds, labels, text_states)
        loss = self._weighted_sum(terms)
        return (loss, outputs) if return_outputs else loss

    def _chunked_loss(
        self,
        model: torch.nn.Module,
        chunks: list[dict[str, Tensor]],
        counts: dict[str, Tensor | float],
        names: list[str] | None,
    ) -> Tensor:
        """The loss of the whole batch by GradCache; the caller runs the backward pass of the last chunk."""
        teacher = torch.cat([self._teacher_embeds(chunk) for chunk in chunks])
        seeds = draw_seeds(len(chunks))
        with self.accelerator.autocast():
            text, image = embed(self.model, chunks, seeds)
        terms = self._share_of_step(self._contrastive_terms(text.requires_grad_(), image, teacher))
        contrastive = self._weighted_sum(terms)
        has_gradient = isinstance(contrastive, Tensor)  # it is the int 0 if both weights are 0
        gradients = torch.autograd.grad(contrastive, text)[0].split(len(chunks[0]["labels"])) if has_gradient else None

        for number, (chunk, seed) in enumerate(zip(chunks, seeds, strict=True)):
            is_last = number == len(chunks) - 1
            labels, text_states = _pop_labels(chunk), self._read_captions(chunk)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                with seeded(seed, text.device):
                    outputs = model(**chunk, use_cache=False)
                own = self._share_of_step(_token_terms(outputs, labels, counts, text_states))
                loss = self._weighted_sum(own)
                if has_gradient:
                    loss = loss + (outputs.text_embeds * gradients[number]).sum()
                if not isinstance(loss, Tensor):  # ITDD alone is on, and has no rows in this chunk
                    loss = 0.0 * outputs.logits.sum()
                if not is_last:
                    self.accelerator.backward(loss)
            terms |= {name: terms.get(name, 0) + term.detach() for name, term in own.items()}
        self._record(terms, (text, image, teacher), names)
        return loss + (self._weighted_sum(terms) - loss).detach()

    def _teacher_embeds(self, inputs: dict[str, Tensor]) -> Tensor:
        """Pop the teacher's inputs from the batch; t: (batch, projection_dim), unit norm."""
        if "teacher_embeds" in inputs:
            return F.normalize(inputs.pop("teacher_embeds"), dim=-1)  # the cache holds float16
        self.load_teacher()  # not yet loaded if the user passed a collator
        return teacher_embeds(self.teacher, inputs.pop("teacher_input_ids"), inputs.pop("teacher_attention_mask"))

    @torch.no_grad()
    def _read_captions(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...] | None:
        """Pop ITDD's captions from the batch, and return the original BART's hidden states on them, by layer."""
        if "itdd_input_ids" not in inputs:
            return None
        output = self.reader.model(
            inputs.pop("itdd_input_ids"),
            inputs.pop("itdd_attention_mask"),
            decoder_input_ids=inputs["itdd_decoder_input_ids"],
            output_hidden_states=True,
            use_cache=False,
        )
        return output.decoder_hidden_states[1:]  # without the embeddings

    def _contrastive_terms(self, text: Tensor, image: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        return {"ttdm": ttdm(text, teacher), "itcl": itcl(text, image, self.logit_scale)}

    def _share_of_step(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scale the terms so that their sum over accumulated batches, averaged over processes, is the step's mean.

        The token losses are already divided by the labels of the whole step on all processes; DDP divides again.
        """
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        batches = self.current_gradient_accumulation_steps
        return {name: term * processes if name in TOKEN_LOSSES else term / batches for name, term in terms.items()}

    def _record(self, terms: dict[str, Tensor], embeds: tuple[Tensor, ...], names: list[str] | None) -> None:
        """Add a batch to the log and to the check before the optimizer's step."""
        self.train_terms.add(terms, dict.fromkeys(terms, 1 / self.current_gradient_accumulation_steps))
        weights = self.args.loss_weights()
        self.finite_check.add({name: term for name, term in terms.items() if weights.get(name)}, embeds, names)

    def _eval_terms(
        self,
        outputs: ModelOutput,
        embeds: tuple[Tensor, ...],
        labels: dict[str, Tensor],
        text_states: tuple[Tensor, ...] | None,
    ) -> dict[str, Tensor]:
        """The terms of a batch, without the rows that accelerate repeats to fill the last batch of all processes.

        These come last in rank order. On a process with only such rows the terms are NaN, which counts as 0.
        """
        size, rows = len(labels["icti"]), None
        if self.accelerator.gradient_state.end_of_dataloader and self.accelerator.gradient_state.remainder > 0:
            rows = self.accelerator.gradient_state.remainder
        own = size if rows is None else min(max(rows - self.accelerator.process_index * size, 0), size)
        text, image, teacher = embeds
        labels = {name: torch.cat([part[:own], torch.full_like(part[own:], -100)]) for name, part in labels.items()}
        terms = {"ttdm": ttdm(text[:own], teacher[:own]), "itcl": itcl(text, image, self.logit_scale, rows)}
        terms |= _token_terms(outputs, labels, {}, text_states)
        weights = {name: labels[name].ne(-100).sum() if name in TOKEN_LOSSES else own for name in terms}
        self.eval_terms.add({name: (term * weights[name]).nan_to_num() for name, term in terms.items()}, weights)
        return terms

    def _weighted_sum(self, terms: dict[str, Any]) -> Any:
        """Σ λ · term, without terms of weight 0, which need no backward pass."""
        weights = self.args.loss_weights()
        return sum(weight * terms[name] for name, weight in weights.items() if weight and name in terms)

    # ---- optimizer

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """As `Trainer`'s, with separate parameter groups and Muon for the projections W_e and W_d."""
        if self.optimizer is not None:
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        names = tuple(self.model.projection_parameter_names())  # wrappers put prefixes before these names
        named = (self.model if model is None else model).named_parameters()
        projectors = [parameter for name, parameter in named if name.endswith(names)]
        split_projector_groups(optimizer, projectors, self.args.projector_learning_rate)
        self.optimizer = with_muon(optimizer, projectors) if self.args.projector_optimizer == "muon" else optimizer
        return self.optimizer

    # ---- logs

    def reset_logs(self) -> None:
        """Discard everything recorded since the last log line."""
        self.train_terms, self.eval_terms = RunningMeans(), RunningMeans()
        self._window: tuple[float, int] | None = None  # time and step at which the logging window began

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self._window = self._window or (time.perf_counter(), self.state.global_step)
        return super().training_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.train_terms.sums:  # a log line of training
            seconds, steps = time.perf_counter() - self._window[0], self.state.global_step - self._window[1]
            logs |= self.train_terms.pop(self.accelerator)
            logs["samples_per_second"] = steps * self.get_total_train_batch_size(self.args) / seconds
            self._window = (time.perf_counter(), self.state.global_step)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        start = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        if self._window is not None:  # samples_per_second does not count the time of evaluation
            self._window = (self._window[0] + time.perf_counter() - start, self._window[1])
        return metrics

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As `Trainer`'s, with every raw term, and with the weighted sum of their means over the split as loss."""
        self.eval_terms = RunningMeans()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        terms = self.eval_terms.pop(self.accelerator)
        terms["loss"] = self._weighted_sum(terms)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in terms.items()})
        return output

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """0: `Trainer`'s estimate ignores the image and the second text, and walks all modules in each step."""
        return 0

    # ---- saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer`'s, with the configuration of the run in train.yaml."""
        if self.args.should_save:
            save_train_config(output_dir or self.args.output_dir, self.args, self.run_config)
        super().save_model(output_dir, _internal_call)

    def save_extra_state(self, checkpoint: Path) -> None:
        """Save the position in a stream. For other data the number of steps is enough."""
        if isinstance(self.train_dataset, StreamingDataset):
            save_stream_state(self.stream, checkpoint, self.args)

    def check_checkpoint(self, checkpoint: str) -> None:
        check_same_optimizer(checkpoint, self.args)


def _pop_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pop the labels of each token loss from the batch."""
    return {loss: batch.pop(name) for loss, name in TOKEN_LOSSES.items() if name in batch}


def _token_terms(
    outputs: ModelOutput,
    labels: dict[str, Tensor],
    counts: dict[str, Tensor | float],
    text_states: tuple[Tensor, ...] | None,
) -> dict[str, Tensor]:
    """ICTI and, if it is on, ITDD."""
    terms = {"icti": icti(outputs.logits, labels["icti"], counts.get("icti"))}
    if "itdd" in labels:
        terms["itdd"] = itdd(outputs.itdd_hidden_states, text_states, labels["itdd"], counts.get("itdd"))
    return terms
