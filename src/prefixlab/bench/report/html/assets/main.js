/* Puts the page together: charts, the timeline and its zoom, theme, printing. */
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const charts = [];

for (const place of document.querySelectorAll("[data-chart]")) {
  const name = place.dataset.chart;
  const of = (kind) => document.querySelector(`[data-${kind}-of="${CSS.escape(name)}"]`);
  charts.push(new LineChart(place, of("legend"), of("readout"), data.charts[name]));
}

/** The one range of time that every picture of a run shares. */
class Zoom {
  constructor(onChange) {
    this.onChange = onChange;
    this.span = 1;
    this.range = [0, 1];
  }

  reset(span) {
    this.span = span || 1;
    this.set(0, this.span);
  }

  set(low, high) {
    const wide = Math.min(Math.max(high - low, this.span * 1e-5), this.span);
    const start = Math.min(Math.max(0, low), this.span - wide);
    this.range = [start, start + wide];
    this.onChange(this.range);
  }

  by(factor, around = (this.range[0] + this.range[1]) / 2) {
    const [low, high] = this.range;
    this.set(around - (around - low) * factor, around + (high - around) * factor);
  }

  act(name) {
    const [low, high] = this.range;
    const step = (high - low) / 4;
    const acts = {
      in: () => this.by(0.5),
      out: () => this.by(2),
      left: () => this.set(low - step, high - step),
      right: () => this.set(low + step, high + step),
      all: () => this.set(0, this.span),
    };
    acts[name]();
  }
}

/** The timeline of the run that is chosen. */
class TimelineView {
  constructor(timelines) {
    this.timelines = timelines;
    this.unpacked = new Map();
    this.charts = [];
    this.zoom = new Zoom((range) => this.onRange(range));
    const raster = (name, paint, lanesEvery) => {
      const [canvas, readout] = ["", "-readout"].map((part) => document.getElementById(`raster-${name}${part}`));
      return new Raster(canvas, readout, paint, this.zoom, lanesEvery);
    };
    this.rasters = [
      raster("lanes", paintLanes, () => 1),
      raster("tokens", paintTokens, (spec) => spec.tokensEvery),
    ];
    for (const button of document.querySelectorAll("[data-zoom]"))
      button.addEventListener("click", () => this.zoom.act(button.dataset.zoom));
    const choice = document.getElementById("time-run");
    choice.addEventListener("change", () => this.show(Number(choice.value)));
    this.show(Number(choice.value));
  }

  show(number) {
    const spec = this.timelines[number];
    if (!this.unpacked.has(number)) this.unpacked.set(number, unpackLanes(spec));
    const columns = this.unpacked.get(number);
    for (const chart of this.charts) chart.destroy();
    this.charts = [];
    for (const figure of document.querySelectorAll("[data-time-chart]")) {
      const own = spec.charts.find((chart) => chart.name === figure.dataset.timeChart);
      figure.hidden = !own;
      if (!own) continue;
      figure.querySelector("h3").textContent = own.title;
      const [place, legend, readout] = [".plot", ".legend", ".readout"].map((name) => figure.querySelector(name));
      this.charts.push(new LineChart(place, legend, readout, own, (low, high) => this.zoom.set(low, high)));
    }
    for (const words of document.querySelectorAll(".raster-words")) words.textContent = spec.words;
    const tall = Math.max(140, Math.min(460, 46 + spec.numLanes * 11));
    for (const raster of this.rasters) {
      raster.canvas.style.height = `${tall}px`;
      raster.show(columns);
    }
    this.zoom.reset(spec.spanS);
  }

  onRange([low, high]) {
    for (const raster of this.rasters) raster.draw();
    for (const chart of this.charts) chart.setRange(low, high);
    document.getElementById("time-range").textContent = `${figures(low, 4)} … ${figures(high, 4)} s`;
  }

  redraw() {
    for (const raster of this.rasters) raster.drawNow();
    for (const chart of this.charts) chart.rebuild();
  }
}

const view = data.timelines.length ? new TimelineView(data.timelines) : null;

function redraw() {
  for (const chart of charts) chart.rebuild();
  if (view) view.redraw();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  root.dataset.theme = isDark ? "light" : "dark";
  redraw();
});
dark.addEventListener("change", redraw);

/* Paper is white, and cannot be unfolded. */
let before = null;
addEventListener("beforeprint", () => {
  before = { theme: document.documentElement.dataset.theme, opened: [] };
  document.documentElement.dataset.theme = "light";
  document.documentElement.dataset.printing = "yes"; // as wide as paper, before anything is drawn for it
  for (const details of document.querySelectorAll("details:not([open])")) {
    details.open = true;
    before.opened.push(details);
  }
  redraw();
});
addEventListener("afterprint", () => {
  if (!before) return;
  if (before.theme) document.documentElement.dataset.theme = before.theme;
  else delete document.documentElement.dataset.theme;
  for (const details of before.opened) details.open = false;
  before = null;
  delete document.documentElement.dataset.printing;
  redraw();
});

document.documentElement.dataset.drawn = "yes";
