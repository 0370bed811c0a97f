"""What other projects rely on: the names, jax as the only import, examples that run."""

import doctest
import importlib
import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

from evolving_rl_jax import losses

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "losses.md").read_text()
FUNCTIONS = [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name))]


def test_importing_losses_imports_jax_and_no_training_library():
    code = (
        "import sys, evolving_rl_jax.losses; "
        "banned = {'flax', 'optax', 'orbax', 'chex', 'haiku', 'ml_collections', 'tensorflow', "
        "'torch', 'transformers', 'textworld', 'alfworld'}; "
        "print(sorted(banned & {name.split('.')[0] for name in sys.modules}))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("module", ["advantages", "policy", "logprobs"])
def test_doctests(module):
    result = doctest.testmod(importlib.import_module(f"evolving_rl_jax.losses.{module}"))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_have_an_example_and_a_row_in_the_docs(name):
    doc = getattr(losses, name).__doc__
    for section in ("Args:", "Returns:", "Raises:", "Example:", ">>> "):
        assert section in doc, f"{name} lacks {section}"
    assert f"`{name}" in PAGE


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hyper_parameters_are_keyword_only(name):
    for parameter in inspect.signature(getattr(losses, name)).parameters.values():
        has_default = parameter.default not in (inspect.Parameter.empty, None)
        if has_default:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter


def test_python_of_the_docs_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {})
