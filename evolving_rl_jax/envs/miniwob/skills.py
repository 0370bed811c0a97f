"""How each kind of page is used, in a sentence without names and values of any task."""

from __future__ import annotations

__all__ = ["HOW", "VAGUE"]

VAGUE = "read the task, then use the page"

# What is said -> the families that it holds for.
_SAID = {
    "click the button or link that has the name in quotes": (
        "click-button", "click-link", "unicode-test",
    ),
    "there is one button, click it": ("click-test",),
    "click the first button": ("click-test-2", "click-test-transfer"),
    "click the first button, then the other one": ("click-button-sequence",),
    "click the button of the dialog that is named, an x is called Close": (
        "click-dialog", "click-dialog-2",
    ),
    "click any element of the kind, a long field is called by what it holds": ("click-widget",),
    "click the link of the tab that is named": ("click-tab",),
    "open one tab after the other until the link is there, then click the link": (
        "click-tab-2", "click-tab-2-easy", "click-tab-2-hard", "click-tab-2-medium",
    ),
    "click the closed section, then the button in it": (
        "click-collapsible", "click-collapsible-nodelay",
    ),
    "open one section after the other until the link is there, then click the link": (
        "click-collapsible-2", "click-collapsible-2-nodelay",
    ),
    "walk the menu with the arrow keys, down to an entry, right into it, Enter on the last": (
        "click-menu",
    ),
    "click the plus, then the letter": ("click-pie", "click-pie-nodelay"),
    "click the box of the colour": ("click-color",),
    "click every box whose strongest part is the colour, then Submit": ("click-shades",),
    "click a shape of the colour, size and kind, 20 pixels are large and 10 small": (
        "click-shape",
    ),
    "count the shapes of the colour, size and kind, click the button with the number": (
        "count-shape",
    ),
    "click the button with the kind of the figure": ("identify-shape",),
    "points stand column by column, each from the highest row": ("grid-coordinate",),
    "click the lowest number first, the others are then hidden and keep their places": (
        "ascending-numbers",
    ),
    "click the field of that place": ("focus-text", "focus-text-2"),
    "open one folder after the other until the name is there, then click it": ("navigate-tree",),
    "turn every card, then the one with the greatest number, then Submit": ("find-greatest",),
    "click what each number is beside it, then Submit": ("odd-or-even",),
    "type the text in quotes into the field, then click Submit": (
        "enter-text", "enter-text-dynamic",
    ),
    "type the text in quotes in the other case, then click Submit": ("enter-text-2",),
    "type the text in quotes into both fields, then click Submit": ("enter-password",),
    "type both values into their fields and cancel what comes between, then send": (
        "login-user", "login-user-popup",
    ),
    "type the date or time as it is written, then click Submit": ("enter-date", "enter-time"),
    "click the field, turn the calendar with Prev or Next to the month, click the day, then Submit": (
        "choose-date", "choose-date-easy", "choose-date-medium", "choose-date-nodelay",
    ),
    "select the name in the list, then click Submit": ("choose-list",),
    "select one name after the other in the list, then click Submit": ("click-scroll-list",),
    "click the checkbox of each name, then Submit": (
        "click-checkboxes", "click-checkboxes-large", "click-checkboxes-transfer",
    ),
    "click the radio button of the name, then Submit": ("click-option",),
    "copy the long field with Control+C, paste with Control+V into the empty one, then Submit": (
        "copy-paste", "copy-paste-2",
    ),
    "count the words, type that one without its comma or point, then click Submit": ("find-word",),
    "move the handle with the arrow keys, click the checkbox of that place, then Submit": (
        "form-sequence",
    ),
    "click the radio button of its place, type into the field of its place, then Submit": (
        "form-sequence-2",
    ),
    "open the list with its arrow, click the entry, then the button": ("form-sequence-3",),
    "click Generate until the number is right, then Submit": ("generate-number",),
    "type the middle of what is left and click Submit, until it is right": ("guess-number",),
    "type each value into the field with its name, then click the button": (
        "multi-layouts", "multi-orderings",
    ),
    "type the text beside the name in the table, then click Submit": (
        "read-table", "read-table-2",
    ),
    "calculate, type the result, then click Submit": ("simple-algebra", "simple-arithmetic"),
    "type the letters that are drawn, then click Submit": ("text-transform",),
    "type how it begins, click the entry that ends right, then Submit": (
        "use-autocomplete", "use-autocomplete-nodelay",
    ),
    "type the six digits of the color in the field, then click Submit": ("use-colorwheel",),
    "move each handle with the arrow keys to its number, then click Submit": (
        "use-slider", "use-slider-2",
    ),
    "press the arrow up or down in the field until the number is there, then Submit": (
        "use-spinner",
    ),
    "type each place and click its entry, choose the day, search, compare what is offered, book": (
        "book-flight", "book-flight-nodelay",
    ),
    "compare all tickets, click the button of the best": ("buy-ticket",),
    "open the mail, click its star or trash, or Reply or Forward, type, then send": (
        "email-inbox", "email-inbox-noscroll", "email-inbox-star-reply",
    ),
    "open the mail, click its trash": ("email-inbox-delete",),
    "open the mail, click its star": ("email-inbox-important",),
    "open the mail, click Forward, type the name, then send": (
        "email-inbox-forward", "email-inbox-forward-nl",
    ),
    "open the mail, click Reply, type the text, then send": ("email-inbox-reply",),
    "click the plus of each dish, by name or by mark, then Order": ("order-food",),
    "turn the pages with the arrow until the name is there, click what stands after the word": (
        "phone-book",
    ),
    "press End or Home in the text, then click Submit": ("scroll-text-2",),
    "search, turn to the page of the place, three on a page, click the link": ("search-engine",),
    "press End in the text, type the name, click the button; or cancel at once": (
        "sign-agreement",
    ),
    "click the button beside the user, or open more and click it there": ("social-media",),
    "click the button on each post of the user, no more than asked for, then Submit": (
        "social-media-all", "social-media-some",
    ),
    "wait with a click elsewhere until the price is low, then buy": ("stock-market",),
    "type ls and press Enter, then rm with the name, and Enter": ("terminal",),
    "win a line or block one, else the middle, a corner, an edge": ("tic-tac-toe",),
}  # fmt: skip

# Family -> how its pages are used.
HOW = {family: said for said, of in _SAID.items() for family in of}
