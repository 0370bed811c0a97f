"""PDDL of a game -> the planner's finite-domain text (SAS), once per game, kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import os
import pickle
import sys
import tempfile
import zlib
from collections.abc import Iterator

from evolving_rl_jax.envs.alfworld import grounding
from evolving_rl_jax.envs.alfworld.engine import joins
from evolving_rl_jax.envs.base import EnvError

__all__ = [
    "Translation",
    "TranslationCache",
    "initial_fact",
    "quiet",
    "translate",
    "translate_plainly",
]

_FORMAT = 1  # raise when the pickled content changes


@dataclasses.dataclass(frozen=True)
class Translation:
    """What the engine needs to know of one game.

    Attributes:
      packed_sas: the planning task for the C library, every fact and operator kept, compressed.
      objects: object name -> type.
      types: (name, supertypes) of each type.
      parameters: action name -> (name, type) of its parameters.
      init: (predicate, object names) of the facts that hold at the start, static ones included.
    """

    packed_sas: bytes
    objects: dict[str, str]
    types: list[tuple[str, list[str]]]
    parameters: dict[str, list[tuple[str, str]]]
    init: list[tuple[str, tuple[str, ...]]]

    @property
    def sas(self) -> bytes:
        """The planning task as text."""
        return zlib.decompress(self.packed_sas)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what the translator prints and undoes its change of ``sys.argv``."""
    argv = sys.argv
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _set_up_translator()
            yield
    finally:
        sys.argv = argv


def translate(domain: str, problem: str) -> Translation:
    """Translates one game.

    The fast way is ``grounding``; what it does not support goes through the translator itself.

    Raises:
      EnvError: the text is not a PDDL problem of that domain.
    """
    with quiet():
        try:
            return _translation(*grounding.ground(domain, problem))
        except joins.Unsupported:
            return translate_plainly(domain, problem)


def translate_plainly(domain: str, problem: str) -> Translation:
    """As ``translate``, by the translator alone: slower, the same meaning."""
    import fast_downward

    with quiet():
        task, sas = fast_downward.pddl2sas(domain, problem)
    if "Atom dummy(val1)" in sas:  # what the translator writes for a trivial task
        raise EnvError("the goal of the game holds from the start or can never be reached")
    return _translation(sas, task.objects, task.types, task.actions, task.init)


@functools.cache
def _set_up_translator() -> None:
    """The translator reads ``sys.argv`` when it is first imported."""
    sys.argv = ["translate.py", "domain", "task"]
    import fast_downward.translate.options  # noqa: F401


def _translation(sas: str, objects: list, kinds: list, actions: list, init: list) -> Translation:
    return Translation(
        packed_sas=zlib.compress(sas.encode(), 1),
        objects={o.name: o.type_name for o in objects},
        types=[(t.name, list(t.supertype_names)) for t in kinds],
        parameters={
            a.name: [(p.name.strip("?"), p.type_name) for p in a.parameters] for a in actions
        },
        init=[fact for fact in map(initial_fact, init) if fact is not None],
    )


def initial_fact(element) -> tuple[str, tuple[str, ...]] | None:
    """An initial fact; None for equality, costs and distances, which no text shows."""
    if hasattr(element, "predicate"):
        return None if element.predicate == "=" else (element.predicate, tuple(element.args))
    value = str(element.expression.value)
    if element.fluent.symbol == "total-cost" or value.isdigit():
        return None
    return value, tuple(element.fluent.args)


class TranslationCache:
    """Translations kept as files named after the content of the game and the versions in use."""

    def __init__(self, folder: str | None):
        """Args:
        folder: where the files go, made when missing; None keeps nothing.
        """
        self._folder = folder
        packages = ("textworld", "fast-downward-textworld")
        self._versions = repr((_FORMAT, [_version(p) for p in packages]))

    def get(self, domain: str, problem: str) -> Translation:
        """The translation of a game, from its file when there is one."""
        if self._folder is None:
            return translate(domain, problem)
        digest = hashlib.sha256("\0".join((self._versions, domain, problem)).encode())
        path = os.path.join(self._folder, digest.hexdigest()[:2], digest.hexdigest() + ".pkl")
        found = _read(path)
        if found is None:
            found = translate(domain, problem)
            _write(path, found)
        return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _read(path: str) -> Translation | None:
    """The stored translation, or None when the file is missing or damaged."""
    try:
        with open(path, "rb") as f:
            data = f.read()
        if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
            return None
        return Translation(**pickle.loads(zlib.decompress(data[4:])))
    except (OSError, ValueError, zlib.error, pickle.UnpicklingError, EOFError, TypeError):
        return None


def _write(path: str, translation: Translation) -> None:
    """Writes beside the file and renames, so that a reader never sees half a file."""
    fields = {f.name: getattr(translation, f.name) for f in dataclasses.fields(translation)}
    body = zlib.compress(pickle.dumps(fields), 1)
    data = zlib.crc32(body).to_bytes(4, "little") + body
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), suffix=".tmp")
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise EnvError(f"cannot write the translation cache file {path}: {error}") from error
