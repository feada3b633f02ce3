/* Requests in lanes and tokens as ticks, on canvas. Owns the two pictures of one timeline, and what the pointer and
   the keyboard do on them; the range of time is main.js's, told by `setRange`. */
"use strict";

const LEFT = 78; // as of LineChart's plots: one axis, one width
const RIGHT = 14;
const BOTTOM = 40;
const UNKNOWN = 2 ** 32 - 1;

/** The columns of a timeline (timeline.py's form), unpacked once. */
function unpackLanes(spec) {
  const columns = { spec };
  for (const name of ["lane", "start", "queued", "prefill", "decode", "outcome", "prompt", "cached", "output", "tokenStart", "tokenAt"])
    columns[name] = unpack(spec[name]);
  columns.count = columns.start.length;
  columns.longest = 0;
  for (let i = 0; i < columns.count; i++)
    columns.longest = Math.max(columns.longest, columns.queued[i] + columns.prefill[i] + columns.decode[i]);
  return columns;
}

/** First place of an ascending column that is not below `value`. */
function lowerBound(column, value) {
  let low = 0;
  let high = column.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (column[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

class Raster {
  /** `lanesEvery(spec)`: one lane of so many has something to show, and gets a row. */
  constructor(canvas, readout, paint, zoom, lanesEvery) {
    Object.assign(this, { canvas, readout, paint, zoom, lanesEvery });
    this.draw = oncePerFrame(() => this.drawNow());
    canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.onDown(event));
    canvas.addEventListener("pointermove", (event) => this.onMove(event));
    canvas.addEventListener("pointerup", () => (this.held = null));
    canvas.addEventListener("pointerleave", () => (this.readout.textContent = ""));
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(this.draw).observe(canvas);
  }

  /** Another run. */
  show(columns) {
    this.columns = columns;
    this.readout.textContent = "";
    this.draw();
  }

  drawNow() {
    const { canvas, columns } = this;
    if (!columns || !canvas.clientWidth) return;
    const ratio = Math.max(2, window.devicePixelRatio || 1); // printed, too, it is sharp
    this.width = canvas.clientWidth;
    this.height = canvas.clientHeight;
    canvas.width = Math.round(this.width * ratio);
    canvas.height = Math.round(this.height * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const [low, high] = this.zoom.range;
    this.toX = (seconds) => LEFT + ((seconds - low) / (high - low)) * (this.width - LEFT - RIGHT);
    this.every = this.lanesEvery(columns.spec);
    this.numRows = Math.max(1, Math.ceil(columns.spec.numLanes / this.every));
    this.laneHeight = (this.height - BOTTOM) / this.numRows;
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, this.width - LEFT - RIGHT, this.height - BOTTOM);
    pen.clip();
    this.paint(pen, this, columns, ...this.visible());
    pen.restore();
    this.drawAxes(pen, low, high);
  }

  /** Rows that can be seen: they are in the order of their start, and none is longer than the longest. */
  visible() {
    const { columns } = this;
    const [low, high] = this.zoom.range;
    const tick = columns.spec.tickS;
    return [lowerBound(columns.start, low / tick - columns.longest), lowerBound(columns.start, high / tick)];
  }

  drawAxes(pen, low, high) {
    const floor = this.height - BOTTOM;
    pen.font = FONT;
    pen.fillStyle = colour("muted");
    pen.strokeStyle = colour("rule");
    pen.lineWidth = 1;
    pen.strokeRect(LEFT + 0.5, 0.5, this.width - LEFT - RIGHT - 1, floor - 1);
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const { at, text } of ticksWithin(low, high, this.width - LEFT)) pen.fillText(text, this.toX(at), floor + 6);
    pen.fillText("s", (LEFT + this.width - RIGHT) / 2, floor + 23);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const { at } of ticksWithin(0, this.numRows, floor, 50)) {
      if (Number.isInteger(at) && at < this.numRows)
        pen.fillText(String(at * this.every), LEFT - 6, Math.max(7, (at + 0.5) * this.laneHeight));
    }
    pen.save();
    pen.translate(12, floor / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText("lane", 0, 0);
    pen.restore();
  }

  secondsAt(x) {
    const [low, high] = this.zoom.range;
    return low + ((x - LEFT) / (this.width - LEFT - RIGHT)) * (high - low);
  }

  onWheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // a page is scrolled with it
    event.preventDefault();
    this.zoom.by(event.deltaY > 0 ? 1.25 : 0.8, this.secondsAt(event.offsetX));
  }

  onDown(event) {
    this.held = { x: event.offsetX, range: this.zoom.range };
    this.canvas.setPointerCapture(event.pointerId);
  }

  onMove(event) {
    if (this.held) {
      const [low, high] = this.held.range;
      const moved = ((this.held.x - event.offsetX) / (this.width - LEFT - RIGHT)) * (high - low);
      this.zoom.set(low + moved, high + moved);
    } else {
      this.describe(this.secondsAt(event.offsetX), Math.floor(event.offsetY / this.laneHeight) * this.every);
    }
  }

  onKey(event) {
    const acts = { "+": "in", "=": "in", "-": "out", ArrowLeft: "left", ArrowRight: "right", 0: "all", Escape: "all" };
    if (!(event.key in acts) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.zoom.act(acts[event.key]);
  }

  /** In words, the request at a time in a lane. */
  describe(seconds, lane) {
    const { columns } = this;
    if (!columns) return;
    const { spec } = columns;
    const at = seconds / spec.tickS;
    const first = lowerBound(columns.start, at - columns.longest);
    for (let i = lowerBound(columns.start, at) - 1; i >= first; i--) {
      if (columns.lane[i] !== lane) continue;
      const whole = columns.queued[i] + columns.prefill[i] + columns.decode[i];
      if (at > columns.start[i] + whole) break;
      this.readout.textContent = requestWords(columns, i);
      return;
    }
    this.readout.textContent = `${figures(seconds, 5)} s, lane ${lane}: nothing`;
  }
}

function requestWords(columns, i) {
  const { spec } = columns;
  const of = (ticks) => duration(ticks * spec.tickS);
  const cached = columns.cached[i] === UNKNOWN ? "" : `, ${columns.cached[i].toLocaleString("en-US")} cached`;
  const parts = [
    spec.ids ? spec.ids[i] : `request ${i + 1}`,
    spec.outcomes[columns.outcome[i]],
    `due at ${figures(columns.start[i] * spec.tickS, 5)} s`,
    columns.queued[i] ? `queued ${of(columns.queued[i])}` : null,
    `TTFT ${of(columns.prefill[i])}`,
    `decode ${of(columns.decode[i])}`,
    `${columns.prompt[i].toLocaleString("en-US")} prompt tokens${cached}`,
    `${columns.output[i].toLocaleString("en-US")} out`,
  ];
  return parts.filter((part) => part !== null).join("  ·  ");
}

/** Bars: their heights, not only their colours, say what a request was at. */
function paintLanes(pen, raster, columns, from, to) {
  const { laneHeight } = raster;
  const { tickS, ok } = columns.spec;
  const gap = laneHeight > 5 ? 1 : 0;
  const perTick = raster.toX(tickS) - raster.toX(0);
  const origin = raster.toX(0);
  const phases = [
    ["queued", "queued", 0.25, (i) => columns.start[i], (i) => columns.queued[i]],
    ["prefill", "prefill", 1, (i) => columns.start[i] + columns.queued[i], (i) => columns.prefill[i]],
    ["decode", "decode", 0.55, (i) => columns.start[i] + columns.queued[i] + columns.prefill[i], (i) => columns.decode[i]],
  ];
  for (const [, name, share, start, length] of phases) {
    pen.fillStyle = colour(name);
    const tall = laneHeight < 3 ? laneHeight : (laneHeight - gap) * share;
    const down = (laneHeight - gap - tall) / 2;
    for (let i = from; i < to; i++) {
      const wide = length(i) * perTick;
      if (wide > 0) pen.fillRect(origin + start(i) * perTick, columns.lane[i] * laneHeight + Math.max(0, down), wide, tall);
    }
  }
  pen.strokeStyle = colour("bad");
  pen.lineWidth = 1.5;
  for (let i = from; i < to; i++) {
    if (columns.outcome[i] === ok) continue;
    const x = origin + (columns.start[i] + columns.queued[i] + columns.prefill[i] + columns.decode[i]) * perTick;
    const y = (columns.lane[i] + 0.5) * laneHeight;
    const arm = Math.max(2.5, Math.min(5, laneHeight / 2));
    pen.beginPath();
    pen.moveTo(x - arm, y - arm);
    pen.lineTo(x + arm, y + arm);
    pen.moveTo(x - arm, y + arm);
    pen.lineTo(x + arm, y - arm);
    pen.stroke();
  }
}

/** A tick per arrival, fainter where they are dense, so that density stays visible. */
function paintTokens(pen, raster, columns, from, to) {
  const perTick = raster.toX(columns.spec.tickS) - raster.toX(0);
  const origin = raster.toX(0);
  const first = columns.tokenStart[from];
  const last = columns.tokenStart[to];
  const room = (raster.width - LEFT) * raster.numRows;
  const wide = 1;
  pen.globalAlpha = Math.max(0.12, Math.min(0.9, room / Math.max(1, (last - first) * 2)));
  pen.fillStyle = colour("s0");
  const gap = raster.laneHeight > 4 ? 1 : 0;
  for (let i = from; i < to; i++) {
    const y = (columns.lane[i] / raster.every) * raster.laneHeight;
    for (let at = columns.tokenStart[i]; at < columns.tokenStart[i + 1]; at++)
      pen.fillRect(origin + columns.tokenAt[at] * perTick - wide / 2, y, wide, Math.max(0.8, raster.laneHeight - gap));
  }
  pen.globalAlpha = 1;
}
