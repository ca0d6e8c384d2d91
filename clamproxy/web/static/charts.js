// Small charts of the last day and the last 30 days, drawn as SVG in the size that they have on the page.

import { count, dayOf, isNumber, percent, size, time } from "./format.js";
import { html, setAttribute, setHidden, svg } from "./dom.js";

/**
 * @typedef {{key: string, label: string}} Series the key is the name of a class as well
 * @typedef {{from: number, to: number, values: (number | null)[]}} Slot a null: the gateway was not there
 * @typedef {{title: string, noun: string, source: string, range: string, every: string, series: Series[],
 *   stacked: boolean, shown: (value: unknown) => string, units: number[], totals: boolean, means?: boolean}} Kind
 *   source: the part of status.json; means: the values are shares, of which a slot shows the mean
 */

const HEIGHT = 190;
const EDGE = { left: 58, right: 8, top: 8, bottom: 22 };
const NARROWEST = 5; // pixels of a slot
const GROUPS = [1, 2, 3, 4, 6, 12]; // steps that make one slot
const HOUR = 3600;

/** The parts of status.json's history that a chart shows, one list for each series. */
function listsOf(history, keys) {
  const lists = keys.map((key) => (Array.isArray(history?.series?.[key]) ? history.series[key] : []));
  const length = Math.max(0, ...lists.map((list) => list.length));
  return lists.map((list) => Array.from({ length }, (_, i) => (isNumber(list[i]) ? Math.max(0, list[i]) : null)));
}

/** Requests by result; what is neither of the named ones is the rest of the sum. */
function requestLists(history) {
  const [all, hits, misses, errors] = listsOf(history, ["requests", "hits", "misses", "errors"]);
  const others = all.map((n, i) => (n === null ? null : Math.max(0, n - hits[i] - misses[i] - errors[i])));
  return [hits, others, misses, errors];
}

/** @type {(Kind & {lists: (history: unknown) => (number | null)[][]})[]} */
const KINDS = [
  {
    title: "Requests",
    noun: "requests",
    source: "history",
    range: "day",
    every: "five minutes",
    series: [
      { key: "hits", label: "hits" },
      { key: "others", label: "other results" },
      { key: "misses", label: "misses" },
      { key: "errors", label: "errors" },
    ],
    stacked: true,
    shown: count,
    units: [1, 1000, 1e6, 1e9],
    totals: true,
    lists: requestLists,
  },
  {
    title: "Bytes",
    noun: "bytes",
    source: "history",
    range: "day",
    every: "five minutes",
    series: [
      { key: "served", label: "served to machines" },
      { key: "fetched", label: "from the origin" },
    ],
    stacked: false,
    shown: size,
    units: [1, 1024, 1024 ** 2, 1024 ** 3, 1024 ** 4],
    totals: false,
    lists: (history) => listsOf(history, ["bytes_served", "upstream_bytes"]),
  },
  {
    title: "Share of the machines",
    noun: "machines",
    source: "fleet_history",
    range: "30 days",
    every: "hour",
    series: [
      { key: "current", label: "up to date" },
      { key: "overdue", label: "overdue" },
    ],
    stacked: false,
    shown: percent,
    units: [0.01],
    totals: false,
    means: true,
    lists: (history) => listsOf(history, ["up_to_date", "overdue"]),
  },
];

/**
 * Slots of the same length, aligned to the clock so that they stay where they are while time goes on.
 * @param {(number | null)[][]} lists @param {number} until end of the last step @param {number} step seconds
 * @param {number} group steps in a slot @param {boolean} means whether a slot has the mean of its steps, not their sum
 * @returns {Slot[]}
 */
export function slotsOf(lists, until, step, group, means = false) {
  const length = lists[0]?.length ?? 0;
  const first = Math.round(until / step) - length;
  /** @type {Slot[]} */
  const slots = [];
  /** @type {number[]} how many steps with a value each slot has */
  const counts = [];
  for (let i = 0; i < length; i += 1) {
    const start = Math.floor((first + i) / group) * group * step;
    if (slots.at(-1)?.from !== start) {
      slots.push({ from: start, to: start + group * step, values: lists.map(() => null) });
      counts.push(0);
    }
    if (lists[0][i] !== null) counts[counts.length - 1] += 1;
    const { values } = slots[slots.length - 1];
    lists.forEach((list, n) => {
      if (list[i] !== null) values[n] = (values[n] ?? 0) + list[i];
    });
  }
  if (means) slots.forEach(({ values }, n) => values.forEach((value, i) => { if (value !== null) values[i] = value / counts[n]; }));
  return slots;
}

/** The distance of the lines of an axis: 1, 2 or 5 times a power of ten of a unit. */
export function niceStep(highest, units) {
  const rough = Math.max(highest, 1) / 3;
  const unit = units.findLast((candidate) => candidate <= rough) ?? units[0];
  const power = 10 ** Math.floor(Math.log10(rough / unit));
  const factor = [1, 2, 5, 10].find((candidate) => candidate * power * unit >= rough) ?? 10;
  return Math.max(factor * power * unit, units[0]);
}

const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);

export class Chart {
  /** @param {HTMLElement} figure @param {typeof KINDS[number]} kind */
  constructor(figure, kind) {
    this.kind = kind;
    this.slots = /** @type {Slot[]} */ ([]);
    this.marked = -1; // the slot under the pointer or the keyboard
    this.drawn = "";
    this.sums = kind.series.map(() => html("b"));
    this.legend = html("ul", { class: "legend" }, ...kind.series.map((series, n) => this.legendItem(series, n)));
    this.gapNote = html("li", {}, html("span", { class: "swatch gap" }), "gateway not running");
    this.legend.append(this.gapNote);
    this.picture = svg("svg", { role: "img", height: HEIGHT, "aria-label": kind.title });
    this.said = html("p", { class: "hidden-text", "aria-live": "polite" });
    this.plot = html("div", {
      class: "plot",
      tabindex: 0,
      role: "group",
      "aria-label": `${kind.title} of the last ${kind.range}: use the arrow keys to read the figures for each time`,
    }, this.picture, this.said);
    const title = html("h2", {}, kind.title, html("span", { class: "muted" }, ` last ${kind.range === "day" ? "24 hours" : kind.range}`));
    figure.append(html("figcaption", {}, title, this.legend), this.plot);
    this.listen();
  }

  /** @param {Series} series @param {number} n */
  legendItem(series, n) {
    return html("li", {}, html("span", { class: `swatch ${series.key}` }), `${series.label} `, this.sums[n]);
  }

  listen() {
    new ResizeObserver(() => this.draw()).observe(this.plot);
    this.plot.addEventListener("pointermove", (event) => this.markAt(event.clientX));
    this.plot.addEventListener("pointerdown", (event) => this.markAt(event.clientX));
    this.plot.addEventListener("pointerleave", () => this.mark(-1));
    this.plot.addEventListener("blur", () => this.mark(-1));
    this.plot.addEventListener("keydown", (event) => this.steer(event));
  }

  /** @param {any} history of status.json */
  update(history) {
    this.lists = this.kind.lists(history);
    this.step = isNumber(history?.step) && history.step > 0 ? history.step : 300;
    this.until = isNumber(history?.until) ? history.until : 0;
    this.draw();
  }

  draw() {
    const width = Math.floor(this.plot.clientWidth);
    const signature = JSON.stringify([width, this.lists, this.step, this.until]);
    if (!this.lists || width === 0 || signature === this.drawn) return;
    this.drawn = signature;
    this.width = width - EDGE.left - EDGE.right;
    this.height = HEIGHT - EDGE.top - EDGE.bottom;
    const length = this.lists[0].length;
    const group = GROUPS.find((n) => (this.width * n) / Math.max(length, 1) >= NARROWEST) ?? GROUPS.at(-1);
    this.slots = slotsOf(this.lists, this.until, this.step, group, this.kind.means);
    const tops = this.slots.map(({ values }) => (this.kind.stacked ? sum(values) : Math.max(0, ...values)));
    this.unit = niceStep(Math.max(0, ...tops), this.kind.units);
    this.top = Math.max(1, Math.ceil(Math.max(0, ...tops) / this.unit)) * this.unit;
    this.tell(Math.max(0, ...tops) === 0);
    setAttribute(this.picture, "width", width);
    this.marker = svg("g", { class: "marker" });
    const idle = this.slots.every(({ values }) => !sum(values));
    setHidden(this.gapNote, idle || this.slots.every(({ values }) => values[0] !== null));
    const shapes = idle ? [this.remark()] : [this.gaps(), ...this.grid(), ...this.shapes()];
    this.picture.replaceChildren(...shapes, ...this.clock(), this.marker);
    this.mark(Math.min(this.marked, this.slots.length - 1), false);
  }

  /** The sums, for those who see the chart and for those who don't. */
  tell(nothing) {
    const sums = this.lists.map((list) => (this.kind.means ? list.findLast((value) => value !== null) : sum(list)));
    sums.forEach((value, n) => { this.sums[n].textContent = this.kind.shown(value); });
    const parts = this.kind.series.map((series, n) => `${this.kind.shown(sums[n])} ${series.label}`);
    const all = this.kind.totals ? `${this.kind.shown(sum(sums))} ${this.kind.noun} in all; ` : "";
    const told = nothing ? "nothing yet" : all + parts.join(", ");
    setAttribute(this.picture, "aria-label", `${this.kind.title} of the last ${this.kind.range}: ${told}.`);
  }

  // Places

  /** @param {number} slot */
  x(slot) {
    return EDGE.left + (slot * this.width) / Math.max(this.slots.length, 1);
  }

  /** @param {number} value */
  y(value) {
    return EDGE.top + this.height * (1 - value / this.top);
  }

  // Parts

  /** The lines of the values, with their labels. */
  grid() {
    const right = EDGE.left + this.width;
    const nodes = [];
    for (let value = 0; value <= this.top; value += this.unit) {
      const y = Math.round(this.y(value)) + 0.5;
      nodes.push(svg("line", { class: "grid", x1: EDGE.left, x2: right, y1: y, y2: y }));
      const label = this.kind.shown(value).replace(".0 ", " ").replace(".0%", "%");
      nodes.push(svg("text", { class: "label end", x: EDGE.left - 8, y: y + 4 }, label));
    }
    return nodes;
  }

  /** The line of the hours, or of the days. */
  clock() {
    const right = EDGE.left + this.width;
    const bottom = Math.round(this.y(0)) + 0.5;
    const nodes = [svg("line", { class: "base", x1: EDGE.left, x2: right, y1: bottom, y2: bottom })];
    this.slots.forEach((slot, n) => {
      if (!this.isMarked(slot)) return;
      const x = Math.round(this.x(n)) + 0.5;
      nodes.push(svg("line", { class: "base", x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
      const inside = x > EDGE.left + 16 && x < right - 16;
      const words = this.step < HOUR ? time(slot.from) : dayOf(slot.to - 1);
      if (inside) nodes.push(svg("text", { class: "label middle", x, y: HEIGHT - 5 }, words));
    });
    return nodes;
  }

  /** Whether a slot has its time below it: every few hours, or every few days where one begins. @param {Slot} slot */
  isMarked({ from, to }) {
    const at = new Date(from * 1000);
    if (this.step < HOUR) return !at.getMinutes() && at.getHours() % (this.width < 420 ? 6 : 3) === 0;
    const last = new Date((to - 1) * 1000);
    if (at.getDate() === last.getDate() && at.getHours()) return false;
    const day = Math.round(Date.UTC(last.getFullYear(), last.getMonth(), last.getDate()) / (24 * HOUR * 1000));
    return day % (this.width < 420 ? 10 : 5) === 0;
  }

  /** Where the gateway was not there. */
  gaps() {
    const path = this.slots.map(({ values }, n) => (values[0] === null ? this.box(n, 0, this.top) : "")).join("");
    return svg("path", { class: "gap", d: path });
  }

  shapes() {
    const { series, stacked } = this.kind;
    const floors = this.slots.map(() => 0);
    return series.flatMap(({ key }, n) => {
      const values = this.slots.map((slot) => slot.values[n]);
      if (!stacked) return this.lines(key, values);
      const boxes = values.map((value, i) => (value ? this.box(i, floors[i], (floors[i] += value), 1) : ""));
      return [svg("path", { class: `bar ${key}`, d: boxes.join("") })];
    });
  }

  /** A rectangle over a slot, as path data. */
  box(slot, low, high, space = 0) {
    const [left, right] = [this.x(slot), this.x(slot + 1) - space];
    // One request among thousands is seen, too.
    const top = Math.min(this.y(high), high > low ? this.y(low) - 1 : Infinity);
    return `M${left.toFixed(1)} ${this.y(low).toFixed(1)}V${top.toFixed(1)}H${right.toFixed(1)}V${this.y(low).toFixed(1)}Z`;
  }

  /** Steps with the area below them, broken where there is no value. */
  lines(key, values) {
    let [line, area] = ["", ""];
    values.forEach((value, n) => {
      if (value === null) return;
      const [left, right, y] = [this.x(n).toFixed(1), this.x(n + 1).toFixed(1), this.y(value).toFixed(1)];
      const begins = (values[n - 1] ?? null) === null;
      line += `${begins ? `M${left} ${y}` : `V${y}`}H${right}`;
      area += this.box(n, 0, value);
    });
    return [svg("path", { class: `area ${key}`, d: area }), svg("path", { class: `line ${key}`, d: line })];
  }

  /** What is to be said where there is nothing to see. */
  remark() {
    const lost = this.slots.every(({ values }) => values[0] === null);
    const { every, noun, range } = this.kind;
    const words = lost ? `No figures yet; there are new ones every ${every}.` : `No ${noun} in the last ${range}.`;
    return svg("text", { class: "label middle", x: EDGE.left + this.width / 2, y: HEIGHT / 2 }, words);
  }

  // The slot that is asked about

  /** @param {number} clientX */
  markAt(clientX) {
    const x = clientX - this.picture.getBoundingClientRect().left - EDGE.left;
    const slot = Math.floor((x / this.width) * this.slots.length);
    this.mark(slot >= 0 && slot < this.slots.length ? slot : -1);
  }

  /** @param {KeyboardEvent} event */
  steer(event) {
    const last = this.slots.length - 1;
    const from = this.marked < 0 ? last + 1 : this.marked;
    const places = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last, Escape: -1 };
    if (!(event.key in places) || last < 0) return;
    event.preventDefault();
    const place = places[event.key];
    this.mark(event.key === "Escape" ? -1 : Math.min(Math.max(place, 0), last));
    this.said.textContent = this.marked < 0 ? "" : this.linesOf(this.slots[this.marked]).join(", ");
  }

  /** @param {number} slot -1 for none */
  mark(slot, changed = true) {
    if (!this.marker || (changed && slot === this.marked)) return;
    this.marked = slot;
    if (slot < 0) this.marker.replaceChildren();
    else this.drawMarker(this.slots[slot], (this.x(slot) + this.x(slot + 1)) / 2);
  }

  /** @param {Slot} slot */
  linesOf(slot) {
    const title = `${this.step < HOUR ? "" : `${dayOf(slot.from)}, `}${time(slot.from)}–${time(slot.to)}`;
    if (slot.values[0] === null) return [title, "the gateway was not running"];
    return [title, ...this.kind.series.map(({ label }, n) => `${this.kind.shown(slot.values[n])} ${label}`)];
  }

  /** @param {Slot} slot @param {number} x */
  drawMarker(slot, x) {
    const lines = this.linesOf(slot).map((line, n) =>
      svg("text", { class: n ? "tip-line" : "tip-title", x: 10, y: 18 + n * 17 }, line));
    const back = svg("rect", { class: "tip", rx: 6, height: 12 + lines.length * 17 });
    const tip = svg("g", { class: "tooltip" }, back, ...lines);
    this.marker.replaceChildren(svg("line", { class: "cursor", x1: x, x2: x, y1: EDGE.top, y2: this.y(0) }), tip);
    const width = 20 + Math.max(...lines.map((line) => line.getComputedTextLength()));
    const total = EDGE.left + this.width + EDGE.right;
    const left = x + 10 + width <= total ? x + 10 : Math.max(0, x - 10 - width);
    setAttribute(back, "width", width);
    setAttribute(tip, "transform", `translate(${left} ${EDGE.top + 2})`);
  }
}

/** The charts of the page. @param {HTMLElement[]} figures */
export const makeCharts = (figures) => figures.map((figure, n) => new Chart(figure, KINDS[n]));
