"""Banks of skills outside of a run: export to folders, import, merging, and what is worth keeping."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Sequence

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.run.console import say, user_errors
from evolving_rl_jax.run.folder import check_unused
from evolving_rl_jax.run.skills import make_embedder
from evolving_rl_jax.skills import Bank
from evolving_rl_jax.skills.curate import merge_banks, retire_duplicates, retire_harmful
from evolving_rl_jax.skills.folders import export_folders, import_folders


def open_bank(path: str | os.PathLike[str], flag: str) -> Bank:
    """The bank in a file.

    Args:
      path: of the file.
      flag: option that named it.

    Raises:
      ConfigError: there is no such file, or it is no bank.
    """
    if not pathlib.Path(path).is_file():
        why = "a folder" if pathlib.Path(path).is_dir() else "no such file"
        raise ConfigError(f"{flag} must be a bank.jsonl, got {str(path)!r} ({why})")
    with user_errors((ValueError, OSError), flag), warnings.catch_warnings(record=True) as torn:
        bank = Bank(path)
    if not len(bank) and os.path.getsize(path):
        raise ConfigError(f"{flag} must be a bank.jsonl, got {str(path)!r} without a whole record")
    for warning in torn:
        say(str(warning.message))
    return bank


def export_skills(bank: pathlib.Path, out: pathlib.Path, top: int) -> None:
    """Writes the usable skills of a bank, the ``top`` best or all (0), as folders; prints how many.

    Raises:
      ConfigError: there is no bank or no usable skill, or ``out`` is in use.
    """
    check_unused(out)
    records = open_bank(bank, "--bank").records
    if not any(record.usable for record in records):
        raise ConfigError(f"--bank must hold usable skills, got {bank} with {len(records)} records")
    with user_errors((OSError,), "--out"):
        folders = export_folders(records, out, top=top or None)
    print(f"{len(folders)} skills of {len(records)} records in {out}")


def import_skills(folders: str, bank: str) -> None:
    """Adds the skills of folders with ``SKILL.md`` to a bank, which is made if it is not there.

    Raises:
      ConfigError: there are no such folders, or the bank cannot be written.
    """
    if not folders:
        raise ConfigError("--folders must be given to import, got none")
    with user_errors((ValueError, OSError), "--folders"):
        records, refused = import_folders(folders)
    with user_errors((ValueError, OSError), "--bank"):
        added = _old_or_new(bank).append(usable := [record for record in records if record.usable])
    print(f"{added} skills added to {bank}, {len(usable) - added} were there")
    refused |= {r.id: r.retired or r.reason for r in records if not r.usable}
    for name, reason in refused.items():
        print(f"refused: {name}: {reason}")


def merge(paths: Sequence[str], out: str) -> None:
    """Writes the records of several banks into a new one.

    Raises:
      ConfigError: there are fewer than two, one is no bank, or ``out`` is in use.
    """
    if len(paths) < 2:
        raise ConfigError(f"--banks must be two banks or more to merge, got {len(paths)}")
    banks = [(_name_of(pathlib.Path(path)), open_bank(path, "--banks")) for path in paths]
    with user_errors((ValueError, OSError), "--bank"):
        merged = merge_banks(_old_or_new(out).path, banks)
    print(f"{len(merged)} records of {len(banks)} banks in {out}")


def _old_or_new(path: str) -> Bank:
    """The bank to write to; a file with something in it must be one."""
    there = pathlib.Path(path).is_file() and os.path.getsize(path)
    return open_bank(path, "--bank") if there else Bank(path)


def _name_of(path: pathlib.Path) -> str:
    """The run of RUN/skills/bank.jsonl, run and file of RUN/eval/NAME, the file's own name elsewhere."""
    folder = path.absolute().parent
    if folder.name == "eval":
        return f"{folder.parent.name}/{path.stem}"
    return folder.parent.name if folder.name == "skills" else path.stem


def tidy(
    path: str, embedder: str, *, duplicates: float, min_pairs: int, min_utility: float
) -> None:
    """Retires skills that were measured to harm, then duplicates; prints which.

    Args:
      path: of the bank.
      embedder: as ``config.skills.embedder``.
      duplicates: cosine from which two texts are one; 0 = leave them.
      min_pairs: paired episodes that it takes to judge a skill.
      min_utility: least worth, a difference of success rates.

    Raises:
      ConfigError: there is no such bank or embedder.
    """
    bank = open_bank(path, "--bank")
    # Before anything is written: it may not be there.
    embed = make_embedder(embedder, bank.path.parent / "cache")
    harmful = retire_harmful(bank, min_pairs=min_pairs, min_utility=min_utility)
    same = retire_duplicates(bank, embed, duplicates) if duplicates else []
    left = sum(record.usable for record in bank.records)
    print(
        f"retired {len(harmful)} harmful skills and {len(same)} duplicates; {left} usable are left"
    )
    for record in [*harmful, *same][:10]:
        print(f"  {record.id}: {record.retired}")
