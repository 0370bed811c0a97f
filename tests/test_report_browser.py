"""The report in a real browser: filters, keyboard, tokens, colours, a phone's width, hostile text."""

import gzip
import json
import shutil

import pytest
from report_runs import HOSTILE, make_run

from evolving_rl_jax.report import page as report

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver on the PATH"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1280,1000"
)
WAIT = 30  # seconds, for a machine that is busy; nothing here is a measurement


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run"), 40, logged=range(0, 40, 4))
    report.write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=CHROMEDRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class View:
    """The page, with what the tests do to it."""

    def __init__(self, driver):
        self.driver = driver

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def js(self, code, *values):
        return self.driver.execute_script(code, *values)

    def wait(self, condition):
        return WebDriverWait(self.driver, WAIT, 0.05).until(lambda _: condition())

    def click(self, selector):
        """A real click, with the element away from the sticky navigation."""
        node = self.one(selector)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", node)
        node.click()

    def press(self, *keys):
        """Sends keys to whatever has the focus, as a keyboard does."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focus(self, selector):
        self.js("arguments[0].focus()", self.one(selector))

    def texts(self, selector):
        return [node.text for node in self.all(selector)]

    def choose(self, name, value, form="#filters"):
        """Sets a filter and waits until the list shows it."""
        before = self.js("return window.fills || 0")
        self.js(
            """const field = document.querySelector(arguments[0]).elements[arguments[1]];
            field.value = arguments[2];
            const kind = field.type === 'search' ? 'input' : 'change';
            field.dispatchEvent(new Event(kind, {bubbles: true}))""",
            form,
            name,
            value,
        )
        self.wait(lambda: self.js("return window.fills || 0") > before)

    def sources(self):
        return self.js(
            "return [...document.querySelectorAll('#sources [role=option]')].map(n => n.innerText.toWellFormed())"
        )

    def errors(self):
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]


@pytest.fixture
def view(browser, run):
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get((run / "report.html").as_uri())
    page = View(browser)
    page.wait(lambda: page.all("#sources [role=option]") and page.all("#cards details"))
    # Counts how often one of the two lists was made anew.
    page.js(
        """new MutationObserver(() => { window.fills = (window.fills || 0) + 1 })
        .observe(document.getElementById('sources'), {childList: true});
        new MutationObserver(() => { window.fills = (window.fills || 0) + 1 })
        .observe(document.getElementById('cards'), {childList: true})"""
    )
    yield page
    assert page.errors() == []
    assert page.js("return window.hacked") is None


def _records(run, iteration):
    with gzip.open(run / "episodes" / f"iteration_{iteration:05d}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_charts_are_drawn_when_they_come_into_view(view):
    first = view.one("#curves .plot")
    view.js("arguments[0].scrollIntoView()", first)
    view.wait(lambda: first.get_attribute("aria-label"))
    assert first.get_attribute("aria-label").startswith("Chart of win rate: joint from 0.3")
    count = """let n = 0; (function walk(node) {
        if (node.tagName === 'CANVAS') n += 1;
        for (const child of [...(node.shadowRoot?.children || []), ...(node.children || [])]) walk(child);
        })(arguments[0]); return n"""
    view.wait(lambda: view.js(count, first) > 0)
    drawn = len([p for p in view.all(".plot") if p.get_attribute("aria-label")])
    assert 0 < drawn < len(view.all(".plot"))


def test_filters(view, run):
    everything = view.sources()
    assert len(everything) == 22 and view.one("#count").text == "22 of 22 sources"
    view.choose("type", "pick_heat_then_place_in_recep")
    heated = view.sources()
    assert 0 < len(heated) < 22 and all("pick_heat" in text for text in heated)
    view.choose("type", "")
    view.choose("iteration", "8")
    assert len(view.sources()) == 2 and all("iteration 8" in text for text in view.sources())
    view.choose("iteration", "")
    view.choose("outcome", "won")
    won = [r for i in [*range(0, 40, 4), 39] for r in _records(run, i) if r["source"]["won"]]
    assert len(view.sources()) == len(won)
    view.choose("outcome", "mixed")
    mixed = [
        r
        for i in [*range(0, 40, 4), 39]
        for r in _records(run, i)
        if len({s["reward"] for s in r["skills"]}) > 1
    ]
    assert len(view.sources()) == len(mixed)


def test_search_finds_what_an_observation_says(view):
    view.choose("text", "hostile onerror=window")
    assert len(view.sources()) == 1 and "iteration 39" in view.sources()[0]
    view.choose("text", "no such words")
    assert view.sources() == [] and "No source fits" in view.one("#sources").text


def test_everything_by_keyboard(view, run):
    view.choose("iteration", "8")
    record = _records(run, 8)[1]
    view.focus("#sources")
    view.press(Keys.ARROW_DOWN)
    assert view.one("#sources").get_attribute("aria-activedescendant") == "source-1"
    assert (
        view.js("return getComputedStyle(document.querySelector('li.active')).outlineStyle")
        == "solid"
    )
    view.press(Keys.ENTER)
    view.wait(lambda: view.all("#source table.wins"))
    assert view.driver.switch_to.active_element.get_attribute("id") == "source"
    rewards = [f"reward {s['reward']:.2f}" for s in record["skills"]]
    shown = view.one(".skill-list").text
    assert all(reward in shown for reward in rewards) and "no JSON object" in shown

    while "cell" not in (view.driver.switch_to.active_element.get_attribute("class") or ""):
        view.press(Keys.TAB)
    view.press(Keys.ARROW_RIGHT)
    view.press(Keys.ARROW_DOWN)
    played = record["skills"][1]["episodes"][1]
    label = view.driver.switch_to.active_element.get_attribute("aria-label")
    kind = "won" if played["won"] else "lost"
    assert label.startswith(f"Task 2 with skill 2: {kind}, advantage ")

    view.press(Keys.ENTER)
    view.wait(lambda: view.js("return document.getElementById('episode').open"))
    assert view.one("#episode-title").text == "Task 2 with skill 2"
    view.press(Keys.HOME)
    assert "given, mask 0" in view.one(".token-facts").text
    view.press(Keys.ARROW_DOWN)
    facts = view.one(".token-facts").text.replace("\u2212", "-")
    sequence = played["sequences"][0]
    assert (
        "sampled, mask 1" in facts
        and json.dumps(sequence["pieces"][sequence["mask"].index("1")]) in facts
    )
    assert f"log-prob {sequence['logprobs'][0]:.4f}" in facts
    assert f"as sampled {sequence['sampling_logprobs'][0]:.4f}" in facts
    assert facts.endswith(f"advantage {played['advantage']:+.3f}".replace("+0.000", "0.000"))

    view.press("n")
    assert view.one("#episode-title").text == "Task 2 with skill 3"
    view.press("p")
    view.press(Keys.ESCAPE)
    view.wait(lambda: not view.js("return document.getElementById('episode').open"))
    assert view.driver.switch_to.active_element.get_attribute("aria-label") == label
    view.press(Keys.ESCAPE)
    assert view.driver.switch_to.active_element.get_attribute("id") == "sources"


def test_the_grid_shows_every_win(view, run):
    view.choose("iteration", "20")
    view.click("#sources li")
    view.wait(lambda: view.all("table.wins"))
    record = _records(run, 20)[0]
    cells = [
        [c.text for c in row.find_elements("css selector", ".cell")]
        for row in view.all(".wins tbody tr")
    ]
    wins = [[s["episodes"][k]["won"] for s in record["skills"]] for k in range(4)]
    assert cells == [["\u2713" if won else "\u2717" for won in row] for row in wins]


def test_tokens_masks_and_logprobs_are_on_the_page(view, run):
    view.choose("iteration", "0")
    view.click("#sources li")
    view.wait(lambda: view.all("#open-source"))
    record = _records(run, 0)[0]
    view.click("#open-source")
    sequence = record["source"]["sequences"][0]
    classes = view.js(
        "return [...document.querySelectorAll('.tokens .token')].map(n => n.className)"
    )
    assert ["sampled" in c for c in classes] == [m == "1" for m in sequence["mask"]]
    numbers = [n.replace("\u2212", "-") for n in view.texts(".tokens small")]
    assert numbers == [f"{x:.2f}" for x in sequence["logprobs"]]
    assert "none: the update does not read it" in view.one(".advantage").text
    view.js("document.querySelector('input[value=table]').click()")
    assert len(view.all("#episode tbody tr")) == sequence["mask"].count("1")
    view.js("document.querySelector('input[value=text]').click()")
    assert view.texts("#episode .output")[0] == record["source"]["turns"][0]["output"]
    view.press(Keys.ESCAPE)
    view.click(".skill-list .open")
    assert view.one("#episode-title").text == "Extraction of skill 1"
    assert "after the 90 tokens of the source episode" in view.one(".facts").text


def test_attempts_at_a_source_open_one_by_one(view, run):
    view.choose("iteration", "39")
    view.js("document.querySelectorAll('#sources li')[1].click()")
    view.wait(lambda: view.all(".attempts"))
    record = _records(run, 39)[1]
    assert [text.split(" turns")[0] for text in view.texts(".attempts li")] == [
        f"Attempt {i + 1} {'won' if e['won'] else 'lost'} {len(e['turns'])}"
        for i, e in enumerate(record["attempts"])
    ]
    assert [i for i, t in enumerate(view.texts(".attempts li")) if "furthest" in t] == [2]
    view.click("#open-source")
    assert view.one("#episode-title").text == "Attempt 3 of 3"
    view.press("p")
    assert view.one("#episode-title").text == "Attempt 2 of 3"
    shown = view.js("return document.querySelectorAll('.tokens .token.sampled').length")
    assert shown == record["attempts"][1]["sequences"][0]["mask"].count("1")
    view.press(Keys.ESCAPE)
    view.choose("iteration", "0")
    view.click("#sources li")
    view.wait(lambda: view.all("#open-source"))
    assert not view.all(".attempts")


def test_hostile_text_stays_text(view):
    view.choose("iteration", "39")
    view.click("#sources li")
    view.wait(lambda: view.all("table.wins"))
    shown = HOSTILE.replace("\ud800", "\ufffd")
    assert view.js(
        "return document.querySelector('#source h3').textContent.toWellFormed()"
    ).endswith(shown)
    view.click("table.wins button")
    view.js("document.querySelector('input[value=text]').click()")
    seen = view.js(
        "return document.querySelectorAll('#episode .observation')[1].textContent.toWellFormed()"
    )
    assert seen == shown
    view.js("document.querySelector('input[value=tokens]').click()")
    assert "<script>window.hacked=1</script>" in view.js(
        "return document.querySelector('.tokens').textContent.toWellFormed()"
    )
    view.press(Keys.ESCAPE)
    view.js("document.querySelectorAll('#cards details').forEach(d => { d.open = true })")
    rule = view.js(
        "return document.querySelectorAll('#cards .skill-part li')[3].textContent.toWellFormed()"
    )
    assert rule == shown
    assert view.all("img") == [] and view.all("main script, dialog script") == []
    assert view.js("return window.hacked") is None


def test_skill_cards(view):
    assert view.one("#skill-count").text == "80 of 80 skills"
    utilities = [t for t in view.js(
        "return [...document.querySelectorAll('#cards summary')].map(n => n.textContent)"
    )]  # fmt: skip
    assert "utility +0.75" in utilities[0] and " to +" in utilities[0]
    view.choose("state", "measured", "#skill-filters")
    assert view.one("#skill-count").text == "40 of 80 skills"
    view.choose("text", "it00008-g000-n1", "#skill-filters")
    assert (
        view.one("#skill-count").text.startswith("1 of 80")
        and "find mug 8 1" in view.one("#cards").text
    )
    view.one("#cards summary").send_keys(Keys.ENTER)
    view.click("#cards .open")
    view.wait(lambda: view.all("table.wins"))
    assert "iteration 8" in view.one("#sources [aria-selected=true]").text


def _brightness(view):
    color = view.js("return getComputedStyle(document.body).backgroundColor")
    return sum(map(int, color.removeprefix("rgb(").rstrip(")").split(",")))


def test_dark_mode_follows_the_system_and_the_button(view):
    light = _brightness(view)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    view.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    assert _brightness(view) < light / 5
    view.click("#theme")
    assert view.one("#theme").text.endswith("light") and _brightness(view) == light
    view.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    view.click("#theme")
    assert view.one("#theme").text.endswith("dark") and _brightness(view) < light / 5
    view.click("#theme")
    assert view.one("#theme").text.endswith("auto") and _brightness(view) == light


def test_on_a_phone(view):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    view.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert view.js("return document.documentElement.scrollWidth") == 390
        heights = view.js(
            "return [...document.querySelectorAll('select')].map(s => s.offsetHeight)"
        )
        assert max(heights) < 60
        view.js("document.querySelector('#sources li').click()")
        view.wait(lambda: view.all("table.wins"))
        assert view.js("return document.documentElement.scrollWidth") == 390
        view.js("document.querySelector('table.wins button').click()")
        box = view.js("return document.getElementById('episode').getBoundingClientRect().toJSON()")
        assert (box["left"], box["width"], box["height"]) == (0, 390, 844)
        assert view.js("return document.getElementById('episode').scrollWidth") <= 390
    finally:
        view.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_is_fetched(view):
    assert view.js("return performance.getEntriesByType('resource').length") == 0
