"""A zoo of real-looking pages in Mind2Web's official layout, each with its annotated action.

All of it is invented here.  The form is that of the data set: ``cleaned_html`` as XML with a ``text`` node
around every text and few attributes, every visible node a positive or negative candidate, classes and ids
only in a candidate's ``attributes``.  A page has a header with menus, the part that its animal lives in,
other sections and a footer, so that it does not fit a snapshot of 2,000 tokens.
"""

import html
import json
import random

CITIES = "Boston Denver Austin Lisbon Geneva Osaka Nairobi Bergen Quito Perth Tampa Lyon".split()
FOODS = "Pizza Sushi Tacos Ramen Burgers Curry Salads Noodles Bakery Barbecue Seafood Vegan".split()
GOODS = "Lamp Kettle Tent Jacket Mirror Blender Rug Sofa Bicycle Camera Helmet Backpack".split()
FAMILIES = "Cedar Willow Juniper Maple Aspen Birch Laurel Hazel Rowan Alder Linden Cypress".split()
MENU = (
    "Deals Gift-cards Careers Stores Help-center Track-order Returns Accessibility Press Investors "
    "Sustainability Partners Blog Newsletter Affiliates Community Warranty Sizing Shipping Events"
).split()


class Doc:
    """Writes nodes with node ids, and collects the candidates."""

    def __init__(self, rng):
        self.rng, self.next, self.candidates, self.gold = rng, rng.randrange(100, 900), [], []

    def node(self, tag, *children, cand=(), visible=True, gold=False, **attributes):
        """Markup of one node; texts among ``children`` get their own node, as in the data.

        ``cand`` are attributes that only its candidate tells; an invisible node is no candidate.
        """
        self.next += self.rng.randrange(1, 5)
        number = str(self.next)
        if visible:
            box = f"{self.rng.randrange(1200)},{self.rng.randrange(9000)},80,20"
            told = {"backend_node_id": number, "bounding_box_rect": box, **dict(cand)}
            told |= {**attributes, "data_pw_testid_buckeye_candidate": "1"}
            candidate = {"tag": tag, "backend_node_id": number, "attributes": json.dumps(told)}
            (self.gold if gold else self.candidates).append(candidate)
        inner = "".join(self.text(c) if not str(c).startswith("<") else c for c in children)
        listed = "".join(f' {k}="{html.escape(str(v))}"' for k, v in attributes.items())
        return f'<{tag} backend_node_id="{number}"{listed}>{inner}</{tag}>'

    def text(self, words):
        self.next += 1
        return f'<text backend_node_id="{self.next}">{html.escape(words, quote=False)}</text>'

    def link(self, words, **more):
        return self.node("a", words, cand={"is_clickable": "true", "class": "Anchor"}, **more)

    def page(self, main):
        """The whole page around what is particular to it."""
        menus = [
            self.node(
                "li",
                self.node("span", top),
                self.node(
                    "ul",
                    *(
                        self.node("li", self.link(f"{top} {sub}"))
                        for sub in self.rng.sample(MENU, 9)
                    ),
                ),
            )
            for top in self.rng.sample(CITIES + GOODS, 12)
        ]
        header = self.node("header", self.node("nav", self.node("ul", *menus)))
        sections = [
            self.node(
                "section",
                self.node("h2", f"{self.rng.choice(FAMILIES)} picks of the {word}"),
                *(
                    self.node(
                        "div",
                        self.node("h3", f"{self.rng.choice(FAMILIES)} {good}"),
                        self.node("span", f"${self.rng.randrange(9, 400)}.00"),
                        self.node("button", "Quick view"),
                        cand={"class": "card css-9x1"},
                    )
                    for good in self.rng.sample(GOODS, 12)
                ),
            )
            for word in ("week", "month", "year", "season")
        ]
        footer = self.node(
            "footer",
            *(self.link(f"{word} {i}") for i in range(3) for word in self.rng.sample(MENU, 15)),
        )
        body = self.node("body", header, self.node("main", main, *sections), footer)
        return self.node("html", body)


def tiles(doc, rng):
    foods = rng.sample(FOODS, 6)
    items = [
        doc.node(
            "li",
            doc.node("div", doc.node("img", alt=f"plate number {i}"), doc.node("p", food)),
            gold=i == 3,
        )
        for i, food in enumerate(foods)
    ]
    return doc.node("ul", *items), f"Browse {foods[3]} places near me", "CLICK", ""


def suggestions(doc, rng):
    cities = rng.sample(CITIES, 5)
    items = [
        doc.node("div", doc.node("span", f"{c}, {i} airports"), gold=i == 2)
        for i, c in enumerate(cities)
    ]
    field = doc.node("input", type="text", name="q1", value=cities[2][:3])
    return doc.node("div", field, *items), f"Fly to {cities[2]} next month", "CLICK", ""


def table(doc, rng):
    names = rng.sample(FAMILIES, 6)
    rows = [
        doc.node(
            "tr",
            doc.node("td", doc.node("table", doc.node("tr", doc.node("td", doc.node("div", name, gold=i == 4))))),
            doc.node("td", doc.node("div", f"{rng.randrange(1, 9)} seats")),
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    return doc.node("table", *rows), f"Open the timetable of the {names[4]} line", "CLICK", ""


def label_in_span(doc, rng):
    kinds = rng.sample(GOODS, 5)
    items = [
        doc.node("div", doc.node("label", doc.node("span", kind), gold=i == 1)) for i, kind in enumerate(kinds)
    ]  # fmt: skip
    return doc.node("form", *items), f"Filter by {kinds[1]} and show the results", "CLICK", ""


def cards(doc, rng, gold="button", num=64):
    """64 cards of div with the same button; the gold is the button, the card or its title."""
    names = [f"{a} {b}" for a in rng.sample(FAMILIES, 8) for b in rng.sample(GOODS, 8)][:num]
    right = rng.randrange(8, num - 8)
    items = [
        doc.node(
            "div",
            doc.node("div", doc.node("h3", name, gold=gold == "title" and i == right)),
            doc.node("div", doc.node("span", f"${rng.randrange(20, 900)}"), doc.node("span", "per day")),
            doc.node("div", doc.node("button", doc.node("span", "Select"), gold=gold == "button" and i == right)),
            cand={"is_clickable": "true"} if gold == "card" else {},
            gold=gold == "card" and i == right,
        )
        for i, name in enumerate(names)
    ]  # fmt: skip
    return doc.node("div", *items), f"Rent the {names[right]} for two days", "CLICK", ""


def card_itself(doc, rng):
    return cards(doc, rng, "card")


def card_title(doc, rng):
    return cards(doc, rng, "title")


def icons(doc, rng):
    """Nodes without any text, that only a class or an id names."""
    kinds = ["heart", "compare", "share", "zoom"]
    wanted = rng.randrange(4)
    items = [
        doc.node(
            "div",
            doc.node("span", cand={"class": f"icon icon-{kind}"}, gold=i == wanted),
            doc.node("i", cand={"id": f"{kind}-toggle"}),
        )
        for i, kind in enumerate(kinds)
    ]
    return doc.node("div", *items), f"Use the {kinds[wanted]} icon of the first lamp", "CLICK", ""


def svg_path(doc, rng):
    wanted = rng.randrange(3)
    items = [
        doc.node(
            "button",
            doc.node("svg", doc.node("path", gold=i == wanted), aria_label=name),
        )
        for i, name in enumerate(["Previous month", "Next month", "Close calendar"])
    ]
    words = ["Go back a month", "Go to the next month", "Close the calendar"]
    return doc.node("div", *items), f"{words[wanted]} and look at prices", "CLICK", ""


def option_node(doc, rng):
    cities = rng.sample(CITIES, 6)
    options = [doc.node("option", c, value=f"v{i}", gold=i == 4) for i, c in enumerate(cities)]
    label = doc.node("label", "Pickup city")
    menu = doc.node("select", *options, name="loc")
    return doc.node("div", label, menu), f"Pick up a car in {cities[4]}", "CLICK", ""


def long_select(doc, rng):
    names = [f"{a} {b} {i}" for i in (1, 2, 3) for a in FAMILIES for b in CITIES][:300]
    chosen = rng.randrange(240, 290)
    options = [doc.node("option", n, visible=False, value=f"c{i}") for i, n in enumerate(names)]
    menu = doc.node("select", *options, name="branch", gold=True)
    field = doc.node("div", doc.node("label", "Branch office"), doc.node("div", menu))
    return field, f"Book a meeting at branch {names[chosen]}", "SELECT", names[chosen]


def calendar(doc, rng):
    day, month = rng.randrange(10, 28), rng.randrange(2)
    months = ["April 2023", "May 2023"]
    tables = [
        doc.node(
            "div",
            doc.node("div", name),
            *(
                doc.node(
                    "div",
                    *(
                        doc.node("div", str(d), gold=m == month and d == day)
                        for d in range(w * 7 + 1, w * 7 + 8)
                    ),
                )
                for w in range(4)
            ),
        )
        for m, name in enumerate(months)
    ]
    return doc.node("div", *tables), f"Check in on {months[month]} {day}", "CLICK", ""


def repeated_links(doc, rng):
    blocks = [
        doc.node("div", doc.node("h2", f"{name} guide"), doc.link("Read more", gold=i == 7))
        for i, name in enumerate(rng.sample(CITIES, 12))
    ]
    name = blocks[7].split(" guide")[0].rsplit(">", 1)[1]
    return doc.node("div", *blocks), f"Read the travel guide of {name}", "CLICK", ""


def icon_font(doc, rng):
    kinds = ["Cart", "Account", "Wishlist", "Search"]
    wanted = rng.randrange(4)
    items = [
        doc.node("a", doc.node("span", chr(0xE900 + i)), title=k, cand={"is_clickable": "true"}, gold=i == wanted)
        for i, k in enumerate(kinds)
    ]  # fmt: skip
    return doc.node("div", *items), f"Open my {kinds[wanted].lower()} and check it", "CLICK", ""


def hidden_doubles(doc, rng):
    name = rng.choice(FAMILIES)
    hidden = doc.node("div", doc.link(f"{name} rewards", visible=False), visible=False)
    shown = doc.node("div", doc.node("div", doc.link(f"{name} rewards", gold=True)))
    return doc.node("div", hidden, shown), f"Sign up for {name} rewards", "CLICK", ""


def right_to_left(doc, rng):
    words = "الطعام السفر الأخبار الرياضة الكتب الموسيقى".split()
    items = [
        doc.node("li", doc.link(f"\u200f{w} {i}", gold=i == 2)) for i, w in enumerate(rng.sample(words, 5))
    ]  # fmt: skip
    chosen = items[2].split("\u200f")[1].split(" ")[0]
    return doc.node("ul", *items), f"Open the section {chosen}", "CLICK", ""


def long_text(doc, rng):
    sentence = " ".join(rng.choices(CITIES + GOODS + FAMILIES, k=1500))
    assert len(sentence) > 9_000
    wanted = doc.node("a", "cancellation policy", cand={"is_clickable": "true"}, gold=True)
    return doc.node("div", doc.node("p", sentence, wanted)), "Find the cancellation policy", "CLICK", ""  # fmt: skip


def _fields(doc, rng, make):
    """Five fields of a form written in one way; the gold is one of them."""
    labels = rng.sample(
        ["Where from?", "Where to?", "Departure date", "Passengers", "Promo code", "First name"], 5
    )
    wanted = rng.randrange(5)
    fields = [make(label, i, i == wanted) for i, label in enumerate(labels)]
    return doc.node("form", *fields), labels[wanted]


def label_sibling(doc, rng):
    def make(label, i, gold):
        field = doc.node("input", type="text", name=f"f{i}", gold=gold)
        return doc.node("div", doc.node("label", label), doc.node("div", field))

    form, label = _fields(doc, rng, make)
    return form, f"Fill in {label} with Nairobi", "TYPE", "Nairobi"


def label_by_id(doc, rng):
    """The labels stand together, the fields after them; only ids tell which is whose."""

    def make(label, i, gold):
        first = doc.node("label", label, cand={"id": f"search-form-{i}-label"})
        return first, doc.node("input", type="text", cand={"id": f"search-form-{i}"}, gold=gold)

    pairs = []

    def keep(*what):
        pairs.append(make(*what))
        return ""

    _, label = _fields(doc, rng, keep)
    form = doc.node("form", doc.node("div", *(p[0] for p in pairs)), *(p[1] for p in pairs))
    return form, f"Fill in {label} with Lisbon", "TYPE", "Lisbon"


def label_around_a_radio(doc, rng):
    def make(label, i, gold):
        field = doc.node("input", type="radio", value="on", input_value="on", gold=gold)
        return doc.node("label", field, doc.node("span", label))

    form, label = _fields(doc, rng, make)
    return form, f"Choose {label} as what is sorted by", "CLICK", ""


def label_of_a_select(doc, rng):
    def make(label, i, gold):
        options = [
            doc.node("option", f"{n} {FOODS[i]}", visible=False, value=str(n), **({"option_selected": "true"} if n == 2 else {}))
            for n in range(1, 7)
        ]  # fmt: skip
        menu = doc.node("select", *options, name=f"type{i}", gold=gold)
        return doc.node("div", doc.node("label", label), doc.node("div", menu))

    form, label = _fields(doc, rng, make)
    i = [label in part for part in form.split("</label>")].index(True)
    return form, f"Set {label} to 5 {FOODS[i]}", "SELECT", f"5 {FOODS[i]}"


def plain_button(doc, rng):
    """A button whose name is not in the task, as most are."""
    wanted = rng.randrange(3)
    names = ["Continue", "Apply filters", "Show results"]
    items = [
        doc.node("div", doc.node("button", doc.node("span", n), type="submit", gold=i == wanted)) for i, n in enumerate(names)
    ]  # fmt: skip
    fields = [
        doc.node("input", type="text", name=f"z{i}", placeholder=c) for i, c in enumerate(CITIES)
    ]
    return doc.node("form", *fields, *items), "Rent a truck from March 18 on, one way", "CLICK", ""


ANIMALS = (
    tiles, suggestions, table, label_in_span, cards, card_itself, card_title, icons, svg_path, option_node,
    long_select, calendar, repeated_links, icon_font, hidden_doubles, right_to_left, long_text, label_sibling,
    label_by_id, label_around_a_radio, label_of_a_select, plain_button,
)  # fmt: skip


def zoo_task(animal, seed):
    """One task of one step in the official layout, with the page of ``animal``."""
    rng = random.Random(f"{animal.__name__}/{seed}")
    doc = Doc(rng)
    main, sentence, op, value = animal(doc, rng)
    page = doc.page(main)
    assert len(doc.gold) == 1, animal.__name__
    role = doc.gold[0]["tag"]
    step = {
        "action_uid": f"{seed}",
        "raw_html": page,
        "cleaned_html": page,
        "operation": {"op": op, "original_op": op, "value": value},
        "pos_candidates": [
            {"is_original_target": True, "is_top_level_target": True, **doc.gold[0]}
        ],
        "neg_candidates": doc.candidates,
    }
    return {
        "annotation_id": f"{animal.__name__}-{seed}",
        "confirmed_task": sentence,
        "website": animal.__name__,
        "domain": "Shopping",
        "subdomain": "Zoo",
        "action_reprs": [f"[{role}]  x -> {op}" + (f": {value}" if value else "")],
        "actions": [step],
    }


def zoo(num_seeds=3):
    """All animals, each with some seeds."""
    return [zoo_task(animal, seed) for animal in ANIMALS for seed in range(num_seeds)]
