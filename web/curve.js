// The loss curve on a canvas: raw values faint, smoothed ones strong, held-out losses as dots.

import { count, loss, smoothed, thinned, usualRange } from "./format.js";

const MARGIN = { left: 8, right: 42, top: 8, bottom: 16 };
const COLOURS = { raw: "#6b8fd455", smooth: "#7fb0ff", fill: "#7fb0ff22", held: "#ffb454", grid: "#ffffff14", text: "#8d96a6" };
const MOST_POINTS = 1500;

export class Curve {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "loom-curve";
    this.series = { loss: [], held: [], total: 0 };
    this.scheduled = false;
    // Its size is known only once it is on the page, and changes with the node.
    new ResizeObserver(() => this.schedule()).observe(this.canvas);
  }

  /** `points`: [{step, value}]; `held`: the same of held-out losses; `total`: steps of the whole run. */
  show(points, held, total) {
    this.series = { loss: points, held, total };
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
    pen.scale(sharp, sharp);
    pen.font = "10px ui-sans-serif, system-ui, sans-serif";
    const box = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const { loss: all, held, total } = this.series;
    if (!all.length) return this.empty(pen, box);
    const place = scale(all, held, total, box);
    this.grid(pen, box, place);
    this.lines(pen, box, place, all);
    for (const point of held) this.dot(pen, place.x(point.step), place.y(point.value));
    return undefined;
  }

  empty(pen, box) {
    pen.fillStyle = COLOURS.text;
    pen.textAlign = "center";
    pen.fillText("the loss appears with the first steps", (box.left + box.right) / 2, (box.top + box.bottom) / 2);
  }

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

  lines(pen, box, place, all) {
    const span = all[all.length - 1].step - all[0].step;
    const values = smoothed(all, Math.max(span / 25, 2));
    const smooth = all.map((point, index) => ({ step: point.step, value: values[index] }));
    pen.save();
    pen.beginPath();
    pen.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    pen.clip();
    this.line(pen, place, thinned(all, MOST_POINTS), COLOURS.raw, 1);
    const shown = thinned(smooth, MOST_POINTS);
    this.area(pen, box, place, shown);
    this.line(pen, place, shown, COLOURS.smooth, 1.75);
    pen.restore();
    const end = shown[shown.length - 1];
    this.dot(pen, place.x(end.step), place.y(end.value), COLOURS.smooth);
  }

  line(pen, place, points, colour, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.lineJoin = "round";
    pen.beginPath();
    points.forEach(({ step, value }, index) => pen[index ? "lineTo" : "moveTo"](place.x(step), place.y(value)));
    pen.stroke();
  }

  area(pen, box, place, points) {
    pen.fillStyle = COLOURS.fill;
    pen.beginPath();
    pen.moveTo(place.x(points[0].step), box.bottom);
    for (const { step, value } of points) pen.lineTo(place.x(step), place.y(value));
    pen.lineTo(place.x(points[points.length - 1].step), box.bottom);
    pen.fill();
  }

  dot(pen, x, y, colour = COLOURS.held) {
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(x, y, 2.75, 0, 2 * Math.PI);
    pen.fill();
  }
}

/** Where a step and a value lie in the box. The whole run is as wide as the box, so the curve grows into it. */
function scale(all, held, total, box) {
  const [low, high] = usualRange([...all, ...held].map((point) => point.value));
  const first = Math.min(all[0].step, held[0]?.step ?? Infinity);
  const last = Math.max(total, all[all.length - 1].step, first + 1);
  return {
    low, high, first, last,
    x: (step) => box.left + ((step - first) / (last - first)) * (box.right - box.left),
    y: (value) => box.bottom - ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (box.bottom - box.top),
  };
}
