"""Real-looking pages: what is shown of them, how it is named, how it is chosen; each with its gold action."""

import json
import pathlib

import pytest
import web_zoo
from web_data import action, official
from web_zoo_figures import figures

from evolving_rl_jax.envs.mind2web.env import gold_words, split_observation
from evolving_rl_jax.envs.mind2web.records import RecordError, from_official
from evolving_rl_jax.envs.web.page import WRAPPER, Element, Page, parse_page
from evolving_rl_jax.envs.web.snapshot import count_tokens, element_line, ranking, snapshot
from evolving_rl_jax.skills.audit import audit


def elements(html, **candidates):
    """Node id -> element of a page whose candidates have these attributes."""
    told = {name.removeprefix("n"): attributes for name, attributes in candidates.items()}
    return {e.node_id: e for e in parse_page(f"<html><body>{html}</body></html>", told).elements}


# ------------------------------------------------------------------------------ the whole zoo


@pytest.mark.parametrize("animal", web_zoo.ANIMALS, ids=lambda a: a.__name__)
def test_every_gold_element_of_the_zoo_is_on_its_page_and_in_4000_tokens(animal):
    found = figures(count_tokens, [web_zoo.zoo_task(animal, 0)], budgets=(4000,))
    assert found == {animal.__name__: {0: 1.0, 4000: 1.0}}


def test_the_zoo_within_budgets():
    found = figures(count_tokens, web_zoo.zoo(2), budgets=(1000, 2000))
    mean = {b: sum(row[b] for row in found.values()) / len(found) for b in (0, 1000, 2000)}
    assert mean[0] == 1.0 and mean[1000] >= 0.95 and mean[2000] >= 0.97


def test_swapping_a_right_with_a_wrong_candidate_changes_no_page():
    for animal in web_zoo.ANIMALS:
        data = web_zoo.zoo_task(animal, 1)
        page = from_official(data).steps[0].page
        step = data["actions"][0]
        step["pos_candidates"], step["neg_candidates"] = (
            step["neg_candidates"][5:6],
            step["pos_candidates"] + step["neg_candidates"][:5] + step["neg_candidates"][6:],
        )
        assert from_official(data).steps[0].page == page


def test_without_negative_candidates_the_right_ones_are_no_sign():
    html = '<html><div backend_node_id="1"><i backend_node_id="2"/><i backend_node_id="3"/></div></html>'
    first, second = (
        from_official(official(actions=[action(html, nodes=nodes)], action_reprs=["a"]))
        .steps[0]
        .page
        for nodes in (("2",), ("3",))
    )
    assert first == second and set(first.index) == {"1", "2", "3"}


def test_attributes_of_candidates_must_be_json():
    bad = {"backend_node_id": "7", "attributes": "{"}
    step = action("<html/>", nodes=(), neg_candidates=[bad])
    with pytest.raises(RecordError, match=r"neg_candidates\[0\].attributes must be JSON"):
        from_official(official(actions=[step], action_reprs=["a"]))


# ------------------------------------------------------------------ what is shown, and its name


def test_candidates_without_text_of_their_own_have_the_text_in_them():
    found = elements(
        '<li backend_node_id="1"><div backend_node_id="2"><img backend_node_id="3" alt="a plate"/>'
        '<p backend_node_id="4"><text backend_node_id="5">Dine in</text></p></div></li>'
        '<li backend_node_id="6"><div><img backend_node_id="7" alt="a bag"/></div></li>',
        n1={}, n2={}, n6={},
    )  # fmt: skip
    assert [found[i].name for i in "1246"] == [
        'listitem "Dine in"',
        'group "Dine in"',
        'text "Dine in"',
        'listitem "a bag"',
    ]
    assert found["1"].rank == WRAPPER and "5" not in found


def test_candidates_without_any_text_are_called_by_id_or_class():
    found = elements(
        '<span backend_node_id="1"/><a backend_node_id="2"><svg><path backend_node_id="3"/></svg></a>'
        '<div backend_node_id="4"/>',
        n1={"class": "icon icon-heart"}, n3={"id": "cart-path"},
    )  # fmt: skip
    assert (found["1"].label, found["3"].label) == ("icon icon-heart", "cart-path")
    assert "4" not in found


def test_options_of_a_list_are_elements_where_one_is_a_candidate():
    html = (
        '<select backend_node_id="1"><option backend_node_id="2">Red</option><option backend_node_id="3">'
        "<text>Blue</text></option></select>"
    )
    assert set(elements(html)) == {"1"}
    found = elements(html, n3={})
    assert [found[i].name for i in "23"] == ['option "Red"', 'option "Blue"']
    assert found["1"].options == ("Red", "Blue")


@pytest.mark.parametrize(
    ("markup", "name"),
    [
        ("<div><label>Where from?</label><div><input {}/></div></div>", 'textbox "Where from?"'),
        ('<label><input type="radio" value="on" {}/><span><text>Round trip</text></span></label>', 'radio "Round trip"'),
        ('<div><label><text>Reservation type</text></label><div><select name="type" {}/></div></div>', 'combobox "Reservation type"'),
        ('<div><label>A</label></div><div><input name="x"/></div><div><label>B</label></div><div><input {}/></div>', 'textbox "B"'),
        ('<div><input type="checkbox" {}/><label>Non-stop</label></div>', 'checkbox "Non-stop"'),
        ("<tr><td>Party size</td><td><input {}/></td></tr>", 'textbox "Party size"'),
        ('<div><label>A</label><input name="x"/></div><p>far</p><input placeholder="City" {}/>', 'textbox "City"'),
        ('<div><span>x</span></div><input name="q" {}/>', 'textbox "x"'),
        ('<input name="q" {}/>', 'textbox "q"'),
        ('<span id="h">Check-in</span><p>y</p><input aria-labelledby="h" {}/>', 'textbox "Check-in"'),
    ],
)  # fmt: skip
def test_fields_are_called_by_their_nearest_label(markup, name):
    assert elements(markup.format('backend_node_id="9"'))["9"].name == name


def test_a_label_whose_for_is_gone_names_its_field_by_the_id_of_its_candidate():
    html = (
        '<div><label backend_node_id="1">From</label><label backend_node_id="2">To</label></div>'
        '<input backend_node_id="3"/><input backend_node_id="4"/>'
    )
    found = elements(
        html,
        n1={"id": "trip-a-label"}, n2={"for": "trip-b"}, n3={"id": "trip-a"}, n4={"id": "trip-b"},
    )  # fmt: skip
    assert (found["3"].label, found["4"].label) == ("From", "To")


def test_equal_names_are_told_apart_by_the_card_that_holds_only_one_of_them():
    cards = "".join(
        f'<div><div><h3>{name} lamp</h3></div><div><span>per day</span><button backend_node_id="{i}">Select'
        "</button></div></div>"
        for i, name in enumerate(["Red", "Blue", "Green"], 1)
    )
    found = elements(f"<div>{cards}</div>")
    assert [found[i].context for i in "123"] == ["Red lamp", "Blue lamp", "Green lamp"]


def test_days_of_two_months_and_links_of_two_headers_differ():
    found = elements(
        "".join(
            f'<div><div>{m} 2023</div><div><div>17</div><div backend_node_id="{i}">18</div></div></div>'
            for i, m in enumerate(["April", "May"], 1)
        )
        + '<header><div><a backend_node_id="3" aria_label="Home page"/><button aria_label="Search"/></div><div>'
        '<a backend_node_id="4" aria_label="Home page"/><button>Book a table</button></div></header>'
    )
    assert [found[i].name for i in "1234"] == [
        'text "18" (April 2023)',
        'text "18" (May 2023)',
        'link "Home page" (Search)',
        'link "Home page" (Book a)',  # as many words as tell it from the others, at least two
    ]


def test_a_region_is_called_by_its_landmark():
    found = elements(
        '<nav aria-label="Main menu"><a backend_node_id="1">Deals</a></nav><p>x</p>'
        '<footer><a backend_node_id="2">Deals</a></footer>'
    )
    assert [found[i].context for i in "12"] == ["Main menu", "footer"]


def test_the_state_of_fields():
    found = elements(
        '<select backend_node_id="1" value="a"><option>A</option><option option_selected="true">B</option>'
        '</select><input backend_node_id="2" value="old" input_value="new"/><input backend_node_id="3" value="x"'
        ' input_value=""/><input type="checkbox" value="on" backend_node_id="4"/>'
        '<input type="checkbox" value="on" input_checked="true" backend_node_id="5"/>'
    )
    assert [found[i].value for i in "12345"] == ["B", "new", "", "", "checked"]


def test_of_a_long_list_the_options_near_the_task_and_the_selected_one_are_shown():
    page = Page((Element("1", "combobox", "Branch", value="Office 7", options=tuple(f"Office {i}" for i in range(300))),))  # fmt: skip
    line = snapshot(page, "Book office 250 for a day", (), 500).text
    assert "| Office 250 |" in line and "| Office 7 |" in line and line.endswith(" | ...")
    assert line.count("|") == 12


def test_icon_fonts_and_marks_of_direction_are_no_names():
    found = elements(
        '<a backend_node_id="1" title="Cart"><span>\ue90c</span></a><a backend_node_id="2">\u200fالسفر\u200b</a>'
        '<select backend_node_id="3"><option>\ue001 Red</option></select>'
    )
    assert [found[i].label for i in "12"] == ["Cart", "السفر"]
    assert found["3"].options == ("Red",)
    assert audit(f"Press {found['1'].name}.").passed


# --------------------------------------------------------------------- what the budget is spent on


def test_texts_that_the_task_names_are_shown_before_controls_that_it_does_not():
    rows = [Element(str(i), "button", f"Quick view {i}") for i in range(60)]
    page = Page((*rows, Element("t", "heading", "Cedar lamp", 1), *rows[:0]))
    assert ranking(page, "rent the cedar lamp", ())[0] == 60


def test_the_menus_of_the_header_do_not_crowd_out_the_main_part():
    menu = [Element(f"m{i}", "link", f"Menu {i}") for i in range(300)]
    main = [Element(f"c{i}", "link", f"Card {i}") for i in range(300)]
    shown = snapshot(Page((*menu, *main)), "zzz", (), 1000).shown
    assert 0.4 < sum(i >= 300 for i in shown) / len(shown) < 0.6


def test_few_buttons_are_not_crowded_out_by_many_links():
    links = [Element(f"m{i}", "link", f"Menu {i}") for i in range(300)]
    page = Page((*links[:150], Element("b", "button", "Continue"), *links[150:]))
    assert 150 in snapshot(page, "zzz", (), 200).shown


def test_the_text_before_a_shown_control_stays_with_it():
    parts = []
    for i in range(100):
        parts += [Element(f"t{i}", "text", f"{i} beds", 1), Element(f"b{i}", "button", f"Book {i}")]
    page = Page(tuple(parts))
    shown = snapshot(page, "zzz", (), 400).shown
    buttons = [i for i in shown if i % 2]
    assert len(buttons) > 10 and sum(i - 1 in shown for i in buttons) >= len(buttons) - 1


def test_parts_and_wrappers_of_shown_controls_do_not_crowd_out_other_controls():
    parts = []
    for i in range(100):
        names = [("group", WRAPPER), ("button", 0), ("text", 2)]
        parts += [Element(f"{role}{i}", role, "Select", rank, context=f"Row {i}") for role, rank in names]  # fmt: skip
    shown = snapshot(Page(tuple(parts)), "zzz", ("Select",), 900).shown
    assert sum(i % 3 == 1 for i in shown) / len(shown) > 0.5


def test_the_history_ranks_by_labels_and_values_not_by_operations():
    rows = [Element(str(i), "button", "Select", context=f"Lamp {i}") for i in range(100)]
    page = Page((*rows, *(Element(f"l{i}", "link", f"Color {i}") for i in range(100))))
    step = from_official(
        official(
            actions=[action('<html><select backend_node_id="2" aria-label="Color"/></html>', "SELECT", "Green")],
            action_reprs=["[select]  Color -> SELECT: Green"],
        )
    ).steps[0]  # fmt: skip
    assert gold_words(step) == "Color Green"
    shown = snapshot(page, "zzz", (gold_words(step),), 500).shown
    assert sum(i < 100 for i in shown) < sum(i >= 100 for i in shown)


def test_a_line_of_an_element_says_its_state_and_options():
    e = Element("1", "combobox", "Size", value="M", context="mug", options=("S", "M"))
    assert element_line(e, 3) == 'combobox "Size" (mug) [ref=e3] = "M" of S | M'


def test_the_zoo_tells_no_names_of_this_machine():
    text = json.dumps(web_zoo.zoo(1))
    assert str(pathlib.Path(__file__).parent) not in text and split_observation(text)[1] == []
