"""Budgets of pages in the policy's own tokens; figures of the zoo with any tokenizer folder."""

import json
import os
import pathlib

import pytest
import tokenizers
import web_zoo
from web_zoo_figures import figures

from evolving_rl_jax import envs
from evolving_rl_jax.envs.mind2web.benchmark import BENCHMARK
from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.records import from_official
from evolving_rl_jax.envs.mind2web.store import load_web_tasks
from evolving_rl_jax.envs.web.snapshot import element_line, snapshot
from evolving_rl_jax.envs.web.token_count import count_tokens, counter, fit_weights

FOLDER = os.environ.get("WEB_TOKENIZER", "")  # a folder with tokenizer.json


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE of few merges: many more tokens than the estimate thinks."""
    found = tokenizers.ByteLevelBPETokenizer()
    found.train_from_iterator(["button link text heading"] * 4, vocab_size=300, show_progress=False)
    return found


def page_lines(task):
    page = task.steps[0].page
    return [element_line(e, i, task.text) for i, e in enumerate(page.elements, 1)]


def counted(tokenizer):
    return lambda texts: [len(e.ids) for e in tokenizer.encode_batch(texts)]


def test_snapshots_keep_their_budget_in_the_policys_own_tokens(tokenizer):
    tasks = [from_official(d) for d in web_zoo.zoo(2)]
    weights = fit_weights([page_lines(t) for t in tasks[::3]], counted(tokenizer))
    over = {}
    for name, count in (("estimate", count_tokens), ("fitted", counter(weights))):
        sizes = [
            len(tokenizer.encode(snapshot(t.steps[0].page, t.text, (), 2000, count).text).ids)
            for t in tasks
        ]
        over[name] = sum(size > 2000 * 1.05 for size in sizes) / len(sizes)
        if name == "fitted":
            assert sum(sizes) / len(sizes) > 1500
    assert over["estimate"] > 0.9 and over["fitted"] < 0.1


def test_other_writing_counts_by_its_bytes(tokenizer):
    pages = [['link "الطعام السفر" [ref=e1]', 'button "Go" [ref=e2]'], ['text "東京" [ref=e3]']]
    count = counter(fit_weights(pages, counted(tokenizer)))
    text = 'link "الأخبار الرياضة الكتب" [ref=e9]'
    assert count(text) > 2 * count_tokens(text)
    # where none was seen a byte is a token at most
    plain = fit_weights([['button "Go" [ref=e2]', 'link "Help me" [ref=e31]']], counted(tokenizer))
    assert plain[4] >= 1.0


def test_a_run_measures_with_its_policys_tokenizer(tokenizer, tmp_path):
    source = tmp_path / "source" / "train"
    source.mkdir(parents=True)
    (source / "train_0.json").write_text(json.dumps(web_zoo.zoo(1)))
    build_index([tmp_path / "source"], tmp_path / "out", budgets=())
    tasks = load_web_tasks(tmp_path / "out")
    options = BENCHMARK.measured_options(tasks, counted(tokenizer))
    env = envs.make("mind2web", snapshot_tokens=1000, **options)
    plain = envs.make("mind2web", snapshot_tokens=1000)
    sizes = [[len(tokenizer.encode(e.reset(t).text).ids) for t in tasks[:6]] for e in (env, plain)]
    assert max(sizes[0]) < 1200 < min(sizes[1])
    for weights in ((1.0,), (1.0, 1.0, 1.0, 1.0, -1.0)):
        with pytest.raises(ValueError, match="token_weights must be five numbers above 0"):
            envs.make("mind2web", token_weights=weights)


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="WEB_TOKENIZER names no tokenizer folder")
def test_the_zoo_in_the_tokens_of_a_real_tokenizer():
    real = tokenizers.Tokenizer.from_file(str(pathlib.Path(FOLDER) / "tokenizer.json"))
    found = figures(lambda text: len(real.encode(text, add_special_tokens=False).ids))
    mean = {b: sum(row[b] for row in found.values()) / len(found) for b in (0, 1000, 2000, 4000)}
    print(mean)
    assert mean[0] == 1.0 and mean[2000] > 0.9 and mean[4000] > 0.95
