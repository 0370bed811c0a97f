"""The builder.  Works without TensorFlow: array_record files, read by ``as_data_source``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from evolving_rl_jax.types import Task


class Builder(tfds.core.GeneratorBasedBuilder):
    """One record a game, in the order of the ids; the games themselves stay in their folders.

    Args:
      tasks: split -> its tasks, sorted by id.  Needed to prepare the data set, not to read it.
      **options: of every TFDS builder, such as ``data_dir``.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The six task types, split by trained and held-out types."}
    name = "alfworld_games"

    def __init__(self, *, tasks: Mapping[str, Sequence[Task]] | None = None, **options: Any):
        self._tasks = tasks or {}
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description="Household tasks of ALFWorld: what each game is about and where it is.",
            features=tfds.features.FeaturesDict(
                {
                    "id": text(),
                    "task_type": text(),
                    "text": text(doc="The instruction."),
                    "path": text(doc="The game's folder, relative to the root of the index."),
                    "content_hash": text(),
                    "step_limit": tfds.features.Scalar(np.int32),
                    "meta": text(doc="JSON: object, target, walkthrough, scene."),
                }
            ),
            homepage="https://alfworld.github.io",
            disable_shuffling=True,  # position = rank of the id; the training order shuffles
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(tasks) for split, tasks in self._tasks.items()}

    def _generate_examples(self, tasks: Sequence[Task]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, task in enumerate(tasks):
            yield (
                i,
                {
                    "id": task.id,
                    "task_type": task.task_type,
                    "text": task.text,
                    "path": task.path,
                    "content_hash": task.content_hash,
                    "step_limit": task.step_limit,
                    "meta": json.dumps(task.meta, sort_keys=True),
                },
            )
