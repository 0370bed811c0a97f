// The trajectory viewer: a list of source episodes, one of them with its skills and its grid of wins.
"use strict";

(function () {
  const list = document.getElementById("sources");
  if (!list) return;
  const { element, number, signed, data } = Report;
  const form = document.getElementById("filters");
  const detail = document.getElementById("source");
  const chunks = [...document.querySelectorAll("script.chunk")];
  const unpacked = [];
  const texts = new Map(); // entry -> everything that a search looks at
  let shown = [], active = -1, chosen = null;

  const chunk = i => (unpacked[i] ??= Report.unpack(chunks[i].textContent));
  Report.record = async entry => (await chunk(entry.chunk))[entry.position];

  // --- filters ---------------------------------------------------------------------------------

  function options(name, values) {
    const select = form.elements[name];
    select?.append(...values.map(([value, label]) => element("option", { value }, label)));
  }
  const distinct = key => [...new Set(data.index.map(entry => entry[key]))];
  options("run", data.runs.map((name, i) => [i, name]));
  options("iteration", distinct("iteration").sort((a, b) => a - b).map(i => [i, i]));
  options("type", distinct("type").filter(Boolean).sort().map(type => [type, type]));

  const outcomes = {
    "won": e => e.won === true,
    "lost": e => e.won === false,
    "mixed": e => new Set(e.rewards.filter(r => r !== null)).size > 1,
    "all-won": e => e.played > 0 && e.wins === e.played,
    "all-lost": e => e.played > 0 && e.wins === 0,
  };

  function accepts(entry) {
    const value = name => form.elements[name]?.value ?? "";
    return (value("run") === "" || entry.run === +value("run"))
      && (value("iteration") === "" || entry.iteration === +value("iteration"))
      && (value("type") === "" || entry.type === value("type"))
      && (value("outcome") === "" || outcomes[value("outcome")](entry));
  }

  // Collects the strings of a record, so that a search finds observations and actions too.
  function strings(value, into) {
    if (typeof value === "string") into.push(value);
    else if (Array.isArray(value)) value.forEach(item => strings(item, into));
    else if (value && typeof value === "object") {
      for (const [key, item] of Object.entries(value)) if (key !== "sequences") strings(item, into);
    }
    return into;
  }

  async function searchable(entry) {
    if (!texts.has(entry)) texts.set(entry, strings(await Report.record(entry), []).join("\n").toLowerCase());
    return texts.get(entry);
  }

  let question = 0;
  async function filter() {
    const mine = ++question;
    let found = data.index.filter(accepts);
    const query = form.elements.text.value.trim();
    if (query) {
      const matches = Report.matcher(query);
      const keep = await Promise.all(found.map(async entry => matches(await searchable(entry))));
      if (mine !== question) return; // a newer question is on its way
      found = found.filter((_, i) => keep[i]);
    }
    shown = found;
    document.getElementById("count").textContent = `${shown.length} of ${data.index.length} sources`;
    fill();
  }

  // --- the list ----------------------------------------------------------------------------------

  function fill() {
    list.replaceChildren(...shown.map((entry, i) => {
      const wins = entry.played ? `${entry.wins}/${entry.played} won with skills` : "nothing played";
      return element("li", { role: "option", id: "source-" + i, "aria-selected": "false" },
        element("span", { class: "row-text" }, entry.text || entry.task || "(no task)"),
        element("span", { class: "row-facts" },
          data.runs.length > 1 ? element("span", {}, data.runs[entry.run]) : null,
          element("span", {}, `iteration ${entry.iteration}`), element("span", {}, entry.type),
          entry.won === null ? null : Report.outcome(entry), element("span", {}, wins)));
    }));
    if (!shown.length) list.append(element("li", { class: "soft", role: "presentation" }, "No source fits these filters."));
    activate(shown.indexOf(chosen) >= 0 ? shown.indexOf(chosen) : shown.length ? 0 : -1, false);
  }

  function activate(i, scroll = true) {
    list.children[active]?.classList.remove("active");
    active = i;
    const item = shown[i] && list.children[i];
    if (!item) return list.removeAttribute("aria-activedescendant");
    item.classList.add("active");
    list.setAttribute("aria-activedescendant", item.id);
    if (scroll) item.scrollIntoView({ block: "nearest" });
  }

  list.addEventListener("keydown", event => {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 };
    if (event.key in steps && shown.length) {
      activate(Math.min(Math.max(active + steps[event.key], 0), shown.length - 1));
    } else if ((event.key === "Enter" || event.key === " ") && shown[active]) {
      open(shown[active], true);
    } else return;
    event.preventDefault();
  });
  list.addEventListener("click", event => {
    const i = [...list.children].indexOf(event.target.closest("li"));
    if (!shown[i]) return;
    activate(i, false);
    open(shown[i], true);
  });
  detail.addEventListener("keydown", event => {
    if (event.key === "Escape") list.focus();
  });

  // --- one source --------------------------------------------------------------------------------

  async function open(entry, focus) {
    chosen = entry;
    shown.forEach((other, i) => list.children[i].setAttribute("aria-selected", String(other === entry)));
    let record;
    try {
      record = await Report.record(entry);
    } catch (error) {
      return detail.replaceChildren(element("p", { class: "bad" }, `Cannot be shown: ${error.message}.`));
    }
    if (chosen !== entry) return;
    detail.replaceChildren(head(entry, record), ...skills(record), ...grid(record));
    if (focus) {
      detail.focus({ preventScroll: true });
      detail.scrollIntoView({ block: "nearest" });
    }
  }
  Report.openSource = async id => {
    const entry = data.index.find(e => e.id === id.id && data.runs[e.run] === id.run);
    if (!entry) return;
    form.reset();
    await filter();
    activate(shown.indexOf(entry));
    await open(entry, true);
  };
  Report.hasSource = id => data.index.some(e => e.id === id.id && data.runs[e.run] === id.run);

  function head(entry, record) {
    const source = record.source;
    const title = element("h3", {}, source ? source.text : entry.text);
    if (!source) return element("div", {}, title, element("p", { class: "note" }, "Repeats of each task without a skill; no source episode."));
    return element("div", {}, title,
      element("p", { class: "row-facts" }, Report.outcome(source), element("span", {}, source.task),
        element("span", {}, `${(source.turns || []).length} turns`)),
      element("button", { type: "button", class: "open", id: "open-source", onclick: () => show(record, played(record), record.best ?? 0) },
        "Open the source episode"),
      record.attempts ? attempts(record) : null);
  }

  // The source was played once, or several times: then its episode is the attempt that got furthest.
  const played = record => (record.attempts || [record.source]).map((episode, i) =>
    ({ episode, title: record.attempts ? `Attempt ${i + 1} of ${record.attempts.length}` : "Source episode" }));

  function attempts(record) {
    const items = record.attempts.map((episode, i) => element("li", {},
      element("button", { type: "button", class: "open", onclick: () => show(record, played(record), i) }, `Attempt ${i + 1}`),
      " ", Report.outcome(episode),
      element("span", { class: "soft" }, ` ${(episode.turns || []).length} turns${i === record.best ? ", the furthest" : ""}`)));
    return element("ul", { class: "attempts", "aria-label": "Attempts at the source task" }, items);
  }

  function skills(record) {
    const written = (record.skills || []).filter(skill => skill.raw || skill.sequences?.length);
    if (!written.length) return [];
    const items = record.skills.map((skill, n) => element("li", { class: skill.valid ? "" : "invalid" },
      element("div", { class: "row-facts" },
        element("b", {}, `Skill ${n + 1}`),
        element("span", {}, `reward ${number(skill.reward)}`),
        "advantage" in skill ? element("span", {}, `advantage ${signed(skill.advantage)}`) : null,
        skill.valid ? null : Report.tag(skill.reason || "not valid", "bad")),
      element("meter", { min: 0, max: 1, value: skill.reward ?? 0, "aria-label": `reward of skill ${n + 1}` }),
      element("p", { class: "skill-text" }, element("b", {}, skill.name), skill.name ? ": " : "", skill.description || skill.raw),
      element("button", { type: "button", class: "open", onclick: () => show(record, extractions(record), n) }, "Open the extraction")));
    return [element("h4", {}, `${written.length} skills`), element("ol", { class: "skill-list" }, items)];
  }

  const extractions = record => record.skills.map((skill, n) =>
    ({ extraction: skill, title: `Extraction of skill ${n + 1}`, episode: null }));

  // Rows are tasks, columns skills; arrow keys move over the cells, Enter opens one.
  function grid(record) {
    const played = [];
    const columns = record.skills || [];
    columns.forEach((skill, n) => (skill.episodes || []).forEach((episode, i) => {
      const k = episode.k ?? i;
      const column = skill.raw ? `skill ${n + 1}` : `repeat ${n + 1}`;
      played.push({ n, k, r: episode.r ?? 0, episode, skill, title: `Task ${k + 1} with ${column}` });
    }));
    if (!played.length) return [element("p", { class: "soft" }, "No episode was played with these skills.")];
    played.sort((a, b) => a.k - b.k || a.n - b.n || a.r - b.r);
    const rows = [...new Set(played.map(p => p.k))];
    const cells = rows.map(k => {
      const first = played.find(p => p.k === k).episode;
      const name = (record.tasks || [])[k]?.text || first.text;
      return element("tr", { role: "row" },
        element("th", { scope: "row", role: "rowheader" }, element("span", { class: "task-name", title: name }, name)),
        columns.map((_, n) => element("td", { role: "gridcell" },
          played.filter(p => p.k === k && p.n === n).map(p => cell(record, played, p)))));
    });
    const heads = columns.map((skill, n) => element("th", { scope: "col", role: "columnheader" },
      skill.raw ? `S${n + 1}` : `${n + 1}`, element("small", {}, number(skill.reward))));
    const table = element("table", { class: "wins", role: "grid", "aria-label": "Wins: tasks by skills" },
      element("thead", {}, element("tr", { role: "row" }, element("th", { role: "columnheader" }, "task"), heads)),
      element("tbody", {}, cells));
    table.querySelector("button").tabIndex = 0;
    table.addEventListener("keydown", move);
    const wins = played.filter(p => p.episode.won).length;
    return [element("h4", {}, `${wins} of ${played.length} downstream episodes won`),
      element("div", { class: "scroll" }, table),
      element("p", { class: "note" }, "✓ won, ✗ lost, ! left out because the environment failed. Arrow keys move, Enter opens.")];
  }

  function cell(record, played, one) {
    const { episode } = one;
    const failed = episode.status && !["ok", "truncated"].includes(episode.status);
    const kind = failed ? "failed" : episode.won ? "won" : "lost";
    const advantage = "advantage" in episode ? `, advantage ${signed(episode.advantage)}` : "";
    return element("button", {
      type: "button", tabindex: -1, class: "cell " + kind, "aria-label": `${one.title}: ${kind}${advantage}`,
      title: `${kind}${advantage}`, onclick: () => show(record, played, played.indexOf(one)),
    }, failed ? "!" : episode.won ? "✓" : "✗");
  }

  function move(event) {
    const table = event.currentTarget, from = event.target.closest("button");
    if (!from || !event.key.startsWith("Arrow")) return;
    const rows = [...table.tBodies[0].rows].map(row => [...row.querySelectorAll("button")]);
    const y = rows.findIndex(row => row.includes(from)), x = rows[y].indexOf(from);
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const to = (rows[y + dy] || [])[Math.min(x + dx, (rows[y + dy] || []).length - 1)];
    event.preventDefault();
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  const show = (record, items, i) => Report.openEpisode(record, items, i);

  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("change", filter);
  form.elements.text.addEventListener("input", Report.later(filter, 150));
  filter();
})();
