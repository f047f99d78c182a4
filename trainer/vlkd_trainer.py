"""The training loop: transformers' `Trainer` with the three losses."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import CLIPTextModelWithProjection, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import ModelOutput

from trainer.checkpoints import WholeCheckpoints
from trainer.data import EpochDataset
from trainer.feature_cache import teacher_embeds
from trainer.finite_check import FiniteCheck
from trainer.grad_cache import draw_seeds, embed, seeded, split
from trainer.hub_uploads import HubUploads
from trainer.losses import icti, itcl, itdd, ttdm
from trainer.optimizers import with_muon
from trainer.recipe import save_recipe
from trainer.running_means import RunningMeans
from trainer.stream_loader import load_place, save_place, stream_loader
from trainer.streaming import StreamingDataset
from trainer.training_args import VLKDTrainingArguments

TOKEN_LOSSES = {"icti": "labels", "replay": "replay_labels", "itdd": "reading_labels"}  # and their labels


class VLKDTrainer(WholeCheckpoints, HubUploads):
    """Trains a `VLKDForConditionalGeneration` on images and captions.

    `loss` is λ₁ ttdm + λ₂ itcl + λ₃ icti (+ λ₄ replay + λ₅ itdd), and every raw term is logged beside it: in training
    the mean over the logging window, all processes and accumulated batches; in evaluation (`eval_ttdm`, …) the mean
    over the whole split, for icti, replay and itdd over its tokens. Evaluation draws captions and corruptions as epoch
    0 does, whenever it runs; eval_itcl depends on the batch size, which sets the number of its negatives.

    A loss or gradient that is not finite stops training before the optimizer's step, by a FloatingPointError that
    names the rows.

    Args:
        model: its `forward`, `logit_scale`, `freeze_language_model` and `projection_parameter_names` are used.
        args: the training arguments.
        teacher: CLIP's text tower; only for batches without `teacher_embeds`.
        train_dataset, eval_dataset: rows for the collator; whatever is not yet an `EpochDataset` becomes one. To train
            on, a `StreamingDataset` too.
        sources: names of checkpoints and data, by their keys in `train.yaml`, which is saved beside the weights.
        **kwargs: what else `Trainer` takes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: VLKDTrainingArguments,
        teacher: CLIPTextModelWithProjection | None = None,
        train_dataset: Dataset | EpochDataset | StreamingDataset | None = None,
        eval_dataset: Dataset | EpochDataset | dict[str, Dataset | EpochDataset] | None = None,
        sources: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        if args.n_gpu > 1:
            raise ValueError(f"{args.n_gpu} GPUs in one process; start one process a GPU with torchrun.")
        if args.freeze != "nothing":  # "nothing" leaves alone what the caller froze, a PEFT model's base for one
            if hasattr(model, "peft_config"):
                raise ValueError(
                    f"freeze={args.freeze!r} would undo the adapter's own choice of what learns; set freeze='nothing'."
                )
            model.freeze_language_model(args.freeze)
        train_dataset, eval_dataset = _with_epochs(train_dataset), _with_epochs(eval_dataset)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.sources = sources or {}
        # compute_loss divides by the accumulation steps itself: each term in its own way.
        self.loss_is_scaled_for_ga = True
        self.teacher = teacher and teacher.to(args.device).eval().requires_grad_(False)
        # What an image is to be read like: BART as it is before training.
        self.reader = model.to_bart().to(args.device).eval().requires_grad_(False) if args.itdd_weight else None
        self.logit_scale = model.logit_scale.detach().clone()  # frozen; read here, before anything shards the model
        self.train_terms = RunningMeans()
        self._window: tuple[float, int] | None = None  # when, and at which step, the present logging window began
        self.finite_check = FiniteCheck(self.accelerator)
        self.add_callback(self.finite_check)
        if isinstance(train_dataset, EpochDataset):
            self.add_callback(StartEpoch(train_dataset))
        elif train_dataset is not None:
            args.ignore_data_skip = True  # a stream takes up its place by itself, and reads nothing to get there

    # ---- data

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """As `Trainer`'s; a stream, which splits itself over processes and workers, goes past accelerate."""
        if not isinstance(self.train_dataset, StreamingDataset):
            return super().get_train_dataloader()
        self.stream = stream_loader(self.train_dataset, self.data_collator, self.args)
        if self.resumed_from is not None:
            load_place(self.stream, self.resumed_from, self.args)
        return self.stream

    def save_more(self, checkpoint: Path) -> None:
        """The place in the stream, which map-style data does not have: there the number of steps tells it."""
        if isinstance(self.train_dataset, StreamingDataset):
            save_place(self.stream, checkpoint, self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        named = eval_dataset is None or isinstance(eval_dataset, str)
        return super().get_eval_dataloader(eval_dataset if named else _with_epochs(eval_dataset))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """Count the replay's labels too, over the step's batches and processes, as `Trainer` counts the captions'."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and "replay_labels" in batches[0]:
            count = sum(batch["replay_labels"].ne(-100).sum() for batch in batches).to(device)
            count = self.accelerator.gather(count).sum() if self.args.average_tokens_across_devices else count
            batches = [{**batch, "replay_num_items": count} for batch in batches]
        return batches, num_items

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
        if "replay_labels" not in inputs and self.args.replay_weight:
            raise ValueError("replay_weight is set, but the rows carry no document; use EpochDataset(dataset, texts).")
        if "reading_labels" not in inputs and self.args.itdd_weight:
            raise ValueError("itdd_weight is set, but the batch holds no readings; give the collator readings=True.")
        counts = {
            "icti": num_items_in_batch if model.training else None,
            "itdd": num_items_in_batch if model.training else None,  # it reads the same captions, in other rows
            "replay": inputs.pop("replay_num_items", None),
        }
        size = self.args.contrastive_chunk_size
        if model.training and size and size < len(inputs["labels"]):
            return self._chunked_loss(model, split(inputs, size), counts, names)

        labels, text_states = _take_labels(inputs), self._read_text(inputs)
        teacher = self._teacher_embeds(inputs)
        outputs = model(**inputs, use_cache=False)  # the one call of a step: DDP and FSDP allow no second
        embeds = (outputs.text_embeds, outputs.image_embeds, teacher)
        terms = self._contrastive_terms(*embeds) | _token_terms(outputs, labels, counts, text_states)
        if model.training:
            terms = self._share_of_step(terms)
            self._note(terms, embeds, names)
        else:
            self._add_eval_terms(terms, labels)
        loss = self._weighted_sum(terms)
        return (loss, outputs) if return_outputs else loss

    def _chunked_loss(
        self, model: torch.nn.Module, chunks: list[dict[str, Tensor]], counts: dict[str, Any], names: list[str] | None
    ) -> Tensor:
        """The whole batch's loss, as `trainer.grad_cache` tells; only the last chunk has yet to go back."""
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
                own = self._share_of_step(_token_terms(outputs, labels, counts, text_states))
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
        if self.teacher is None:
            raise ValueError(
                "the batch has no `teacher_embeds` and the trainer no teacher; pass teacher=CLIP's text tower."
            )
        return teacher_embeds(self.teacher, inputs.pop("teacher_input_ids"), inputs.pop("teacher_attention_mask"))

    @torch.no_grad()
    def _read_text(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...] | None:
        """Take the captions that ITDD reads out of the batch; the states of each layer of the decoder at them."""
        if "reading_input_ids" not in inputs:
            return None
        output = self.reader.model(
            inputs.pop("reading_input_ids"),
            inputs.pop("reading_attention_mask"),
            decoder_input_ids=inputs["reading_decoder_input_ids"],
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

    def _add_eval_terms(self, terms: dict[str, Tensor], labels: dict[str, Tensor]) -> None:
        rows = len(labels["icti"])
        weights = {name: labels[name].ne(-100).sum() if name in TOKEN_LOSSES else rows for name in terms}
        self.eval_terms.add({name: term * weights[name] for name, term in terms.items()}, weights)

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
            if self.args.projection_optimizer == "muon":
                self.optimizer = optimizer = with_muon(optimizer, maps)
        return optimizer

    def _split_off_projections(self, optimizer: torch.optim.Optimizer, maps: set[int]) -> None:
        rate = self.args.projection_learning_rate
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
        if "loss" in logs:  # one of training's
            seconds, steps = time.perf_counter() - self._window[0], self.state.global_step - self._window[1]
            logs |= self.train_terms.pop(self.accelerator)
            logs["samples_per_second"] = steps * self.get_total_train_batch_size(self.args) / seconds
            self._window = (time.perf_counter(), self.state.global_step)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._window = None  # the time that evaluation takes is not training's
        return super().evaluate(*args, **kwargs)

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


class StartEpoch(TrainerCallback):
    """Tells the training rows which epoch begins; when resumed within one, the state's epoch has a fraction."""

    def __init__(self, dataset: EpochDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.start_epoch(int(state.epoch))


def _take_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The labels of each token loss, out of the batch."""
    return {loss: batch.pop(name) for loss, name in TOKEN_LOSSES.items() if name in batch}


def _token_terms(
    outputs: ModelOutput, labels: dict[str, Tensor], counts: dict[str, Any], text_states: tuple[Tensor, ...] | None
) -> dict[str, Tensor]:
    """ICTI, and those of the others that are on."""
    terms = {"icti": icti(outputs.logits, labels["icti"], counts["icti"])}
    if "replay" in labels:
        terms["replay"] = icti(outputs.replay_logits, labels["replay"], counts["replay"])
    if "itdd" in labels:
        terms["itdd"] = itdd(outputs.reading_states, text_states, labels["itdd"], counts["itdd"])
    return terms


def _with_epochs(dataset: Any) -> Any:
    if isinstance(dataset, dict):
        return {name: _with_epochs(part) for name, part in dataset.items()}
    return (
        dataset if dataset is None or isinstance(dataset, EpochDataset | StreamingDataset) else EpochDataset(dataset)
    )
