// What the other scripts of the page share: building elements, unpacking data, formats, the theme.
"use strict";

const Report = {
  data: JSON.parse(document.getElementById("data").textContent),
  redraw: [], // called when the colours change
};

// Text always becomes a text node: what a model or a web page wrote is never parsed as HTML.
Report.element = function (tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(9).filter(child => child !== null && child !== undefined && child !== false));
  return node;
};

// base64 of gzipped JSON -> value
Report.unpack = async function (text) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser cannot unpack the data of the page (it has no DecompressionStream)");
  }
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

Report.number = (value, digits = 2) =>
  typeof value === "number" ? value.toFixed(digits).replace("-", "−") : "–";
Report.signed = (value, digits = 2) =>
  typeof value === "number" ? (value > 0 ? "+" : "") + Report.number(value, digits) : "–";
Report.percent = value => (typeof value === "number" ? (100 * value).toFixed(0) + " %" : "–");
Report.tag = (text, kind) => Report.element("span", { class: "tag " + kind }, text);

Report.outcome = function (episode) {
  if (episode.status && !["ok", "truncated"].includes(episode.status)) return Report.tag(episode.status, "soft");
  return Report.tag(episode.won ? "won" : "lost", episode.won ? "good" : "bad");
};

// The words of a search, each of which must be somewhere in the text.
Report.matcher = function (query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return text => words.every(word => text.includes(word));
};

Report.later = function (action, delay) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), delay);
  };
};

(function theme() {
  const names = ["auto", "light", "dark"];
  const words = { auto: "as the system", light: "light", dark: "dark" };
  const button = document.getElementById("theme");
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("evolving-rl-theme") || "auto";
  } catch { /* a page opened from a file may have no storage */ }
  function apply(redraw) {
    if (!names.includes(chosen)) chosen = "auto";
    if (chosen === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = chosen;
    button.lastElementChild.textContent = chosen;
    button.setAttribute("aria-label", "Colours: " + words[chosen]);
    if (redraw) Report.redraw.forEach(action => action());
  }
  button.addEventListener("click", () => {
    chosen = names[(names.indexOf(chosen) + 1) % names.length];
    try {
      localStorage.setItem("evolving-rl-theme", chosen);
    } catch { /* then it holds for this visit */ }
    apply(true);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(true));
  apply(false);
})();

// Tables of what a panel retrieved, made when they are opened.
document.querySelectorAll("details.retrieved").forEach(details =>
  details.addEventListener("toggle", async () => {
    if (!details.open || details.childElementCount > 1) return;
    const { element } = Report;
    const rows = await Report.unpack(details.dataset.packed);
    const head = ["panel game", "retrieved game", "content"].map(name => element("th", { scope: "col" }, name));
    const body = rows.map(row => element("tr", {}, row.map(cell => element("td", {}, cell))));
    details.append(element("div", { class: "scroll", tabindex: 0 },
      element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", {}, body))));
  }));
