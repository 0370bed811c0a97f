"""Games of one process: read from their folders, those used longest ago dropped."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from typing import Any, Protocol

import cachetools

from evolving_rl_jax.envs.base import EnvError, one_line

__all__ = ["PLACEHOLDER", "GameStore", "read_game", "shared_grammar"]

_GAME_FILE = "game.tw-pddl"
# Task sentences made of these characters only are plain text to the grammar's parser, so games
# that differ in nothing else share one parse.
_TASK_SENTENCE = re.compile(r'("rhs": "Your task is to: )([A-Za-z0-9 ,.\'_-]+)(")')
PLACEHOLDER = "UNKNOWN GOAL."


def read_game(folder: str) -> dict[str, Any]:
    """Reads a game folder.

    Raises:
      EnvError: the file is missing, not JSON, or lacks a text that the engine needs.
    """
    path = os.path.join(folder, _GAME_FILE)
    try:
        with open(path, encoding="utf-8") as f:
            data = json.load(f)
    except (OSError, ValueError, RecursionError) as error:
        raise EnvError(f"cannot read game file {path}: {error}") from error
    for key in ("pddl_domain", "grammar", "pddl_problem"):
        if not isinstance(data, dict) or not isinstance(data.get(key), str):
            raise EnvError(f"game file {path} must be a JSON object with the text {key!r}")
    return data


def shared_grammar(text: str) -> tuple[str, str | None]:
    """A grammar without its task sentence, and that; all of it and None where it has no plain one."""
    found = _TASK_SENTENCE.findall(text)
    if len(found) != 1 or PLACEHOLDER in text:
        return text, None
    return _TASK_SENTENCE.sub(lambda m: m[1] + PLACEHOLDER + m[3], text), found[0][1]


class _StoredGame(Protocol):
    """What a store needs to know of a game."""

    nbytes: int  # grows while it is played


class GameStore:
    """Games by folder, those used last, as many as fit."""

    def __init__(self, open_game: Callable[[dict], _StoredGame], max_bytes: int):
        """Args:
        open_game: from the content of a game file to a game.
        max_bytes: of all games together.
        """
        self._open_game = open_game
        self._games = cachetools.LRUCache(max_bytes, getsizeof=lambda game: game.nbytes)

    def __len__(self) -> int:
        return len(self._games)

    @property
    def nbytes(self) -> int:
        """Of all games, when each was weighed last."""
        return self._games.currsize

    def game(self, folder: str) -> Any:
        """The game of a folder.

        Raises:
          EnvError: it cannot be read or played.
        """
        key = os.path.abspath(folder)
        game = self._games.get(key)
        if game is None:
            game = self._open(folder)
            self._keep(key, game)
        return game

    def weigh(self, folder: str, game: _StoredGame) -> None:
        """Takes in how large a game has become: those used longest ago make room."""
        key = os.path.abspath(folder)
        if self._games.get(key) is game:  # else it has made room itself
            self._keep(key, game)

    def _keep(self, key: str, game: _StoredGame) -> None:
        self._games.pop(key, None)
        with contextlib.suppress(ValueError):  # one that is larger than all of it is not kept
            self._games[key] = game

    def _open(self, folder: str) -> _StoredGame:
        data = read_game(folder)
        try:
            return self._open_game(data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the parser ends malformed problems with SystemExit
            raise EnvError(f"cannot load game {folder}: {one_line(error)}") from error
