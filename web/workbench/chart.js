// @ts-check
// A chart of several series over the steps of a run: legend, values under the pointer, zoom by dragging, logarithmic axis.

import { make, makeButton } from "../elements.js";
import { count, loss, spread } from "../format.js";
import { thinned } from "../series.js";
import { axes, logTicks, nearest, ticks, tickTexts } from "./axes.js";
import { t } from "../texts.js";

/**
 * @typedef {import("../series.js").Point} Point
 * @typedef {import("./axes.js").Axes} Axes
 * @typedef {{label: string, colour: string, points: Point[], width?: number, isFaint?: boolean, isDots?: boolean}} Series
 * @typedef {{series: Series[], total: number, marks?: number[]}} Content marks: steps with a checkpoint
 */

const MARGIN = { left: 46, right: 10, top: 8, bottom: 18 };
const MOST_POINTS = 2000;
const DOT = 4; // room for a dot, or the bar of an interval, at the edge

export class Chart {
  /**
   * @param {HTMLElement} parent
   * @param {string} title
   * @param {{isLarge?: boolean, canBeLog?: boolean}} [form]
   */
  constructor(parent, title, { isLarge = false, canBeLog = false } = {}) {
    this.title = title;
    this.root = make("section", `loom-chart${isLarge ? " loom-chart-tall" : ""}`, parent);
    const head = make("div", "loom-chart-head", this.root);
    this.heading = make("span", "loom-chart-title", head, title);
    this.legend = make("div", "loom-chart-legend", head);
    if (canBeLog) {
      this.log = makeButton(head, t("log"), t("Logarithmic axis"), () => this.toggleLog());
      this.log.setAttribute("aria-pressed", "false");
    }
    this.reset = makeButton(head, t("whole run"), t("Show all steps again (or double-click the chart)"), () => this.zoom(null));
    this.reset.hidden = true;
    const plot = make("div", "loom-chart-plot", this.root);
    this.canvas = make("canvas", "", plot);
    this.canvas.setAttribute("role", "img");
    this.values = make("div", "loom-chart-values", plot);
    this.values.hidden = true;
    /** @type {Content} */
    this.content = { series: [], total: 0 };
    /** @type {Set<string>} labels that are switched off */
    this.off = new Set();
    this.isLog = false;
    /** @type {[number, number] | null} */
    this.steps = null;
    /** @type {number | null} x of the pointer, where a drag began */
    this.pointer = this.start = null;
    this.listen();
    this.observer = new ResizeObserver(() => this.schedule());
    this.observer.observe(plot);
  }

  /** @param {string} title another than it was made with */
  name(title) {
    this.title = this.heading.textContent = title;
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("pointerdown", (event) => {
      this.start = event.offsetX;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", (event) => this.release(event.offsetX));
    canvas.addEventListener("dblclick", () => this.zoom(null));
  }

  /** @param {Content} content */
  show(content) {
    this.content = content;
    this.root.hidden = !content.series.some((one) => one.points.length);
    this.renderLegend();
    const words = content.series.flatMap(({ label, points }) => (points.length ? [`${label} ${loss(points[points.length - 1].value)}`] : []));
    this.canvas.setAttribute("aria-label", `${this.title}: ${words.join(", ")}`);
    this.schedule();
  }

  renderLegend() {
    const labels = this.content.series.filter((one) => one.points.length).map(({ label, colour, isDots, isFaint }) => ({ label, colour, isDots, isFaint }));
    const key = JSON.stringify(labels);
    if (this.legend.dataset.key === key) return; // a new button would lose the focus
    this.legend.dataset.key = key;
    this.legend.style.visibility = labels.length > 1 ? "" : "hidden"; // the title says what a single one is
    this.legend.replaceChildren();
    for (const { label, colour, isDots, isFaint } of labels) {
      const button = makeButton(this.legend, label, t("Show or hide: {label}", { label }), () => {
        if (!this.off.delete(label)) this.off.add(label);
        button.setAttribute("aria-pressed", String(!this.off.has(label)));
        this.schedule();
      });
      button.setAttribute("aria-pressed", String(!this.off.has(label)));
      button.style.setProperty("--loom-key", colour);
      button.classList.toggle("loom-key-dots", Boolean(isDots));
      button.classList.toggle("loom-key-faint", Boolean(isFaint));
    }
  }

  toggleLog() {
    this.isLog = !this.isLog;
    this.log?.setAttribute("aria-pressed", String(this.isLog));
    this.schedule();
  }

  /** @param {[number, number] | null} steps */
  zoom(steps) {
    this.steps = steps;
    this.reset.hidden = !steps;
    this.schedule();
  }

  /** @param {number | null} x */
  point(x) {
    this.pointer = x;
    this.schedule();
  }

  /** @param {number} x */
  release(x) {
    const start = this.start;
    this.start = null;
    const place = this.place();
    if (start === null || !place || Math.abs(x - start) < 8) return;
    const [first, last] = [start, x].map((at) => place.stepAt(at)).sort((a, b) => a - b);
    this.zoom([Math.max(0, first), last]);
  }

  get visible() {
    return this.content.series.filter((one) => one.points.length && !this.off.has(one.label));
  }

  /** @returns {Axes | null} */
  place() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    /** @param {boolean} areDots */
    const of = (areDots) => this.visible.filter(({ isDots = false }) => isDots === areDots).flatMap((one) => one.points.flatMap(withEnds));
    const [values, measured] = [of(false), of(true)];
    const points = [...values, ...measured];
    if (!width || !height || !points.length) return null;
    const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const steps = points.map((point) => point.step);
    const first = steps.reduce((a, b) => Math.min(a, b));
    const last = steps.reduce((a, b) => Math.max(a, b), this.content.total);
    return axes(values, this.steps ?? [first, last], box, this.isLog, measured);
  }

  schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.draw();
    });
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const pen = this.canvas.getContext("2d");
    if (!pen || !width || !height) return;
    const sharp = Math.max(window.devicePixelRatio || 1, 2);
    this.canvas.width = width * sharp;
    this.canvas.height = height * sharp;
    pen.scale(sharp, sharp);
    const place = this.place();
    this.values.hidden = true;
    if (!place) return;
    this.drawGrid(pen, place, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(MARGIN.left - DOT, 0, width - MARGIN.left - MARGIN.right + 2 * DOT, height - MARGIN.bottom);
    pen.clip();
    for (const one of this.visible) drawIntervals(pen, place, one);
    for (const one of this.visible) drawSeries(pen, place, one);
    if (this.start !== null && this.pointer !== null) {
      pen.fillStyle = "#5b93f033";
      pen.fillRect(this.start, 0, this.pointer - this.start, height);
    }
    pen.restore();
    if (this.pointer !== null && this.start === null) this.drawPointer(pen, place, this.pointer, height);
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Axes} place
   * @param {number} width
   * @param {number} height
   */
  drawGrid(pen, place, width, height) {
    pen.font = "10px ui-sans-serif, system-ui, sans-serif";
    pen.fillStyle = getComputedStyle(this.canvas).color;
    pen.strokeStyle = "#80808033";
    pen.lineWidth = 1;
    pen.textAlign = "right";
    const lines = (this.isLog ? logTicks : ticks)(...place.values, Math.max(2, Math.floor(height / 40)));
    const texts = tickTexts(lines);
    for (const [number, value] of lines.entries()) {
      const y = Math.round(place.y(value)) + 0.5;
      pen.beginPath();
      pen.moveTo(MARGIN.left, y);
      pen.lineTo(width - MARGIN.right, y);
      pen.stroke();
      pen.fillText(texts[number], MARGIN.left - 5, y + 3);
    }
    pen.textAlign = "center";
    for (const step of ticks(...place.steps, Math.max(2, Math.floor(width / 90)))) {
      const x = Math.min(Math.max(place.x(step), MARGIN.left + 4), width - 20);
      pen.fillText(count(Math.round(step)), x, height - 5);
    }
    for (const step of this.content.marks ?? []) {
      const x = place.x(step);
      if (x >= MARGIN.left) pen.fillRect(x - 0.5, height - MARGIN.bottom, 1, 4);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Axes} place
   * @param {number} x
   * @param {number} height
   */
  drawPointer(pen, place, x, height) {
    const step = place.stepAt(x);
    const found = this.visible.flatMap((one) => {
      const point = nearest(one.points, step);
      return point ? [{ ...one, point }] : [];
    });
    if (x < MARGIN.left || !found.length) return;
    pen.fillStyle = "#80808080";
    pen.fillRect(x, MARGIN.top, 1, height - MARGIN.top - MARGIN.bottom);
    for (const { point, colour } of found) drawDot(pen, place.x(point.step), place.y(point.value), colour);
    this.values.hidden = false;
    this.values.replaceChildren();
    make("div", "", this.values, t("step {step}", { step: count(found[0].point.step) }));
    for (const { label, colour, point } of found) make("div", "", this.values, `${label} ${spread(point.value, point.low, point.high)}`).style.setProperty("--loom-key", colour);
    this.values.classList.toggle("loom-left", x > this.canvas.clientWidth / 2);
  }
}

/**
 * A point with the ends of its interval, all of which are to be seen.
 * @param {Point} point
 * @returns {Point[]}
 */
const withEnds = (point) => [point, ...[point.low, point.high].flatMap((value) => (value == null ? [] : [{ step: point.step, value }]))];

/**
 * The intervals of points, as bars.
 * @param {CanvasRenderingContext2D} pen
 * @param {Axes} place
 * @param {Series} series
 */
function drawIntervals(pen, place, { points, colour }) {
  pen.strokeStyle = colour;
  pen.globalAlpha = 0.5;
  pen.lineWidth = 1.5;
  pen.beginPath();
  for (const { step, low, high } of points) {
    if (low == null || high == null) continue;
    const x = place.x(step);
    pen.moveTo(x, place.y(low));
    pen.lineTo(x, place.y(high));
    for (const end of [low, high]) {
      pen.moveTo(x - 3, place.y(end));
      pen.lineTo(x + 3, place.y(end));
    }
  }
  pen.stroke();
  pen.globalAlpha = 1;
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Axes} place
 * @param {Series} series
 */
function drawSeries(pen, place, { points, colour, width = 1.75, isFaint, isDots }) {
  if (isDots || points.length === 1) {
    for (const { step, value } of points) drawDot(pen, place.x(step), place.y(value), colour);
    if (points.length < 2) return;
  }
  pen.strokeStyle = colour;
  pen.globalAlpha = isFaint ? 0.35 : 1;
  pen.lineWidth = isDots ? 1 : width;
  pen.lineJoin = "round";
  pen.beginPath();
  for (const { step, value } of thinned(points, MOST_POINTS)) pen.lineTo(place.x(step), place.y(value));
  pen.stroke();
  pen.globalAlpha = 1;
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {number} x
 * @param {number} y
 * @param {string} colour
 */
function drawDot(pen, x, y, colour) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.arc(x, y, 2.75, 0, 2 * Math.PI);
  pen.fill();
}
