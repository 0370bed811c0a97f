"""Where compiled programs are kept: in the user's cache folder, unless the user has said otherwise."""

import json
import pathlib

import pytest

from evolving_rl_jax.run.compiled import cache_folder

# Compiles one program that takes long enough, as the commands do after `joined_hosts`.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from evolving_rl_jax.run import compiled

compiled._LEAST_SECONDS = 0.0
compiled.keep_programs()
jax.block_until_ready(jax.jit(lambda x: jnp.linalg.qr(x)[0])(jnp.ones((8, 8))))
names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
print(json.dumps([getattr(jax.config, name) for name in names]))
"""
OWN = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "XDG_CACHE_HOME")


@pytest.fixture
def compile_in(tmp_path, monkeypatch, program):
    """(variables) -> (folder of the cache, least seconds, files below the made-up home)."""

    def run(**variables):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        variables = {"HOME": str(home), **variables}
        cleared = (*OWN, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        lines = [f"os.environ.pop({name!r}, None)" for name in cleared]
        lines += [f"os.environ[{name!r}] = {value!r}" for name, value in variables.items()]
        done = program(code="\n".join(["import os", *lines, PROGRAM]))
        assert done.returncode == 0, done.stderr
        folder, seconds = json.loads(done.stdout)
        files = [p for p in tmp_path.rglob("*-cache") if p.is_file()]
        return folder and pathlib.Path(folder), seconds, files

    return run


def test_programs_are_kept_in_the_users_cache_folder_and_read_again(compile_in, tmp_path):
    folder, _, files = compile_in()
    assert folder == tmp_path / "home" / ".cache" / "evolving-rl" / "compiled"
    assert files and all(folder in p.parents for p in files)
    kept = {p: p.stat().st_mtime_ns for p in files}
    assert {p: p.stat().st_mtime_ns for p in compile_in()[2]} == kept


def test_a_folder_that_the_user_set_is_used_and_no_other(compile_in, tmp_path):
    own = tmp_path / "own"
    folder, _, files = compile_in(JAX_COMPILATION_CACHE_DIR=str(own))
    assert folder == own and all(own in p.parents for p in files)
    assert not (tmp_path / "home" / ".cache").exists()
    xdg = tmp_path / "xdg"
    least = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7"}
    folder, seconds, _ = compile_in(XDG_CACHE_HOME=str(xdg), **least)
    assert (folder, seconds) == (xdg / "evolving-rl" / "compiled", 7)


def test_switched_off_means_off(compile_in):
    assert compile_in(JAX_ENABLE_COMPILATION_CACHE="false")[::2] == (None, [])


def test_a_relative_folder_is_none(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")  # as the XDG specification has it
    assert cache_folder().is_absolute() and "here" not in cache_folder().parts
