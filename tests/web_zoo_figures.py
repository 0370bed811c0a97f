"""How much of the zoo a snapshot shows, in the tokens of a real tokenizer.

Command:   python tests/web_zoo_figures.py TOKENIZER_FOLDER
Prints the share of steps whose gold element is on the page, and within 1,000, 2,000 and 4,000 tokens.
"""

import collections
import pathlib
import sys

from web_zoo import zoo

from evolving_rl_jax.envs.mind2web.records import from_official
from evolving_rl_jax.envs.web.snapshot import snapshot

BUDGETS = (1000, 2000, 4000)


def shown_within(task, limit, count):
    """Whether the largest snapshot of the task's first page with ``limit`` tokens has the gold."""
    step, least, most = task.steps[0], 1, 2 * limit
    shown = frozenset()
    while least < most:  # the largest budget whose text keeps to the limit
        budget = (least + most + 1) // 2
        found = snapshot(step.page, task.text, (), budget)
        if count(found.text) <= limit:
            least, shown = budget, found.shown
        else:
            most = budget - 1
    ids = {step.page.elements[i].node_id for i in shown}
    return bool(ids & set(step.gold.node_ids))


def figures(count, tasks=None, budgets=BUDGETS):
    """animal -> budget (0 = the whole page) -> share of its steps."""
    by_animal = collections.defaultdict(list)
    for data in tasks or zoo():
        task = from_official(data)
        step = task.steps[0]
        on_page = any(n in step.page.index for n in step.gold.node_ids)
        row = {0: on_page} | {b: on_page and shown_within(task, b, count) for b in budgets}
        by_animal[data["website"]].append(row)
    return {
        name: {b: sum(r[b] for r in rows) / len(rows) for b in (0, *budgets)}
        for name, rows in by_animal.items()
    }


def main():
    import tokenizers

    path = pathlib.Path(sys.argv[1])
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    found = figures(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids))
    print(f"{'animal':<22}" + "".join(f"{b or 'page':>8}" for b in (0, *BUDGETS)))
    for name, row in found.items():
        print(f"{name:<22}" + "".join(f"{share:>8.0%}" for share in row.values()))
    mean = [sum(row[b] for row in found.values()) / len(found) for b in (0, *BUDGETS)]
    print(f"{'all':<22}" + "".join(f"{share:>8.1%}" for share in mean))


if __name__ == "__main__":
    main()
