// Draws the figures with BokehJS, each when it comes into view.
"use strict";

(function () {
  const { data, element } = Report;
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Map();

  function start() {
    if (window.Bokeh) return;
    for (const code of document.querySelectorAll("script.library")) {
      document.head.append(element("script", {}, code.textContent));
    }
    Bokeh.set_log_level("warn");
  }

  const color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Bokeh draws a gap where a value is not a number.
  const values = list => list.map(value => (value === null ? NaN : value));

  function frame(tall) {
    const soft = color("--soft"), rule = color("--rule");
    const plot = new Bokeh.Plotting.Figure({
      height: tall ? 260 : 160, sizing_mode: "stretch_width", toolbar_location: null, tools: [],
      background_fill_alpha: 0, border_fill_alpha: 0, outline_line_color: null, min_border: 4,
    });
    for (const axis of [...plot.below, ...plot.left]) {
      axis.setv({
        axis_line_color: rule, major_tick_line_color: rule, minor_tick_line_color: null,
        major_label_text_color: soft, major_label_text_font_size: "11px",
      });
      axis.ticker.desired_num_ticks = 5;
    }
    for (const grid of plot.center) if ("grid_line_color" in grid) grid.grid_line_color = grid.dimension === 1 ? rule : null;
    return plot;
  }

  function hover(plot, renderer, label) {
    const format = "{0.[0000]}";
    plot.add_tools(new Bokeh.HoverTool({
      renderers: [renderer], mode: "vline", line_policy: "nearest", toggleable: false,
      tooltips: [[label, "@y" + format + " at $x{0}"]],
    }));
  }

  function lines(plot, figure) {
    for (const series of figure.series) {
      const shade = color("--c" + (series.color % 8)), x = series.x;
      if (series.low) {
        plot.varea({ x, y1: values(series.low), y2: values(series.high), fill_color: shade, fill_alpha: 0.18 });
      }
      if (series.raw) plot.line({ x, y: values(series.raw), line_color: shade, line_alpha: 0.35, line_width: 1 });
      const source = new Bokeh.ColumnDataSource({ data: { x, y: values(series.y) } });
      const line = plot.line({ field: "x" }, { field: "y" },
        { source, line_color: shade, line_width: 1.8, line_dash: series.dash || "solid" });
      if (series.points || x.length < 3) {
        plot.scatter({ field: "x" }, { field: "y" }, { source, fill_color: shade, line_color: null, size: 6 });
      }
      hover(plot, line, series.label);
    }
  }

  function stack(plot, figure) {
    let below = figure.series[0].x.map(() => 0);
    for (const { x, y, color: index } of figure.series) {
      const above = y.map((value, i) => value + below[i]);
      plot.varea({ x, y1: below, y2: above, fill_color: color("--c" + (index % 8)), fill_alpha: 0.75 });
      below = above;
    }
  }

  function describe(figure) {
    const ends = figure.series.map(series => {
      const known = series.y.filter(value => value !== null);
      return `${series.label} from ${+known[0].toPrecision(3)} to ${+known[known.length - 1].toPrecision(3)}`;
    });
    return `Chart of ${figure.title}: ${ends.join("; ")}`;
  }

  async function draw(node) {
    start();
    drawn.get(node)?.model.document?.clear();
    node.replaceChildren();
    const figure = data.figures[node.dataset.figure];
    const plot = frame(node.classList.contains("tall"));
    (figure.stacked ? stack : lines)(plot, figure);
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", describe(figure));
    drawn.set(node, await Bokeh.Plotting.show(plot, node));
    if (figure.series.some(series => series.points)) {
      node.after(node.nextElementSibling?.matches(".legend") ? "" : legend(figure));
    }
    performance.mark("chart");
  }

  // A piece of the line, or a square of its colour.
  function swatch(series) {
    const color = `var(--c${series.color % 8})`;
    if (!series.dash) return { style: `background:${color}` };
    const style = { solid: "solid", dotted: "dotted", dashed: "dashed", dotdash: "double" }[series.dash];
    return { class: "line", style: `border-top-style:${style};border-top-color:${color}` };
  }

  function legend(figure) {
    return element("ul", { class: "legend" }, figure.series.map(series =>
      element("li", {}, element("i", swatch(series)), series.label)));
  }

  if (!plots.length) return;
  const observer = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "200px" });
  // After the first paint: the text of the page does not wait for the library.
  requestAnimationFrame(() => setTimeout(() => {
    plots.forEach(node => observer.observe(node));
    (window.requestIdleCallback || setTimeout)(start);
  }));
  Report.redraw.push(() => [...drawn.keys()].forEach(draw));
})();
