"""Work of the host, before and after it was made cheaper, side by side in one run.

Command:   python benchmarks/host_work.py [--turns=32] [--records=1000,2000] [--only=extraction,...]
Hardware:  CPU; a few minutes on two cores, nearly all of them in the old ways and in compiling
Prints:    a line for each, then everything as one line of JSON

* extraction: the prompt of one extraction with a recent context, of ``--turns`` pages of 4,900 tokens, of
  which 16,384 tokens fit.  Before: everything rendered again for every turn that is left out.
* duplicates: alike records of a bank.  Before: one product for each record.
* episodes: compressing the episodes of an iteration.  Before: level 9 of gzip.
* stops: looking for a stop string in a turn of 512 tokens, window by window.  Before: the whole turn is
  decoded in each.
* programs: warming up the generation engine of the quickstart in a new process.  Before: no persistent
  compilation cache; after: one that an earlier process has filled.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
PAGE_TOKENS, ROOM, WINDOW, TURN = 4900, 16384, 8, 512
WORDS = ("button", "link", "search", "cart", "price", "Oslo", "form", "menu", "add", "to", "field")
WARM_UP = """
import json, pathlib, sys, time
from evolving_rl_jax.run.compiled import keep_programs
if sys.argv[1]:
    keep_programs(pathlib.Path(sys.argv[1]))
import jax
from evolving_rl_jax import models
from evolving_rl_jax.config import load_config
from evolving_rl_jax.generate import Engine
c = load_config("configs/alfworld_quickstart.py", {})
m, r = c.model, c.rollout
cfg = models.ModelConfig(
    m.vocab_size, m.hidden_size, m.intermediate_size, m.num_layers, m.num_heads, m.num_kv_heads,
    m.hidden_size // m.num_heads, model_type="llama",
)
engine = Engine(
    cfg, models.init(cfg, jax.random.key(0)), num_slots=r.num_slots, max_length=r.max_length,
    prefill_chunk=r.prefill_buckets, decode_window=r.decode_window, row_buckets=r.row_buckets,
    column_buckets=r.column_buckets, pad_id=0,
)
began = time.perf_counter()
engine.warmup()
print(json.dumps(time.perf_counter() - began))
"""


def timed(function: Callable) -> tuple[float, object]:
    """(seconds, result)."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


# -- extraction ------------------------------------------------------------------------------------


class PagePrompts:
    """Prompts that encode every text when it is asked for, as chat prompts do."""

    def __init__(self, tokenizer):
        self._encode = tokenizer.encode

    def solver_prompt(self, task, skill_text, observation, actions=()):
        return self._encode(f"{task}\n{observation}\n")

    def next_turn(self, observation, actions=(), *, last_id=None):
        return self._encode(f"\n{observation}\n")

    def extractor_prompt(self, won, observation="", *, last_id=None):
        return self._encode(f"\n{observation}\nWrite a skill.\n")


def extraction(args, folder: pathlib.Path) -> dict[str, float]:
    from evolving_rl_jax.rollout.contexts import RecentContext

    rng = random.Random(0)
    tokenizer = _tokenizer(folder, rng)
    prompts = PagePrompts(tokenizer)
    context = RecentContext(prompts, "book a flight", "", 0)
    for i in range(args.turns):
        page = _page(rng)
        context.observe(f"{page} {i}", ())
        answer = tokenizer.encode(f"click {i}")
        context.act(answer, np.zeros(len(answer)), np.zeros(len(answer)))

    def before():
        for first in range(args.turns):
            ids = context._render(first)
            request = prompts.extractor_prompt(True, "done", last_id=ids[-1])
            if len(ids) + len(request) <= ROOM:
                return ids, request
        return ids, request

    def after():
        request = prompts.extractor_prompt(True, "done")
        return context._shortened(0, ROOM - len(request)), request

    return _compared(before, after)


def _page(rng: random.Random) -> str:
    return " ".join(f"{rng.choice(WORDS)} {rng.randrange(999)}" for _ in range(PAGE_TOKENS // 4))


def _tokenizer(folder: pathlib.Path, rng: random.Random):
    from evolving_rl_jax.models.tokenizer import train_tokenizer

    texts = [_page(rng) for _ in range(20)]
    return train_tokenizer(texts, vocab_size=600, out_dir=folder / "tokenizer")


# -- the others ------------------------------------------------------------------------------------


def duplicates(args, folder: pathlib.Path) -> dict[str, dict[str, float]]:
    from evolving_rl_jax.skills.curate import best_first
    from evolving_rl_jax.skills.curate import duplicates as in_blocks
    from evolving_rl_jax.skills.embedders import TfidfEmbedder, cosine
    from evolving_rl_jax.skills.records import SkillRecord
    from evolving_rl_jax.skills.schema import render_skill

    def one_by_one(records):
        ranked = best_first(records)
        texts = [render_skill(record.as_skill()) for record in ranked]
        vectors = TfidfEmbedder().fit(texts).embed(texts)
        kept, found = [], {}
        for row, record in enumerate(ranked):
            scores = cosine(vectors[kept], vectors[[row]])[:, 0] if kept else np.zeros(0)
            best = int(np.argmax(scores)) if kept else -1
            if kept and scores[best] >= 0.95:
                found[record.id] = ranked[kept[best]].id
            else:
                kept.append(row)
        return found

    rng, results = random.Random(0), {}
    for number in args.records:
        said = [" ".join(rng.choices(WORDS, k=40)) for _ in range(number)]
        said = [rng.choice(said) if rng.random() < 0.1 else text for text in said]
        records = [
            SkillRecord(f"r{i:06d}", i, "s", "h", skill={"name": "a skill", "description": text})
            for i, text in enumerate(said)
        ]
        results[str(number)] = _compared(
            lambda records=records: set(one_by_one(records)),
            lambda records=records: set(in_blocks(records, TfidfEmbedder(), 0.95)),
        )
    return results


def episodes(args, folder: pathlib.Path) -> dict[str, float]:
    rng = random.Random(0)
    records = []
    for i in range(64):
        logprobs = [round(rng.gauss(-1, 1), 4) for _ in range(2000)]
        records.append(json.dumps({"id": i, "pieces": _page(rng).split(), "logprobs": logprobs}))
    text = "\n".join(records).encode()
    slow, most = timed(lambda: gzip.compress(text, mtime=0))
    fast, usual = timed(lambda: gzip.compress(text, compresslevel=6, mtime=0))
    return {"before_s": slow, "after_s": fast, "bytes": len(usual) / len(most)}


def stops(args, folder: pathlib.Path) -> dict[str, float]:
    from evolving_rl_jax.generate.sessions import tokens_to_stop

    tokenizer = _tokenizer(folder, random.Random(0))
    tokens = tokenizer.encode(_page(random.Random(1)))[:TURN]

    def search(remember: bool):
        searched = 0
        for count in range(WINDOW, TURN + 1, WINDOW):
            assert tokens_to_stop(tokenizer.decode, tokens[:count], ["</x>"], searched) is None
            searched = count if remember else 0

    return _compared(lambda: search(False), lambda: search(True))


def programs(args, folder: pathlib.Path) -> dict[str, float]:
    cache = str(folder / "programs")
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        variables.pop(name, None)

    def warm_up(where: str) -> float:
        command = [sys.executable, "-c", WARM_UP, where]
        done = subprocess.run(
            command, env=variables, cwd=ROOT, check=True, text=True, capture_output=True
        )
        return json.loads(done.stdout.splitlines()[-1])

    before, first, after = warm_up(""), warm_up(cache), warm_up(cache)
    return {"before_s": before, "first_s": first, "after_s": after}


def _compared(before: Callable, after: Callable) -> dict[str, float]:
    """Seconds of both; what they give must be the same."""
    after()  # imports and caches of the libraries
    fast, ours = timed(after)
    slow, theirs = timed(before)
    if ours != theirs:
        raise AssertionError("the two ways must give the same")
    return {"before_s": slow, "after_s": fast}


PARTS = {
    "extraction": extraction,
    "duplicates": duplicates,
    "episodes": episodes,
    "stops": stops,
    "programs": programs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=32)
    parser.add_argument(
        "--records", type=lambda s: [int(x) for x in s.split(",")], default=[1000, 2000]
    )
    parser.add_argument("--only", type=lambda s: s.split(","), default=list(PARTS))
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only:
            found[name] = PARTS[name](args, pathlib.Path(folder))
            rows = found[name] if name == "duplicates" else {"": found[name]}
            for size, row in rows.items():
                more = "".join(f", {k} {v:.3f}" for k, v in row.items() if k[-2:] != "_s")
                print(
                    f"{name:<11}{size:>6} {row['before_s']:9.3f} s -> {row['after_s']:.3f} s{more}"
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
