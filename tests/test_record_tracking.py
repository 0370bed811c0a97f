"""W&B as asked for in the configuration, with a stand-in for the package."""

import importlib.util
import sys
import types

import pytest

from evolving_rl_jax.config import ConfigError, default_config, validate
from evolving_rl_jax.record import tracking
from evolving_rl_jax.record.metrics import MetricsLogger


class _FakeWandb(types.ModuleType):
    def __init__(self, fail=""):
        super().__init__("wandb")
        self.opened, self.logged, self.finished, self.fail = [], [], 0, fail

    def init(self, **options):
        if self.fail:
            raise RuntimeError(self.fail)
        self.opened.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    fake = _FakeWandb()
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_the_logger_sends_what_it_writes(wandb, tmp_path):
    run = tracking.WandbRun("skills", tmp_path, {"seed": 3})
    with MetricsLogger(tmp_path, total=2, tensorboard=False, console=False, wandb=run) as logger:
        logger.log(0, {"train/loss": 0.5, "train/kl": float("nan")})
        logger.log(1, {"train/loss": 0.25})
    assert wandb.logged == [(0, {"train/loss": 0.5}), (1, {"train/loss": 0.25})]
    assert wandb.finished == 1
    assert wandb.opened[0]["project"] == "skills" and wandb.opened[0]["config"] == {"seed": 3}


def test_a_resumed_training_goes_on_with_its_run(wandb, tmp_path):
    for folder in ("a", "a", "b"):
        tracking.WandbRun("skills", tmp_path / folder, {})
    first, again, other = (options["id"] for options in wandb.opened)
    assert first == again != other
    assert {options["resume"] for options in wandb.opened} == {"allow"}


def test_asked_for_and_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    tracking.check_wandb("")
    for call in (tracking.check_wandb, lambda p: tracking.WandbRun(p, tmp_path, {})):
        with pytest.raises(ConfigError, match="config.train.wandb must be empty .* got 'skills'"):
            call("skills")
    assert list(tmp_path.iterdir()) == []


def test_a_project_that_cannot_be_opened_is_named(wandb, tmp_path):
    wandb.fail = "no API key"
    with pytest.raises(ConfigError, match=r"got 'skills' \(RuntimeError: no API key\)"):
        tracking.WandbRun("skills", tmp_path, {})


@pytest.mark.parametrize("name", ["a/b", "a#b", "x" * 129])
def test_project_names_are_checked(name):
    config = default_config()
    config.train.wandb = name
    with pytest.raises(ConfigError, match="config.train.wandb must be empty or a W&B project name"):
        validate(config)
