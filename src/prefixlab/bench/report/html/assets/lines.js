/* Lines over one axis, by uPlot: bands, a legend of buttons, a readout, a keyboard. Owns one plot and its legend. */
"use strict";

const FONT = "12px system-ui, sans-serif";

/** A chart (chart.py's form) in `place`. `onRange(low, high)` is told of every zoom along x. */
class LineChart {
  constructor(place, legend, readout, spec, onRange = null) {
    Object.assign(this, { place, legend, readout, spec, onRange });
    this.x = unpackNullable(spec.x);
    this.hidden = new Set();
    this.columns = spec.lines.map((line) => ({
      y: unpackNullable(line.y),
      low: line.low && unpackNullable(line.low),
      high: line.high && unpackNullable(line.high),
    }));
    this.full = [this.x[0], this.x[this.x.length - 1]];
    this.build();
    this.makeLegend();
    place.addEventListener("keydown", (event) => this.onKey(event));
    this.watcher = new ResizeObserver(() => this.fit());
    this.watcher.observe(place);
  }

  destroy() {
    this.watcher.disconnect();
    this.plot.destroy();
    this.place.replaceChildren();
    this.legend.replaceChildren();
    this.readout.textContent = "";
  }

  /** Anew, as after a change of theme: uPlot keeps the colours it was made with. */
  rebuild() {
    const range = this.range();
    this.plot.destroy();
    this.build();
    this.setRange(...range);
  }

  build() {
    const { spec } = this;
    const series = [{}];
    const data = [this.x];
    const bands = [];
    this.seriesOf = [];
    spec.lines.forEach((line, number) => {
      const own = this.columns[number];
      const stroke = lineColour(line.colour);
      const mine = [series.length];
      series.push({
        label: line.name,
        stroke,
        width: 2,
        dash: DASHES[line.dashes % DASHES.length],
        points: { show: spec.markers, size: 7, fill: line.dashes ? colour("card") : stroke, stroke },
        paths: uPlot.paths.linear(),
        show: !this.hidden.has(number),
      });
      data.push(own.y);
      if (own.low) {
        for (const edge of [own.high, own.low]) {
          mine.push(series.length);
          series.push({ stroke: "transparent", width: 0, points: { show: false }, show: !this.hidden.has(number) });
          data.push(edge);
        }
        bands.push({ series: [mine[1], mine[2]], fill: `${stroke}26` });
      }
      this.seriesOf.push(mine);
    });
    this.plot = new uPlot(this.options(series, bands), data, this.place);
    this.plot.root.setAttribute("aria-hidden", "true");
  }

  options(series, bands) {
    const { spec } = this;
    const axis = {
      stroke: colour("muted"),
      font: FONT,
      labelFont: FONT,
      labelSize: 20,
      grid: { stroke: colour("rule"), width: 1 },
      ticks: { stroke: colour("rule"), width: 1, size: 4 },
    };
    const isLog = spec.xScale !== "linear";
    const few = spec.ticks && spec.ticks.length <= 14;
    return {
      width: Math.max(200, this.place.clientWidth),
      height: this.place.clientHeight,
      series,
      bands,
      legend: { show: false },
      padding: [10, 14, 0, 0],
      scales: {
        x: {
          time: false,
          distr: isLog ? 3 : 1,
          log: spec.xScale === "log2" ? 2 : 10,
          // A log scale would widen the range to whole powers: what is asked for is what is shown.
          range: (_, low, high) => (spec.markers && !this.zoomed ? this.padded(isLog) : [low, high]),
        },
        y: { range: (_, low, high) => [0, spec.yMax ? spec.yMax * 1.02 : high > 0 ? high * 1.06 : 1] },
      },
      axes: [
        {
          ...axis,
          size: 28,
          space: 60,
          label: spec.xLabel,
          ...(few ? { splits: (plot) => this.readable(plot, isLog), filter: (_, at) => at } : {}),
          ...(few || !isLog ? {} : { splits: (plot, _, low, high) => logTicks(low, high, plot.width - 90), filter: (_, at) => at }),
          values: (_, at) => at.map((v) => (v === null ? "" : few ? spec.ticks[this.x.indexOf(v)] : tickWord(v))),
        },
        {
          ...axis,
          size: 58,
          space: 36,
          label: spec.yLabel,
          values: (_, at) => at.map((v) => (v >= 1e4 ? `${figures(v / 1e3, 3)}k` : figures(v, 3))),
        },
      ],
      cursor: { drag: { x: true, y: false, dist: 6 }, points: { size: 8 }, y: false },
      hooks: {
        setCursor: [() => this.read()],
        setScale: [(plot, scale) => scale === "x" && this.onRange && !this.quiet && this.onRange(...this.range(plot))],
        setSelect: [() => (this.zoomed = true)],
      },
    };
  }

  /** Places of the axis whose words do not run into the ones before. */
  readable(plot, isLog) {
    const [low, high] = this.full;
    const share = (v) => (low === high ? 0 : isLog ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low));
    const kept = [];
    let free = -Infinity;
    this.x.forEach((v, i) => {
      const middle = share(v) * (plot.width - 90);
      const reach = 4 + 3.5 * this.spec.ticks[i].length;
      if (middle - reach < free) return;
      kept.push(v);
      free = middle + reach;
    });
    return kept;
  }

  /** Points at the edges are whole. */
  padded(isLog) {
    const [low, high] = this.full;
    if (low === high) return [low - 1, high + 1];
    if (!isLog) return [low - (high - low) * 0.04, high + (high - low) * 0.04];
    const by = (high / low) ** 0.04;
    return [low / by, high * by];
  }

  makeLegend() {
    const items = this.spec.lines.map((line, number) => {
      const button = node("button", { type: "button", title: "Show or hide" }, swatch(line), node("span", { textContent: line.name }));
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => this.toggle(number, button));
      return button;
    });
    this.legend.replaceChildren(...items);
  }

  toggle(number, button) {
    const show = this.hidden.has(number);
    if (show) this.hidden.delete(number);
    else this.hidden.add(number);
    button.setAttribute("aria-pressed", String(show));
    for (const at of this.seriesOf[number]) this.plot.setSeries(at, { show });
  }

  read() {
    const at = this.plot.cursor.idx;
    if (at === null || at === undefined) {
      this.readout.textContent = "";
      return;
    }
    const { spec } = this;
    const where = spec.ticks ? spec.ticks[at] : `${figures(this.x[at])} ${spec.xLabel}`;
    const parts = spec.lines.map((line, number) => {
      if (this.hidden.has(number)) return null;
      const own = this.columns[number];
      const band = own.low && own.low[at] !== null ? ` (${figures(own.low[at], 3)} … ${figures(own.high[at], 3)})` : "";
      return `${line.name} ${figures(own.y[at])}${band}`;
    });
    const head = spec.ticks ? `${spec.xLabel} ${where}` : where;
    this.readout.textContent = `${head}:  ${parts.filter((part) => part !== null).join("  ·  ")} ${spec.yLabel}`;
  }

  range(plot = this.plot) {
    return [plot.scales.x.min, plot.scales.x.max];
  }

  setRange(low, high) {
    this.quiet = true;
    this.zoomed = low > this.full[0] || high < this.full[1];
    this.plot.batch(() => this.plot.setScale("x", { min: low, max: high }));
    this.quiet = false;
  }

  onKey(event) {
    const { plot } = this;
    const [low, high] = this.range();
    const middle = plot.cursor.idx === null ? (low + high) / 2 : this.x[plot.cursor.idx];
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const step = (event.key === "ArrowLeft" ? -1 : 1) * Math.max(1, Math.round(event.shiftKey ? this.x.length / 20 : 1));
      const at = Math.max(0, Math.min(this.x.length - 1, (plot.cursor.idx ?? (step > 0 ? -1 : this.x.length)) + step));
      plot.setCursor({ left: plot.valToPos(this.x[at], "x"), top: 10 });
    } else if (event.key === "+" || event.key === "=") {
      this.zoomTo(middle - (middle - low) / 2, middle + (high - middle) / 2);
    } else if (event.key === "-") {
      this.zoomTo(middle - (middle - low) * 2, middle + (high - middle) * 2);
    } else if (event.key === "0" || event.key === "Escape") {
      this.zoomTo(...this.full);
    } else {
      return;
    }
    event.preventDefault();
  }

  zoomTo(low, high) {
    const range = [Math.max(low, this.full[0]), Math.min(high, this.full[1])];
    this.setRange(...range);
    if (this.onRange) this.onRange(...range);
  }

  fit() {
    const width = Math.max(200, this.place.clientWidth);
    const height = this.place.clientHeight;
    if (width !== this.plot.width || height !== this.plot.height) this.plot.setSize({ width, height });
  }
}

/** A piece of the line, with its dashes: SVG takes the colour of the theme as it changes. */
function swatch(line) {
  const made = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
  const [picture, stroke] = [made("svg"), made("line")];
  const set = (on, attributes) => Object.entries(attributes).forEach(([name, value]) => on.setAttribute(name, value));
  set(picture, { class: `swatch s${line.colour % NUM_COLOURS}`, width: 30, height: 4, "aria-hidden": "true" });
  set(stroke, { x1: 0, x2: 30, y1: 2, y2: 2, "stroke-dasharray": DASHES[line.dashes % DASHES.length].join(" ") });
  picture.append(stroke);
  return picture;
}

/** Round places of a logarithmic axis, not too close: as few kinds of lead as give four; else even steps. */
function logTicks(low, high, pixels) {
  const apart = (at, other) => (Math.log(other / at) / Math.log(high / low)) * pixels;
  for (const leads of [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const lead of leads) ticks.push(Number((lead * 10 ** power).toPrecision(6)));
    const inside = ticks.filter((at) => at >= low && at <= high);
    const kept = inside.filter((at, i) => !i || apart(inside[i - 1], at) > 30);
    if (kept.length >= 4) return kept;
  }
  return ticksWithin(low, high, pixels).map(({ at }) => at);
}

function tickWord(value) {
  return value >= 1e5 ? `${figures(value / 1e3, 3)}k` : figures(value, 3);
}
