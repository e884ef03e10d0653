// Plots, by BokehJS: hover for values, click the legend, zoom; saved by the buttons beside each.
import { root } from "./app.js";
import { json } from "./json.js";
import { addSaving } from "./save.js";
import { followThreshold, readThreshold, showThreshold } from "./threshold.js";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const PALETTE = ["#2f6fb3", "#c4681b", "#3d8f6b", "#8a5bb5", "#b5445a", "#6b7683"];
const SERIES = {
  loss: { keys: ["train_loss", "val_loss"], label: "Loss", format: "0.000" },
  accuracy: { keys: ["train_accuracy", "val_accuracy"], label: "Accuracy", format: "0.0 %" },
  learning_rate: { keys: ["learning_rate"], label: "Learning rate", format: "0.000000" },
};
const LEGEND_LINE = 20;
const UNIT_SQUARE = { x_range: [-0.03, 1.03], y_range: [-0.03, 1.03] }; // dots at its edges are whole
const WORDS = {
  train_loss: "training", val_loss: "validation", train_accuracy: "training", val_accuracy: "validation",
  learning_rate: "learning rate",
};

function figure(options) {
  const { Plotting } = Bokeh;
  const plot = Plotting.figure({
    height: 260,
    sizing_mode: "stretch_width",
    tools: "pan,box_zoom,wheel_zoom,reset",
    toolbar_location: "above",
    output_backend: "svg",
    // The card's own colour and not none: a saved picture is read on grounds that we do not know.
    background_fill_color: css("--card"),
    border_fill_color: css("--card"),
    outline_line_color: null,
    min_border_left: 48,
    min_border_right: 12,
    ...options,
  });
  plot.toolbar.logo = null;
  plot.toolbar.active_drag = null; // a finger that scrolls the page must not pan the plot
  plot.toolbar.autohide = true;
  const soft = css("--soft");
  for (const axis of [...plot.below, ...plot.left]) {
    axis.setv({
      axis_line_color: css("--line"), major_tick_line_color: null, minor_tick_line_color: null,
      major_label_text_color: soft, axis_label_text_color: soft, axis_label_text_font_style: "normal",
      major_label_text_font: "system-ui", axis_label_text_font: "system-ui", axis_label_text_font_size: "12px",
    });
  }
  for (const grid of plot.center) if ("grid_line_color" in grid) grid.setv({ grid_line_color: css("--line"), grid_line_alpha: 0.7 });
  return plot;
}

function legends(plot) {
  return plot.center.filter((part) => "click_policy" in part);
}

// Puts the legend above the frame, where it hides nothing: in one line, or each name in its own. Bokeh's own place above
// a plot is no use, as it takes all the height there; so `show` lets legends leave the frame.
function styleLegend(plot, stacked = false) {
  for (const legend of legends(plot)) {
    const lines = stacked ? legend.items.length : 1;
    legend.setv({
      click_policy: "hide", background_fill_color: null, border_line_color: null, label_text_color: css("--text"),
      label_text_font: "system-ui", label_text_font_size: "12px", padding: 0,
      location: "top", margin: -(LEGEND_LINE * lines + 4), // from the frame's upper edge upwards
      orientation: stacked ? "vertical" : "horizontal", spacing: stacked ? 0 : 14,
      visible: legend.items.length > 1, // a single line is what the title says
    });
    plot.min_border_top = LEGEND_LINE * lines + 8;
  }
}

// Says why there is no plot yet; `update` draws it as soon as there is something to draw.
function wait(place, words, ready) {
  const note = document.createElement("p");
  note.className = "muted small";
  note.textContent = words;
  place.replaceChildren(note);
  place.closest(".card").querySelector(".saving")?.replaceChildren();
  Object.assign(place.dataset, { drawn: "yes", points: "0" });
  place.update = async () => {
    if (place.dataset.points === "0" && (await ready())) await draw(place);
  };
}

async function show(place, plot, columns) {
  place.replaceChildren();
  const view = await Bokeh.Plotting.show(plot, place);
  for (const legend of legends(plot)) view.views.find_one(legend).el.getRootNode().host.style.overflow = "clip visible";
  place.dataset.drawn = "yes";
  const name = [place.dataset.series ?? place.dataset.chart, place.dataset.runId].filter(Boolean).join("-");
  addSaving(place, name, () => view.export("svg").to_blob(), columns);
}

function columnsOf(rows, keys) {
  return Object.fromEntries(keys.map((key) => [key, rows.map((row) => row[key])]));
}

// Lets a bar or dot lead to its faces; the same faces are reached from the filters, by keyboard too.
function lead(plot, renderers, address) {
  if (!address) return;
  const execute = (_, { source }) => {
    const [index] = source.selected.indices;
    const url = index === undefined ? null : address(index);
    if (url) location.assign(url);
  };
  plot.add_tools(new Bokeh.TapTool({ renderers, callback: { execute } }));
}

// The address of a page with faces, with these filters.
function facesUrl(page, filters) {
  const url = new URL(page, location.href);
  for (const [name, value] of Object.entries(filters)) url.searchParams.set(name, value);
  url.hash = "faces";
  return url.href;
}

// -- curves that move while a run trains

async function history(place) {
  const { runId, series } = place.dataset;
  const { keys, label, format } = SERIES[series];
  const fetched = async () => (await json(`${root}/api/v1/runs/${runId}`)).history;
  const rows = await fetched();
  if (!rows.length) return wait(place, "Appears after the first epoch.", async () => (await fetched()).length);
  const source = new Bokeh.ColumnDataSource({ data: columnsOf(rows, ["epoch", ...keys]) });
  const plot = figure({
    x_axis_label: "epoch",
    y_axis_label: label,
    ...(series === "learning_rate" ? { y_range: new Bokeh.DataRange1d({ start: 0, default_span: 0.001 }) } : {}),
  });
  // Epochs that were trained, but lost with the process that trained them.
  const lost = new Bokeh.ColumnDataSource({ data: columnsOf([], ["epoch", ...keys]) });
  for (const key of keys) {
    plot.line({ field: "epoch" }, { field: key }, { source: lost, line_width: 2, color: css("--bad"), line_dash: [3, 4], line_alpha: 0.7 });
  }
  const colors = [css("--soft"), css("--accent")];
  keys.forEach((key, i) => {
    const color = keys.length === 1 ? colors[1] : colors[i];
    const style = { source, line_width: 2, color, legend_label: WORDS[key], line_join: "round" };
    const line = plot.line({ field: "epoch" }, { field: key }, style);
    plot.scatter({ field: "epoch" }, { field: key }, { source, size: 5, color, legend_label: WORDS[key] });
    plot.add_tools(new Bokeh.HoverTool({
      renderers: [line], mode: "vline",
      tooltips: [["epoch", "@epoch"], [WORDS[key], `@${key}{${format}}`]],
    }));
  });
  styleLegend(plot);
  if (series === "learning_rate") plot.left[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0.0[0000]" });
  plot.below[0].ticker.min_interval = 1; // no half epochs
  if (series === "accuracy") plot.left[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0 %" });
  await show(place, plot, () => Object.fromEntries(["epoch", ...keys].map((key) => [key, [...source.data[key]]])));
  place.dataset.points = String(rows.length);
  const add = (row) => {
    const known = [...source.data.epoch];
    const at = known.indexOf(row.epoch);
    if (at >= 0 && source.data[keys[0]][at] === row[keys[0]]) return;
    const columns = ["epoch", ...keys];
    if (at >= 0) {
      // The run went back to its checkpoint: epochs from here on are lost, and trained again.
      const from = (key) => [...source.data[key]].slice(at);
      lost.stream(Object.fromEntries(columns.map((key) => [key, [...from(key), NaN]])));
      source.data = Object.fromEntries(columns.map((key) => [key, [...source.data[key]].slice(0, at)]));
      place.dataset.lost = String(lost.data.epoch.filter((epoch) => !Number.isNaN(epoch)).length);
    }
    source.stream(Object.fromEntries(columns.map((key) => [key, [row[key]]])));
    place.dataset.points = String(source.data.epoch.length);
  };
  place.update = async () => {
    for (const row of await fetched()) add(row);
  };
  document.addEventListener("genderline:event", ({ detail: { topic, payload } }) => {
    if (topic === "run.epoch" && payload.run_id === runId) add(payload.row);
  });
  return undefined;
}

// -- how well a finished run does

function diagonal(plot) {
  plot.line([0, 1], [0, 1], { color: css("--soft"), line_width: 1, line_dash: [4, 4], line_alpha: 0.6 });
}

async function curve(place, key, words) {
  const { evaluation } = await json(`${root}/api/v1/runs/${place.dataset.runId}`);
  const points = evaluation[key];
  const source = new Bokeh.ColumnDataSource({ data: { x: points.x, y: points.y } });
  const plot = figure({ x_axis_label: words[0], y_axis_label: words[1], ...UNIT_SQUARE });
  if (key === "roc") diagonal(plot);
  const line = plot.line({ field: "x" }, { field: "y" }, { source, line_width: 2, color: css("--accent") });
  const here = new Bokeh.ColumnDataSource({ data: { x: [], y: [] } });
  const mark = { source: here, size: 11, fill_color: css("--card"), line_color: css("--accent"), line_width: 2.5 };
  plot.scatter({ field: "x" }, { field: "y" }, mark);
  plot.add_tools(new Bokeh.HoverTool({
    renderers: [line], tooltips: [[words[0], "@x{0.000}"], [words[1], "@y{0.000}"]],
  }));
  await show(place, plot, () => ({ x: points.x, y: points.y }));
  place.mark = (x, y) => {
    here.data = { x: [x], y: [y] };
    place.dataset.mark = `${x.toFixed(3)} ${y.toFixed(3)}`;
  };
  showThreshold();
}

// Predictions are stored with six decimals: limits that are exact would leave out the faces at both ends.
function widened(low, high) {
  return { low: Math.max(0, Math.floor(1e6 * low) - 1) / 1e6, high: Math.min(1e6, Math.ceil(1e6 * high) + 1) / 1e6 };
}

async function reliability(place) {
  const { evaluation } = await json(`${root}/api/v1/runs/${place.dataset.runId}`);
  const keys = ["mean_probability", "share_female", "count"];
  const data = columnsOf(evaluation.reliability, keys);
  const source = new Bokeh.ColumnDataSource({ data });
  const plot = figure({
    x_axis_label: "predicted probability of female", y_axis_label: "share with label female", ...UNIT_SQUARE,
  });
  diagonal(plot);
  const style = { source, color: css("--accent"), line_width: 2 };
  plot.line({ field: keys[0] }, { field: keys[1] }, style);
  const dots = plot.scatter({ field: keys[0] }, { field: keys[1] }, { ...style, size: 8 });
  plot.add_tools(new Bokeh.HoverTool({
    renderers: [dots],
    tooltips: [["predicted", "@mean_probability{0.000}"], ["label female", "@share_female{0.000}"], ["faces", "@count{0,0}"]],
  }));
  const rows = evaluation.reliability;
  // Faces are filtered by their confidence, so a dot of both predictions leads nowhere.
  lead(plot, [dots], place.dataset.faces && ((i) => {
    const { low, high } = rows[i];
    const threshold = readThreshold();
    const url = (predicted, from, to) => facesUrl(place.dataset.faces, { predicted, threshold, ...widened(from, to) });
    if (low >= threshold) return url("female", low, high);
    return high < threshold ? url("male", 1 - high, 1 - low) : null;
  }));
  await show(place, plot, () => data);
}

// -- what a dataset holds

// The address of the faces that a bar counts: those that no edit left out, by the labels that the page shows.
function barUrl(filters) {
  const labels = new URLSearchParams(location.search).get("labels");
  return facesUrl(location.pathname, { ...filters, split: "all", ...(labels ? { labels } : {}) });
}

async function bars(place) {
  const counts = await json(place.dataset.url);
  const kind = place.dataset.chart;
  if (kind === "genders") return genderBars(place, counts);
  const table = kind === "ages" ? counts.ages : counts.ethnicities;
  const names = Object.keys(table);
  const data = { name: names, male: names.map((n) => table[n].male), female: names.map((n) => table[n].female) };
  data.all = names.map((_, i) => data.male[i] + data.female[i]);
  const source = new Bokeh.ColumnDataSource({ data });
  const plot = figure({
    x_range: names,
    y_range: [0, Math.max(...data.all) * 1.05],
    y_axis_label: "faces",
    x_axis_label: kind === "ages" ? "age in years" : "",
  });
  const base = { source, width: 0.8, line_color: null };
  const bar = { ...base, x: { field: "name" } };
  const stacks = {
    male: plot.vbar({ ...bar, top: { field: "male" }, fill_color: css("--male"), legend_label: "male" }),
    female: plot.vbar({
      ...bar, bottom: { field: "male" }, top: { field: "all" }, fill_color: css("--female"), legend_label: "female",
    }),
  };
  const filter = kind === "ages" ? "age" : "ethnicity";
  for (const [gender, bars] of Object.entries(stacks)) {
    lead(plot, [bars], (i) => barUrl({ gender, [filter]: names[i] }));
  }
  plot.add_tools(new Bokeh.HoverTool({
    tooltips: [["", "@name"], ["male", "@male{0,0}"], ["female", "@female{0,0}"], ["all", "@all{0,0}"]],
  }));
  plot.below[0].major_label_orientation = place.clientWidth < 420 ? 0.8 : 0;
  styleLegend(plot);
  return show(place, plot, () => data);
}

async function genderBars(place, counts) {
  const names = Object.keys(counts.genders);
  const count = names.map((name) => counts.genders[name]);
  const share = count.map((n) => n / counts.faces);
  const label = count.map((n, i) => `${n.toLocaleString()} · ${(100 * share[i]).toFixed(1)} %`);
  const data = { name: names, count, share, label, color: names.map((name) => css(`--${name}`)) };
  const source = new Bokeh.ColumnDataSource({ data });
  const plot = figure({ x_range: names, y_axis_label: "faces", y_range: [0, Math.max(...count) * 1.15] });
  const bars = plot.vbar({
    source, x: { field: "name" }, top: { field: "count" }, width: 0.6, fill_color: { field: "color" }, line_color: null,
  });
  lead(plot, [bars], (i) => barUrl({ gender: names[i] }));
  plot.text({ field: "name" }, { field: "count" }, { field: "label" }, {
    source, text_align: "center", text_baseline: "bottom", y_offset: -4, text_color: css("--text"), text_font: "system-ui",
    text_font_size: "13px",
  });
  plot.add_tools(new Bokeh.HoverTool({ tooltips: [["", "@name"], ["faces", "@count{0,0}"], ["share", "@share{0.0 %}"]] }));
  await show(place, plot, () => ({ name: names, count, share }));
}

// -- how fast the workers were over the last minutes

const SPEED = {
  rate: { label: "images per second", keys: { images_per_second: "all workers" }, format: "0,0.0" },
  latency: { label: "milliseconds", keys: { latency_p50_ms: "p50", latency_p99_ms: "p99" }, format: "0,0.0" },
};

async function speed(place) {
  const { label, keys, format } = SPEED[place.dataset.chart];
  const names = Object.keys(keys);
  const fetched = async () => {
    const found = await json(place.dataset.url);
    // Without a figure the line has a gap.
    return Object.fromEntries(["minutes", ...names].map((key) => [key, found[key].map((value) => value ?? NaN)]));
  };
  const columns = ["minutes", ...names];
  const any = (data) => names.some((key) => data[key].some((value) => !Number.isNaN(value)));
  const data = await fetched();
  if (!any(data)) return wait(place, "No predictions in the last ten minutes.", async () => any(await fetched()));
  const source = new Bokeh.ColumnDataSource({ data: withLone(data, names) });
  const plot = figure({
    height: names.length === 1 ? 170 : 195, x_axis_label: "minutes ago", y_axis_label: label, x_range: [-10.2, 0.2],
    y_range: new Bokeh.DataRange1d({ start: 0, default_span: 1 }),
  });
  const colors = names.length === 1 ? [css("--accent")] : [css("--soft"), css("--accent")];
  names.forEach((key, i) => {
    const style = { source, line_width: 2, color: colors[i], line_join: "round", legend_label: keys[key] };
    const line = plot.line({ field: "minutes" }, { field: key }, style);
    plot.scatter({ field: "minutes" }, { field: `${key}_lone` }, { source, size: 6, color: colors[i] });
    plot.add_tools(new Bokeh.HoverTool({
      renderers: [line], mode: "vline", tooltips: [["minutes", "@minutes{0.0}"], [`${keys[key]}`, `@${key}{${format}}`]],
    }));
  });
  styleLegend(plot);
  plot.left[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0,0.[0]" });
  await show(place, plot, () => Object.fromEntries(columns.map((key) => [key, [...source.data[key]]])));
  place.dataset.points = String(source.data.minutes.length);
  place.update = async () => {
    const newer = await fetched();
    if (!any(newer)) return draw(place);
    source.data = withLone(newer, names);
    place.dataset.points = String(newer.minutes.length);
    return undefined;
  };
  return undefined;
}

// Adds a column a line: its values that have none before and after them, so that no line shows them.
function withLone(data, names) {
  const lone = (values) =>
    values.map((value, i) => (Number.isNaN(values[i - 1] ?? NaN) && Number.isNaN(values[i + 1] ?? NaN) ? value : NaN));
  return { ...data, ...Object.fromEntries(names.map((key) => [`${key}_lone`, lone(data[key])])) };
}

// -- several runs on the same axes

async function compare(place) {
  const key = place.dataset.series;
  const runs = await Promise.all(JSON.parse(place.dataset.runs).map((id) => json(`${root}/api/v1/runs/${id}`)));
  const height = 270 + LEGEND_LINE * runs.length;
  const plot = figure({ height, x_axis_label: "epoch", y_axis_label: place.dataset.label });
  runs.forEach((run, i) => {
    const color = PALETTE[i % PALETTE.length];
    const name = `${run.name.slice(0, 24)} · ${run.run_id.slice(-5)}`;
    const source = new Bokeh.ColumnDataSource({ data: columnsOf(run.history, ["epoch", key]) });
    const line = plot.line({ field: "epoch" }, { field: key }, { source, color, line_width: 2, legend_label: name });
    if (run.history.length === 1) plot.scatter({ field: "epoch" }, { field: key }, { source, color, size: 6 });
    plot.add_tools(new Bokeh.HoverTool({
      renderers: [line], tooltips: [["run", name], ["epoch", "@epoch"], [place.dataset.label, `@${key}{0.0000}`]],
    }));
  });
  styleLegend(plot, true);
  if (key === "learning_rate") plot.left[0].formatter = new Bokeh.NumeralTickFormatter({ format: "0.0[0000]" });
  await show(place, plot, () => ({
    run: runs.flatMap((run) => run.history.map(() => run.run_id)),
    epoch: runs.flatMap((run) => run.history.map((row) => row.epoch)),
    [key]: runs.flatMap((run) => run.history.map((row) => row[key])),
  }));
}

const KINDS = {
  history,
  roc: (place) => curve(place, "roc", ["false positive rate", "true positive rate"]),
  precision_recall: (place) => curve(place, "precision_recall", ["recall", "precision"]),
  reliability,
  genders: bars,
  ages: bars,
  ethnicities: bars,
  compare,
  rate: speed,
  latency: speed,
};

async function draw(place) {
  place.dataset.drawn = "begun";
  try {
    await KINDS[place.dataset.chart](place);
  } catch (error) {
    place.textContent = `This chart could not be loaded: ${error.message} Reload the page to try again.`;
  }
}

function drawAll() {
  for (const place of document.querySelectorAll("[data-chart]:not([data-drawn])")) draw(place);
  followThreshold();
}

drawAll();
document.addEventListener("genderline:event", ({ detail: { topic } }) => {
  if (topic !== "run.epoch") return;
  for (const place of document.querySelectorAll("[data-chart=history][data-points='0']")) place.update?.();
});
document.addEventListener("genderline:refreshed", () => {
  drawAll();
  for (const place of document.querySelectorAll("[data-chart]")) place.update?.();
});
dark.addEventListener("change", () => {
  for (const place of document.querySelectorAll("[data-chart]")) delete place.dataset.drawn;
  drawAll();
});
