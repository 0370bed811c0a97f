"""Scripts for pages that are small applications: mail, posts, shops, tables, a terminal."""

from __future__ import annotations

import re

from evolving_rl_jax.envs.miniwob.solvers.forms import choose_day, submit
from evolving_rl_jax.envs.miniwob.solvers.view import Lost, Script, View, nth, quoted
from evolving_rl_jax.envs.web.actions import WebAction

__all__ = ["APPS"]


def _mail(page: View, who: str):
    """Opens the mail of somebody."""
    page = yield page.click(who, "text")
    return page


def mail_star(task: str, page: View):
    """Opens the mail, presses its star."""
    page = yield from _mail(page, _sender(task))
    yield page.click("star", "clickable")


def mail_delete(task: str, page: View):
    """Opens the mail, presses its trash."""
    page = yield from _mail(page, _sender(task))
    yield page.click("trash", "clickable")


def mail_reply(task: str, page: View):
    """Opens the mail, replies with the text."""
    page = yield from _mail(page, _sender(task))
    page = yield page.click("Reply", "clickable")
    field = page.all(None, "textbox")[-1]
    page = yield WebAction("TYPE", field.ref, quoted(task)[0])
    yield WebAction("CLICK", next(e.ref for e in page.items if e.label.startswith("send")))


def _forward(page: View, sender: str, to: str):
    page = yield from _mail(page, sender)
    page = yield page.click("Forward", "clickable")
    field = page.all(None, "textbox")[0]
    page = yield WebAction("TYPE", field.ref, to)
    yield WebAction("CLICK", next(e.ref for e in page.items if e.label.startswith("send")))


def mail_forward(task: str, page: View):
    """Opens the mail, forwards it."""
    yield from _forward(page, _sender(task), re.search(r"forward that email to (\w+)", task)[1])


_FREELY = [
    re.compile(pattern)
    for pattern in (
        r"Give (?P<to>\S+) the message you received from (?P<by>[^\s,.]+)",
        r"[Ff]orward to (?P<to>\S+) the email (?:from|by) (?P<by>[^\s,.]+)",
        r"Send (?P<to>\S+) the (?:information|email) (?P<by>\S+) sent",
        r"(?P<to>\S+) is waiting for the email by (?P<by>[^\s,.]+)",
        r"(?P<by>\S+) wants his or her message to be sent to (?P<to>[^\s,.]+)",
        r"mail by (?P<by>\S+) to be sent to (?P<to>[^\s,.]+)",
        r"[Ss]end (?P<to>\S+) the email (?:by|from) (?P<by>[^\s,.]+)",
    )
]


def mail_forward_freely(task: str, page: View):
    """Opens the mail, forwards it; the sentence says it in many ways."""
    for pattern in _FREELY:
        if found := pattern.search(task):
            yield from _forward(page, found["by"], found["to"])
            return
    raise Lost("a sentence of another form")


def mail(task: str, page: View):
    """What the sentence asks for."""
    ways = {"forward": mail_forward, "reply": mail_reply, "star": mail_star, "trash": mail_delete}
    yield from next(way for name, way in ways.items() if name in task)(task, page)


def _sender(task: str) -> str:
    return re.search(r"email by (\w[\w-]*)", task)[1]


def post(task: str, page: View):
    """The button of the user's post, in the menu where it is not beside it."""
    who, wanted = re.search(r"user (@\S+), click on the \"(.*)\"", task).groups()
    if not page.all(wanted, "clickable", context=who):
        page = yield page.click("more", "clickable", context=who)
        yield WebAction("CLICK", next(e.ref for e in page.items if e.label.startswith(wanted)))
        return
    yield page.click(wanted, "clickable", context=who)


def posts(task: str, page: View):
    """The button on as many posts of the user as asked for, then Submit."""
    wanted = quoted(task)[0].lower()
    who = re.search(r"(@\S+)", task)[1]
    most = re.search(r"on (\d+) posts?", task)
    owner, pressed, limit = "", 0, int(most[1]) if most else 99
    for e in list(page.items):
        owner = e.label if e.role == "text" and e.label.startswith("@") else owner
        if e.role == "clickable" and e.label.lower() == wanted and owner == who and pressed < limit:
            pressed += 1
            page = yield WebAction("CLICK", e.ref)
    yield submit(page)


def search(task: str, page: View):
    """Searches, turns to the page of the result, clicks it: three on a page."""
    page = yield page.type(quoted(task)[0])
    page = yield page.click("Search", "button")
    place = nth(task)
    if place >= 3:
        page = yield page.click(str(place // 3 + 1), "link")
    results = [e for e in page.all(None, "link") if not re.fullmatch(r"[<>\d]+", e.label)]
    yield WebAction("CLICK", results[place % 3].ref)


def phone_book(task: str, page: View):
    """Turns the pages until the name is there, clicks what is asked for."""
    who, what = re.search(r"Find (\S+) in the .* click on their (.*)\.", task).groups()
    while not page.all(who, "heading"):
        page = yield page.click(">", "link")
    name = {"phone number": "Phone:", "email": "Email:", "address": "Address:"}[what]
    at = page.items.index(page.one(name, "text"))
    yield WebAction("CLICK", page.items[at + 1].ref)


def order(task: str, page: View):
    """The plus of each dish that is named or marked, then Order."""
    dishes, marks, plus = [], {}, {}
    for e in page.items:
        if e.role == "text" and not e.label.isdigit():
            dishes.append(e.label)
            marks[e.label] = set()
        elif e.role == "img" and dishes:
            marks[dishes[-1]].add(e.label)
        elif e.label == "+" and dishes:
            plus[dishes[-1]] = len(plus)
    number = re.search(r"Order (\d+) items? that (?:is|are) (\S+)", task)
    if number:
        wanted = [d for d in dishes if number[2] in marks[d]][: int(number[1])]
    else:
        wanted = task.partition("item: ")[2].split(", ")
    for dish in wanted:
        page = yield page.click("+", "clickable", n=plus[dish])
    yield page.click("Order!", "button")


def ticket(task: str, page: View):
    """The button of the ticket that is cheapest, longest, ..."""
    offers = []
    for e in page.items:
        if found := re.fullmatch(r"(\d+)h (\d+)m", e.label):
            minutes = int(found[1]) * 60 + int(found[2])
        elif found := re.fullmatch(r"Book for \$(\d+)", e.label):
            offers.append((int(found[1]), minutes, e.ref))
    by = 1 if "duration" in task else 0
    best = max if "longest" in task or "most expensive" in task else min
    yield WebAction("CLICK", best(offers, key=lambda offer: offer[by])[2])


def stock(task: str, page: View):
    """Waits, by clicking on the name, until the price is below what is asked for."""
    most = float(re.search(r"\$([\d.]+\d)", task)[1])
    while True:
        price = next(t for t in page.texts() if re.fullmatch(r"\$[\d.]+", t))
        if float(price[1:]) < most:
            yield page.click("Buy", "button")
        page = yield page.click("Company:", "text")


def terminal(task: str, page: View):
    """Lists the files, removes the one of the ending."""
    page = yield WebAction("TYPE", page.one(None, "textbox").ref, "ls")
    page = yield WebAction("KEY", page.one(None, "textbox").ref, "Enter")
    listed = next(e.label for e in page.all(None, "text") if "." in e.label and "user" not in e.label
                  and not e.label.startswith(("Welcome", "Last")))  # fmt: skip
    ending = re.search(r"extension (\.\S+)", task)
    for name in listed.split():
        if name.endswith(ending[1]) if ending else "." not in name:
            page = yield WebAction("TYPE", page.one(None, "textbox").ref, f"rm {name}")
            yield WebAction("KEY", page.one(None, "textbox").ref, "Enter")
            return
    raise Lost("no such file")


def agreement(task: str, page: View):
    """Cancels, or signs and presses what is asked for."""
    names = quoted(task)
    if not names:
        yield page.click("Cancel", "button")
        return
    page = yield WebAction("KEY", page.all(None, "textbox")[0].ref, "End")
    page = yield page.type(names[0], "Name")
    yield page.click(names[1], "button")


_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


def scrolled(task: str, page: View):
    """To the end that the sentence names, with a key."""
    key = "End" if "bottom" in task else "Home"
    page = yield WebAction("KEY", page.all(None, "textbox")[0].ref, key)
    yield submit(page)


def tic_tac_toe(task: str, page: View):
    """Wins where it can, blocks where it must, else the middle, a corner, an edge."""
    while True:
        cells = [
            "x" if "mark-x" in e.label else "o" if "mark-o" in e.label else "" for e in page.items
        ]
        refs = [e.ref for e in page.items]
        yield_to = _completing(cells, "x") + _completing(cells, "o") + [4, 0, 2, 6, 8, 1, 3, 5, 7]
        page = yield WebAction("CLICK", refs[next(i for i in yield_to if not cells[i])])


def _completing(cells: list[str], mark: str) -> list[int]:
    return [
        next(i for i in line if not cells[i])
        for line in _LINES
        if sorted(cells[i] for i in line) == ["", mark, mark]
    ]


def flight(task: str, page: View):
    """Fills in the search, then books the cheapest or the shortest."""
    way, start, goal, day = re.search(
        r"Book the (\w+) one-way flight from: (.*) to: (.*) on (\S+)\.", task
    ).groups()
    for name, place in (("From:", start), ("To:", goal)):
        page = yield page.type(place, name)
        found = next(
            e
            for e in page.all(None, "text")
            if e.label.startswith(place) or f"({place})" in e.label
        )
        page = yield WebAction("CLICK", found.ref)
    page = yield page.click(None, "textbox", n=2)
    page = yield from choose_day(page, day)
    page = yield page.click("Search", "button")
    offers, minutes = [], 0
    for e in page.items:
        if found := re.fullmatch(r"(?:(\d+)h)? ?(?:(\d+)m)?", e.label or "-"):
            minutes = int(found[1] or 0) * 60 + int(found[2] or 0)
        elif found := re.fullmatch(r"Book flight for \$(\d+)", e.label):
            offers.append((int(found[1]), minutes, e.ref))
    by = 0 if way == "cheapest" else 1
    yield WebAction("CLICK", min(offers, key=lambda offer: offer[by])[2])


APPS: dict[str, Script] = {
    "book-flight": flight,
    "book-flight-nodelay": flight,
    "buy-ticket": ticket,
    "email-inbox": mail,
    "email-inbox-delete": mail_delete,
    "email-inbox-forward": mail_forward,
    "email-inbox-forward-nl": mail_forward_freely,
    "email-inbox-important": mail_star,
    "email-inbox-noscroll": mail,
    "email-inbox-reply": mail_reply,
    "email-inbox-star-reply": mail,
    "order-food": order,
    "phone-book": phone_book,
    "scroll-text-2": scrolled,
    "search-engine": search,
    "sign-agreement": agreement,
    "social-media": post,
    "social-media-all": posts,
    "social-media-some": posts,
    "stock-market": stock,
    "terminal": terminal,
    "tic-tac-toe": tic_tac_toe,
}
