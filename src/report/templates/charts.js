// The curves over iterations or time, and the panels over depth, of the runs that page.js shows.
"use strict";

const BOTH = "training and held-out error, %";
const BUTTONS = [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]];
const PLOT = { responsive: true, displaylogo: false, modeBarButtons: BUTTONS };
const LAYOUT = {
  font: { family: "system-ui, sans-serif", size: 13, color: "#1c1f23" },
  paper_bgcolor: "white", plot_bgcolor: "white", hovermode: "closest",
  hoverlabel: { bgcolor: "white", bordercolor: "#dfe3e8", font: { color: "#1c1f23" }, align: "left", namelength: -1 },
};
const AXIS = { gridcolor: "#eceff2", linecolor: "#9aa3ad", showline: true, zeroline: false, automargin: true };

// Plotly reads some HTML in its labels; here it gets none.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// --- curves

function offerValues() {
  const has = (column) => ofData().some((run) => run.curves[column].value.length);
  const panels = report.panels.filter((panel) => panel.over === "iteration" && has(panel.value));
  const before = $("value").value;
  $("value").replaceChildren(
    element("option", BOTH, { value: "both" }),
    ...panels.map((panel) => element("option", panel.title, { value: panel.value })));
  if ([...$("value").options].some((option) => option.value === before)) $("value").value = before;
}

const seconds = (run, iteration) => (iteration * run.batch) / run.images_per_second;

// The unit of time in which the longest run is a number of a comfortable size.
function timeUnit(runs) {
  const longest = Math.max(0, ...runs.map((run) => seconds(run, run.iterations)));
  return longest > 7200 ? ["hours", 3600] : longest > 120 ? ["minutes", 60] : ["seconds", 1];
}

function drawCurves() {
  const value = $("value").value, over = $("over").value;
  const runs = (over === "time" ? finished() : shown()).filter((run) => run.curves["train/loss"].value.length
    || run.curves["train/error"].value.length);
  const families = [...new Set(runs.map((run) => run.family))];
  const [unit, length] = timeUnit(finished());
  const narrow = $("curves").clientWidth < 700;
  const isError = value === "both" || value.endsWith("/error");
  const traces = [];
  for (const run of runs) {
    const columns = value === "both" ? ["train/error", `${run.held_out}/error`] : [value];
    const axis = families.indexOf(run.family) || "";
    for (const column of columns) {
      const { iteration, value: y } = run.curves[column];
      const single = runs.filter((other) => other.config === run.config).length === 1;
      const dashed = columns.length > 1 && column === "train/error";
      const end = dashed ? 0 : run.state !== "finished" ? 8 : y.length === 1 ? 4 : 0;
      traces.push({
        x: over === "time" ? iteration.map((i) => seconds(run, i) / length) : iteration, y,
        name: plain(run.label), legendgroup: run.id, uid: `${run.id}${dashed ? "dashed" : ""}`, showlegend: !dashed,
        xaxis: `x${axis && axis + 1}`, yaxis: `y${axis && axis + 1}`, mode: "lines+markers",
        line: { color: run.colour, width: dashed ? 1 : single ? 2.2 : 1.4, dash: dashed ? "dash" : "solid" },
        marker: { color: run.colour, symbol: "circle-open", size: y.map((_, i) => (i === y.length - 1 ? end : 0)) },
        hovertemplate: `<b>${plain(run.label)}</b><br>${column.replace("/", " ")} %{y:.4~g}${isError ? "%" : ""}` +
          `<br>${over === "time" ? `%{x:.3~g} ${unit}` : "iteration %{x:,}"}<extra></extra>`,
      });
    }
  }
  const layout = curvesLayout(families, narrow, runs.map((run) => run.label.length));
  const limit = isError ? { range: [0, report.limits[data]] } : { rangemode: "tozero" };
  families.forEach((_, i) => {
    const n = i ? i + 1 : "";
    const revision = { uirevision: `${data} ${value} ${over}` };
    Object.assign(layout[`xaxis${n}`], revision, { rangemode: "tozero" });
    if (!narrow || i === families.length - 1) layout[`xaxis${n}`].title = {
      text: over === "time" ? `time (${unit})` : "iterations", font: { size: 12 } };
    Object.assign(layout[`yaxis${n}`], revision, limit);
    if (over === "iteration") layout[`xaxis${n}`].tickformat = ",";
  });
  Plotly.react("curves", traces, layout, PLOT);
}

// One field for each family with common axes (Fig. 6): side by side, or on a phone below each other.
function curvesLayout(families, narrow, lengths) {
  const count = families.length, gap = narrow ? 0.24 / count : 0.03, plot = narrow ? 290 * count : 390;
  const longest = Math.max(0, ...lengths), below = narrow || longest > 36;
  const legend = below ? { orientation: "h", y: -60 / plot, yanchor: "top", x: 0 } : { x: 1.01, y: 1 };
  const perRow = Math.max(1, Math.floor($("curves").clientWidth / (7 * longest + 50)));
  const layout = {
    ...LAYOUT, legend: { ...legend, uirevision: "legend", itemsizing: "trace", font: { size: 12 } }, showlegend: true,
    margin: { l: 48, r: 8, t: narrow ? 60 : 30, b: 44 }, annotations: [],
    height: plot + 75 + (below ? 22 * Math.ceil(lengths.length / perRow) + 20 : 0),
  };
  families.forEach((family, i) => {
    const n = i ? i + 1 : "", size = (1 - gap * (count - 1)) / count;
    const from = narrow ? (count - 1 - i) * (size + gap) : i * (size + gap), domain = [from, Math.min(1, from + size)];
    layout[`xaxis${n}`] = { ...AXIS, anchor: `y${n}`, domain: narrow ? [0, 1] : domain, ...(i && { matches: "x" }) };
    layout[`yaxis${n}`] = { ...AXIS, anchor: `x${n}`, domain: narrow ? domain : [0, 1], ...(i && { matches: "y" }) };
    layout.annotations.push({
      text: `<b>${plain(family)} nets</b>`, showarrow: false, xref: "paper", yref: "paper", yanchor: "bottom",
      x: narrow ? 0 : domain[0], xanchor: "left", y: narrow ? domain[1] : 1,
    });
  });
  return layout;
}

// --- by depth

const SHADES = { plain: "#8a929c", residual: "#1c1f23" };
const SYMBOLS = [["square-open", "□"], ["circle", "●"], ["diamond", "◆"], ["triangle-up", "▲"], ["cross", "✚"]];
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function drawPanels() {
  const runs = finished(), depths = [...new Set(runs.map((run) => run.depth))].sort((a, b) => a - b);
  const everySeries = groups(ofData(), "series").map((series) => series[0].series);
  const look = (run) => ({ color: SHADES[run.family] ?? "#5c6470",
    symbol: SYMBOLS[everySeries.indexOf(run.series) % SYMBOLS.length] });
  const panels = report.panels.filter((panel) => panel.over === "depth");
  $("series").replaceChildren(...groups(runs, "series").map(([run]) => {
    const { color, symbol } = look(run), name = element("span");
    name.append(element("span", symbol[1], { style: `color: ${color}` }), ` ${run.series_label}`);
    return name;
  }));
  $("by-depth").hidden = !runs.length;
  while ($("panels").children.length < panels.length) $("panels").append(element("div"));
  panels.forEach((panel, i) => {
    const traces = groups(runs, "series").flatMap((series) => {
      const byDepth = groups(series, "depth").sort((a, b) => a[0].depth - b[0].depth);
      const { color, symbol } = look(series[0]), line = { color, width: 1.6 };
      return [
        { x: byDepth.map((of) => `${of[0].depth}`), y: byDepth.map((of) => mean(of.map((r) => r[panel.value]))),
          mode: "lines", hoverinfo: "skip",
          line: { ...line, dash: series[0].family === "plain" ? "dash" : "solid" } },
        { x: series.map((run) => `${run.depth}`), y: series.map((run) => run[panel.value]), mode: "markers",
          marker: { color, size: 9, symbol: symbol[0], line: { color, width: 2 } },
          text: series.map((run) => plain(`${run.label}, ${run.device}`)),
          hovertemplate: "<b>%{text}</b><br>%{y:,.4~g}<extra></extra>" },
      ];
    });
    Plotly.react($("panels").children[i], traces, {
      ...LAYOUT, height: 270, margin: { l: 48, r: 10, t: 34, b: 40 }, showlegend: false,
      title: { text: `<b>${panel.title}</b>`, font: { size: 13 } },
      xaxis: { ...AXIS, type: "category", categoryorder: "array", categoryarray: depths.map(String),
        title: { text: "layers", font: { size: 12 } } },
      yaxis: { ...AXIS, rangemode: "tozero" },
    }, { ...PLOT, displayModeBar: false });
  });
}
