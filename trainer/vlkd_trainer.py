"""The training loop: transformers' `Trainer` with the three losses."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import ModelOutput

from trainer.arguments import VLKDTrainingArguments
from trainer.cache.clip_features import TeacherEmbeds, add_cached_columns
from trainer.callbacks import FiniteCheck
from trainer.checkpoints import AtomicCheckpointMixin
from trainer.data.collator import VLKDDataCollator, check_collator
from trainer.data.epoch_dataset import EpochDataset
from trainer.data.rows import check_column
from trainer.data.streaming import StreamingDataset, load_stream_state, save_stream_state, stream_loader
from trainer.grad_cache import draw_seeds, embed, seeded, split
from trainer.hub.train_config import save_recipe
from trainer.hub.trainer_mixin import HubUploadMixin
from trainer.losses import icti, itcl, itdd, ttdm
from trainer.models import check_teacher, load_teacher, teacher_embeds, teacher_name
from trainer.optimizers import with_muon
from trainer.running_means import RunningMeans

TOKEN_LOSSES = {"icti": "labels", "itdd": "itdd_labels"}  # and their labels


class VLKDTrainer(AtomicCheckpointMixin, HubUploadMixin):
    """Trains a `VLKDForConditionalGeneration` on images and captions.

    `loss` is λ₁ ttdm + λ₂ itcl + λ₃ icti (+ λ₄ itdd), and every raw term is logged beside it: in training
    the mean over the logging window, all processes and accumulated batches; in evaluation (`eval_ttdm`, …) the mean
    over the whole split, for icti and itdd over its tokens. Evaluation draws captions and corruptions as epoch
    0 does, whenever it runs; eval_itcl depends on the batch size, which sets the number of its negatives.

    A loss or gradient that is not finite stops training before the optimizer's step, by a FloatingPointError that
    names the rows.

    Without a `data_collator`, the trainer prepares everything itself: it builds a `VLKDDataCollator` from `args` and
    embeds the captions of `datasets.Dataset`s by the teacher, once, into the feature cache. The teacher is the text
    tower of `args.clip`, or of the CLIP that `model.config.base_models` names. It is loaded only where rows have no
    `teacher_embeds`.

    Args:
        model: the model to train; or give `model_init`.
        args: the training arguments.
        train_dataset, eval_dataset: rows with an `image` and a `caption` (a text, or a list of texts of which one is
            drawn each epoch). A `datasets.Dataset` becomes an `EpochDataset`; an `EpochDataset`, or for training a
            `StreamingDataset`, is used as it is.
        processing_class: the `VLKDProcessor`; it is saved beside the weights.
        data_collator: in place of the one built from `args`, which then must agree with it.
        sources: names of checkpoints and data, by their keys in `train.yaml`, which is saved beside the weights.
        **kwargs: other arguments of `Trainer`, except `compute_loss_func`.

    Raises:
        ValueError: two arguments contradict each other, or the teacher or a column is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: VLKDTrainingArguments | None = None,
        *,
        train_dataset: Dataset | EpochDataset | StreamingDataset | None = None,
        eval_dataset: Dataset | EpochDataset | dict[str, Dataset | EpochDataset] | None = None,
        processing_class: ProcessorMixin | None = None,
        data_collator: Callable | None = None,
        sources: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        args = VLKDTrainingArguments("trainer_output") if args is None else args
        check_trainer_arguments(args, train_dataset, processing_class, data_collator, kwargs)
        self.train_terms, self.eval_terms = RunningMeans(), RunningMeans()
        self.teacher, self.teacher_tokenizer = None, None  # see load_teacher
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.sources = sources or {}
        # compute_loss divides by the accumulation steps itself: each term in its own way.
        self.loss_is_scaled_for_ga = True
        self.builds_collator = data_collator is None
        self.prepare_model()
        self.train_dataset = self.prepare_dataset(self.train_dataset)
        self.eval_dataset = self.prepare_dataset(self.eval_dataset)
        if isinstance(self.eval_dataset, EpochDataset) and self.eval_dataset is self.train_dataset:
            self.eval_dataset = self.eval_dataset.at_first_epoch()
        if isinstance(self.train_dataset, StreamingDataset):
            args.ignore_data_skip = True  # a stream resumes at its place by itself and reads nothing to get there
        self._window: tuple[float, int] | None = None  # time and step at which the present logging window began
        self.finite_check = FiniteCheck(self)
        self.add_callback(self.finite_check)
        self.add_callback(StartTraining(self))

    # ---- model, teacher and data

    def prepare_model(self) -> None:
        """Apply `args` to the model and build what depends on both: at the start, and for each trial of a search."""
        model, args = self.model, self.args
        if args.freeze != "none":  # "none" leaves what the caller froze, such as the base model of an adapter
            if hasattr(model, "peft_config"):
                raise ValueError(
                    f"freeze={args.freeze!r} would undo the adapter's own choice of what learns; set freeze='none'."
                )
            model.freeze_language_model(args.freeze)
        # BART as it is before training, which reads captions for ITDD.
        self.reader = model.to_bart().to(args.device).eval().requires_grad_(False) if args.itdd_weight else None
        self.logit_scale = model.logit_scale.detach().clone()  # frozen; read here, before anything shards the model
        if self.builds_collator:
            self.data_collator = VLKDDataCollator.from_args(
                args, model.config, self.processing_class, self.teacher_tokenizer
            )

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        """As `Trainer`'s; in `train`, which wants a new model, with `args` applied to it."""
        model = super().call_model_init(trial)
        if getattr(self, "model", None) is not None:
            self.model = model.to(self.args.device)
            self.prepare_model()
        return model

    def _hp_search_setup(self, trial: Any) -> None:
        """As `Trainer`'s, which sets the trial's values in `args` after the model was made."""
        super()._hp_search_setup(trial)
        if trial is not None:
            self.prepare_model()

    def load_teacher(self) -> None:
        """Load CLIP's text tower and tokenizer, once.

        Raises:
            ValueError: its name is not known, there is no such checkpoint, or it embeds in another space.
        """
        if self.teacher is not None:
            return
        clip = teacher_name(self.args.clip, self.model.config)
        teacher, self.teacher_tokenizer = load_teacher(clip)
        check_teacher(teacher, self.model, clip)
        self.teacher = teacher.to(self.args.device)
        if self.builds_collator:
            self.data_collator.teacher_tokenizer = self.teacher_tokenizer

    def prepare_dataset(self, dataset: Any) -> Any:
        """Rows as the collator takes them; a `datasets.Dataset` gets the teacher's embeddings of its captions.

        Raises:
            ValueError: a column or a caption is missing.
        """
        if isinstance(dataset, dict):
            return {name: self.prepare_dataset(part) for name, part in dataset.items()}
        if dataset is None:
            return None
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
        """As `Trainer`'s; a stream, which splits itself over processes and workers, goes past accelerate."""
        if not isinstance(self.train_dataset, StreamingDataset):
            return super().get_train_dataloader()
        self.stream = stream_loader(self.train_dataset, self.data_collator, self.args, self._train_batch_size)
        if self.resumed_from is not None:
            load_stream_state(self.stream, self.resumed_from, self.args)
        return self.stream

    def save_extra_state(self, checkpoint: Path) -> None:
        """The place in the stream, which map-style data does not have: there the number of steps tells it."""
        if isinstance(self.train_dataset, StreamingDataset):
            save_stream_state(self.stream, checkpoint, self.args)

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
        """The weighted sum of the losses: in training the batch's share of the step, in evaluation its mean."""
        inputs = dict(inputs)
        names = inputs.pop("row_names", None)
        if "itdd_labels" not in inputs and self.args.itdd_weight:
            raise ValueError("itdd_weight is set, but the batch has no ITDD targets; use with_itdd_targets=True.")
        count = num_items_in_batch if model.training else None  # of labels: ITDD has those of ICTI in other rows
        size = self.args.contrastive_chunk_size
        if model.training and size and size < len(inputs["labels"]):
            return self._chunked_loss(model, split(inputs, size), count, names)

        labels, text_states = _take_labels(inputs), self._read_text(inputs)
        teacher = self._teacher_embeds(inputs)
        outputs = model(**inputs, use_cache=False)  # the one call of a step: DDP and FSDP allow no second
        embeds = (outputs.text_embeds.float(), outputs.image_embeds.float(), teacher)  # bf16_full_eval casts the model
        if model.training:
            terms = self._contrastive_terms(*embeds) | _token_terms(outputs, labels, count, text_states)
            terms = self._share_of_step(terms)
            self._note(terms, embeds, names)
        else:
            terms = self._eval_terms(outputs, embeds, labels, text_states)
        loss = self._weighted_sum(terms)
        return (loss, outputs) if return_outputs else loss

    def _chunked_loss(
        self,
        model: torch.nn.Module,
        chunks: list[dict[str, Tensor]],
        count: Tensor | int | None,
        names: list[str] | None,
    ) -> Tensor:
        """The loss of the whole batch, as in `trainer.grad_cache`; the caller runs the last chunk's backward pass."""
        teacher = torch.cat([self._teacher_embeds(chunk) for chunk in chunks])
        seeds = draw_seeds(len(chunks))
        with self.accelerator.autocast():
            text, image = embed(self.model, chunks, seeds)
        terms = self._share_of_step(self._contrastive_terms(text.requires_grad_(), image, teacher))
        contrastive = self._weighted_sum(terms)
        learns = isinstance(contrastive, Tensor)  # 0 where both weights are
        gradients = torch.autograd.grad(contrastive, text)[0].split(len(chunks[0]["labels"])) if learns else None

        for number, (chunk, seed) in enumerate(zip(chunks, seeds, strict=True)):
            is_last = number == len(chunks) - 1
            labels, text_states = _take_labels(chunk), self._read_text(chunk)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                with seeded(seed, text.device):
                    outputs = model(**chunk, use_cache=False)
                own = self._share_of_step(_token_terms(outputs, labels, count, text_states))
                loss = self._weighted_sum(own)
                if learns:
                    loss = loss + (outputs.text_embeds * gradients[number]).sum()
                if not is_last:
                    self.accelerator.backward(loss)
            terms |= {name: terms.get(name, 0) + term.detach() for name, term in own.items()}
        self._note(terms, (text, image, teacher), names)
        return loss + (self._weighted_sum(terms) - loss).detach()

    def _contrastive_terms(self, text: Tensor, image: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        return {"ttdm": ttdm(text, teacher), "itcl": itcl(text, image, self.logit_scale)}

    def _note(self, terms: dict[str, Tensor], embeds: tuple[Tensor, ...], names: list[str] | None) -> None:
        """For the log, and for the check before the optimizer's step."""
        self.train_terms.add(terms, dict.fromkeys(terms, 1 / self.current_gradient_accumulation_steps))
        weights = self.args.loss_weights()
        self.finite_check.note({name: term for name, term in terms.items() if weights.get(name)}, embeds, names)

    def _teacher_embeds(self, inputs: dict[str, Tensor]) -> Tensor:
        """Take what is the teacher's out of the batch; t: (batch, projection_dim), unit norm."""
        if "teacher_embeds" in inputs:
            return F.normalize(inputs.pop("teacher_embeds"), dim=-1)  # the cache's float16 has rounded the norm
        self.load_teacher()  # a collator of the user's own may tokenize for it
        return teacher_embeds(self.teacher, inputs.pop("teacher_input_ids"), inputs.pop("teacher_attention_mask"))

    @torch.no_grad()
    def _read_text(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...] | None:
        """Take the captions that ITDD reads out of the batch; the states of each layer of the decoder at them."""
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

    def _share_of_step(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scale the terms so that their sum over accumulated batches, averaged over processes, is the step's mean.

        The token losses are already divided by the labels of the whole step, on all processes; DDP will divide again.
        """
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        batches = self.current_gradient_accumulation_steps
        return {name: term * processes if name in TOKEN_LOSSES else term / batches for name, term in terms.items()}

    def _eval_terms(
        self,
        outputs: ModelOutput,
        embeds: tuple[Tensor, ...],
        labels: dict[str, Tensor],
        text_states: tuple[Tensor, ...] | None,
    ) -> dict[str, Tensor]:
        """The terms of a batch, without the rows that accelerate repeats to fill the last one of several processes.

        Those come after the others, in rank order. A process that has no other rows gets NaN, which does not count.
        """
        size, rows = len(labels["icti"]), None
        if self.accelerator.gradient_state.end_of_dataloader and self.accelerator.gradient_state.remainder > 0:
            rows = self.accelerator.gradient_state.remainder
        own = size if rows is None else min(max(rows - self.accelerator.process_index * size, 0), size)
        text, image, teacher = embeds
        labels = {name: torch.cat([part[:own], torch.full_like(part[own:], -100)]) for name, part in labels.items()}
        terms = {"ttdm": ttdm(text[:own], teacher[:own]), "itcl": itcl(text, image, self.logit_scale, rows)}
        terms |= _token_terms(outputs, labels, None, text_states)
        weights = {name: labels[name].ne(-100).sum() if name in TOKEN_LOSSES else own for name in terms}
        self.eval_terms.add({name: (term * weights[name]).nan_to_num() for name, term in terms.items()}, weights)
        return terms

    def _weighted_sum(self, terms: dict[str, Any]) -> Any:
        """Σ λ · term over the terms given, without those of weight 0, which so cost no backward pass."""
        weights = self.args.loss_weights()
        return sum(weight * terms[name] for name, weight in weights.items() if weight and name in terms)

    # ---- optimisation

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """`Trainer`'s two parameter groups, with and without weight decay, each split into BART and the two maps."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            names = tuple(self.model.projection_parameter_names())  # wrappers put their own prefix before a name
            named = (self.model if model is None else model).named_parameters()
            maps = {id(parameter) for name, parameter in named if name.endswith(names)}
            self._split_off_projections(optimizer, maps)
            if self.args.projector_optimizer == "muon":
                self.optimizer = optimizer = with_muon(optimizer, maps)
        return optimizer

    def _split_off_projections(self, optimizer: torch.optim.Optimizer, maps: set[int]) -> None:
        rate = self.args.projector_learning_rate
        for group in list(optimizer.param_groups):
            of_maps = [parameter for parameter in group["params"] if id(parameter) in maps]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in maps]
            if of_maps:
                optimizer.add_param_group({**group, "params": of_maps, "lr": group["lr"] if rate is None else rate})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]

    # ---- logs

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self._window = self._window or (time.perf_counter(), self.state.global_step)
        return super().training_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.train_terms.sums:  # one of training's
            seconds, steps = time.perf_counter() - self._window[0], self.state.global_step - self._window[1]
            logs |= self.train_terms.pop(self.accelerator)
            logs["samples_per_second"] = steps * self.get_total_train_batch_size(self.args) / seconds
            self._window = (time.perf_counter(), self.state.global_step)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        start = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        if self._window is not None:  # do not count the time in samples_per_second
            self._window = (self._window[0] + time.perf_counter() - start, self._window[1])
        return metrics

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """`Trainer`'s, with every raw term, and with the loss as the weighted sum of their means over the split."""
        self.eval_terms = RunningMeans()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        terms = self.eval_terms.pop(self.accelerator)
        terms["loss"] = self._weighted_sum(terms)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in terms.items()})
        return output

    # ---- Hub

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer`'s, with the recipe beside the weights: train.yaml."""
        if self.args.should_save:
            save_recipe(output_dir or self.args.output_dir, self.args, self.sources)
        super().save_model(output_dir, _internal_call)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Not counted: `Trainer`'s estimate knows neither image nor second text, and walks all modules each step."""
        return 0


class StartTraining(TrainerCallback):
    """Clears what an interrupted run left, and tells the training rows which epoch begins.

    In a run that resumes within an epoch, the state's epoch has a fraction.
    """

    def __init__(self, trainer: VLKDTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.train_terms = RunningMeans()
        self.trainer._window = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.trainer.train_dataset, EpochDataset):
            self.trainer.train_dataset.start_epoch(int(state.epoch))


def check_trainer_arguments(
    args: VLKDTrainingArguments,
    train_dataset: Any,
    processing_class: ProcessorMixin | None,
    collator: Callable | None,
    others: dict[str, Any],
) -> None:
    """
    Raises:
        ValueError: arguments of `VLKDTrainer` contradict each other, or one would have no effect.
    """
    if args.n_gpu > 1:
        raise ValueError(f"{args.n_gpu} GPUs in one process; start one process a GPU with torchrun.")
    if args.world_size > 1 and not args.accelerator_config.even_batches:
        raise ValueError(
            "accelerator_config sets even_batches to False, so that processes may run different numbers of batches, "
            "but ITCL compares the rows of all processes; leave it out."
        )
    if others.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func has no effect: the losses are VLKD's. Override compute_loss instead.")
    own_rates = args.projector_learning_rate is not None or args.projector_optimizer != "adamw"
    if own_rates and others.get("optimizers", (None, None))[0] is not None:
        raise ValueError(
            "projector_learning_rate and projector_optimizer have no effect on an optimizer that is passed in "
            "`optimizers`; leave them, or it, out."
        )
    if isinstance(train_dataset, StreamingDataset):
        for name, default in (("data_seed", None), ("train_sampling_strategy", "random")):
            if getattr(args, name) != default:
                raise ValueError(
                    f"{name} is {getattr(args, name)!r}, which has no effect on a stream: `seed` draws its order, and "
                    f"shuffle_buffer_size: 0 keeps it. Set {name} to {default!r}."
                )
    if isinstance(train_dataset, dict):
        raise ValueError(
            f"train_dataset holds the splits {', '.join(train_dataset)}; pass one of them, such as "
            f"train_dataset=dataset[{next(iter(train_dataset), 'train')!r}]."
        )
    if collator is None and processing_class is None:
        raise ValueError("processing_class is not set; pass the VLKDProcessor, from which the collator is built.")
    if collator is not None:
        check_collator(collator, args)


def _take_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The labels of each token loss, out of the batch."""
    return {loss: batch.pop(name) for loss, name in TOKEN_LOSSES.items() if name in batch}


def _token_terms(
    outputs: ModelOutput,
    labels: dict[str, Tensor],
    count: Tensor | int | None,
    text_states: tuple[Tensor, ...] | None,
) -> dict[str, Tensor]:
    """ICTI, and those of the others that are on."""
    terms = {"icti": icti(outputs.logits, labels["icti"], count)}
    if "itdd" in labels:
        terms["itdd"] = itdd(outputs.itdd_hidden_states, text_states, labels["itdd"], count)
    return terms


def column_names(dataset: Any) -> list[str]:
    """The columns of a dataset, or of the one in an `EpochDataset`; none where they are not known before reading."""
    dataset = dataset.dataset if isinstance(dataset, EpochDataset) else dataset
    return list(getattr(dataset, "column_names", None) or ())
