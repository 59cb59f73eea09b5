// The table of all layers: built from the data once, then sorted, filtered and widened in place.
// ``page`` gives the data, a cell's value, two helpers, and what happens when a row is chosen.
function layerTable(page) {
  "use strict";
  const { data, column, value, make, number } = page;
  const view = data.table.view;
  const head = document.querySelector("#table thead");
  const body = document.querySelector("#table tbody");
  const search = document.getElementById("filter");
  const status = document.getElementById("status");
  const kind = document.getElementById("kind");
  const wide = document.getElementById("wide");
  const alphas = data.table.rows.flatMap((row) => [row[column.alpha], row[column.alpha_null]]).filter((x) => typeof x === "number");
  const low = alphas.reduce((a, b) => Math.min(a, b), Infinity);
  const span = alphas.reduce((a, b) => Math.max(a, b), -Infinity) - low || 1;
  const place = (x) => Math.round(1000 * (x - low) / span) / 10 + "%";
  let sort = { key: null, up: true };
  let rows = [];

  const badges = { ok: "calm", skipped: "", failed: "bad", paired: "calm", "only in A": "warn", "only in B": "warn", "shapes differ": "warn" };
  const cells = {
    name(td, i) {
      const text = value(i, "name");
      td.className = "name"; td.title = text;
      const able = data.spectra ? data.spectra.layers[i] : true;
      const parts = text.split(/(?<=[._/])/).flatMap((part) => [part, make("wbr")]);
      td.append(able ? make("button", { type: "button" }, ...parts) : make("span", {}, ...parts));
      const reason = "reason" in column && value(i, "reason");
      if (reason) td.append(make("div", { className: "reason" }, reason));
    },
    shape(td, i) { td.className = "right"; td.textContent = value(i, "rows") + " \u00d7 " + value(i, "cols"); },
    alpha(td, i, v) {
      td.className = "right";
      if (v === null) { td.textContent = "\u2013"; return; }
      const strip = make("span", { className: "strip", "aria-hidden": "true" });
      const random = value(i, "alpha_null");
      if (random !== null) strip.append(make("i", { style: "left:" + place(random) }));
      strip.append(make("b", { style: "left:" + place(v), className: value(i, "comparable") ? "" : "open" }));
      td.append(strip, number(v, 3));
    },
    fixed(td, i, v) { td.className = "right"; td.textContent = number(v, 3); },
    signed(td, i, v) { td.className = "right"; td.textContent = v === null ? "\u2013" : (v > 0 ? "+" : "") + number(v, 3); },
    errors(td, i, v) { td.className = "right"; td.textContent = v === null ? "\u2013" : (v > 0 ? "+" : "") + number(v, 1); },
    number(td, i, v, key) { td.className = "right"; td.textContent = number(v, digits(key, v)); },
    count(td, i, v) { td.className = "right"; td.textContent = v === null ? "\u2013" : v.toLocaleString("en"); },
    text(td, i, v) { td.className = "text"; td.textContent = v === null ? "" : String(v); td.title = td.textContent; },
    why(td, i, v) { td.className = "why"; td.textContent = v || ""; },
    status(td, i, v) {
      td.append(make("span", { className: "badge " + (badges[v] || "") }, v));
      if (column.comparable !== undefined && v === "ok" && !value(i, "comparable")) {
        td.append(" ", make("span", { className: "badge warn" }, "not comparable"));
      }
    },
  };

  // Numbers of one column have one number of decimals, by the middle of the column, so that they align.
  const decimals = {};
  function digits(key, v) {
    if (!(key in decimals)) {
      const sizes = data.table.rows.map((row) => Math.abs(row[column[key]])).filter((x) => x > 0 && x < 1e5).sort((a, b) => a - b);
      const middle = sizes.length ? sizes[sizes.length >> 1] : 1;
      decimals[key] = Math.min(6, Math.max(0, 3 - Math.floor(Math.log10(middle))));
    }
    const small = typeof v === "number" && v !== 0 && Math.abs(v) < 0.5 * 10 ** -decimals[key];
    return typeof v === "number" && (small || Math.abs(v) >= 1e5) ? undefined : decimals[key];
  }

  const shown = () => view.filter((c) => c.main || wide.checked);

  function header() {
    head.replaceChildren(make("tr", {}, ...shown().map((c) => {
      const th = make("th", { scope: "col", title: c.help || "" });
      if (sort.key === c.key) th.setAttribute("aria-sort", sort.up ? "ascending" : "descending");
      const button = make("button", { type: "button" }, c.label);
      if (!["name", "text", "why", "status"].includes(c.type)) button.className = "right";
      button.addEventListener("click", () => {
        sort = { key: c.key, up: sort.key === c.key ? !sort.up : true };
        header(); refresh();
        head.querySelectorAll("th button")[shown().indexOf(c)].focus();
      });
      th.append(button);
      return th;
    })));
  }

  function build() {
    const columns = shown();
    rows = data.table.rows.map((row, i) => {
      const tr = document.createElement("tr");
      tr.dataset.row = i;
      for (const c of columns) {
        const td = document.createElement("td");
        cells[c.type](td, i, c.key in column ? row[column[c.key]] : null, c.key);
        tr.append(td);
      }
      return tr;
    });
  }

  function order(indices) {
    if (sort.key === null) return indices;
    const key = (i) => (sort.key === "shape" ? value(i, "numel") : value(i, sort.key));
    const side = sort.up ? 1 : -1;
    return indices.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const way = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
      return side * way || a - b;
    });
  }

  function fits(i) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = ["name", "kind", "status", "reason"].map((c) => (c in column ? value(i, c) : "")).join(" ").toLowerCase();
    const state = status.value;
    const right = state === "" || (state === "not comparable" && value(i, "comparable") === false) || value(i, "status") === state;
    return right && (kind.value === "" || value(i, "kind") === kind.value) && words.every((w) => text.includes(w));
  }

  function refresh() {
    const kept = order(rows.map((_, i) => i).filter(fits));
    body.replaceChildren(...kept.map((i) => rows[i]));
    if (!kept.length) {
      body.append(make("tr", {}, make("td", { colSpan: shown().length, className: "empty" }, "No layer matches.")));
    }
    const all = rows.length.toLocaleString("en");
    document.getElementById("count").textContent = (kept.length === rows.length ? all : kept.length.toLocaleString("en") + " of " + all) + (rows.length === 1 ? " layer" : " layers");
  }

  // Spreadsheets run cells that begin like a formula: an apostrophe makes them text.
  function csvCell(v) {
    const text = v === null || v === undefined ? "" : typeof v === "string" && /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(v) ? "'" + v : String(v);
    return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }

  function download() {
    const kept = order(rows.map((_, i) => i).filter(fits));
    const lines = [data.table.columns, ...kept.map((i) => data.table.rows[i])].map((row) => row.map(csvCell).join(","));
    const url = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    make("a", { href: url, download: document.title.replace(/[^\w.-]+/g, "_") + ".csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  // Show only the layers of one kind in one block.
  function narrow(name, unit) {
    kind.value = name; search.value = unit + "."; status.value = "";
    refresh();
    document.getElementById("layers").scrollIntoView();
  }

  function highlight(i, scroll) {
    for (const tr of body.querySelectorAll("tr.current")) tr.classList.remove("current");
    for (const tr of rows) tr.classList.remove("current");
    rows[i].classList.add("current");
    if (scroll && rows[i].isConnected) rows[i].scrollIntoView({ block: "center" });
  }

  function start() {
    const unique = (name) => [...new Set(data.table.rows.map((row) => row[column[name]]))];
    for (const name of unique("kind")) kind.append(make("option", { value: name }, name));
    for (const name of unique("status")) status.append(make("option", { value: name }, name));
    if (column.comparable !== undefined && unique("comparable").includes(false)) {
      status.append(make("option", { value: "not comparable" }, "not comparable"));
    }
    for (const node of [search, status, kind]) node.addEventListener("input", refresh);
    wide.addEventListener("change", () => { header(); build(); refresh(); if (page.chosen() !== null) highlight(page.chosen(), false); });
    body.addEventListener("click", (event) => {
      const tr = event.target.closest("tr");
      if (tr && tr.dataset.row !== undefined) page.choose(Number(tr.dataset.row), Boolean(data.spectra));
    });
    document.getElementById("csv").addEventListener("click", download);
    header(); build(); refresh();
  }
  return { start, highlight, narrow };
}
