"""The ablation of the paper: every arm with every seed, and whose skills help whom.

``WORKDIR/config.json  games/  cache/  runs/ARM-SEED/  cross/SEED-tT/SOLVER+EXTRACTOR.json  logs/
ablation.json  ablation.md  report.html``.  All runs play the same games; the arms of one seed start
from one warm start.  What is finished is never done again, so the same command goes on.

The work is in pieces, the runs ``ARM-SEED`` and the crossings ``cross-SEED``: one after the other, or
side by side in processes that each do one piece.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from evolving_rl_jax.config import ConfigError, validate
from evolving_rl_jax.files import replacing
from evolving_rl_jax.report.page import write_report
from evolving_rl_jax.run.compiled import keep_programs
from evolving_rl_jax.run.console import progress, say
from evolving_rl_jax.run.environments import prepare_games
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.parts import open_parts
from evolving_rl_jax.run.preemption import Preemption
from evolving_rl_jax.train.ablation.side_by_side import Piece, core_shares, run_side_by_side
from evolving_rl_jax.train.ablation.summary import (
    WARMSTART,
    cross_file,
    trained_for,
    write_summary,
)
from evolving_rl_jax.train.collapse import CollapsedError, ended_by_rule
from evolving_rl_jax.types import SCORED

_CROSS = "cross"  # in the names of pieces, where runs have their arm


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What is run where.

    Attributes:
      folder: of everything; holds the configuration that the runs are made from, or the first of them.
      arms: in this order; of several configurations their names.
      seeds: of the runs; the games are those of the configuration's own seed.
      configs: name -> configuration, where they are compared instead of arms of one; without crossings.
    """

    folder: RunFolder
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    configs: Mapping[str, ConfigDict] | None = None

    def run_path(self, arm: str, seed: int) -> pathlib.Path:
        """The run folder of an arm with a seed."""
        return self.folder.path / "runs" / f"{arm}-{seed}"

    def run_config(self, config, arm: str, seed: int) -> ConfigDict:
        """The configuration of one run: that of the ablation with the shared games."""
        if self.configs is not None:
            config = self.configs[arm]
        own = ConfigDict(config.to_dict())
        own.unlock()
        if ":" not in config.env.name:  # an environment of one's own has its own tasks
            own.data.games = config.data.games or str(self.folder.path / "games")
        own.seed = seed
        if self.configs is None:
            own.algorithm.arm = arm
        validate(own)
        return own.lock()

    def runs(self) -> list[tuple[str, int]]:
        """(arm, seed), one seed after the other: the arms can be compared early."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    def pieces(self) -> dict[str, tuple[str, int]]:
        """Name of every piece -> (arm, seed), where the arm of a crossing is ``cross``."""
        crossings = [(_CROSS, seed) for seed in self.seeds if self.configs is None]
        return {f"{arm}-{seed}": (arm, seed) for arm, seed in self.runs() + crossings}


def run_ablation(config, ablation: Ablation, *, only: str = "") -> None:
    """Trains what is missing, crosses solvers with extractors, and writes table and report.

    Args:
      config: that all runs share but for arm and seed.
      ablation: which runs, and where.
      only: a piece to do alone, without table and report; empty = all.

    Raises:
      ConfigError: the folder belongs to another configuration, a run cannot be made, or there is no
        such piece.
      Preempted: this machine is about to be taken away; the run that was going on has been saved.
    """
    pieces = ablation.pieces()
    if only and only not in pieces:
        raise ConfigError(f"--only must be one of {', '.join(pieces)}, got {only!r}")
    # One piece alone may be done next to others, and next to what starts them.
    with contextlib.nullcontext() if only else ablation.folder.hold():
        _run_pieces(config, ablation, pieces, only)


def _run_pieces(config, ablation: Ablation, pieces: dict[str, tuple[str, int]], only: str) -> None:
    prepare_games(config, ablation.folder)
    keep_programs()  # those of one run serve the others
    with Preemption() as preemption:
        for number, (name, (arm, seed)) in enumerate(pieces.items(), 1):
            if only and name != only:
                continue
            if arm == _CROSS:
                _cross(config, ablation, seed, preemption)
            else:
                what = "arm" if ablation.configs is None else "config"
                label = f"ablation: {what} {arm}, seed {seed} ({number} of {len(ablation.runs())})"
                own = ablation.run_config(config, arm, seed)
                _run(own, ablation, ablation.run_path(arm, seed), label, preemption)
            preemption.check()
    if not only:
        _write_results(ablation)


def run_ablation_side_by_side(
    config, ablation: Ablation, jobs: int, command: Sequence[str]
) -> None:
    """As `run_ablation`, with up to ``jobs`` pieces at a time, each on its share of the cores.

    Args:
      config: that all runs share but for arm and seed.
      ablation: which runs, and where.
      jobs: most at a time; the first run of a seed makes the warm start that its others wait for.
      command: that does one piece when ``--only=PIECE`` is added.

    Raises:
      ConfigError: as in `run_ablation`, or there is an accelerator, or too few cores.
      PieceFailed: a piece ended with an error.
      Preempted: this machine is about to be taken away; the runs that were going on have been saved.
    """
    shares = core_shares(jobs)
    _check_no_accelerator(jobs)
    with ablation.folder.hold():
        prepare_games(config, ablation.folder)
        _run_left(config, ablation, shares, command)
        _write_results(ablation)


def _run_left(config, ablation: Ablation, shares: list[set[int]], command: Sequence[str]) -> None:
    """The pieces that are not done, as many at a time as there are shares of the cores."""
    names = ablation.pieces()
    # The warm starts first, since everything waits for them.
    order = sorted(names, key=lambda n: (*ablation.arms, _CROSS).index(names[n][0]))
    left = [n for n in order if not _is_done(config, ablation, *names[n])]
    pieces = [
        Piece(n, (*command, f"--only={n}"), ablation.folder.path / "logs" / f"{n}.txt")
        for n in left
    ]
    for name in order:
        if name not in left:
            say(f"{name}: done")

    def ready(name: str, running, ended) -> bool:
        arm, seed = names[name]
        others = {f"{other}-{seed}" for other in ablation.arms}
        if arm == _CROSS:
            return not any(other in left and other not in ended for other in others)
        return not (others & set(running)) or any(
            _iterations(ablation, other, seed) for other in ablation.arms
        )

    runs = ablation.runs()
    with Preemption() as preemption:
        preemption.defer()  # a child that has just been started must not be forgotten
        total = sum(ablation.run_config(config, *run).train.num_iterations for run in runs)
        with progress("ablation: iterations", total, delay_s=0.0) as bar:

            def tick() -> None:
                preemption.check()
                bar(sum(_iterations(ablation, *run) for run in runs))

            run_side_by_side(pieces, shares, ready, tick)


def _check_no_accelerator(jobs: int) -> None:
    import jax

    if jax.default_backend() != "cpu":
        raise ConfigError(
            f"--jobs must be 1 on a {jax.default_backend()} (a process takes the whole device; "
            f"JAX_PLATFORMS=cpu runs on the processor), got {jobs}"
        )


def _is_done(config, ablation: Ablation, arm: str, seed: int) -> bool:
    if arm == _CROSS:
        return not _missing_pairs(config, ablation, seed)
    config = ablation.run_config(config, arm, seed)
    folder = RunFolder(str(ablation.run_path(arm, seed)), config)
    return _finished(folder, config) or bool(_collapsed(folder, config))


def _iterations(ablation: Ablation, arm: str, seed: int) -> int:
    """How many iterations of a run are done; the first comes after the warm start's evaluation."""
    try:
        return (ablation.run_path(arm, seed) / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def _write_results(ablation: Ablation) -> None:
    folders = [ablation.run_path(arm, seed) for arm, seed in ablation.runs()]
    table = write_summary(ablation.folder.path, folders, named=ablation.configs is not None)
    path = write_report(*folders, title="Ablation", out=ablation.folder.path / "report.html")
    print(table)
    say(f"written: {ablation.folder.path / 'ablation.md'}, ablation.json, {path.name}")


# -- the runs --------------------------------------------------------------------------------------


def _run(
    config, ablation: Ablation, path: pathlib.Path, label: str, preemption: Preemption
) -> None:
    """Trains one run, unless its last evaluation is there."""
    folder = RunFolder(str(path), config)
    if _finished(folder, config):
        say(f"{label}: done")
        return
    if why := _collapsed(folder, config):
        say(f"{label}: ended by config.collapse, {why}")
        return
    say(label)
    with folder.hold():
        folder.begin()
        for arm in ablation.arms:
            _share_start(ablation.run_path(arm, config.seed), folder.path, config)
        with open_parts(config, folder, preemption=preemption) as parts:
            from evolving_rl_jax.train.loop import train

            try:
                train(parts)
            except (
                CollapsedError
            ) as e:  # a result of this arm, and no reason to leave out the others
                say(f"{label}: {e}")
    _free_memory()


def _finished(folder: RunFolder, config) -> bool:
    ends = [_read(folder.eval_file("final", t)) for t in config.eval.temperatures]
    return all(end.get("iteration", -1) >= config.train.num_iterations for end in ends)


def _collapsed(folder: RunFolder, config) -> str:
    """What its collapse rule, as it is set now, ended the run for; empty = nothing."""
    if not folder.config_file.is_file() or folder.load_config().collapse != config.collapse:
        return ""
    return ended_by_rule(folder.path)


def _read(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _share_start(donor: pathlib.Path, path: pathlib.Path, config) -> None:
    """Copies tokenizer, warm start and its evaluation from another arm of the same seed.

    None of them depends on the arm.  Each is put in place whole.
    """
    if donor == path or not (donor / "eval").is_dir():
        return
    found = [donor / "tokenizer"] if (donor / "tokenizer" / "tokenizer.json").is_file() else []
    found += [donor / WARMSTART] if (donor / WARMSTART / "done").is_file() else []
    for t in config.eval.temperatures:
        result = donor / "eval" / f"{WARMSTART}-t{t:g}.json"
        found += [p for p in (result.with_suffix(".skills.jsonl"), result) if p.is_file()]
    for source in found:
        target = path / source.relative_to(donor)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        with replacing(target) as partial:
            copy(source, partial)


def _free_memory() -> None:
    """Programs and buffers of a finished run; the next one reads its programs from the folder."""
    import jax

    jax.clear_caches()
    gc.collect()


# -- solvers x extractors --------------------------------------------------------------------------


def _cross(config, ablation: Ablation, seed: int, preemption: Preemption) -> None:
    """Every policy of a seed plays the panel with the skills that every other one wrote.

    At the first temperature of the panels.  A policy with its own skills is in its evaluation.
    """
    missing = _missing_pairs(config, ablation, seed)
    if not missing:
        return
    for arm in ablation.arms:
        if not _is_done(config, ablation, arm, seed):
            raise ConfigError(
                f"--only={_CROSS}-{seed} must come after {arm}-{seed}, got it unfinished"
            )
    temperature = config.eval.temperatures[0]
    say(f"ablation: solvers x extractors, seed {seed}")
    arms = {WARMSTART: ablation.arms[0]} | {a: a for a in _trained(config, ablation, seed)}
    folders = {p: RunFolder(str(ablation.run_path(arm, seed))) for p, arm in arms.items()}
    with open_parts(folders[WARMSTART].load_config(), folders[WARMSTART]) as parts:
        from evolving_rl_jax.eval.play import make_panel
        from evolving_rl_jax.run.engine import make_engine
        from evolving_rl_jax.run.policy import load_policy

        _check_skills_are_kept(parts)
        engine, panel = None, make_panel(parts, parts.config.eval.num_games)
        for solver in dict.fromkeys(s for s, _ in missing):
            which = WARMSTART if solver == WARMSTART else "latest"
            params, _, iteration = load_policy(folders[solver], which)
            engine = engine or make_engine(parts, params)
            engine.set_params(params, f"{solver}-{seed}")
            for extractor in [e for s, e in missing if s == solver]:
                preemption.check()
                name = WARMSTART if extractor == WARMSTART else "final"
                written = _read(folders[extractor].eval_file(name, temperature))
                path = cross_file(ablation.folder.path, seed, temperature, solver, extractor)
                _play_pair(parts, engine, panel, written, path, iteration)
    _free_memory()


def _missing_pairs(config, ablation: Ablation, seed: int) -> list[tuple[str, str]]:
    """(solver, extractor) whose panel has not been played, or that have been trained on since."""
    if "own" not in config.eval.conditions:
        return []
    temperature = config.eval.temperatures[0]
    file = functools.partial(cross_file, ablation.folder.path, seed, temperature)
    ends = {WARMSTART: 0}
    for arm in _trained(config, ablation, seed):
        folder = RunFolder(str(ablation.run_path(arm, seed)))
        ends[arm] = _read(folder.eval_file("final", temperature)).get("iteration")
    pairs = itertools.permutations(ends, 2)
    return [(s, e) for s, e in pairs if trained_for(_read(file(s, e))) != (ends[s], ends[e])]


def _trained(config, ablation: Ablation, seed: int) -> list[str]:
    """The arms but those that collapsed: they have no last policy to cross."""
    folders = {arm: RunFolder(str(ablation.run_path(arm, seed))) for arm in ablation.arms}
    return [arm for arm, folder in folders.items() if not _collapsed(folder, config)]


def _check_skills_are_kept(parts) -> None:
    if any(t.meta.get("sealed") for t in parts.panel_tasks):
        raise ConfigError(
            "config.eval.splits must be splits without tasks of the password-protected archive "
            "(their skills are never written down, so no other policy can be given them), got "
            f"{tuple(parts.config.eval.splits)}"
        )


def _play_pair(parts, engine, panel, written: dict, path: pathlib.Path, iteration: int) -> None:
    """One solver, whose parameters the engine holds, with the skills of one evaluation."""
    from evolving_rl_jax.eval.panel import PANEL_ITERATION
    from evolving_rl_jax.eval.results import write_result
    from evolving_rl_jax.run.engine import evaluating, make_driver

    temperature, seed = written["temperature"], written["seed"]
    records = {g["id"]: g for g in written["games"] if g["conditions"]["own"]["status"] in SCORED}
    skills = {i: g["conditions"]["own"]["skill"] for i, g in records.items()}
    driver = make_driver(parts, engine, PANEL_ITERATION + seed, temperature)
    title = path.stem
    with parts.progress(title, len(skills)) as bar, evaluating(parts.config, engine) as batching:
        games = panel.play_given(driver, skills, bar, seed)
    tasks = {t.id: t for t in parts.tasks}
    for game in games:  # those with one source share one skill
        game.source = tasks[records[game.task.id]["retrieved"]["id"]]
        game.similarity = records[game.task.id]["retrieved"]["similarity"]
    write_result(
        path, panel, games, name=path.stem, iteration=iteration, temperature=temperature,
        seed=seed, conditions=("own",), figures=written["sources"], batching=batching,
        skills_from={"name": written["name"], "iteration": written["iteration"]},
    )  # fmt: skip
