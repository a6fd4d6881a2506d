// @ts-check
// The loss curve on a canvas: raw values faint, smoothed ones strong, validation losses as dots.

import { count, loss } from "./format.js";
import { ownHeight, scale, smoothed, thinned } from "./series.js";
import { t } from "./texts.js";

/**
 * @typedef {import("./series.js").Point} Point
 * @typedef {import("./series.js").Box} Box
 * @typedef {import("./series.js").Scale} Scale
 * @typedef {CanvasRenderingContext2D} Pen
 */

const MARGIN = { left: 8, right: 42, top: 22, bottom: 16 }; // the legend lies above the curve
// Lines that are seen on a dark and on a light ground; the text has the colour of the panel's, which follows the theme.
const COLOURS = { raw: "#5b93f066", smooth: "#5b93f0", fill: "#5b93f022", validation: "#e08a1e", likeness: "#3fae7a", grid: "#80808033", text: "#8d96a6" };
const MOST_POINTS = 1500;

/**
 * The curve in words.
 * @param {Point[]} losses
 * @param {Point[]} validation
 */
export function described(losses, validation) {
  /** @param {string} name @param {Point[]} points */
  const part = (name, points) => {
    const last = points[points.length - 1];
    return last ? [t("{name} {loss} at step {step}", { name, loss: loss(last.value), step: count(last.step) })] : [];
  };
  return [...part(t("Loss"), losses), ...part(t("validation loss"), validation)].join(", ") || t("No loss yet");
}

export class Curve {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "loom-curve";
    /** @type {{losses: Point[], validation: Point[], total: number, likeness: Point[]}} */
    this.series = { losses: [], validation: [], total: 0, likeness: [] };
    this.canvas.setAttribute("role", "img");
    this.scheduled = false;
    // Its size is known only once it is on the page, and changes with the node.
    new ResizeObserver(() => this.schedule()).observe(this.canvas);
  }

  /**
   * @param {Point[]} losses
   * @param {Point[]} validation
   * @param {number} total steps of the whole run; 0 while it is not known
   * @param {Point[]} likeness of the samples to the training images, on a scale of its own
   */
  show(losses, validation, total, likeness = []) {
    this.series = { losses, validation, total, likeness };
    this.canvas.setAttribute("aria-label", described(losses, validation));
    this.schedule();
  }

  /** Draw once before the next frame, however many events came in. */
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
    if (!width || !height) return;
    const sharp = Math.max(window.devicePixelRatio || 1, 2);
    this.canvas.width = width * sharp;
    this.canvas.height = height * sharp;
    const pen = this.canvas.getContext("2d");
    if (!pen) return;
    pen.scale(sharp, sharp);
    COLOURS.text = getComputedStyle(this.canvas).color;
    pen.font = "10px ui-sans-serif, system-ui, sans-serif";
    const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const { losses, validation, total, likeness } = this.series;
    if (!losses.length) {
      this.empty(pen, box);
      return;
    }
    const place = scale(losses, validation, total, box);
    this.grid(pen, box, place);
    this.lines(pen, box, place, losses);
    if (likeness.length) this.intervals(pen, box, place, likeness);
    for (const point of validation) this.dot(pen, place.x(point.step), place.y(point.value));
  }

  /**
   * Values on a scale of their own, each with its interval.
   * @param {Pen} pen
   * @param {Box} box
   * @param {Scale} place
   * @param {Point[]} points
   */
  intervals(pen, box, place, points) {
    const y = ownHeight(points, box);
    this.line(pen, { ...place, y }, points, COLOURS.likeness, 1);
    for (const { step, value, low, high } of points) {
      pen.beginPath();
      pen.moveTo(place.x(step), y(low ?? value));
      pen.lineTo(place.x(step), y(high ?? value));
      pen.stroke();
      this.dot(pen, place.x(step), y(value), COLOURS.likeness);
    }
  }

  /**
   * @param {Pen} pen
   * @param {Box} box
   */
  empty(pen, box) {
    pen.fillStyle = COLOURS.text;
    pen.textAlign = "center";
    pen.fillText(t("No loss yet"), (box.left + box.right + MARGIN.right - MARGIN.left) / 2, (box.top + box.bottom) / 2);
  }

  /**
   * @param {Pen} pen
   * @param {Box} box
   * @param {Scale} place
   */
  grid(pen, box, place) {
    pen.strokeStyle = COLOURS.grid;
    pen.lineWidth = 1;
    for (const share of [0, 0.5, 1]) {
      const y = Math.round(box.top + share * (box.bottom - box.top)) + 0.5;
      pen.beginPath();
      pen.moveTo(box.left, y);
      pen.lineTo(box.right, y);
      pen.stroke();
    }
    pen.fillStyle = COLOURS.text;
    pen.textAlign = "left";
    pen.fillText(loss(place.high), box.right + 5, box.top + 5);
    pen.fillText(loss((place.high + place.low) / 2), box.right + 5, (box.top + box.bottom) / 2 + 3);
    pen.fillText(loss(place.low), box.right + 5, box.bottom + 2);
    pen.fillText(count(place.first), box.left, box.bottom + 12);
    pen.textAlign = "right";
    pen.fillText(count(place.last), box.right, box.bottom + 12);
  }

  /**
   * @param {Pen} pen
   * @param {Box} box
   * @param {Scale} place
   * @param {Point[]} losses
   */
  lines(pen, box, place, losses) {
    const span = losses[losses.length - 1].step - losses[0].step;
    const values = smoothed(losses, Math.max(span / 25, 2));
    const smooth = losses.map((point, index) => ({ step: point.step, value: values[index] }));
    pen.save();
    pen.beginPath();
    pen.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    pen.clip();
    this.line(pen, place, thinned(losses, MOST_POINTS), COLOURS.raw, 1);
    const shown = thinned(smooth, MOST_POINTS);
    this.area(pen, box, place, shown);
    this.line(pen, place, shown, COLOURS.smooth, 1.75);
    pen.restore();
    const end = shown[shown.length - 1];
    this.dot(pen, place.x(end.step), place.y(end.value), COLOURS.smooth);
  }

  /**
   * @param {Pen} pen
   * @param {Scale} place
   * @param {Point[]} points
   * @param {string} colour
   * @param {number} width
   */
  line(pen, place, points, colour, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.lineJoin = "round";
    pen.beginPath();
    for (const { step, value } of points) pen.lineTo(place.x(step), place.y(value)); // the first only moves there
    pen.stroke();
  }

  /**
   * @param {Pen} pen
   * @param {Box} box
   * @param {Scale} place
   * @param {Point[]} points
   */
  area(pen, box, place, points) {
    pen.fillStyle = COLOURS.fill;
    pen.beginPath();
    pen.moveTo(place.x(points[0].step), box.bottom);
    for (const { step, value } of points) pen.lineTo(place.x(step), place.y(value));
    pen.lineTo(place.x(points[points.length - 1].step), box.bottom);
    pen.fill();
  }

  /**
   * @param {Pen} pen
   * @param {number} x
   * @param {number} y
   */
  dot(pen, x, y, colour = COLOURS.validation) {
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(x, y, 2.75, 0, 2 * Math.PI);
    pen.fill();
  }
}
