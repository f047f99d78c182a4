"""The training loop: transformers' `Trainer` with the three losses."""

import shutil
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset
from huggingface_hub import CommitInfo
from torch import Tensor
from transformers import CLIPTextModelWithProjection, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, HubStrategy
from transformers.utils import ModelOutput, PushInProgress

from trainer.card import card_by_hand, make_card
from trainer.data import EpochDataset
from trainer.feature_cache import teacher_embeds
from trainer.hub import repository_files, upload
from trainer.losses import icti, itcl, ttdm
from trainer.optimizers import with_muon
from trainer.recipe import save_recipe
from trainer.training_args import VLKDTrainingArguments

TOKEN_LOSSES = ("icti", "replay")


class VLKDTrainer(Trainer):
    """Trains a `VLKDForConditionalGeneration` on images and captions.

    `loss` is λ₁ ttdm + λ₂ itcl + λ₃ icti (+ λ₄ replay), and every raw term is logged beside it: in training the mean
    over the logging window, all processes and accumulated batches; in evaluation (`eval_ttdm`, …) the mean over the
    whole split, for icti and replay over its tokens. Evaluation draws captions and corruptions as epoch 0 does,
    whenever it runs; eval_itcl depends on the batch size, which sets the number of its negatives.

    Args:
        model: its `forward`, `logit_scale`, `freeze_language_model` and `projection_parameter_names` are used.
        args: the training arguments.
        teacher: CLIP's text tower; only for batches without `teacher_embeds`.
        train_dataset, eval_dataset: rows for the collator; whatever is not yet an `EpochDataset` becomes one.
        sources: names of checkpoints and data, by their keys in `train.yaml`, which is saved beside the weights.
        **kwargs: what else `Trainer` takes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: VLKDTrainingArguments,
        teacher: CLIPTextModelWithProjection | None = None,
        train_dataset: Dataset | EpochDataset | None = None,
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
        self.logit_scale = model.logit_scale.detach().clone()  # frozen; read here, before anything shards the model
        self.train_terms = RunningMeans()
        self._window: tuple[float, int] | None = None  # when, and at which step, the present logging window began
        if train_dataset is not None:
            self.add_callback(StartEpoch(train_dataset))

    # ---- data

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
        teacher = self._teacher_embeds(inputs)
        labels, replay_labels = inputs.pop("labels"), inputs.pop("replay_labels", None)
        replay_num_items = inputs.pop("replay_num_items", None)
        outputs = model(**inputs, use_cache=False)  # the one call of a step: DDP and FSDP allow no second

        terms = {
            "ttdm": ttdm(outputs.text_embeds, teacher),
            "itcl": itcl(outputs.text_embeds, outputs.image_embeds, self.logit_scale),
            "icti": icti(outputs.logits, labels, num_items_in_batch if model.training else None),
        }
        if replay_labels is None and self.args.replay_weight:
            raise ValueError("replay_weight is set, but the rows carry no document; use EpochDataset(dataset, texts).")
        if replay_labels is not None:
            terms["replay"] = icti(outputs.replay_logits, replay_labels, replay_num_items)
        if model.training:
            terms = self._share_of_step(terms)
            self.train_terms.add(terms, dict.fromkeys(terms, 1 / self.current_gradient_accumulation_steps))
        else:
            self._add_eval_terms(terms, {"icti": labels, "replay": replay_labels})
        loss = self._weighted_sum(terms)
        return (loss, outputs) if return_outputs else loss

    def _teacher_embeds(self, inputs: dict[str, Tensor]) -> Tensor:
        """Take what is the teacher's out of the batch; t: (batch, projection_dim), unit norm."""
        if "teacher_embeds" in inputs:
            return F.normalize(inputs.pop("teacher_embeds"), dim=-1)  # the cache's float16 has rounded the norm
        if self.teacher is None:
            raise ValueError(
                "the batch has no `teacher_embeds` and the trainer no teacher; pass teacher=CLIP's text tower."
            )
        return teacher_embeds(self.teacher, inputs.pop("teacher_input_ids"), inputs.pop("teacher_attention_mask"))

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
        """Σ λ · term, without the terms of weight 0, which so cost no backward pass."""
        return sum(weight * terms[name] for name, weight in self.args.loss_weights().items() if weight)

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

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the card of `model_card.md`; one written by hand is kept, and an adapter's is PEFT's affair."""
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PreTrainedModel):
            return super().create_model_card(language, license, tags, dataset_tags=dataset_tags, **kwargs)
        folder = self.args.output_dir
        if self.is_world_process_zero() and card_by_hand(folder) is None:
            card = make_card(folder, model.config, self.hub_model_id or Path(folder).absolute().name)
            card.data.language, card.data.license = language or card.data.language, license or card.data.license
            for key, more in (("tags", tags), ("datasets", dataset_tags)):
                more = [more] if isinstance(more, str) else more or []
                card.data[key] = list(dict.fromkeys([*(card.data.get(key) or []), *more])) or None
            card.save(Path(folder, "README.md"))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """As `Trainer`'s, but what goes up is a complete repository with our card, and no pickle."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self._finish_current_push()  # before the files that it reads are written anew
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        return self._upload(self.args.output_dir, commit_message, token, revision, run_as_future=not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """`Trainer` calls this after every save, and would push a model without its code, with two pickles."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress and not self.push_in_progress.is_done() and not args.hub_always_push:
            return
        self._finish_current_push()  # it reads the files that are written next
        self.callback_handler.on_push_begin(args, self.state, self.control)
        for file in repository_files(checkpoint_folder).values():  # the checkpoint may be deleted during the upload
            shutil.copy(file, args.output_dir)
        self.create_model_card()
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._upload(args.output_dir, message, run_as_future=True)]
        names = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name}
        if name := names.get(args.hub_strategy):
            jobs.append(self._upload(checkpoint_folder, message, prefix=f"{name}/", run_as_future=True))
        self.push_in_progress = PushInProgress(jobs)

    def _upload(
        self,
        folder: str,
        message: str | None,
        token: str | None = None,
        revision: str | None = None,
        prefix: str = "",
        run_as_future: bool = False,
    ) -> CommitInfo | Future:
        files = {prefix + name: file for name, file in repository_files(folder).items()}
        if not prefix:
            files["README.md"] = Path(folder, "README.md")
        return upload(
            files,
            self.hub_model_id,
            message=message or "End of training",
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=run_as_future,
        )

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Not counted: `Trainer`'s estimate knows neither image nor second text, and walks all modules each step."""
        return 0


class RunningMeans:
    """Weighted means of named scalars, summed where they are computed: no synchronisation before they are read."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor | float] = {}

    def add(self, weighted: dict[str, Tensor], weights: dict[str, Tensor | float]) -> None:
        """Add values already multiplied by their weights."""
        for name, value in weighted.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.weights[name] = self.weights.get(name, 0) + weights[name]

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes, which must hold the same names; starts anew."""
        names = list(self.sums)
        sums = torch.stack([self.sums[name].float() for name in names])
        weights = torch.stack([torch.as_tensor(self.weights[name]).to(sums) for name in names])
        self.sums, self.weights = {}, {}
        sums, weights = accelerator.reduce(torch.stack([sums, weights]), reduction="sum")
        return dict(zip(names, (sums / weights).tolist(), strict=True))


class StartEpoch(TrainerCallback):
    """Tells the training rows which epoch begins; when resumed within one, the state's epoch has a fraction."""

    def __init__(self, dataset: EpochDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.start_epoch(int(state.epoch))


def _with_epochs(dataset: Any) -> Any:
    if isinstance(dataset, dict):
        return {name: _with_epochs(part) for name, part in dataset.items()}
    return dataset if dataset is None or isinstance(dataset, EpochDataset) else EpochDataset(dataset)
