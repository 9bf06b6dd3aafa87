"""What a trainer uploads to the Hub: a model that loads without this package and a card, nothing of the run alone.

An upload is a folder of its own beside the run's files, of hard links to the weights. So it holds what was saved even
if the run goes on, deletes the checkpoint or replaces the model while the upload is under way.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress, hf_api

from ..model import SugarForConditionalGeneration, merge_adapter
from ..model.checkpoint_sugar import PROMPTS_FILE
from ..model.hub import add_code, drop_folders
from ..model.model_card import is_hub_name, model_card
from .guards import adapter_configs, sugar_model
from .training_record import (
    EVAL_RESULTS,
    Evaluation,
    dataset_names,
    emissions_metadata,
    own_evaluation,
    results_table,
    training_record,
    write_evaluations,
)

logger = logging.getLogger(__name__)

CARD = "README.md"
#: Folder of the repository that holds an adapter on its own.
ADAPTER = "adapter"
UPLOADS = "_hub-"  # beginnings of the names of folders that are uploaded
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model*.safetensors.index.json",
    PROMPTS_FILE,
)
_ADAPTER_FILES = ("adapter_config.json", "adapter_model*.safetensors", "config.json")
# What an earlier upload may have left: weights of other names, and settings of a run with its paths and secrets.
_STALE = (
    "model*.safetensors",
    "model*.safetensors.index.json",
    "adapter_config.json",
    "adapter_model*",
    TRAINING_ARGS_NAME,
)


class HubUploads(Trainer):
    """Upload to the Hub as the base trainer's methods of the same names do, what others can load.

    The repository holds the model, the processor, their code, the settings of sentence-transformers and a card. With
    adapters it holds the merged model, and in `adapter` the adapter by itself if its base is on the Hub. A checkpoint
    of a run whose base is on the Hub is uploaded as the adapter alone; the merged model comes with `push_to_hub`.

    Optimizer states are uploaded with `hub_strategy="checkpoint"` and `"all_checkpoints"` only, in the folders of
    checkpoints, as they are what these strategies are for.
    """

    args: Any
    model: Any
    hub_model_id: str | None
    push_in_progress: Any = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, as the base trainer does; the first process alone does it.

        Raises:
            ValueError: The model has an adapter whose base has no name, so that no one could load it.
        """
        for name, base in self._bases().items():
            if not base:
                raise ValueError(
                    f"push_to_hub: the base of the adapter {name!r} has no name, so that the adapter can be neither "
                    "merged nor loaded elsewhere. Save the base with save_pretrained, load it from there, and put the "
                    "adapter onto that."
                )
        if not self.is_world_process_zero():
            return
        args = self.args
        made = hf_api().create_repo(
            args.hub_model_id or Path(args.output_dir).absolute().name,
            token=args.hub_token if token is None else token,
            private=args.hub_private_repo if private is None else private,
            exist_ok=True,
        )
        self.hub_model_id, self.push_in_progress = made.repo_id, None
        for left in Path(args.output_dir).glob(f"{UPLOADS}*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)

    def _bases(self) -> dict[str, str | None]:
        sugar = sugar_model(self.model)
        own = sugar.config.name_or_path or sugar.vlm.name_or_path or sugar.config.vlm_config.name_or_path
        return {name: config.base_model_name_or_path or own for name, config in adapter_configs(self.model).items()}

    # ---- Card ----

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        *,
        dataset_name: str | None = None,
        results: Mapping[str, Mapping[str, Any]] | None = None,
        description: str = "",
    ) -> None:
        """Write the model card into the run's folder, and results of benchmarks to `.eval_results` beside it.

        Args:
            language: Language of the model.
            license: Licence of the weights.
            tags: Further tags.
            model_name: Name of the model; that of the repository by default.
            finetuned_from: The model that it was made from; by default the base's Hub name, if it has one.
            tasks: Further tags: what the model is for.
            dataset_tags: Hub names of the data sets; by default that of `train_dataset`, if it came from the Hub.
            dataset: As `dataset_tags`, as the base trainer has it.
            dataset_args: Not used: a card of ours names data sets, not their parts.
            dataset_name: As `dataset_tags`, as TRL has it.
            results: What evaluators return, what `sugar-hf evaluate` writes, or numbers by name, by data set. A data
                set of the Hub is called by its name there.
            description: A paragraph of yours in Markdown.
        """
        if not self.is_world_process_zero():
            return
        named = [name for given in (dataset_tags, dataset, dataset_name) for name in _listed(given)]
        metadata = {
            "language": language,
            "license": license,
            "base_model": finetuned_from,
            "datasets": named or None,
            "tags": [*_listed(tags), *_listed(tasks)],
        }
        evaluations = [Evaluation.of(name, result) for name, result in (results or {}).items()]
        self._write_card(Path(self.args.output_dir), self._card_name(model_name), metadata, evaluations, description)

    def _card_name(self, name: str | None = None) -> str:
        """The model's name: the whole one of the repository if the given one is the end of it."""
        known = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).name
        return known if name is None or known.split("/")[-1] == name else name

    def _write_card(
        self,
        folder: Path,
        name: str,
        metadata: Mapping[str, Any] | None = None,
        evaluations: Sequence[Evaluation] = (),
        description: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        given = {key: value for key, value in (metadata or {}).items() if value}
        data = {"datasets": dataset_names(self) or None, **emissions_metadata(Path(self.args.output_dir)), **given}
        base = next(iter(self._bases().values()), None)
        if base and is_hub_name(base):
            data.setdefault("base_model", base)
        own = own_evaluation(self)
        shown = [*([] if own is None else [own]), *evaluations]
        entries = [entry for each in shown for entry in each.entries()]
        if entries:
            data |= {"eval_results": entries, "model_name": name.split("/")[-1]}
        tags = ["generated_from_trainer", *_listed(self._model_tags()), *data.pop("tags", ())]
        if adapter_configs(self.model) and not notes:
            notes = (self._adapter_note(name),)
        card = model_card(
            sugar_model(self.model),
            name,
            results_table(shown),
            description,
            {"tags": tags, **{key: value for key, value in data.items() if value is not None}},
            training=training_record(self),
            notes=notes,
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).write_text(card, encoding="utf-8")
        shutil.rmtree(folder / EVAL_RESULTS, ignore_errors=True)
        write_evaluations(evaluations, folder)

    def _model_tags(self) -> list[str]:
        return list(sugar_model(self.model).model_tags or ())

    def _adapter_note(self, name: str) -> str:
        said = "The model was trained with an adapter, which is merged into its weights here: it loads as any other."
        bases = [base for base in self._bases().values() if base and is_hub_name(base)]
        if bases:
            said += (
                f" The adapter alone is in the folder `{ADAPTER}`: `PeftModel.from_pretrained(base, "
                f'"{name}", subfolder="{ADAPTER}")`, with the base a Sugar model made of `{bases[0]}`.'
            )
        return said

    # ---- Uploads ----

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, write its card, and upload both with all that others need to load it.

        Args:
            commit_message: Message of the commit.
            blocking: Return when the upload has ended.
            token: Access token; that of the arguments by default.
            revision: Branch; that of the arguments by default.
            private: Make a new repository private.
            **kwargs: Of [`create_model_card`].

        Returns:
            The commit, or with `blocking=False` a `Future` that gives it. `None` in all but the first process.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        run = Path(self.args.output_dir)
        stage = self._staged(run, whole=True)
        shutil.copyfile(run / CARD, stage / CARD)
        if (run / EVAL_RESULTS).is_dir():
            shutil.copytree(run / EVAL_RESULTS, stage / EVAL_RESULTS)
        revision = self.args.hub_revision if revision is None else revision
        job = self._upload(stage, commit_message, token=token, revision=revision)
        return job.result() if blocking else job

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args, checkpoint = self.args, Path(checkpoint_folder)
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        by_steps = args.save_strategy == SaveStrategy.STEPS
        place = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch or 0)}"
        message = f"Training in progress, {place}"
        only_adapter = any(base and is_hub_name(base) for base in self._bases().values())
        stage = self._staged(checkpoint, whole=not only_adapter)
        note = f"Training is in progress: this is {place}."
        if only_adapter:
            note += (
                f" So far there is the adapter alone, in the folder `{ADAPTER}`; the merged model comes at the end."
            )
        self._write_card(stage, self._card_name(), notes=(note,))
        options = {"token": args.hub_token, "revision": args.hub_revision}
        jobs = [self._upload(stage, message, **options)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            name = "last-checkpoint" if is_last else checkpoint.name
            whole = self._staged_checkpoint(checkpoint)
            jobs.append(self._upload(whole, f"{message}, checkpoint", path_in_repo=name, **options))
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress(jobs)
        else:
            self.push_in_progress.jobs.extend(jobs)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if self.push_in_progress is None:
            return
        for job in self.push_in_progress.jobs:  # else nobody would hear of it
            if job.done() and (error := job.exception()) is not None:
                logger.warning(f"An upload of a checkpoint to {self.hub_model_id} failed: {error}")
        self.push_in_progress = None

    def _upload(self, folder: Path, message: str | None, **options: Any) -> Future:
        """Upload a folder in the background, and remove it."""
        job = hf_api().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=str(folder),
            commit_message=message,
            run_as_future=True,
            delete_patterns=None if "path_in_repo" in options else list(_STALE),
            **options,
        )
        job.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
        return job

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=UPLOADS, dir=self.args.output_dir))

    def _staged(self, source: Path, whole: bool) -> Path:
        """Make a folder for the upload of what was saved in another.

        Args:
            source: Where the trainer saved the model, or the adapter.
            whole: Whether the model is uploaded, or the adapter alone.

        Raises:
            ValueError: There are no weights of a whole model.
        """
        stage, sugar = self._new_folder(), sugar_model(self.model)
        adapters = self._bases()
        if whole and adapters:
            merged = merge_adapter(SugarForConditionalGeneration.from_pretrained(self._adapter_folder(source)))
            merged.save_pretrained(stage)
        elif whole:
            _link(source, stage, _MODEL_FILES)
        if whole:
            if not any(stage.glob("model*.safetensors")):
                shutil.rmtree(stage)
                raise ValueError(
                    f"push_to_hub: {source} has no model*.safetensors. Have the whole model gathered when it is "
                    "saved: fsdp_state_dict_type: FULL_STATE_DICT, or stage3_gather_16bit_weights_on_model_save for "
                    "DeepSpeed."
                )
            self._save_processor(stage)
            add_code(stage, sugar.config)
        if any(base and is_hub_name(base) for base in adapters.values()):
            (stage / ADAPTER).mkdir()
            _link(self._adapter_folder(source), stage / ADAPTER, _ADAPTER_FILES)
            drop_folders(stage / ADAPTER / "config.json")
            self._save_processor(stage / ADAPTER)
        return stage

    def _save_processor(self, folder: Path) -> None:
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _adapter_folder(self, source: Path) -> Path:
        """Where the adapter lies that is loaded first: at the top, or in the folder of its name."""
        places = [source, *(source / name for name in self._bases())]
        return next(place for place in places if (place / "adapter_config.json").is_file())

    def _staged_checkpoint(self, checkpoint: Path) -> Path:
        """Make a folder with all that training resumes from, without the arguments, which hold paths and tokens."""
        stage = self._new_folder()
        for file in checkpoint.rglob("*"):
            if file.is_file() and file.name != TRAINING_ARGS_NAME:
                _copy(file, stage / file.relative_to(checkpoint))
        state_file = stage / TRAINER_STATE_NAME
        if state_file.is_file():
            state = json.loads(state_file.read_text(encoding="utf-8"))
            best = state.get("best_model_checkpoint")
            state["best_model_checkpoint"] = best and Path(best).name
            state_file.unlink()  # a link: the checkpoint keeps its own
            state_file.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return stage


def _listed(given: str | Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _link(source: Path, target: Path, patterns: Sequence[str]) -> None:
    for file in {file for pattern in patterns for file in source.glob(pattern)}:
        if file.suffix == ".json":
            shutil.copyfile(file, target / file.name)  # settings are changed on the way
        else:
            _copy(file, target / file.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
