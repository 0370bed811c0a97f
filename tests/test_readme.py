"""What the README says to type is accepted, its code runs, its links lead somewhere."""

import ast
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.config import load_config

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, block in BLOCKS
    if kind in ("bash", "sh", "shell", "console")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_of(program):
    """Arguments of every command of a program, wherever that lies; variables before it left out."""
    found = []
    for words in COMMANDS:
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0].rsplit("/", 1)[-1] == program:
            found.append(words[1:])
    return found


def test_the_two_first_commands_are_there():
    targets = [words[0] for words in commands_of("make")]
    assert "quickstart" in targets and "test" in targets


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    for words in commands_of("make"):
        assert {word for word in words if "=" not in word} <= known
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    assert set(phony) == known


def test_the_readme_names_the_configs_that_make_trains():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    configs = re.findall(r"evolving-rl train --config=(\S+)", makefile)
    assert len(configs) == 2
    for config in configs:
        assert f"--config={config}" in README
        load_config(str(ROOT / config))


def test_make_trains_the_language_model_on_a_cpu_as_its_config_says():
    """The overrides are written twice: for who reads the configuration, and for who types `make`."""
    path = ROOT / "configs" / "smollm2.py"
    said = re.findall(r"--config\.(\S+)=(\S+)", path.read_text(encoding="utf-8"))
    made = re.findall(r"--config\.(\S+)=(\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert said and said == made
    load_config(str(path), dict(said))


@pytest.mark.parametrize("arguments", commands_of("evolving-rl"), ids=" ".join)
def test_every_command_is_accepted(arguments):
    arguments = list(arguments)
    overrides = cli.take_overrides(arguments)
    args = cli.parser().parse_args(arguments)
    assert args.command in cli.COMMANDS
    if args.command == "train":
        load_config(str(ROOT / args.config), overrides)
    else:
        assert not overrides


def test_every_command_of_the_program_is_shown():
    assert {arguments[0] for arguments in commands_of("evolving-rl")} == set(cli.COMMANDS)


def test_extras_that_are_installed_exist():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    call = next(n for n in ast.walk(ast.parse(setup)) if getattr(n, "arg", "") == "extras_require")
    known = {key.value for key in call.value.keys}
    wanted = set(",".join(re.findall(r"\.\[([\w,]+)\]", README)).split(",")) - {""}
    assert wanted and wanted <= known


@pytest.mark.parametrize("block", [b for kind, b in BLOCKS if kind == "python"])
def test_python_in_the_readme_runs(block):
    run = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text)
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_the_file_map_names_what_is_there():
    listing = next(block for _, block in BLOCKS if "evolving_rl_jax/\n" in block)
    inside, names = False, set()
    for line in listing.splitlines():
        name = line.split()[0]
        inside |= name == "evolving_rl_jax/"
        path = ROOT / ("evolving_rl_jax" if line.startswith(" ") and inside else "") / name
        assert path.exists(), line
        names.add(path)
    package = {p for p in (ROOT / "evolving_rl_jax").iterdir() if not p.name.startswith("_")}
    assert package <= names
