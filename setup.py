"""Package metadata.  The base install is jax + numpy (all that the losses need); the rest is in extras."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

TRAIN = [
    "flax>=0.10",  # linen leaf modules and initialisers that accept jax 0.10 arrays
    "optax>=0.2.4",  # apply_if_finite and masked weight decay with the current tree API
    "orbax-checkpoint>=0.11",  # CheckpointManager with asynchronous composite saves
    "ml-collections>=1.0",  # ConfigDict with type-safe overrides on Python 3.12
    "absl-py>=2.0",
    "tokenizers>=0.20",  # byte-level BPE trainer; tokenizer.json v1 as transformers reads it
    "transformers>=4.51",  # chat templates; first release with Qwen3
    "safetensors>=0.4.3",  # bfloat16 through numpy
    "alfworld>=0.4.2",  # first release whose command is `move X to Y` and which ships layouts
    "textworld[pddl]>=1.6.2",  # PddlEnv
    "importlib_resources>=6.0",  # imported by tensorflow-datasets, which does not declare it
    "tensorflow-datasets>=4.9.10",  # builders that work without TensorFlow
    "scikit-learn>=1.4",  # TF-IDF retrieval
    "tqdm>=4.66",
    "jinja2>=3.1",  # report.html
    "plotly>=5.20",  # charts that live inside the report file
    "tensorboardX>=2.6",
]

setup(
    name="evolving-rl-jax",
    version="0.1.0",
    description="Evolving-RL in JAX: one policy learns to solve tasks and to write the skills it solves them with",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["evolving_rl_jax", "evolving_rl_jax.*"]),
    package_data={"evolving_rl_jax.eval": ["templates/*"]},
    install_requires=[
        "jax>=0.10",  # jax.shard_map and jax.make_mesh as used here
        "numpy>=1.26",  # the oldest that jax 0.10 accepts
    ],
    extras_require={
        "train": TRAIN,
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda13]>=0.10"],
        "dev": ["pytest>=8.0", "ruff>=0.6"],
    },
    entry_points={"console_scripts": ["evolving-rl = evolving_rl_jax.cli:main"]},
)
