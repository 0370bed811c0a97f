"""The ablation of the paper: every arm with every seed, and whose skills help whom.

``WORKDIR/config.json  games/  cache/  runs/ARM-SEED/  cross/SEED-tT/SOLVER+EXTRACTOR.json  ablation.json
ablation.md  report.html``.  All runs play the same games; the arms of one seed start from one warm
start.  What is finished is never done again, so the same command goes on.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from ml_collections import ConfigDict

from evolving_rl_jax.config import ConfigError, validate
from evolving_rl_jax.eval.ablation import WARMSTART, cross_file, write_summary
from evolving_rl_jax.eval.report import write_report
from evolving_rl_jax.train.build import open_parts, prepare_games
from evolving_rl_jax.train.console import say
from evolving_rl_jax.train.preemption import Preemption
from evolving_rl_jax.train.run_folder import RunFolder
from evolving_rl_jax.types import SCORED


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What is run where.

    Attributes:
      folder: of everything; holds the configuration that the runs are made from.
      arms: in this order.
      seeds: of the runs; the games are those of the configuration's own seed.
    """

    folder: RunFolder
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    def run_path(self, arm: str, seed: int) -> pathlib.Path:
        """The run folder of an arm with a seed."""
        return self.folder.path / "runs" / f"{arm}-{seed}"

    def run_config(self, config, arm: str, seed: int) -> ConfigDict:
        """The configuration of one run: that of the ablation with the shared games."""
        own = ConfigDict(config.to_dict())
        own.unlock()
        own.data.games = config.data.games or str(self.folder.path / "games")
        own.env.cache_dir = config.env.cache_dir or str(self.folder.path / "cache")
        own.seed, own.algorithm.arm = seed, arm
        validate(own)
        return own.lock()

    def runs(self) -> Iterator[tuple[str, int]]:
        """(arm, seed), one seed after the other: the arms can be compared early."""
        return ((arm, seed) for seed in self.seeds for arm in self.arms)


def run_ablation(config, ablation: Ablation) -> None:
    """Trains what is missing, crosses solvers with extractors, and writes table and report.

    Args:
      config: that all runs share but for arm and seed.
      ablation: which runs, and where.

    Raises:
      ConfigError: the folder belongs to another configuration, or a run cannot be made.
      Preempted: this machine is about to be taken away; the run that was going on has been saved.
    """
    prepare_games(config, ablation.folder)
    _keep_programs(ablation.folder.path / "cache" / "programs")
    with Preemption() as preemption:
        runs = list(ablation.runs())
        for number, (arm, seed) in enumerate(runs, 1):
            label = f"ablation: arm {arm}, seed {seed} ({number} of {len(runs)})"
            _run(ablation.run_config(config, arm, seed), ablation, label, preemption)
            preemption.check()
        for seed in ablation.seeds:
            _cross(config, ablation, seed)
            preemption.check()
    folders = [ablation.run_path(arm, seed) for arm, seed in runs]
    table = write_summary(ablation.folder.path, folders)
    path = write_report(*folders, title="Ablation", out=ablation.folder.path / "report.html")
    print(table)
    say(f"written: {ablation.folder.path / 'ablation.md'}, ablation.json, {path.name}")


# -- the runs --------------------------------------------------------------------------------------


def _run(config, ablation: Ablation, label: str, preemption: Preemption) -> None:
    """Trains one arm with one seed, unless its last evaluation is there."""
    folder = RunFolder(str(ablation.run_path(config.algorithm.arm, config.seed)), config)
    if _finished(folder, config):
        say(f"{label}: done")
        return
    say(label)
    folder.begin()
    for arm in ablation.arms:
        _share_start(ablation.run_path(arm, config.seed), folder.path, config)
    with open_parts(config, folder, preemption=preemption) as parts:
        from evolving_rl_jax.train.loop import train

        train(parts)
    _free_memory()


def _finished(folder: RunFolder, config) -> bool:
    ends = [_read(folder.eval_file("final", t)) for t in config.eval.temperatures]
    return all(end.get("iteration") == config.train.num_iterations for end in ends)


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
        partial = target.with_name(target.name + ".partial")
        if source.is_dir():
            shutil.copytree(source, partial, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, partial)
        os.replace(partial, target)


def _keep_programs(path: pathlib.Path) -> None:
    """Programs compiled for one run serve the others, from a folder unless the user named one."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _free_memory() -> None:
    """Programs and buffers of a finished run; the next one reads its programs from the folder."""
    import jax

    jax.clear_caches()
    gc.collect()


# -- solvers x extractors --------------------------------------------------------------------------


def _cross(config, ablation: Ablation, seed: int) -> None:
    """Every policy of a seed plays the panel with the skills that every other one wrote.

    At the first temperature of the panels.  A policy with its own skills is in its evaluation.
    """
    temperature = config.eval.temperatures[0]
    policies = {WARMSTART: ablation.arms[0], **{arm: arm for arm in ablation.arms}}

    def file(solver: str, extractor: str) -> pathlib.Path:
        return cross_file(ablation.folder.path, seed, temperature, solver, extractor)

    missing = [(s, e) for s in policies for e in policies if s != e and not file(s, e).is_file()]
    if not missing or "own" not in config.eval.conditions:
        return
    say(f"ablation: solvers x extractors, seed {seed}")
    folders = {p: RunFolder(str(ablation.run_path(arm, seed))) for p, arm in policies.items()}
    with open_parts(folders[WARMSTART].load_config(), folders[WARMSTART]) as parts:
        from evolving_rl_jax.train.export import load_policy

        _check_skills_are_kept(parts)
        engine, panel = None, parts.make_panel(parts.config.eval.num_games)
        for solver in dict.fromkeys(s for s, _ in missing):
            which = WARMSTART if solver == WARMSTART else "latest"
            params, _, iteration = load_policy(folders[solver], which)
            engine = engine or parts.make_engine(params)
            engine.set_params(params, f"{solver}-{seed}")
            for extractor in [e for s, e in missing if s == solver]:
                name = WARMSTART if extractor == WARMSTART else "final"
                written = _read(folders[extractor].eval_file(name, temperature))
                _play_pair(parts, engine, panel, written, file(solver, extractor), iteration)
    _free_memory()


def _check_skills_are_kept(parts) -> None:
    if any(t.meta.get("sealed") for t in parts.panel_tasks):
        raise ConfigError(
            "config.eval.splits must be splits without tasks of the password-protected archive "
            "(their skills are never written down, so no other policy can be given them), got "
            f"{tuple(parts.config.eval.splits)}"
        )


def _play_pair(parts, engine, panel, written: dict, path: pathlib.Path, iteration: int) -> None:
    """One solver, whose parameters the engine holds, with the skills of one evaluation."""
    from evolving_rl_jax.eval.evaluate import PANEL_ITERATION, write_result
    from evolving_rl_jax.train.loop import make_driver

    temperature, seed = written["temperature"], written["seed"]
    records = {g["id"]: g for g in written["games"] if g["conditions"]["own"]["status"] in SCORED}
    skills = {i: g["conditions"]["own"]["skill"] for i, g in records.items()}
    driver = make_driver(parts, engine, PANEL_ITERATION + seed, temperature)
    with parts.progress(path.stem, len(skills)) as bar:
        games = panel.play_given(driver, skills, bar, seed)
    tasks = {t.id: t for t in parts.tasks}
    for game in games:  # those with one source share one skill
        game.source = tasks[records[game.task.id]["retrieved"]["id"]]
        game.similarity = records[game.task.id]["retrieved"]["similarity"]
    write_result(
        path, panel, games, name=path.stem, iteration=iteration, temperature=temperature,
        seed=seed, conditions=("own",), figures=written["sources"],
    )  # fmt: skip
