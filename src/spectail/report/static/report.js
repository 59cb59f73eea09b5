// Draws the page's figures, follows the chosen layer, and runs the table. All data sits in #data; nothing is fetched.
// Names come from strangers' files: they reach the page through textContent only.
(function () {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  const column = Object.fromEntries(data.table.columns.map((name, i) => [name, i]));
  const value = (i, name) => data.table.rows[i][column[name]];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const THEMES = {
    light: { ink: "#4d5560", grid: "rgba(60,64,72,0.10)", card: "#ffffff", strong: "#1d2127", edge: "#d9d5cc" },
    dark: { ink: "#aab2bd", grid: "rgba(220,226,235,0.11)", card: "#23272e", strong: "#e7e9ec", edge: "#3a4049" },
  };
  let printing = false;
  let chosen = null;

  // ---- small helpers ------------------------------------------------------------------------------------------

  function make(tag, props, ...children) {
    const node = document.createElement(tag);
    for (const [key, v] of Object.entries(props || {})) {
      if (key in node && key !== "style") node[key] = v; else node.setAttribute(key, v);
    }
    node.append(...children);
    return node;
  }

  function number(v, digits) {
    if (v === null || v === undefined) return "\u2013";
    if (typeof v !== "number") return String(v);
    const far = v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5);
    const text = digits !== undefined ? v.toFixed(digits) : far ? v.toExponential(2) : String(Number(v.toPrecision(4)));
    // A minus sign is as wide as a plus sign, a hyphen is not; and there is no negative zero.
    return text.replace(/^-(?=[0.]*$)/, "").replace(/-/g, "\u2212");
  }

  const narrow = () => window.innerWidth < 720;
  const theme = () => THEMES[dark.matches && !printing ? "dark" : "light"];

  // ---- figures ------------------------------------------------------------------------------------------------

  function themePatch(layout) {
    const t = theme();
    const patch = {
      "font.color": t.ink, "hoverlabel.bgcolor": t.card, "hoverlabel.bordercolor": t.edge,
      "hoverlabel.font.color": t.strong, dragmode: narrow() ? false : "zoom",
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) { patch[key + ".gridcolor"] = t.grid; patch[key + ".linecolor"] = t.grid; }
    }
    return patch;
  }

  function spectrumPatch() {
    const stacked = narrow();
    return {
      "xaxis.domain": stacked ? [0, 1] : [0, 0.455], "yaxis.domain": stacked ? [0.58, 1] : [0, 1],
      "xaxis2.domain": stacked ? [0, 1] : [0.56, 1], "yaxis2.domain": stacked ? [0, 0.42] : [0, 1],
      "xaxis.nticks": stacked ? 5 : 7, "xaxis2.nticks": stacked ? 5 : 7, height: stacked ? 660 : 400,
    };
  }

  function sizePatch(id, div) {
    if (id === "spectrum") return spectrumPatch();
    const ticks = div.ticks && narrow() ? div.ticks.filter((_, k) => k % Math.ceil(div.ticks.length / 7) === 0) : div.ticks;
    const thinned = ticks && { "xaxis.tickvals": ticks.map((t) => t[0]), "xaxis.ticktext": ticks.map((t) => t[1]) };
    return { ...thinned, height: Math.max(narrow() ? 340 : 0, Math.min(div.fullHeight, narrow() ? 420 : 900)) };
  }

  function adapt() {
    for (const id of Object.keys(data.figures)) {
      const div = document.getElementById(id);
      Plotly.relayout(div, { ...themePatch(div.layout), ...sizePatch(id, div) });
    }
  }

  function draw(id, figure) {
    const div = document.getElementById(id);
    const layout = figure.layout;
    div.fullHeight = layout.height;
    const { tickvals, ticktext } = layout.xaxis;
    if (tickvals && ticktext) div.ticks = Array.from(tickvals, (v, k) => [v, ticktext[k]]);
    layout.showlegend = false;
    layout.margin = { ...layout.margin, t: 14, l: narrow() ? 46 : 58, r: 10 };
    const traces = figure.data.slice();
    if (traces.some((trace) => trace.customdata && trace.type === "scatter")) {
      traces.push({
        type: "scatter", x: [], y: [], mode: "markers", meta: "chosen", showlegend: false, hoverinfo: "skip",
        marker: { symbol: "circle-open", size: 17, color: "#8b93a1", line: { width: 2.5 } },
      });
    }
    const buttons = ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
    const config = {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: buttons, displayModeBar: narrow() ? false : "hover",
    };
    Plotly.newPlot(div, traces, layout, config);
    legend(div);
    div.on("plotly_click", (event) => {
      const i = event.points[0].customdata;
      if (typeof i !== "number") return;
      // A cell of the heat map may hold many layers: the table then lists them.
      const many = id === "heatmap" && data.units.filter((unit, k) => unit === data.units[i] && value(k, "kind") === value(i, "kind")).length > 1;
      if (many) table.narrow(value(i, "kind"), data.units[i]); else choose(i, true);
    });
  }

  function swatch(trace) {
    const NS = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("width", "18"); svg.setAttribute("height", "12"); svg.setAttribute("aria-hidden", "true");
    const shape = document.createElementNS(NS, "path");
    const line = trace.line || {};
    const first = trace.marker && trace.marker.symbol;
    const symbol = String(Array.isArray(first) ? first[0] : first || "circle");
    const marks = {
      circle: "M9 2a4 4 0 1 0 .01 0z", square: "M5 2h8v8H5z", diamond: "M9 1l5 5-5 5-5-5z",
      "triangle-up": "M9 1.5l5 9H4z", "triangle-down": "M9 10.5l5-9H4z", cross: "M7.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
      x: "M5 3l1.5-1.5L9 4l2.5-2.5L13 3l-2.5 3L13 9l-1.500 1.500L9 8l-2.500 2.500L5 9l2.500-3z",
      pentagon: "M9 1l5 3.800-2 5.700H6L4 4.800z", star: "M9 0l1.600 4h4l-3.200 2.600L12.600 11 9 8.500 5.400 11l1.200-4.400L3.400 4h4z",
      hexagon: "M6 1h6l3 5-3 5H6L3 6z",
    };
    const marked = String(trace.mode || "").includes("markers");
    shape.setAttribute("d", marked ? marks[symbol.replace("-open", "")] || marks.circle : "M1 6h16");
    const colour = (marked && trace.marker && trace.marker.color) || line.color || "#888";
    if (marked && !symbol.endsWith("-open")) shape.setAttribute("fill", colour);
    else {
      shape.setAttribute("fill", "none"); shape.setAttribute("stroke", colour);
      shape.setAttribute("stroke-width", marked ? "1.5" : "2.5");
      if (line.dash) shape.setAttribute("stroke-dasharray", line.dash === "dot" ? "2.5 2.5" : "5 3");
    }
    svg.append(shape);
    return svg;
  }

  function legend(div) {
    const box = document.querySelector('[data-legend="' + div.id + '"]');
    if (!box) return;
    const parser = new DOMParser();
    div.data.filter((trace) => trace.legendgroup && trace.showlegend !== false).forEach((trace) => {
      const label = parser.parseFromString(trace.name || "", "text/html").body.textContent;
      const button = make("button", { type: "button", "aria-pressed": "true", title: "Show or hide" }, swatch(trace), label);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        const group = div.data.flatMap((other, k) => (other.legendgroup === trace.legendgroup ? [k] : []));
        Plotly.restyle(div, { visible: on }, group);
      });
      box.append(button);
    });
  }

  // ---- the chosen layer ---------------------------------------------------------------------------------------

  // From (start, share) to where the logarithm has grown by its mean, 1 / (alpha - 1): see report/curves.py.
  const slope = (start, share, alpha) => [[start, start * Math.exp(1 / (alpha - 1))], [share, share / Math.E]];

  // The same curves as report/curves.py: densities per decade, shares of the eigenvalues at or above.
  function curves(i) {
    const s = data.spectra.layers[i];
    const total = s.counts.reduce((a, b) => a + b, 0);
    const [low, high] = s.edges;
    const bins = s.counts.length;
    const width = (high - low) / Math.max(1, bins);
    const density = s.counts.map((c) => (total && width > 0 ? c / (total * width) : 0));
    const out = {
      histogram: [Array.from({ length: bins + 1 }, (_, k) => 10 ** (low + k * width)), [...density, ...density.slice(-1)]],
      survival: [s.values, s.ranks.map((r) => r / Math.max(1, total))],
    };
    for (const key of data.spectra.others) out[key] = [[], []];
    if (s.shift !== null && s.shape !== null) {
      const shape = data.spectra.shapes[s.shape];
      const x = shape.log10.map((u) => 10 ** (u + s.shift));
      const shown = (_, k) => shape.survival[k] >= 0.5 / Math.max(1, total);
      out.null = [x, shape.density];
      out["null survival"] = [x.filter(shown), shape.survival.filter(shown)];
      const share = data.spectra.share, alpha = value(i, "alpha_null");
      if (share !== null && alpha > 1) {
        const k = shape.survival.findIndex((v) => v <= share);
        const [a, b] = [shape.survival[k - 1], shape.survival[k]];
        const start = shape.log10[k - 1] + (shape.log10[k] - shape.log10[k - 1]) * (a - share) / (a - b);
        out["null slope survival"] = slope(10 ** (start + s.shift), share, alpha);
      }
    }
    const alpha = value(i, "alpha"), xmin = value(i, "xmin");
    if (alpha > 1 && xmin > 0 && total) {
      const share = value(i, "n_tail") / total;
      const first = out.histogram[0].findIndex((x) => x > xmin), from = first < 0 ? out.histogram[0].length : first;
      out.part = [[xmin, ...out.histogram[0].slice(from)], [...out.histogram[1].slice(Math.max(0, from - 1), from), ...out.histogram[1].slice(from)]];
      const span = Math.max(0, high - Math.log10(xmin));
      const x = Array.from({ length: data.spectra.fit_points }, (_, k) => xmin * 10 ** (span * k / (data.spectra.fit_points - 1)));
      const above = x.map((v) => share * (v / xmin) ** (1 - alpha));
      const fit = above.map((v) => v * (alpha - 1) * Math.LN10);
      if (data.spectra.power_law) { out.fit = [x, fit]; out["fit survival"] = [x, above]; }
      else out["fit survival"] = slope(xmin, share, alpha);
      out.xmin = [[xmin, xmin], [0, Math.max(...out.fit[1].slice(0, 1), ...density)]];
      out["xmin survival"] = [[xmin, xmin], [0.5 / total, 1]];
    }
    return out;
  }

  // As shown_range in report/curves.py: xmin and all but a few of the smallest eigenvalues.
  function shownRange(i, found) {
    const s = data.spectra.layers[i];
    let [low, high] = s.edges;
    const total = s.counts.reduce((a, b) => a + b, 0);
    let below = 0;
    const first = s.counts.findIndex((c) => (below += c) > data.spectra.hidden_share * total);
    if (first > 0) low += (high - low) * first / s.counts.length;
    low = Math.min(low, ...found.xmin[0].map(Math.log10));
    high = Math.max(high, ...found.null[0].slice(-1).map(Math.log10));
    const pad = Math.max(0.05, 0.03 * (high - low));
    return [low - pad, high + pad];
  }

  function facts(i) {
    const box = document.getElementById("facts");
    const v = (name) => value(i, name);
    const error = v("alpha_se") === null ? " (no error bar)" : " \u00b1 " + number(v("alpha_se"), 3);
    const z = v("null_z");
    const away = z === null ? [] : [["against random", number(Math.abs(z), 1) + " errors " + (z < 0 ? "below" : "above")]];
    const pairs = [
      ["alpha", number(v("alpha"), 3) + error],
      ["random matrix", number(v("alpha_null"), 3)],
      ...away,
      ["xmin", number(v("xmin"))],
      [data.spectra.part, v("n_tail").toLocaleString("en") + " of " + (v("n_eigenvalues") - v("n_zero")).toLocaleString("en")],
      ["KS distance", number(v("ks"), 3)],
      ["shape", v("rows") + " \u00d7 " + v("cols")],
      ["windows", v("n_windows").toLocaleString("en") + " of " + v("window_rows") + " \u00d7 " + v("window_cols")],
      ["stable rank", number(v("stable_rank"))],
    ];
    box.replaceChildren(...pairs.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))));
    const open = v("comparable") ? "" : "Not comparable with other layers: its window is not that of the run. ";
    const verdict = v("ks_p") === null ? "" : v("tail_verdict").replace(/^./, (c) => c.toUpperCase()) + ". ";
    document.getElementById("remark").textContent = open + verdict + (v("reason") || "");
  }

  function mark(i) {
    for (const id of Object.keys(data.figures)) {
      const div = document.getElementById(id);
      const ring = div.data.findIndex((trace) => trace.meta === "chosen");
      if (ring < 0) continue;
      const trace = div.data.find((other) => other.type === "scatter" && Array.from(other.customdata || []).includes(i));
      const k = trace ? Array.from(trace.customdata).indexOf(i) : -1;
      Plotly.restyle(div, { x: [k < 0 ? [] : [trace.x[k]]], y: [k < 0 ? [] : [trace.y[k]]] }, [ring]);
    }
  }

  function choose(i, scroll) {
    const drawable = data.spectra && data.spectra.layers[i];
    if (data.spectra && !drawable) return;
    chosen = i;
    if (drawable) {
      const div = document.getElementById("spectrum");
      const found = curves(i);
      const parts = div.data.map((trace) => found[trace.meta]);
      const range = shownRange(i, found);
      Plotly.update(
        div, { x: parts.map((p) => p[0]), y: parts.map((p) => p[1]) },
        { "xaxis.range": range, "xaxis2.range": [...range], "yaxis.autorange": true, "yaxis2.autorange": true },
      );
      document.getElementById("layer").value = String(i);
      div.setAttribute("aria-label", "Spectrum of " + value(i, "name") + ", alpha " + number(value(i, "alpha"), 3));
      facts(i);
    }
    mark(i);
    table.highlight(i, scroll && !drawable);
    const target = document.getElementById("layer-section");
    if (scroll && target) {
      const box = target.getBoundingClientRect();
      if (box.top < 0 || box.top > window.innerHeight * 0.55) target.scrollIntoView();
    }
  }

  function chooser() {
    const select = document.getElementById("layer");
    const order = Object.keys(data.spectra.layers).map(Number);
    let group = null, title = null;
    for (const i of order) {
      const block = value(i, "block");
      const name = block === null ? "Outside of blocks" : "Block " + block;
      if (name !== title) { group = make("optgroup", { label: name }); select.append(group); title = name; }
      group.append(make("option", { value: String(i) }, value(i, "name")));
    }
    select.addEventListener("change", () => choose(Number(select.value), false));
    const move = (step) => () => choose(order[(order.indexOf(chosen) + step + order.length) % order.length], false);
    document.getElementById("previous").addEventListener("click", move(-1));
    document.getElementById("next").addEventListener("click", move(1));
    const find = document.getElementById("find");
    document.getElementById("names").append(...order.map((i) => make("option", { value: value(i, "name") })));
    find.addEventListener("input", () => {
      const i = order.find((k) => value(k, "name") === find.value);
      if (i !== undefined) { choose(i, false); find.value = ""; }
    });
    choose(data.spectra.first, false);
  }

  const table = layerTable({ data, column, value, make, number, choose, chosen: () => chosen });

  // ---- start --------------------------------------------------------------------------------------------------

  table.start();
  for (const [id, figure] of Object.entries(data.figures)) draw(id, figure);
  adapt();
  if (data.spectra && Object.keys(data.spectra.layers).length) chooser();
  dark.addEventListener("change", adapt);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    const crossed = width < 720 !== narrow();
    width = window.innerWidth;
    if (crossed) adapt();
  });
  window.addEventListener("beforeprint", () => { printing = true; adapt(); });
  window.addEventListener("afterprint", () => { printing = false; adapt(); });
  document.documentElement.dataset.ready = "yes";
})();
