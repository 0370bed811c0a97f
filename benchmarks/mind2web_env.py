"""Web tasks: pages parsed, snapshots made and steps replayed a second; memory over many episodes.

Command:   python benchmarks/mind2web_env.py [--episodes=10000] [--workers=2]
Hardware:  CPU; a minute on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import tempfile
import time

from evolving_rl_jax import envs
from evolving_rl_jax.envs.mind2web.env import split_observation
from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.recall import GoldRecall
from evolving_rl_jax.envs.mind2web.records import from_official
from evolving_rl_jax.envs.mind2web.sites import SitesSpec, generate_sites
from evolving_rl_jax.envs.mind2web.store import load_web_tasks
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.envs.web.page import parse_page
from evolving_rl_jax.envs.web.snapshot import snapshot

WORDS = "flight hotel map price book family oslo paris search login careers offer city date help".split()
SPEC = SitesSpec(
    num_train_sites=40, tasks_per_site=8, num_test_task=0, num_test_sites=0, num_warmstart_sites=0
)


def page_html(num_rows: int, rng: random.Random, *, closed: bool = True) -> str:
    """A page of rows with a text, a link and a button each; ``closed`` makes it well-formed XML."""
    end = "</li>" if closed else ""
    rows = []
    for i in range(num_rows):
        text = " ".join(rng.choices(WORDS, k=6))
        rows.append(
            f'<li class="row r{i}" backend_node_id="{4 * i}"><span backend_node_id="{4 * i + 1}">{text}</span>'
            f'<a href="/item/{i}?ref={"x" * 40}" backend_node_id="{4 * i + 2}">{rng.choice(WORDS)}</a>'
            f'<button backend_node_id="{4 * i + 3}">Add</button>{end}'
        )
    return f"<html><body><ul>{''.join(rows)}</ul></body></html>"


def per_second(function, seconds: float = 2.0) -> float:
    """How often a function can be called in a second, after a first call that loads what it needs."""
    function()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        function()
        count += 1
    return count / (time.perf_counter() - start)


def report_pages(rng: random.Random) -> None:
    """Parsing, by size and by parser, and snapshots within a budget."""
    for num_rows in (20, 400):
        xml, html = (page_html(num_rows, rng, closed=c) for c in (True, False))
        fast, slow = (per_second(lambda h=h: parse_page(h)) for h in (xml, html))
        print(
            f"pages of {len(xml) / 1e3:.0f} kB: {fast:.0f} a second as XML, {slow:.0f} as HTML "
            f"({fast / slow:.1f} x)"
        )
        page, task = parse_page(xml), "book a family hotel in oslo"
        whole, ranked = (
            per_second(lambda p=page, t=task, b=b: snapshot(p, t, (), b)) for b in (10**9, 500)
        )
        print(f"  snapshots: {whole:.0f} a second whole, {ranked:.0f} of 500 tokens")
    for name, html in (
        ("5 MB", page_html(21_000, rng)),
        ("5 MB that are not XML", page_html(21_000, rng, closed=False)),
        ("2,000 levels", '<div backend_node_id="1">' * 2000 + "<p>Deep</p>" + "</div>" * 2000),
    ):
        start = time.perf_counter()
        page = parse_page(html)
        parsed = time.perf_counter() - start
        shown = snapshot(page, "book a hotel", (), 2000)
        took = time.perf_counter() - start
        print(
            f"{name} ({len(html) / 1e6:.1f} MB): parsed in {parsed:.2f} s, {len(page.elements)} elements, "
            f"{len(shown.shown)} of them shown in 2,000 tokens after {took:.2f} s"
        )


def report_recall(rng: random.Random) -> None:
    """Recall of the right element by budget, on pages with one row that the task is about."""
    recall = GoldRecall()
    for i in range(40):
        html = page_html(400, rng)
        row = rng.randrange(400)
        text = html.split(f'backend_node_id="{4 * row + 1}">')[1].split("<")[0]
        step = {
            "cleaned_html": html,
            "operation": {"op": "CLICK", "value": ""},
            "pos_candidates": [{"backend_node_id": str(4 * row + 3)}],
        }
        recall.add(
            from_official(
                {
                    **{"annotation_id": str(i), "confirmed_task": f"add {text}", "website": "w"},
                    **{"domain": "d", "subdomain": "s", "action_reprs": [""], "actions": [step]},
                }
            )
        )
    shares = ", ".join(f"{b or 'page'}: {share:.0%}" for b, share in recall.figures().items())
    print(f"gold element shown, pages of 1,200 elements, by tokens: {shares}")


def solution(task, text: str, step: int) -> str:
    """The right action on a generated site."""
    plan = task.meta["solution"][step]
    name = f'"{plan["label"]}"' + (f" ({plan['context']})" if plan["context"] else "")
    line = next(x for x in split_observation(text)[2] if name in x)
    ref = line.split("[ref=")[1].split("]")[0]
    return json.dumps({"op": plan["op"], "ref": ref, "value": plan["value"]})


def replay(tasks, episodes: int, report_every: int) -> tuple[float, list[float]]:
    """(steps a second, megabytes of memory after each ``report_every`` episodes), in this process."""
    env, memory = envs.make("mind2web", snapshot_tokens=300), []
    steps, start = 0, time.perf_counter()
    for i in range(episodes):
        task = tasks[i % len(tasks)]
        reply = env.reset(task)
        for step in range(len(task.meta["solution"])):
            reply = env.step(solution(task, reply.text, step))
            steps += 1
        if (i + 1) % report_every == 0:
            memory.append(resident_megabytes())
    return steps / (time.perf_counter() - start), memory


def resident_megabytes() -> float:
    """Memory of this process (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def pool_steps(tasks, workers: int, episodes: int = 2000) -> float:
    """Steps a second through worker processes."""
    with EnvPool("mind2web", {"snapshot_tokens": 300}, num_workers=workers) as pool:
        pool.reset(0, tasks[0])
        pool.poll(60)
        steps, start = 0, time.perf_counter()
        at = dict.fromkeys(range(1, episodes + 1), 0)
        for i in at:
            pool.reset(i, tasks[i % len(tasks)])
        while at:
            for i, reply in pool.poll(60):
                if getattr(reply, "done", False):
                    del at[i]
                    pool.close(i)
                    continue
                pool.step(i, solution(tasks[i % len(tasks)], reply.text, at[i]))
                at[i] += 1
                steps += 1
        return steps / (time.perf_counter() - start)


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rng = random.Random(0)
    report_pages(rng)
    report_recall(rng)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        generate_sites(root / "raw", seed=0, spec=SPEC)
        build_index([root / "raw"], root / "out", budgets=())
        tasks = load_web_tasks(root / "out")
        rate, memory = replay(tasks, args.episodes, max(1, args.episodes // 5))
        shared = pool_steps(tasks, args.workers)
    print(
        f"steps replayed: {rate:.0f} a second in this process, {shared:.0f} with {args.workers} workers"
    )
    shown = ", ".join(f"{m:.1f}" for m in memory)
    print(f"memory after each fifth of {args.episodes} episodes: {shown} MB")


if __name__ == "__main__":
    main()
