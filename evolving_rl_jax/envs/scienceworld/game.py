"""The simulator: one Java process, started at the first use and ended with its owner."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from typing import Any

from evolving_rl_jax.envs.base import EnvError

__all__ = ["SIMPLIFICATIONS", "Simulator", "missing"]

SIMPLIFICATIONS = (
    "easy", "teleportAction", "selfWateringFlowerPots", "openContainers", "openDoors",
    "noElectricalAction",
)  # fmt: skip
_NO_LIMIT = 10**9  # steps; the caller enforces the limit


def missing() -> str:
    """What this machine lacks to run the simulator; empty for nothing."""
    if importlib.util.find_spec("scienceworld") is None:
        return "the package scienceworld must be installed: pip install -e '.[scienceworld]'"
    if shutil.which("java") is None:
        return "Java must be installed for scienceworld (a JRE of version 8 or later), found no java on PATH"
    return ""


class Simulator:
    """One Java process with one task at a time.

    It reads the end of its standard input as the end of its owner, so it does not outlive a worker,
    however that ends.
    """

    def __init__(self):
        self._env: Any = None
        self._loaded: tuple | None = None

    def load(self, name: str, variation: int, simplifications: str, *, gold: bool = False) -> None:
        """Makes a variation of a task the present one.

        Raises:
          EnvError: no such task, or no simulator here.
        """
        env, wanted = self._started(), (name, variation, simplifications, gold)
        if wanted == self._loaded:
            return
        self._loaded = None
        with self._errors(f"cannot load {name!r}, variation {variation}"):
            if name not in env.task_names:
                raise EnvError(f"scienceworld has no task {name!r}")
            count = env.get_max_variations(name)
            if not 0 <= variation < count:
                raise EnvError(f"scienceworld has {count} variations of {name!r}, not {variation}")
            env.load(name, variation, simplifications, generateGoldPath=gold)
        self._loaded = wanted

    def reset(self) -> str:
        """Starts the present task anew; what is seen."""
        with self._errors("cannot reset"):
            self._env.server.reset()
            return self._env.server.step("look around")

    def step(self, action: str) -> tuple[str, float, bool]:
        """(what is seen, score from -1 to 1, whether it is over)."""
        with self._errors("cannot step"):
            server = self._env.server
            text = server.step(action)
            return text, float(server.getScore()), bool(server.getCompleted())

    def valid_actions(self) -> list[str]:
        """Every action that makes sense now, sorted; up to a thousand."""
        with self._errors("cannot list actions"):
            return sorted(set(self._env.get_valid_action_object_combinations()))

    def description(self) -> str:
        """What the present task asks for."""
        return self._env.get_task_description()

    def gold(self) -> list[str]:
        """Actions that solve the present task, loaded with ``gold``."""
        return self._env.get_gold_action_sequence()

    def task_names(self) -> list[str]:
        """All kinds of tasks."""
        return list(self._started().task_names)

    def variations(self, name: str) -> dict[str, list[int]]:
        """Split -> numbers of the variations of a task, as the package divides them."""
        self.load(name, 0, "")
        return {
            "train": self._env.get_variations_train(),
            "dev": self._env.get_variations_dev(),
            "test": self._env.get_variations_test(),
        }

    def close(self) -> None:
        """Ends the process."""
        env, self._env, self._loaded = self._env, None, None
        if env is not None:
            process = env._gateway.java_process
            with contextlib.suppress(Exception):
                env.close()
            process.kill()
            process.wait()

    def _started(self):
        if self._env is None:
            lack = missing()
            if lack:
                raise EnvError(lack)
            from scienceworld import ScienceWorldEnv

            with self._errors("cannot start the simulator"):
                self._env = ScienceWorldEnv("", envStepLimit=_NO_LIMIT)
        return self._env

    @contextlib.contextmanager
    def _errors(self, what: str):
        try:
            yield
        except EnvError:
            raise
        except Exception as e:  # py4j's errors name a Java stack
            self.close()
            first = (str(e).splitlines() or [type(e).__name__])[0]
            raise EnvError(f"scienceworld {what}: {first:.200}") from e
