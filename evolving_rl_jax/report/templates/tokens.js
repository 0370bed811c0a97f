// One episode or extraction in a dialog: its turns as text, or its tokens with masks, log-probabilities
// and the advantage of the sequence.
"use strict";

(function () {
  const dialog = document.getElementById("episode");
  const { element, number, signed } = Report;
  let view = "tokens", numbers = true, state = null;

  Report.openEpisode = function (record, items, i) {
    state = { record, items, i, opener: state?.opener ?? document.activeElement };
    render();
    if (!dialog.open) dialog.showModal();
    (dialog.querySelector(".tokens") || dialog.querySelector(".close")).focus({ preventScroll: true });
    dialog.scrollTop = 0;
  };
  dialog.addEventListener("close", () => {
    const opener = state?.opener;
    state = null;
    opener?.focus();
  });
  dialog.addEventListener("click", event => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  dialog.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n") go(1);
    else if (event.key === "p") go(-1);
  });

  function go(step) {
    const i = state.i + step;
    if (state.items[i]) Report.openEpisode(state.record, state.items, i);
  }

  function render() {
    const { items, i } = state;
    const item = items[i], sequence = item.extraction || item.episode;
    dialog.replaceChildren(
      element("div", { class: "dialog-head" },
        element("h2", { id: "episode-title" }, item.title),
        items.length > 1 ? [
          element("button", { type: "button", class: "previous", disabled: i === 0, onclick: () => go(-1), title: "p" }, "← previous"),
          element("button", { type: "button", class: "next", disabled: i === items.length - 1, onclick: () => go(1), title: "n" }, "next →"),
        ] : null,
        element("button", { type: "button", class: "close", onclick: () => dialog.close(), title: "Esc" }, "close")),
      facts(item, sequence),
      switches(sequence),
      body(item, sequence));
  }

  function facts(item, sequence) {
    const tokens = tokensOf(sequence);
    const sampled = tokens.filter(token => token.sampled).length;
    const known = tokens.map(token => token.logprob).filter(x => typeof x === "number");
    const shared = sequence.sequences?.[0]?.shared;
    const mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
    return element("div", { class: "facts" },
      item.extraction ? null : element("p", { class: "task" }, sequence.text),
      item.skill?.raw ? element("p", { class: "skill-text" }, element("b", {}, "Skill in the prompt: "), item.skill.description || item.skill.raw) : null,
      element("p", { class: "row-facts" },
        item.extraction ? (sequence.valid ? Report.tag("valid", "good") : Report.tag(sequence.reason || "not valid", "bad")) : Report.outcome(sequence),
        item.extraction ? element("span", {}, `reward ${number(sequence.reward)}`) : null,
        element("span", { class: "advantage" }, "advantage ", element("b", {}, typeof sequence.advantage === "number" ? signed(sequence.advantage, 3) : "none: the update does not read it")),
        tokens.length ? element("span", {}, `${sampled} sampled of ${tokens.length} tokens`) : null,
        mean !== null ? element("span", {}, `mean log-prob ${number(mean, 3)}`) : null,
        shared ? element("span", {}, `after the ${shared} tokens of the source episode`) : null));
  }

  function switches(sequence) {
    if (!sequence.sequences?.length) return null;
    const radio = (value, label) => element("label", {},
      element("input", { type: "radio", name: "view", value, checked: view === value }), label);
    const box = element("fieldset", { class: "switches" },
      element("legend", { class: "hidden" }, "View"),
      radio("tokens", "tokens"), radio("table", "table of sampled tokens"), radio("text", "text"),
      element("label", {}, element("input", { type: "checkbox", name: "numbers", checked: numbers }), "log-probs"));
    box.addEventListener("change", event => {
      if (event.target.name === "view") view = event.target.value;
      else numbers = event.target.checked;
      const name = event.target.name, value = event.target.value;
      render();
      dialog.querySelector(`input[name=${name}]${name === "view" ? `[value=${value}]` : ""}`).focus();
    });
    return box;
  }

  function body(item, sequence) {
    if (!sequence.sequences?.length || view === "text") return text(item, sequence);
    return view === "table" ? table(sequence) : stream(sequence);
  }

  // --- text --------------------------------------------------------------------------------------

  function text(item, sequence) {
    if (item.extraction) return element("pre", { tabindex: 0 }, sequence.raw);
    const turns = (sequence.turns || []).map(turn => element("li", {},
      element("p", { class: "observation" }, turn.observation),
      element("p", { class: "output" }, turn.output, turn.valid === false ? [" ", Report.tag("wrong form", "bad")] : null)));
    return element("div", { class: "text", tabindex: 0 }, element("ol", { class: "turns" }, turns),
      sequence.last_observation ? element("p", { class: "observation" }, sequence.last_observation) : null);
  }

  // --- tokens ------------------------------------------------------------------------------------

  // One entry a token of all training sequences: an episode is one sequence, or one for every turn.
  function tokensOf(episode) {
    return (episode.sequences || []).flatMap(({ pieces, mask, logprobs, sampling_logprobs: sampling, shared, turn }, j) => {
      let next = 0;
      return pieces.map((piece, i) => {
        const token = { piece, sampled: mask[i] === "1", position: shared + i, starts: i === 0 && j > 0 ? turn : null };
        if (!token.sampled) return token;
        Object.assign(token, { logprob: logprobs[next], sampling: sampling[next] });
        next += 1;
        return token;
      });
    });
  }

  // Spaces and line ends of a token made visible; an empty piece is part of the character that follows.
  const visible = piece => (piece === "" ? "·" : piece.replace(/\n/g, "⏎\n"));

  function stream(sequence) {
    const tokens = tokensOf(sequence);
    const sign = Math.sign(sequence.advantage || 0);
    const line = element("output", { class: "token-facts", "aria-live": "polite" }, "Move over the tokens with the arrow keys, or point at one.");
    const spans = tokens.map((token, i) => {
      const span = element("span", { class: token.sampled ? "token sampled" : "token given", id: "token-" + i, role: "option", "aria-selected": "false" }, visible(token.piece));
      if (token.sampled) {
        span.style.setProperty("--surprise", String(Math.round(100 * (1 - Math.exp(token.logprob ?? 0)))));
        if (numbers) span.append(element("small", {}, number(token.logprob)));
      }
      return span;
    });
    const box = element("div", {
      class: "tokens" + (numbers ? " numbers" : ""), tabindex: 0, role: "listbox", "aria-label": "Tokens of the sequence",
      "data-sign": sign,
    }, spans.map((span, i) => (tokens[i].starts === null ? span
      : [element("div", { class: "sequence-start", role: "presentation" }, `sequence of turn ${tokens[i].starts + 1}`), span])));
    let current = -1;
    function choose(i, scroll) {
      if (!spans[i]) return;
      spans[current]?.classList.remove("current");
      spans[current]?.setAttribute("aria-selected", "false");
      current = i;
      spans[i].classList.add("current");
      spans[i].setAttribute("aria-selected", "true");
      box.setAttribute("aria-activedescendant", spans[i].id);
      line.textContent = describe(tokens[i], i, tokens.length, sequence.advantage);
      if (scroll) spans[i].scrollIntoView({ block: "nearest" });
    }
    const sampledFrom = (i, step) => {
      for (i += step; spans[i]; i += step) if (tokens[i].sampled) return i;
      return -1;
    };
    box.addEventListener("keydown", event => {
      const to = {
        ArrowRight: current + 1, ArrowLeft: Math.max(current - 1, 0),
        ArrowDown: sampledFrom(current, 1), ArrowUp: sampledFrom(current, -1),
        Home: 0, End: spans.length - 1,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(to, true);
    });
    const point = event => choose(spans.indexOf(event.target.closest(".token")), false);
    box.addEventListener("click", point);
    box.addEventListener("mouseover", point);
    const key = element("p", { class: "note" },
      element("span", { class: "token given" }, "given"), " mask 0, ",
      element("span", { class: "token sampled", style: "--surprise:10" }, "likely"), " and ",
      element("span", { class: "token sampled", style: "--surprise:90" }, "unlikely"),
      " sampled tokens, mask 1. ← → token by token, ↑ ↓ to the sampled ones.");
    return element("div", { class: "token-view" }, key, line, box);
  }

  function describe(token, i, count, advantage) {
    const place = `Token ${i + 1} of ${count} ${JSON.stringify(token.piece)}`;
    if (!token.sampled) return `${place}: given, mask 0`;
    const share = typeof token.logprob === "number" ? ` (${Report.percent(Math.exp(token.logprob))})` : "";
    return `${place}: sampled, mask 1, log-prob ${number(token.logprob, 4)}${share}, `
      + `as sampled ${number(token.sampling, 4)}, advantage ${signed(advantage, 3)}`;
  }

  function table(sequence) {
    const names = ["position", "token", "mask", "log-prob", "as sampled", "advantage"];
    const rows = tokensOf(sequence).map(token => token.sampled && element("tr", {},
      element("td", { class: "num" }, String(token.position)), element("td", {}, element("code", {}, JSON.stringify(token.piece))),
      element("td", { class: "num" }, "1"), element("td", { class: "num" }, number(token.logprob, 4)),
      element("td", { class: "num" }, number(token.sampling, 4)), element("td", { class: "num" }, signed(sequence.advantage, 3))));
    return element("div", { class: "scroll tall-scroll", tabindex: 0 }, element("table", {},
      element("thead", {}, element("tr", {}, names.map((name, i) => element("th", { scope: "col", class: i === 1 ? "" : "num" }, name)))),
      element("tbody", {}, rows.filter(Boolean))));
  }
})();
