// What the page does with its runs. Every word of a run, its config or its error is text here, never HTML.
"use strict";

const report = JSON.parse(document.getElementById("report").textContent);
const $ = (id) => document.getElementById(id);
const FILTERS = ["family", "depth", "shortcut", "seed"];

// --- what is shown

report.runs.forEach((run, i) => { run.id = `run${i}`; });
let data = report.runs.length ? report.runs[0].data : "";
const unticked = Object.fromEntries(FILTERS.map((key) => [key, new Set()]));

const ofData = () => report.runs.filter((run) => run.data === data);
const shown = () => ofData().filter((run) => FILTERS.every((key) => !unticked[key].has(run[key])));
const finished = () => shown().filter((run) => run.state === "finished");

function groups(runs, key) {
  const found = new Map();
  for (const run of runs) found.set(run[key], [...(found.get(run[key]) ?? []), run]);
  return [...found.values()];
}

function element(tag, text = "", properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== "") made.textContent = text;
  return made;
}

function drawFilters() {
  const names = [...new Set(report.runs.map((run) => run.data))];
  const parts = [];
  if (names.length > 1) {
    const select = element("select", "", { id: "data" });
    select.append(...names.map((name) => element("option", name, { value: name, selected: name === data })));
    select.onchange = () => { data = select.value; FILTERS.forEach((key) => unticked[key].clear()); drawAll(); };
    const label = element("label");
    label.append(element("b", "data"), select);
    parts.push(label);
  }
  for (const key of FILTERS) {
    const field = element("fieldset", "", { className: "filter", name: key });
    field.append(element("b", key));
    const values = [...new Set(ofData().map((run) => run[key]))];
    if (key !== "family") values.sort((a, b) => (a > b) - (a < b));
    for (const value of values) {
      const checked = !unticked[key].has(value);
      const box = element("input", "", { type: "checkbox", checked, value: value ?? "none" });
      box.onchange = () => { box.checked ? unticked[key].delete(value) : unticked[key].add(value); drawRuns(); };
      const label = element("label");
      label.append(box, value ?? "none");
      field.append(label);
    }
    parts.push(field);
  }
  $("filters").replaceChildren(...parts);
}

// --- tables

// Ties to even, as in the table that the command prints.
const number = (digits) => new Intl.NumberFormat("en", {
  minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" });
const two = number(2), whole = number(0);
const spread = (values) => {
  const m = mean(values), squares = values.map((value) => (value - m) ** 2).reduce((sum, square) => sum + square, 0);
  return two.format(m) + (values.length > 1 ? ` ± ${two.format(Math.sqrt(squares / (values.length - 1)))}` : "");
};

const TEXTS = { net: "name", run: "name", why: "text", trained: "text", "paper, %": "text" };

// A cell is its text, or [text, what it is sorted by].
function drawTable(id, columns, rows, numbers = []) {
  const table = $(id), order = table.order ?? { column: -1, down: false };
  const key = (row) => (Array.isArray(row[order.column]) ? row[order.column][1] : row[order.column]);
  const unknownLast = (a, b) => (a == null) - (b == null) || ((a > b) - (a < b)) * (order.down ? -1 : 1);
  const sorted = order.column < 0 ? rows : [...rows].sort((a, b) => unknownLast(key(a), key(b)));
  const head = element("tr");
  columns.forEach((title, i) => {
    const cell = element("th", "", { scope: "col", className: numbers.includes(title) ? "number" : "" });
    if (i === order.column) cell.ariaSort = order.down ? "descending" : "ascending";
    cell.append(element("button", title, { type: "button" }));
    cell.firstChild.onclick = () => {
      table.order = { column: i, down: i === order.column && !order.down };
      drawTable(id, columns, rows, numbers);
    };
    head.append(cell);
  });
  const body = element("tbody");
  for (const row of sorted) {
    const line = element("tr");
    row.forEach((cell, i) => line.append(element("td", (Array.isArray(cell) ? cell[0] : cell) ?? "-", {
      className: numbers.includes(columns[i]) ? "number" : TEXTS[columns[i]] ?? "" })));
    body.append(line);
  }
  const top = element("thead");
  top.append(head);
  table.replaceChildren(top, body);
}

function drawTables() {
  const besidePaper = report.paper_data.includes(data), photos = data === "imagenet";
  const millions = (value) => [`${two.format(value / 1e6)} M`, value];
  const numbers = ["layers", "parameters", "multiply-adds", "training error, %", "test error, %", "top-5 error, %",
    "seeds", "difference", "seed", "iterations", "images/s"];
  drawTable("results", ["net", "layers", "shortcut", "parameters", "multiply-adds", "training error, %", "test error, %",
    ...(photos ? ["top-5 error, %", "protocol"] : []), "seeds",
    ...(besidePaper ? ["paper, %", "difference", "trained"] : ["iterations"])],
  groups(finished().flatMap((run) => run.tests.map((test) => ({ ...run, ...test, key: run.config + test.protocol }))),
    "key").map((seeds) => {
    const [first] = seeds, errors = (key) => seeds.map((run) => run[key]);
    const off = first.paper && !first.departures ? mean(errors("test_error")) - first.paper.error : null;
    return [first.net, [first.depth, first.depth], first.shortcut, millions(first.parameters), millions(first.macs),
      ...["train_error", "test_error"].map((key) => [spread(errors(key)), mean(errors(key))]),
      ...(photos ? [[spread(errors("test_error_top5")), mean(errors("test_error_top5"))], first.protocol] : []),
      [seeds.length, seeds.length],
      ...(besidePaper ? [first.paper && [first.paper.words, first.paper.error],
        off === null ? null : [(off < 0 ? "" : "+") + two.format(off), off], first.departures || "as in the paper"]
        : [[whole.format(first.iterations), first.iterations]])];
  }), numbers);
  drawTable("runs", ["run", "state", "family", "layers", "shortcut", "seed", "iterations", "training error, %",
    "test error, %", "images/s", "precision", "device", "commit", "date"],
  shown().map((run) => [run.run, run.state, run.family, run.depth, run.shortcut, run.seed,
    [run.reached === run.iterations ? whole.format(run.iterations)
      : `${whole.format(run.reached)} of ${whole.format(run.iterations)}`, run.reached],
    ...["train_error", "test_error"].map((key) => (run[key] == null ? null : [two.format(run[key]), run[key]])),
    run.images_per_second && [whole.format(run.images_per_second), run.images_per_second],
    run.precision, run.device && (run.devices > 1 ? `${run.devices} x ${run.device}` : run.device),
    run.git_commit?.slice(0, 8), run.date]), numbers);
  const reached = (run) => `at ${whole.format(run.reached)} of ${whole.format(run.iterations)} iterations`;
  const missing = shown().filter((run) => run.state !== "finished").map((run) => [run.place, run.state,
    run.why || (run.state === "unfinished" ? reached(run) : "")]);
  missing.push(...report.left_out.map(([place, why]) => [place, "left out", why]));
  $("left-out").hidden = !missing.length;
  drawTable("missing", ["run", "state", "why"], missing);
}

// --- all of it

function drawRuns() {
  drawCurves();
  drawPanels();
  drawTables();
}

function drawAll() {
  const states = groups(ofData(), "state").map((of) => `${of.length} ${of[0].state}`);
  $("count").textContent = `${data}: ${ofData().length} runs, ${states.join(", ")}`;
  $("facts").replaceChildren(...report.facts[data].map((fact) => element("li", fact)));
  const figures = report.figures[data] ?? [];
  $("layers").hidden = !figures.length;
  const images = figures.map((src) => element("img", "", { src, alt: "what single layers do, by net" }));
  $("layers").replaceChildren($("layers").firstElementChild, ...images);
  drawFilters();
  offerValues();
  drawRuns();
}

$("value").onchange = $("over").onchange = drawCurves;
let narrowBefore = innerWidth < 740;
addEventListener("resize", () => {
  if (narrowBefore !== innerWidth < 740) { narrowBefore = !narrowBefore; drawCurves(); }
});
drawAll();
