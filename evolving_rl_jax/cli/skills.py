"""`evolving-rl export` and `evolving-rl skills`: policies, banks and folders of skills."""

from __future__ import annotations

import pathlib

from evolving_rl_jax.config import ConfigError


def add_export(commands) -> None:
    """The parser of `export`."""
    p = commands.add_parser(
        "export",
        help="write the policy as a Hugging Face folder, or the skills as folders",
        description="Writes a checkpoint of a run as config.json, safetensors and tokenizer files, or, of a "
        "run that trains adapters, these alone in the format of the peft package; or the skills of its bank "
        "as folders with SKILL.md.",
    )
    p.add_argument("--workdir", required=True, metavar="DIR", help="run folder")
    p.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    p.add_argument(
        "--what",
        choices=("policy", "adapter", "skills"),
        default="policy",
        help="whole weights, adapters merged into them, the adapters, or the skills (default: policy)",
    )
    p.add_argument(
        "--bank", default="", metavar="FILE", help="skills: (default: WORKDIR/skills/bank.jsonl)"
    )
    p.add_argument(
        "--top", type=int, default=0, metavar="N", help="skills: only the best (default: all)"
    )
    p.add_argument(
        "--checkpoint",
        default="latest",
        metavar="WHICH",
        help="latest or an iteration (default: latest)",
    )


def export(args, _overrides) -> None:
    """Writes what the options ask for."""
    from evolving_rl_jax.run.folder import RunFolder

    folder, out = RunFolder(args.workdir), pathlib.Path(args.out)
    if args.what == "skills":
        folder.load_config()
        bank = pathlib.Path(args.bank) if args.bank else folder.bank_file
        export_skills(bank, out, args.top)
        return
    from evolving_rl_jax.run.policy import export_adapter, export_policy

    {"policy": export_policy, "adapter": export_adapter}[args.what](folder, out, args.checkpoint)
    print(f"{args.what} in {args.out}")


def add_skills(commands) -> None:
    """The parser of `skills`."""
    p = commands.add_parser(
        "skills",
        help="import folders into a bank, merge banks, retire skills",
        description="import: folders with SKILL.md (from `export --what=skills`, or of other tools) into a bank.  "
        "merge: several banks into a new one.  tidy: retire duplicates and skills that were measured to harm.",
        epilog="evolving-rl skills import --folders=DIR --bank=bank.jsonl",
    )
    p.add_argument("action", choices=("import", "merge", "tidy"))
    p.add_argument("--bank", required=True, metavar="FILE", help="the bank that is written")
    p.add_argument("--folders", default="", metavar="DIR", help="import: where the folders are")
    p.add_argument("--banks", nargs="+", default=[], metavar="FILE", help="merge: the banks")
    p.add_argument(
        "--duplicates", type=float, default=0.95, metavar="COSINE",
        help="tidy: texts this alike are duplicates; 0 = leave them (default: 0.95)",
    )  # fmt: skip
    p.add_argument(
        "--embedder", default="tfidf", metavar="NAME",
        help="tidy: as config.skills.embedder (default: tfidf)",
    )  # fmt: skip
    p.add_argument(
        "--min-utility", type=float, default=0.0, metavar="X",
        help="tidy: retire skills whose whole 95 %% interval is below this difference of success rates "
        "(default: 0)",
    )  # fmt: skip
    p.add_argument(
        "--min-pairs", type=int, default=8, metavar="N",
        help="tidy: paired episodes that it takes to judge a skill (default: 8)",
    )  # fmt: skip


def skills(args, _overrides) -> None:
    """Does one of the actions."""
    {"import": _import, "merge": _merge, "tidy": _tidy}[args.action](args)


def export_skills(bank: pathlib.Path, out: pathlib.Path, top: int) -> None:
    """Writes the usable skills of a bank as folders; prints how many.

    Raises:
      ConfigError: there is no bank or no usable skill, or ``out`` is in use.
    """
    from evolving_rl_jax.skills.folders import export_folders

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out must be a new or empty folder, got {str(out)!r}")
    records = _open(bank, "--bank").records
    if not any(record.usable for record in records):
        raise ConfigError(f"--bank must hold usable skills, got {bank} with {len(records)} records")
    folders = export_folders(records, out, top=top or None)
    print(f"{len(folders)} skills of {len(records)} records in {out}")


def _open(path: pathlib.Path, flag: str):
    if not path.is_file():
        raise ConfigError(f"{flag} must be a bank.jsonl, got {str(path)!r} (no such file)")
    return _bank(path, flag)


def _bank(path: pathlib.Path, flag: str):
    from evolving_rl_jax.skills import Bank

    try:
        return Bank(path)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{flag}: {error}") from error


def _import(args) -> None:
    from evolving_rl_jax.skills.folders import import_folders

    if not args.folders:
        raise ConfigError("--folders must be given to import, got none")
    try:
        records, refused = import_folders(args.folders)
    except ValueError as error:
        raise ConfigError(f"--folders: {error}") from error
    bank = _bank(pathlib.Path(args.bank), "--bank")
    added = bank.append(records)
    print(f"{added} skills added to {args.bank}, {len(records) - added} were there")
    for file, reason in refused.items():
        print(f"refused: {file}: {reason}")


def _merge(args) -> None:
    from evolving_rl_jax.skills.curate import merge_banks

    if len(args.banks) < 2:
        raise ConfigError(f"--banks must be two banks or more to merge, got {len(args.banks)}")
    paths = [pathlib.Path(name) for name in args.banks]
    banks = [(_name_of(path), _open(path, "--banks")) for path in paths]
    try:
        merged = merge_banks(args.bank, banks)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--bank: {error}") from error
    print(f"{len(merged)} records of {len(banks)} banks in {args.bank}")


def _name_of(path: pathlib.Path) -> str:
    """The run of RUN/skills/bank.jsonl, the file's own name elsewhere."""
    folder = path.absolute().parent
    return folder.parent.name if folder.name == "skills" else path.stem


def _tidy(args) -> None:
    from evolving_rl_jax.run.skills import make_embedder
    from evolving_rl_jax.skills.curate import retire_duplicates, retire_harmful

    if not 0 <= args.duplicates <= 1:
        raise ConfigError(f"--duplicates must be in [0, 1], got {args.duplicates}")
    if args.min_pairs < 1:
        raise ConfigError(f"--min-pairs must be >= 1, got {args.min_pairs}")
    bank = _open(pathlib.Path(args.bank), "--bank")
    # Before anything is written: it may not be there.
    embedder = make_embedder(args.embedder, bank.path.parent / "cache")
    harmful = retire_harmful(bank, min_pairs=args.min_pairs, min_utility=args.min_utility)
    same = retire_duplicates(bank, embedder, args.duplicates) if args.duplicates else []
    left = sum(record.usable for record in bank.records)
    print(
        f"retired {len(harmful)} harmful skills and {len(same)} duplicates; {left} usable are left"
    )
    for record in [*harmful, *same][:10]:
        print(f"  {record.id}: {record.retired}")
