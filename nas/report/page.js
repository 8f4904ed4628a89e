"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const colours = ["#1f6f8b", "#c8553d", "#6b7f3a", "#7b5ea7", "#b98b2f", "#3d5a80"];
const font = { family: "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif", size: 13, color: "#1f2933" };
const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "sendChartToCloud"],
  toImageButtonOptions: { format: "svg" } };
const axis = { gridcolor: "#e9edf1", zeroline: false, linecolor: "#cfd7de", automargin: true };
const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" }[c]));

function short(value) {
  if (typeof value !== "number") return value === null ? "none" : escaped(value);
  for (const [unit, factor] of [["G", 1e9], ["M", 1e6], ["K", 1e3]])
    if (Math.abs(value) >= factor) return Number((value / factor).toPrecision(3)) + unit;
  return String(Number(value.toPrecision(4)));
}

function scaled(name, values) {  // an axis, logarithmic where values span more than a factor of 20
  const low = Math.min(...values), wide = low > 0 && Math.max(...values) > 20 * low;
  return { ...axis, title: { text: data.names[name] || name }, type: wide ? "log" : "linear",
    ...(wide ? { dtick: "D2", tickformat: "~s" } : {}) };
}

function about(trial) {  // what hovering shows
  const metrics = Object.entries(trial.metrics).map(([name, value]) => `${escaped(name)} ${short(value)}`);
  const taken = Object.entries(trial.genotype).map(([path, label]) => `${escaped(path)} ${short(label)}`);
  const more = taken.length > 14 ? [`… ${taken.length - 14} more decisions`] : [];
  return [`<b>trial ${trial.number}</b>`, ...metrics, "", ...taken.slice(0, 14), ...more].join("<br>");
}

function points(trials, x, y) {
  return { x: trials.map((t) => (x === "trial" ? t.number : t.metrics[x])), y: trials.map((t) => t.metrics[y]),
    text: trials.map(about), customdata: trials.map((t) => [t.run, t.number]), type: "scatter",
    hovertemplate: "%{text}<extra></extra>" };
}

function drawFront() {
  const [x, y] = ["x", "y"].map((id) => document.getElementById(id).value);
  const has = (t) => (x === "trial" || x in t.metrics) && y in t.metrics;
  const traces = [];
  data.runs.forEach((run, i) => {
    const name = data.runs.length > 1 ? `${run.name}: ` : "";
    const rest = run.trials.filter((t) => has(t) && !t.front);
    const front = run.trials.filter((t) => has(t) && t.front).sort((a, b) => a.metrics[x] - b.metrics[x]);
    const faint = data.runs.length > 1 ? colours[i % colours.length] : "#8a9aa9";
    traces.push({ ...points(rest, x, y), mode: "markers", name: `${name}${rest.length} other trials`,
      marker: { color: faint, opacity: 0.35, size: 7 } });
    traces.push({ ...points(front, x, y), mode: data.steps && x === data.x && y === data.y ? "lines+markers" : "markers",
      name: `${name}${front.length} on the front`, line: { shape: "hv", width: 1.4, color: colours[i % colours.length] },
      marker: { color: colours[i % colours.length], size: 11, line: { color: "#fff", width: 1.5 } } });
  });
  const all = (key) => traces.flatMap((t) => t[key]).filter(Number.isFinite);
  Plotly.react("front", traces, {
    font, margin: { l: 60, r: 44, t: 10, b: 50 }, modebar: { orientation: "v" }, paper_bgcolor: "#fff", plot_bgcolor: "#fff", hovermode: "closest",
    hoverlabel: { bgcolor: "#fff", bordercolor: "#cfd7de", align: "left", font: { ...font, size: 12 } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
    xaxis: scaled(x, all("x")), yaxis: scaled(y, all("y")),
  }, config);
}

function select(run, number) {
  const trial = data.runs[run].trials.find((t) => t.number === number);
  const rows = (entries) => entries.map(([k, v]) => `<tr><td class="key">${escaped(k)}</td><td>${short(v)}</td></tr>`).join("");
  const panel = document.getElementById("selected");
  panel.innerHTML = `<h3>${escaped(data.runs[run].name)}, trial ${number}</h3>
    <table>${rows(Object.entries(trial.metrics))}</table><pre>${escaped(trial.command)}</pre>
    <div class="drawn"></div><table><tr><th>decision</th><th></th></tr>${rows(Object.entries(trial.genotype))}</table>`;
  panel.querySelector(".drawn").innerHTML = trial.drawing;
  panel.scrollTop = 0;
}

function drawVolume() {
  const traces = [];
  data.volumes.forEach((curve, i) => {
    const random = curve.strategy === "random";
    const colour = random ? "#8a94a0" : colours[i % colours.length];
    const x = curve.mean.map((_, k) => k + 1);
    if (curve.error.some((e) => e > 0)) {
      const band = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
      traces.push({ ...band, y: curve.mean.map((v, k) => v - curve.error[k]) });
      traces.push({ ...band, y: curve.mean.map((v, k) => v + curve.error[k]), fill: "tonexty", fillcolor: "rgba(138,148,160,.2)" });
    }
    traces.push({ x, y: curve.mean, name: curve.label, mode: "lines", hovertemplate: "%{y:.4f} after %{x}<extra></extra>",
      line: { color: colour, width: 2, dash: random ? "dash" : "solid", shape: "hv" } });
  });
  Plotly.newPlot("volume", traces, {
    font, margin: { l: 60, r: 44, t: 10, b: 50 }, modebar: { orientation: "v" }, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } }, showlegend: true,
    xaxis: { ...axis, title: { text: "evaluations" } }, yaxis: { ...axis, title: { text: "hypervolume, relative" }, rangemode: "tozero" },
  }, config);
}

if (data.y) {
  drawFront();
  document.getElementById("front").on("plotly_click", (event) => select(...event.points[0].customdata));
  for (const id of ["x", "y"]) document.getElementById(id).addEventListener("change", drawFront);
  data.runs.some((run, i) => run.best !== null && (select(i, run.best), true));
}
if (data.volumes.length) drawVolume();
