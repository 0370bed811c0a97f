"""Games of one process: read from their folders, least recently used ones dropped."""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

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

    size: int  # states and texts remembered

    def forget(self) -> None:
        """Drops what is remembered; episodes under way go on."""


class GameStore:
    """Games by folder, limited in number and in what they remember altogether."""

    def __init__(self, open_game: Callable[[dict], _StoredGame], max_games: int, max_states: int):
        """Args:
        open_game: from the content of a game file to a game.
        max_games: games kept.
        max_states: states and texts that all of them may remember together.
        """
        self._open_game = open_game
        self._max_games, self._max_states = max_games, max_states
        self._games: OrderedDict[str, _StoredGame] = OrderedDict()

    def game(self, folder: str) -> Any:
        """The game of a folder.

        Raises:
          EnvError: it cannot be read or played.
        """
        key = os.path.abspath(folder)
        game = self._games.get(key)
        if game is None:
            game = self._games[key] = self._open(folder)
            if len(self._games) > self._max_games:
                self._games.popitem(last=False)
        self._games.move_to_end(key)
        self._limit_size(game)
        return game

    def _open(self, folder: str) -> _StoredGame:
        data = read_game(folder)
        try:
            return self._open_game(data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the translator ends malformed problems with SystemExit
            raise EnvError(f"cannot load game {folder}: {one_line(error)}") from error

    def _limit_size(self, current: _StoredGame) -> None:
        total = sum(game.size for game in self._games.values())
        for game in self._games.values():
            if total <= self._max_states:
                break
            if game is not current or total == game.size:
                total -= game.size
                game.forget()
