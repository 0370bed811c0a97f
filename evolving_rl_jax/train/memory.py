"""What a run remembers from iteration to iteration beside its weights, saved with every checkpoint.

A small part is in the checkpoint itself; the replay buffer is a file ``replay/ITERATION.npz`` of the
run folder, written before the checkpoint that it belongs to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from evolving_rl_jax.data.curriculum import Curriculum
from evolving_rl_jax.record.figures import bank_records
from evolving_rl_jax.rollout.beside import Beside, bank_uses, beside_extras, beside_figures
from evolving_rl_jax.rollout.evolve import Experience, StepScoring
from evolving_rl_jax.rollout.extra import Extra, deal
from evolving_rl_jax.rollout.groups import solver_advantages
from evolving_rl_jax.rollout.step_credit import credit_figures
from evolving_rl_jax.run.console import user_errors
from evolving_rl_jax.run.parts import Parts
from evolving_rl_jax.run.skills import fit_to_prompt, make_skill_retriever
from evolving_rl_jax.skills.bank import Bank
from evolving_rl_jax.skills.value import RankedBank
from evolving_rl_jax.train.replay import Harvest, Replay, harvest
from evolving_rl_jax.types import Task
from evolving_rl_jax.update.advantages import arm_weights


class Memory:
    """The memory of a run; all its hosts make the same calls and hold the same.

    Args:
      parts: of the run.
      sources: numbers of the source tasks, out of the iteration's G, that this host plays.

    Attributes:
      curriculum: that chooses the source tasks, or None.
      refilled: iteration -> sources that this host replaced in it; the next may be played already.
      bank: that guides plays beside those of the new skills, or None.
    """

    def __init__(self, parts: Parts, sources: Sequence[int]):
        config = parts.config
        self._parts, self._sources, self._replay = parts, sources, None
        self._folder = parts.folder.path / "replay"
        if config.replay.sequences:
            longest = min(config.rollout.max_length, config.train.row_length)
            self._replay = Replay(config.replay, config.seed, longest)
        self._scoring = StepScoring.from_config(config)
        self._figures: dict[str, float] = {}
        self.bank = None
        if config.guidance.repeats:
            self.bank = RankedBank(
                config.guidance, lambda: make_skill_retriever(config, parts.folder)
            )
        self.curriculum, self.refilled = None, {}
        if (c := config.curriculum).kind == "bandit":
            self.curriculum = Curriculum(
                parts.train_tasks, by=c.by, rate=c.rate, temperature=c.temperature, seed=config.seed
            )

    def extras(self, iteration: int, experience: Experience) -> list[list[Extra]]:
        """The further sequences of this host, for each optimizer step of an iteration.

        Args:
          iteration: of the update.
          experience: of this host.
        """
        config, hosts = self._parts.config, self._parts.hosts
        steps = config.train.minibatches
        beside = beside_extras(
            experience, config.algorithm, arm_weights(config.algorithm)[0], self._scoring
        )
        size = len(beside) // steps  # as the sources are shared out
        own_plays = [sum(beside[i * size : (i + 1) * size], []) for i in range(steps)]
        if self._replay is None:
            return own_plays
        own = harvest(experience, self._sources, iteration, config.replay)
        found = self._replay.take(iteration, Harvest.joined(hosts.gather(own)))
        dealt = deal(found, steps, hosts.count, hosts.index)
        return [ours + more for ours, more in zip(own_plays, dealt, strict=True)]

    def learn(self, iteration: int, experience: Experience) -> None:
        """Takes what an iteration has given, of all hosts."""
        if self.curriculum is not None:
            grpo = self._parts.config.algorithm.arm == "grpo"
            played = self._parts.hosts.from_first(taught(experience, each_task=grpo))
            self.curriculum.learn(iteration, tasks_drawn(self._parts.config), played)
        self._figures = beside_figures(experience) | credit_figures(experience)
        if self.bank is not None:
            self.bank.learn(bank_uses(experience, self._scoring))
            self.bank.admit(bank_records(experience, iteration, 0, self._scoring))
            self._figures |= self.bank.figures()

    def beside(self) -> Beside | None:
        """What starts the plays beside those of the new skills in an iteration; the bank is as it is now."""
        config = self._parts.config
        if not config.guidance.free_repeats:
            return None
        if self.bank is not None:
            self.bank.freeze()
        fit = fit_to_prompt(config, self._parts.tokenizer)

        def choose(task: Task) -> tuple[list, str]:
            chosen = self.bank.choose(task)
            texts = [self._parts.prompts.render_skill(r.as_skill()) for r, _ in chosen]
            return chosen, fit("\n\n".join(texts)) if texts else ""

        return Beside(config.guidance, config.rollout.num_retrieved, choose)

    def figures(self, iteration: int) -> dict[str, float]:
        """Of the newest iteration that was learned from, for metrics.jsonl."""
        found = self._figures | ({} if self._replay is None else self._replay.figures)
        own = self.refilled.pop(iteration, 0)
        if self.curriculum is not None:
            found |= self.curriculum.figures()
        if self._parts.config.rollout.refill_rounds:
            found["rollout/refilled"] = float(sum(self._parts.hosts.gather(own)))
        return found

    # -- saving ------------------------------------------------------------------------------------

    def save(self, done: int, kept: Collection[int]) -> dict[str, Any]:
        """Writes what belongs beside the checkpoint after ``done`` iterations.

        Args:
          done: iterations that the state was trained for.
          kept: the checkpoints that there are; files of others are removed.

        Returns:
          What belongs into it; {} for a run that remembers nothing.
        """
        if self._replay is not None and self._parts.hosts.first:
            self._replay.write(self._file(done))
            for path in self._folder.glob("*.npz"):
                if path.stem.isdigit() and int(path.stem) not in {done, *kept}:
                    path.unlink(missing_ok=True)
        parts = {"curriculum": self.curriculum, "bank": self.bank}
        return {name: part.state() for name, part in parts.items() if part is not None}

    def restore(self, done: int, saved: dict[str, Any] | None) -> None:
        """Takes what was saved with a checkpoint; 0 iterations = a new run.

        Raises:
          ConfigError: it is not there.
        """
        saved = saved or {}
        if self.curriculum is not None:
            self.curriculum.restore(saved.get("curriculum"))
        if self.bank is not None:
            self._restore_bank(done, saved.get("bank"))
        if self._replay is None:
            return
        if done:
            self._replay.read(self._file(done))
        else:
            self._replay.clear()

    def _restore_bank(self, done: int, state: dict[str, Any] | None) -> None:
        hosts, records = self._parts.hosts, None
        if hosts.first and done:
            records = Bank(self._parts.folder.bank_file).records
        with user_errors((ValueError,)):
            self.bank.restore(state, hosts.from_first(records) or [])

    def _file(self, done: int):
        return self._folder / f"{done:08d}.npz"


def tasks_drawn(config: Any) -> int:
    """Tasks that an iteration may need as sources (groups, in the arm ``grpo``), on all hosts."""
    size = config.rollout.num_retrieved if config.algorithm.arm == "grpo" else 1
    return config.rollout.num_sources * size * (1 + config.rollout.refill_rounds)


def taught(experience: Experience, *, each_task: bool) -> list[tuple[Task, float]]:
    """Source tasks with the mean |advantage| of the episodes that they led to.

    Args:
      experience: of all hosts.
      each_task: of each task that was played, as in the arm ``grpo``, instead of each source.
    """
    sizes, played, found = abs(solver_advantages(experience)), experience.episode_mask > 0, []
    for g, source in enumerate(experience.sources):
        parts = [(source.task, (g,))]
        if each_task:
            parts = [(task, (g, k)) for k, task in enumerate(source.retrieved)]
        for task, at in parts:
            if played[at].any():
                found.append((task, float(sizes[at][played[at]].mean())))
    return found
