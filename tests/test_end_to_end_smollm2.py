"""A policy that a run trained, exported and loaded by ``transformers``, acts as it does here."""

import os

import numpy as np
import pytest

from evolving_rl_jax.cli.main import main
from evolving_rl_jax.run.engine import make_driver, make_engine
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.parts import open_parts
from evolving_rl_jax.run.policy import load_policy

RUN = "EVOLVING_RL_SMOLLM2_RUN"
EPISODES = 4


def greedy_samples(workdir):
    """The sequences of episodes of the run's newest policy that take the most likely token."""
    folder = RunFolder(workdir)
    config = folder.load_config()
    assert config.model.dtype == "float32", "in bfloat16 a row depends on what shares its call"
    with open_parts(config, folder) as parts:
        params, _, _ = load_policy(folder, "latest")
        driver = make_driver(parts, make_engine(parts, params), 0, 0.0)
        done = []
        for i, task in enumerate(parts.split("valid_unseen")[:EPISODES]):
            driver.play(i, task, "", lambda episode, _: done.append(episode))
        driver.run()
    return [sample for episode in done for sample in episode.samples]


@pytest.mark.slow
def test_the_exported_policy_acts_in_transformers_as_it_does_here(tmp_path):
    if not os.environ.get(RUN):
        pytest.skip(f"{RUN} must name the run folder of configs/smollm2.py with a checkpoint")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    workdir = os.environ[RUN]
    assert main(["export", f"--workdir={workdir}", f"--out={tmp_path / 'policy'}"]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "policy", dtype=torch.float32
    )
    chat = transformers.AutoTokenizer.from_pretrained(tmp_path / "policy")
    samples = greedy_samples(workdir)
    assert len(samples) >= EPISODES
    for sample in samples:
        # The most likely token of each place, given ours before it: by induction, its greedy turn.
        with torch.no_grad():
            logits = model(torch.tensor(sample.tokens[None].tolist())).logits[0].numpy()
        places = np.flatnonzero(sample.loss_mask)
        assert len(places)
        theirs = logits[places - 1].argmax(-1)
        assert theirs.tolist() == sample.tokens[places].tolist(), chat.decode(sample.tokens)
