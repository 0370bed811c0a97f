"""Pages: what becomes an element, whatever the markup; snapshots within a budget; actions against golden data."""

import json
import pathlib
import random

import pytest

from evolving_rl_jax.envs.mind2web import actions as web_actions
from evolving_rl_jax.envs.mind2web.actions import (
    Gold,
    WebAction,
    action_f1,
    judge,
    parse_action,
    parse_repr,
)
from evolving_rl_jax.envs.web.page import (
    CONTROL,
    LABEL_CHARS,
    NESTED,
    TEXT,
    Element,
    Page,
    parse_page,
)
from evolving_rl_jax.envs.web.snapshot import count_tokens, ranking, snapshot

GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / "golden" / "mind2web_actions.json").read_text(encoding="utf-8")
)


def found(html):
    return [(e.node_id, e.role, e.label) for e in parse_page(html).elements]


def test_elements_of_xml_as_lxml_writes_it():
    # <a/> and <svg/> are closed: an HTML parser would put everything after them inside
    html = (
        '<html backend_node_id="1"><body><div backend_node_id="2"><a backend_node_id="3" '
        'aria-label="Home"/><text backend_node_id="4">Welcome back</text></div>'
        '<svg backend_node_id="5"/><button backend_node_id="6"><text>Go</text></button></body></html>'
    )
    assert found(html) == [
        ("2", "text", "Welcome back"),
        ("3", "link", "Home"),
        ("5", "img", ""),
        ("6", "button", "Go"),
    ]


def test_elements_of_html_that_is_not_xml():
    html = (
        "<p backend_node_id=1>Fish &nbsp;& chips<br><input backend_node_id=2 placeholder='Your city' "
        "disabled><ul><li backend_node_id=3>One<li backend_node_id=4>Two</ul>"
    )
    assert found(html) == [
        ("1", "text", "Fish & chips"),
        ("2", "textbox", "Your city"),
        ("3", "text", "One"),
        ("4", "text", "Two"),
    ]


@pytest.mark.parametrize(
    ("markup", "role", "label"),
    [
        ('<input type="submit" value="Send" {}/>', "button", "Send"),
        ('<input type="checkbox" name="terms" {}/>', "checkbox", "terms"),
        ('<div role="tab" {}>Flights</div>', "tab", "Flights"),
        ('<div onclick="x()" {}>Menu</div>', "clickable", "Menu"),
        ('<div contenteditable="true" aria-label="Note" {}/>', "textbox", "Note"),
        ('<button {}><svg aria-label="Close"/></button>', "button", "Close"),
        ("<h2 {}>Results</h2>", "heading", "Results"),
        ("<textarea {}/>", "textbox", ""),
    ],
)
def test_roles_and_labels(markup, role, label):
    for html in (
        markup.format('backend_node_id="7"'),
        f"<p>&nbsp;{markup}".format('backend_node_id="7"'),
    ):
        assert ("7", role, label) in found(html)


def test_labels_of_fields():
    html = (
        '<form><label for="c" backend_node_id="1">City</label><input id="c" backend_node_id="2"/>'
        '<label backend_node_id="3">Size <select backend_node_id="4" name="s"><option backend_node_id="5">'
        "<text>Small</text></option><option><text>Large</text></option></select></label></form>"
    )
    page = parse_page(html)
    field, size = page.elements[page.index["2"]], page.elements[page.index["4"]]
    assert (field.label, size.label, size.options) == ("City", "Size", ("Small", "Large"))
    assert "5" not in page.index  # an option is chosen by the value of a SELECT


def test_equal_labels_get_the_row_or_region_that_they_are_in():
    html = (
        '<body><ul><li><span backend_node_id="1">Red mug</span><button backend_node_id="2">Add</button></li>'
        '<li><span backend_node_id="3">Blue mug</span><button backend_node_id="4">Add</button></li></ul>'
        '<footer><button backend_node_id="5">Add</button></footer><button backend_node_id="6">Buy</button></body>'
    )
    page = parse_page(html)
    contexts = {i: page.elements[page.index[i]].context for i in "2456"}
    assert contexts == {"2": "Red mug", "4": "Blue mug", "5": "footer", "6": ""}
    assert page.elements[1].name == 'button "Add" (Red mug)'


def test_invisible_parts_are_left_out():
    html = (
        '<body><script backend_node_id="1">var x;</script><input type="hidden" backend_node_id="2"/>'
        '<div hidden="" backend_node_id="3">a<a backend_node_id="4">b</a></div>'
        '<div style="color:red; display: none" backend_node_id="5">c</div><p backend_node_id="6">d</p></body>'
    )
    assert found(html) == [("6", "text", "d")]


def test_parts_of_a_control_and_repeated_ids():
    html = (
        '<a backend_node_id="1"><span backend_node_id="2">Sign in</span></a>'
        '<p backend_node_id="2">again</p><p backend_node_id="3">Text</p>'
    )
    page = parse_page(f"<body>{html}</body>")
    assert [(e.node_id, e.rank) for e in page.elements] == [
        ("1", CONTROL),
        ("2", NESTED),
        ("3", TEXT),
    ]
    assert page.elements[0].label == "Sign in"


@pytest.mark.parametrize("depth", [2_000, 20_000])
@pytest.mark.parametrize("closed", [True, False])
def test_deep_pages(depth, closed):
    end = "</div>" * depth if closed else ""
    html = '<div backend_node_id="1">' * depth + '<a backend_node_id="2">Go</a>' + end
    assert found(html) == [("2", "link", "Go")]


def test_a_page_of_5_megabytes():
    rows = "".join(
        f'<li backend_node_id="{2 * i}"><a href="{"x" * 100}" backend_node_id="{2 * i + 1}">Item {i}</a></li>'
        for i in range(30_000)
    )
    html = f"<body>{rows}</body>"
    assert len(html) > 5e6
    page = parse_page(html)
    assert len(page.elements) == 30_000 and page.elements[-1].label == "Item 29999"
    shown = snapshot(page, "open item 12345", (), 300)
    assert 'link "Item 12345"' in shown.text and count_tokens(shown.text) < 320


@pytest.mark.parametrize(
    "html",
    [
        "",
        "x",
        "<",
        "<a",
        "&&&;",
        "\ud800<p backend_node_id='1'>\ud800</p>",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><p>&a;</p>",
    ],
)
def test_broken_markup_is_read_as_far_as_it_goes(html):
    assert isinstance(parse_page(html), Page)


def test_random_damage_never_raises():
    rng = random.Random(1)
    page = (
        '<html><body><ul role="list"><li><span backend_node_id="1">Red &amp; mug</span><a backend_node_id="2"/>'
        '<select id="q" backend_node_id="3"><option>x</option></select><label for="q">a</label></li></ul>'
        '<svg backend_node_id="5" aria-label="z"/><table><tr><td backend_node_id="8">t</td></tr></table></body></html>'
    )
    for _ in range(1500):
        text = list(page)
        for _ in range(rng.randrange(1, 12)):
            at = rng.randrange(len(text))
            piece = rng.choice([*"<>/=\"'&;!-[?\x00\ud800é a1", page[at : at + 20]])
            text[at : at + rng.randrange(20)] = piece
        for element in parse_page("".join(text)).elements:
            assert element.node_id and len(element.label) <= LABEL_CHARS


def test_huge_attributes_and_labels_are_cut():
    page = parse_page(f'<p><a backend_node_id="1" aria-label="{"long " * 200_000}"/></p>')
    assert len(page.elements[0].label) == LABEL_CHARS and page.elements[0].label.endswith("...")


def test_elements_survive_json():
    e = Element("1", "combobox", "Size", CONTROL, "S", "row", ("S", "M"))
    assert Element.from_json(json.loads(json.dumps(e.to_json()))) == e
    assert Element.from_json(Element("2", "link", "").to_json()) == Element("2", "link", "")


# ------------------------------------------------------------------------------------- snapshots

PAGE = Page(
    (
        Element("1", "heading", "Cheap flights and hotels", TEXT),
        Element("2", "textbox", "From", value="Oslo"),
        Element("3", "combobox", "Seats", options=("1", "2")),
        Element("4", "button", "Search flights"),
        Element("5", "link", "Careers"),
    )
)


def test_a_page_that_fits_is_shown_whole():
    shown = snapshot(PAGE, "book a flight", (), 200)
    assert shown.text.splitlines() == [
        'heading "Cheap flights and hotels" [ref=e1]',
        'textbox "From" [ref=e2] = "Oslo"',
        'combobox "Seats" [ref=e3] of 1 | 2',
        'button "Search flights" [ref=e4]',
        'link "Careers" [ref=e5]',
    ]
    assert shown.shown == set(range(5))


def test_a_larger_page_shows_what_is_relevant_in_page_order_with_its_refs():
    shown = snapshot(PAGE, "search a flight", (), 20)
    assert shown.text.splitlines() == ['button "Search flights" [ref=e4]', "(4 more not shown)"]
    after = snapshot(PAGE, "work here", ('CLICK link "Careers"',), 20)
    assert 'link "Careers"' in after.text


def test_more_budget_never_hides_what_ranks_first():
    order = ranking(PAGE, "search a flight", ())
    assert sorted(order) == list(range(5))
    for budget in range(20, 80):
        assert order[0] in snapshot(PAGE, "search a flight", (), budget).shown


def test_ties_are_spread_evenly_over_the_page():
    page = Page(tuple(Element(str(i), "img", "") for i in range(8)))
    assert ranking(page, "x", ()) == [0, 4, 2, 6, 1, 5, 3, 7]
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        snapshot(page, "x", (), 0)


# --------------------------------------------------------------------------------------- actions


@pytest.mark.parametrize("case", GOLDEN["validate"])
def test_golden_verdicts(case):
    operation, expected = case["gold_operation"], case["expected"]
    gold = Gold(tuple(case["positive_backend_node_ids"]), operation["op"], operation["value"])
    verdict = judge(
        gold, case["op"], case["value"], case["chosen_backend_node_id"], expected["reason"]
    )
    assert verdict._asdict() == {key: expected[key] for key in verdict._fields}


@pytest.mark.parametrize("case", GOLDEN["parse_action_repr"])
def test_golden_action_reprs(case):
    assert parse_repr(case["action_repr"]) == case["expected"]


@pytest.mark.parametrize(
    ("gold", "op", "value", "f1"),
    [
        (("CLICK", ""), "CLICK", "said", 2 / 3),
        (("CLICK", "annotated"), "CLICK", "", 1.0),
        (("TYPE", "Boston, MA"), "TYPE", "boston, ma", 1 / 3),
        (("HOVER", ""), "CLICK", "", 1.0),
        (("CLICK", ""), "TYPE", "x", 0.0),
        (("TYPE", "New York"), "TYPE", "York New", 1.0),  # sets of words, as in the official script
        (("TYPE", "new york"), "TYPE", "york", 0.8),
        (("SELECT", "a b c"), "TYPE", "a", 2 / 6),
        (("SELECT", "M"), "", "", 0.0),
    ],
)
def test_operation_f1(gold, op, value, f1):
    assert action_f1(Gold((), *gold), op, value) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"op": "type", "ref": "e2", "value": "Oslo"}', WebAction("TYPE", 2, "Oslo")),
        ('x <action>\n{"op": "HOVER", "ref": "[ref=e12]"}</action>', WebAction("CLICK", 12)),
        ('{"op": "SELECT", "ref": "e1", "value": 3}', WebAction("SELECT", 1, "3")),
        ('{"op": "CLICK"}', None),
        ('{"op": "", "ref": "e1"}', None),
        ('{"ref": "e1", "value": "x"}', None),
        ('{"op": "CLICK", "ref": 3}', WebAction("CLICK", 3)),
        ('{"op": "CLICK", "ref": "3"}', WebAction("CLICK", 3)),
        ('{"op": "CLICK", "ref": "e1", "value": ["x"]}', None),
        ('["CLICK", "e1"]', None),
        ("CLICK [ref=e2]", None),
        ("[" * 100_000, None),
        ("", None),
    ],
)
def test_actions_are_read(text, expected):
    assert parse_action(text) == expected
    if expected:
        assert parse_action(expected.to_json()) == expected


def test_hover_and_enter_count_as_click():
    assert [web_actions.normalize_op(op) for op in ("hover", "ENTER", " type")] == [
        "CLICK",
        "CLICK",
        "TYPE",
    ]


def test_an_action_is_text_that_can_be_written_down_on_one_line():
    """Half of a surrogate pair is valid JSON, and no tokenizer or file takes it."""
    found = parse_action('{"op": "type\\nthing", "ref": "e1", "value": "\\ud83d x \\ud83d\\ude00"}')
    assert found == ("TYPE THING", 1, "\ufffd x \U0001f600")
    assert parse_action('{"op": "enter", "ref": "e1"}').op == "CLICK"
    assert parse_action('{"op": "enter", "ref": "e1"}', str.upper).op == "ENTER"
