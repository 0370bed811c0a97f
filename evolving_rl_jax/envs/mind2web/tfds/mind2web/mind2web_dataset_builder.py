"""TFDS builder: web tasks as ArrayRecord files, read at random without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

TEXT_FIELDS = ("id", "text", "website", "domain", "subdomain", "content_hash", "meta", "steps")


class Builder(tfds.core.GeneratorBasedBuilder):
    """Writes what it is given; ``envs.mind2web.index`` gives it the tasks of the official files.

    Args:
      splits: split -> function that starts its examples anew, each a dict of ``TEXT_FIELDS``; may be
        left out to read what was written.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Pages as lists of elements."}

    def __init__(
        self,
        *,
        splits: dict[str, Callable[[], Iterable[dict[str, str]]]] | None = None,
        **kwargs: Any,
    ):
        self._sources = splits or {}
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({k: tfds.features.Text() for k in TEXT_FIELDS}),
            description="Web tasks whose pages are lists of interactive elements; `steps` is JSON.",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {name: self._generate_examples(start) for name, start in self._sources.items()}

    def _generate_examples(
        self, start: Callable[[], Iterable[dict[str, str]]]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        yield from enumerate(start())
