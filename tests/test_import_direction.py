"""Who may import whom: light modules without jax, losses with jax alone, layers in order."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "evolving_rl_jax"
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(PACKAGE.rglob("*.py"))
}

LIGHT = ("config", "envs", "skills", "data", "rollout", "cli")
WITHOUT_JAX = [
    m for m in MODULES if m.count(".") == 0 or m.split(".")[1] in (*LIGHT, "types", "files")
]

ENVS = "evolving_rl_jax.envs."

# A room may import those before it in the direction of the data flow, and itself.
BASE = ("types", "config", "files")
ACTING = ("envs", "data", "skills", "rollout")
ON_DEVICE = ("losses", "parallel", "models", "generate", "update")
PARTS = (*BASE, *ACTING, *ON_DEVICE)
RUN = (*PARTS, "run")
LAYERS = {
    "types": (),
    "config": (),
    "files": (),
    "losses": (),
    "parallel": (),
    "models": ("files", "losses", "parallel"),
    "generate": ("parallel", "models"),
    "update": ("types", "losses", "parallel", "models"),
    "envs": BASE,
    "skills": BASE,
    "data": (*BASE, "envs"),
    "rollout": (*BASE, "envs", "data", "skills"),
    "run": PARTS,
    "record": RUN,
    "eval": (*RUN, "record"),
    "report": (*RUN, "record", "eval"),
    "train": (*RUN, "record", "eval", "report"),
    "aot": RUN,
}


def imports_of(path: pathlib.Path) -> set[str]:
    """Modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the direction"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES else node.module for n in names}
    return found


def loaded_after(code: str) -> set[str]:
    """Top-level modules that are loaded after ``code`` ran in a fresh process."""
    code += "\nimport sys\nprint(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(run.stdout.split())


def test_light_modules_do_not_load_jax():
    code = "\n".join(f"import {name}" for name in WITHOUT_JAX)
    assert len(WITHOUT_JAX) > 25
    loaded = loaded_after(code)
    assert not loaded & {"jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "torch"}


def test_the_package_and_its_types_load_almost_nothing():
    loaded = loaded_after("import evolving_rl_jax, evolving_rl_jax.types")
    assert not loaded & {"jax", "ml_collections", "sklearn", "scipy", "textworld", "tqdm"}
    loaded = loaded_after("import evolving_rl_jax.cli")
    assert not loaded & {"jax", "sklearn", "scipy", "textworld", "tokenizers"}


def test_losses_load_jax_alone():
    loaded = loaded_after("import evolving_rl_jax.losses")
    assert "jax" in loaded
    assert not loaded & {"flax", "optax", "orbax", "ml_collections", "scipy", "textworld"}
    ours = {m for m in MODULES if m.startswith("evolving_rl_jax.losses")}
    for module in ours:
        for name in imports_of(MODULES[module]):
            top = name.split(".")[0]
            assert top in {"jax", "numpy"} or top in sys.stdlib_module_names or name in ours


@pytest.mark.parametrize("module", [m for m in MODULES if m.count(".")])
def test_imports_follow_the_layers(module):
    part = module.split(".")[1]
    if part in ("cli", "__main__"):
        return  # the entry points import whatever a command needs
    assert part in LAYERS, f"{module} needs a place in LAYERS"
    allowed = (part, *LAYERS[part])
    for name in imports_of(MODULES[module]):
        if not name.startswith("evolving_rl_jax."):
            continue
        target = name.removeprefix("evolving_rl_jax.")
        assert any(target == a or target.startswith(f"{a}.") for a in allowed), (
            f"{module} imports {name}, may import {', '.join(allowed)}"
        )


def test_the_layers_name_every_part():
    parts = {m.split(".")[1] for m in MODULES if m.count(".")}
    assert parts - {"cli", "__main__"} == set(LAYERS)


@pytest.mark.parametrize("module", [m for m in MODULES if m in WITHOUT_JAX])
def test_light_modules_do_not_even_name_jax(module):
    used = {name.split(".")[0] for name in imports_of(MODULES[module])}
    assert not used & {"jax", "jaxlib", "flax", "optax", "orbax"}


def room_of(module: str) -> str:
    """The folder of a module; a file beside the folders is a room of its own."""
    return module.split(".")[1] if module.count(".") else ""


def test_the_rooms_are_in_order():
    """Each may import only rooms above it in the table, so no rooms can import each other."""
    rooms = list(LAYERS)
    for i, room in enumerate(rooms):
        assert set(LAYERS[room]) <= set(rooms[:i])


def test_neither_files_nor_rooms_import_themselves_in_a_circle():
    files = {m: (imports_of(p) & set(MODULES)) - {m} for m, p in MODULES.items()}
    rooms: dict[str, set[str]] = {}
    for module, others in files.items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, others))
    graphlib.TopologicalSorter(files).prepare()  # CycleError names the circle
    graphlib.TopologicalSorter({r: others - {r} for r, others in rooms.items()}).prepare()


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("evolving_rl_jax.envs.")])
def test_benchmarks_know_nothing_of_each_other(module):
    folders = {n.split(".")[2] for n in imports_of(MODULES[module]) if n.startswith(ENVS)}
    shared = {path.stem for path in (PACKAGE / "envs").glob("*.py")} | {"pool", "web"}
    assert folders <= {module.split(".")[2], *shared}


# By name, beside the commands that make or index the games of one: the reader of public game folders,
# and the panel's table of web metrics.
KNOW_A_BENCHMARK = {"evolving_rl_jax.data.tasks", "evolving_rl_jax.eval.web"}


def test_rollout_and_what_is_above_it_know_no_benchmark():
    folders = tuple(f"{ENVS}{name}" for name in ("alfworld", "mind2web"))
    knowing = {m for m, p in MODULES.items() if any(n.startswith(folders) for n in imports_of(p))}
    others = {m for m in knowing if not m.startswith((ENVS, "evolving_rl_jax.cli."))}
    assert others == KNOW_A_BENCHMARK
