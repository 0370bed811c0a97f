"""What an agent reads at each step on the web: task, site, earlier actions and page as one text."""

from __future__ import annotations

__all__ = ["PAGE", "action_line", "observation_text", "observed_site", "split_observation"]

TASK, SITE, EARLIER, PAGE = "Task: ", "Site: ", "Earlier actions:", "Page:"


def action_line(name: str, op: str, value: str) -> str:
    """``TYPE textbox "City": Oslo``, on one line whatever the value."""
    value = " ".join(value.split())
    return f"{op} {name}: {value}" if value and op != "CLICK" else f"{op} {name}"


def observation_text(task: str, history: tuple[str, ...], page: str, site: str = "") -> str:
    """Task, site, earlier actions and page as one text; ``split_observation`` takes it apart."""
    lines = [f"{TASK}{' '.join(task.split())}"]
    lines += [f"{SITE}{' '.join(site.split())}"] if site.strip() else []
    lines.append(EARLIER)
    lines += [f"{i}. {line}" for i, line in enumerate(history, 1)] or ["none"]
    return "\n".join([*lines, PAGE, page])


def split_observation(text: str) -> tuple[str, list[str], list[str]]:
    """(task, earlier actions, lines of the page); a text without a page has none of either."""
    head, mark, page = text.partition(f"\n{PAGE}\n")
    if not mark:
        return text, [], []
    task, _, earlier = head.partition(f"\n{EARLIER}\n")
    task = task.partition(f"\n{SITE}")[0]
    lines = [] if earlier == "none" else [e.partition(". ")[2] for e in earlier.splitlines()]
    return task.removeprefix(TASK), lines, page.splitlines()


def observed_site(text: str) -> str:
    """The name of the site that an observation tells, or ""."""
    head = text.partition(f"\n{EARLIER}\n")[0]
    return head.partition(f"\n{SITE}")[2] if head.startswith(TASK) else ""
