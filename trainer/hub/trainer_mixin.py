"""Push complete repositories from the trainer."""

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from trainer.hub.model_card import handwritten_card, make_card
from trainer.hub.repository import repository_files, upload


class HubUploadMixin(Trainer):
    """A `Trainer` that pushes complete repositories with the VLKD model card, and no pickles."""

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the VLKD model card, unless there is a handwritten one; PEFT writes the card of an adapter."""
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PreTrainedModel):
            return super().create_model_card(language, license, tags, **kwargs)
        folder = self.args.output_dir
        if self.is_world_process_zero() and handwritten_card(folder) is None:
            card = make_card(folder, model.config, self.hub_model_id or Path(folder).absolute().name)
            card.data.language, card.data.license = language or card.data.language, license or card.data.license
            card.data.tags = [*card.data.tags, *([tags] if isinstance(tags, str) else tags or [])]
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
        """As `Trainer`'s, but a complete repository."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self._finish_current_push()  # its files are overwritten next
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        return self._upload(self.args.output_dir, commit_message, token, revision, run_as_future=not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Called after every save; `Trainer`'s own method would push pickles, and no code."""
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress and not self.push_in_progress.is_done() and not args.hub_always_push:
            return
        self._finish_current_push()  # its files are overwritten next
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
