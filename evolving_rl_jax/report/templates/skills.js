// The skill bank: one card a skill, best first.
"use strict";

(function () {
  const box = document.getElementById("cards");
  if (!box) return;
  const { element, number, signed } = Report;
  const form = document.getElementById("skill-filters");
  const more = document.getElementById("more-cards");
  const STEP = 25;
  let cards = null, found = [], limit = STEP;

  const states = {
    usable: card => card.usable,
    measured: card => card.utility !== null,
    refused: card => !card.usable,
  };

  function filter() {
    const matches = Report.matcher(form.elements.text.value);
    const state = states[form.elements.state.value];
    found = cards.filter(card => (!state || state(card)) && matches(card.text));
    limit = STEP;
    draw();
  }

  function draw() {
    box.replaceChildren(...found.slice(0, limit).map(render));
    document.getElementById("skill-count").textContent = `${found.length} of ${cards.length} skills`;
    more.hidden = found.length <= limit;
  }

  function value(content) {
    if (Array.isArray(content)) return element("ol", {}, content.map(item => element("li", {}, value(item))));
    if (content && typeof content === "object") {
      return element("dl", {}, Object.entries(content).map(([name, item]) =>
        [element("dt", {}, name.replaceAll("_", " ")), element("dd", {}, value(item))]));
    }
    return String(content);
  }
  const empty = content => content === "" || content === null || (typeof content === "object" && !Object.keys(content).length);

  function render(card) {
    const { name, description, ...rest } = card.skill;
    const measured = card.utility !== null;
    const summary = element("summary", {},
      element("b", {}, String(name)), " ",
      element("span", { class: "row-facts" },
        measured ? element("span", { class: card.utility > 0 ? "good" : card.utility < 0 ? "bad" : "" }, `utility ${signed(card.utility)}`) : element("span", {}, "utility not measured"),
        measured && card.interval ? element("span", {}, `${signed(card.interval[0])} to ${signed(card.interval[1])}`) : null,
        element("span", {}, `reward ${number(card.reward)}`),
        element("span", {}, `${card.wins}/${card.uses} won`),
        card.copies > 1 ? element("span", {}, `written ${card.copies} times`) : null,
        card.retired ? Report.tag("retired: " + card.retired, "bad") : null,
        card.usable || card.retired ? null : Report.tag(card.reasons[0] || "refused", "bad")));
    const id = { id: card.episode, run: card.run };
    const facts = {
      "from": `${card.source} (content ${card.source_hash})`,
      "written": `${card.run}, iteration ${card.iteration}, after ${card.policy_step} optimizer steps (${card.id})`,
      "with and without": measured ? `${card.wins} of ${card.uses} won with it, ${card.baseline_wins} of ${card.baseline_uses} without` : null,
      "steps saved": card.steps_saved === null ? null : `${number(card.steps_saved, 1)} an episode won both ways`,
      "audit": card.reasons.length ? card.reasons.join("; ") : "passed",
    };
    return element("details", { class: "card skill-card" }, summary,
      element("p", {}, String(description)),
      Object.entries(rest).filter(([, content]) => !empty(content)).map(([key, content]) =>
        [element("h4", {}, key.replaceAll("_", " ")), element("div", { class: "skill-part" }, value(content))]),
      element("dl", { class: "provenance" }, Object.entries(facts).filter(([, text]) => text !== null).map(([key, text]) =>
        [element("dt", {}, key), element("dd", {}, text)])),
      Report.hasSource?.(id) ? element("button", { type: "button", class: "open", onclick: () => Report.openSource(id) }, "Open its source episode") : null);
  }

  async function start() {
    try {
      cards = await Report.unpack(document.getElementById("cards-data").textContent);
    } catch (error) {
      return box.replaceChildren(element("p", { class: "bad" }, `Cannot be shown: ${error.message}.`));
    }
    cards.forEach(card => { card.text = JSON.stringify([card.skill, card.source, card.id, card.run]).toLowerCase(); });
    form.addEventListener("submit", event => event.preventDefault());
    form.addEventListener("change", filter);
    form.elements.text.addEventListener("input", Report.later(filter, 150));
    more.addEventListener("click", () => {
      const first = limit;
      limit += STEP;
      draw();
      box.children[first]?.querySelector("summary").focus();
    });
    filter();
  }
  // After the first paint: the text of the page does not wait for the cards.
  requestAnimationFrame(() => setTimeout(start));
})();
