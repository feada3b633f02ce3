/* What every drawing needs: the page's data, colours of the theme, words for numbers. Owns no element. */
"use strict";

const DASHES = [[], [7, 4], [2, 3], [12, 4, 2, 4], [14, 5], [6, 3, 2, 3, 2, 3]];
const NUM_COLOURS = 8;

/** A column as Python packed it (packing.py), as a typed array. */
function unpack(column) {
  const text = atob(column.bytes);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const kinds = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };
  return new kinds[column.type](bytes.buffer);
}

/** The same as a plain array with null for NaN, as uPlot takes it. */
function unpackNullable(column) {
  return Array.from(unpack(column), (value) => (Number.isNaN(value) ? null : value));
}

/** A colour of page.css, as it is now. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function lineColour(number) {
  return colour(`s${number % NUM_COLOURS}`);
}

function figures(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "n/a";
  if (value === 0) return "0";
  const places = Math.max(0, Math.min(6, digits - 1 - Math.floor(Math.log10(Math.abs(value)))));
  return value.toLocaleString("en-US", { maximumFractionDigits: places });
}

/** Seconds, in the unit people would use. */
function duration(seconds) {
  if (seconds >= 1) return `${figures(seconds, 3)} s`;
  return seconds >= 1e-3 ? `${figures(seconds * 1e3, 3)} ms` : `${figures(seconds * 1e6, 3)} µs`;
}

/** Round places for ticks within low … high, about one per `every` pixels. */
function ticksWithin(low, high, pixels, every = 90) {
  const rough = (high - low) / Math.max(2, pixels / every);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) ticks.push(at);
  return ticks.map((at) => ({ at, text: at.toFixed(Math.max(0, -Math.floor(Math.log10(step) + 1e-9))) }));
}

/** Draw at most once a frame, however often it is asked for. */
function oncePerFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

function node(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
