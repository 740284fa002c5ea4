// Filters, views, linked axes and sorting; all text and all figures are already on the page.
"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const plots = (article, kind) => all(`.${kind} .plotly-graph-div`, article);

// Shows what fits the filters of a data set, and of its curves the selected view.
function update(article) {
  const checked = Object.fromEntries(all("fieldset", article).map((field) =>
    [field.name, new Set(all(":checked", field).map((box) => box.value))]));
  const fits = (item) => Object.entries(checked).every(([key, values]) => !(key in item) || values.has(item[key]));
  const [y, x] = all("select", article).map((select) => select.selectedOptions[0]);

  for (const row of all("tbody tr", article)) row.hidden = !fits(row.dataset);
  for (const plot of plots(article, "curves")) {
    show(plot, ({ meta }) => fits(meta) && meta.x === x.value && meta.y === y.value, {}, {
      "xaxis.range": [0, Number(x.dataset.end)], "xaxis.title.text": x.text, "yaxis.range": [0, Number(y.dataset.end)] });
  }
  for (const plot of plots(article, "by-depth")) {
    // Only a line has points of several depths.
    const values = plot.data.map((trace) => trace.meta.means?.map(
      (mean, i) => (checked.depth.has(trace.x[i]) ? mean : null)) ?? trace.y);
    show(plot, ({ meta }) => fits(meta), { y: values });
  }
}

function show(plot, isShown, restyle = {}, layout = {}) {
  // What the legend has hidden stays hidden, in the other views too.
  const off = new Set(plot.data.filter((trace) => trace.visible === "legendonly").map((trace) => trace.legendgroup));
  const visible = plot.data.map((trace) => isShown(trace) && (off.has(trace.legendgroup) ? "legendonly" : true));
  plot.parentElement.hidden = !visible.some(Boolean);
  Plotly.update(plot, { ...restyle, visible }, layout);
}

// The families' axes stay the same when one of them is zoomed.
function link(plot, others) {
  plot.on("plotly_relayout", () => {
    for (const other of others) {
      const ranges = ["xaxis", "yaxis"].map((axis) => [`${axis}.range`, [...plot.layout[axis].range]]);
      const differ = ranges.some(([key, range]) => String(other.layout[key.slice(0, 5)].range) !== String(range));
      if (differ) Plotly.relayout(other, Object.fromEntries(ranges));
    }
  });
}

function sort(button) {
  const title = button.parentElement, column = title.cellIndex, body = title.closest("table").tBodies[0];
  const down = title.ariaSort === "ascending";
  const text = (row) => row.cells[column].textContent;
  const compare = (a, b) => parseFloat(a.replaceAll(",", "")) - parseFloat(b.replaceAll(",", "")) || a.localeCompare(b);
  // What is not known comes last in both directions.
  const rows = [...body.rows].sort((a, b) => (text(a) === "-") - (text(b) === "-")
    || (down ? -1 : 1) * compare(text(a), text(b)));
  all("th", title.parentElement).forEach((other) => { other.ariaSort = null; });
  title.ariaSort = down ? "descending" : "ascending";
  body.append(...rows);
}

const articles = all("article"), data = document.querySelector("[name=data]");
function choose() {
  for (const article of articles) article.hidden = article.dataset.name !== data.value;
  dispatchEvent(new Event("resize"));  // figures drawn while hidden take their width
}

for (const article of articles) {
  all("select, input", article).forEach((input) => { input.onchange = () => update(article); });
  const curves = plots(article, "curves");
  curves.forEach((plot) => link(plot, curves.filter((other) => other !== plot)));
  update(article);
}
all("th button").forEach((button) => { button.onclick = () => sort(button); });
data.onchange = choose;
choose();
