"""``evolving-rl export``."""

from __future__ import annotations

import pathlib

from evolving_rl_jax.cli.options import at_least, only_with


def add(commands) -> None:
    """The options."""
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
        help="policy, adapter: latest, best or an iteration; policy: also warmstart (default: latest)",
    )
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="",
        help="policy: of the weights (default: the run's model.dtype with adapters, which are merged in "
        "float32 and rounded once, else float32)",
    )


def run(args, overrides: dict[str, str]) -> None:
    """Writes what the options ask for."""
    from evolving_rl_jax.run.folder import RunFolder

    at_least(args.top, 0, "--top")
    only_with("--what=skills", args.what == "skills", bank=args.bank, top=args.top)
    only_with("--what=policy", args.what == "policy", dtype=args.dtype)
    folder, out = RunFolder(args.workdir, moved=overrides), pathlib.Path(args.out)
    folder.load_config()
    if args.what == "skills":
        from evolving_rl_jax.run.banks import export_skills

        export_skills(pathlib.Path(args.bank) if args.bank else folder.bank_file, out, args.top)
        return
    from evolving_rl_jax.run.policy import export_adapter, export_policy

    if args.what == "adapter":
        said = export_adapter(folder, out, args.checkpoint)
    else:
        said = export_policy(folder, out, args.checkpoint, args.dtype)
    if said:
        print(said)
    print(f"{args.what} in {args.out}")
