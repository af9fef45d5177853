// Two small pictures: a line of the last minutes, and the map of KV blocks.

import { svg } from "./dom.js";

const LENGTH = 120;
const LEAST = 20; // a line of fewer values begins at the right

/** A line of the newest LENGTH values, the newest at the right. */
export class Sparkline {
  constructor() {
    this.values = [];
    this.line = svg("path", { class: "spark-line" });
    this.area = svg("path", { class: "spark-area" });
    this.element = svg("svg", { class: "spark", viewBox: `0 0 ${LENGTH} 32`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line);
  }

  add(value) {
    this.values.push(value ?? 0);
    if (this.values.length > LENGTH) this.values.shift();
    const top = Math.max(1, ...this.values);
    const step = LENGTH / Math.max(LEAST, this.values.length - 1);
    const start = LENGTH - step * (this.values.length - 1);
    const points = this.values.map((one, index) => `${(start + step * index).toFixed(1)},${(30 - (28 * one) / top).toFixed(1)}`);
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${points.join("L")}L${LENGTH},32L${start.toFixed(1)},32Z`);
  }
}

/** Cells of blocks on a canvas: free, cached, used, as docs/live.md describes kv_map. legend holds an element .free,
 *  .cached and .used each, whose background is the colour. */
export function drawKvMap(canvas, map, legend) {
  const cells = Uint8Array.from(atob(map), (char) => char.charCodeAt(0));
  const width = canvas.clientWidth;
  if (!width || !cells.length) return;
  const size = Math.max(6, Math.min(16, Math.floor(Math.sqrt((width * 96) / cells.length))));
  const columns = Math.max(1, Math.floor(width / size));
  const height = Math.ceil(cells.length / columns) * size;
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
  }
  const colour = (name) => getComputedStyle(legend.querySelector(`.${name}`)).backgroundColor;
  const [free, cached, used] = ["free", "cached", "used"].map(colour);
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  cells.forEach((cell, index) => {
    const x = (index % columns) * size;
    const y = Math.floor(index / columns) * size;
    context.globalAlpha = 1;
    context.fillStyle = free;
    context.fillRect(x, y, size - 1.5, size - 1.5);
    if (!cell) return;
    context.globalAlpha = 0.35 + 0.65 * (cell < 128 ? cell / 127 : (cell - 127) / 128);
    context.fillStyle = cell < 128 ? cached : used;
    context.fillRect(x, y, size - 1.5, size - 1.5);
  });
}
