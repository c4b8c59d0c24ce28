// uPlot in this page's colours: lines over time, and stacked bars by day.

import { el } from "./dom.js";
import { clock } from "./format.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const SERIES = 6;
const plots = new Set();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of plots) plot.redraw();
});

/** Swatches repeat after six: the table beneath says which is which. */
export const swatch = (index) => el("i", { class: `swatch s${(index % SERIES) + 1}` });

const axis = (extra) => ({
  stroke: () => colour("--muted"),
  grid: { stroke: () => colour("--grid"), width: 1 },
  ticks: { show: false },
  font: "11px system-ui, sans-serif",
  gap: 4,
  ...extra,
});

const seriesColour = (index) => () => colour(`--series-${(index % SERIES) + 1}`);

const upTo = (least) => (plot, low, high) => [0, Math.max(high * 1.05, least)];

/** Values without neighbours, which a line would not show. */
function alone(plot, series) {
  const values = plot.data[series];
  const isAlone = (at) => values[at] != null && values[at - 1] == null && values[at + 1] == null;
  return [...values.keys()].filter(isAlone);
}

/** A uPlot as wide as its host; those that were taken out of the page are let go. */
function mount(host, options, data) {
  for (const old of plots) {
    if (old.root.isConnected) continue;
    old.destroy();
    plots.delete(old);
  }
  const plot = new uPlot(
    { width: host.clientWidth || 300, legend: { show: false }, ...options },
    data,
    host,
  );
  plots.add(plot);
  new ResizeObserver(() => {
    if (host.clientWidth) plot.setSize({ width: host.clientWidth, height: options.height });
  }).observe(host);
  return plot;
}

/**
 * A figure of a few lines over the last minutes. Its caption has the newest values, or those under
 * the pointer. `lines`: [{name, format}], `top`: where the scale ends at least.
 */
export class LinePlot {
  constructor(title, lines, top) {
    this.title = title;
    this.lines = lines;
    this.when = el("span", { class: "muted" });
    this.values = lines.map(() => el("b"));
    const legend = lines.map((line, index) =>
      el("span", {}, lines.length > 1 && swatch(index), this.values[index], ` ${line.name}`),
    );
    this.host = el("div", { role: "img", class: "plot" });
    this.figure = el(
      "figure",
      {},
      el("figcaption", {}, el("span", { class: "title" }, title), ...legend, this.when),
      this.host,
    );
    this.options = this.#options(top);
  }

  #options(top) {
    return {
      height: 92,
      padding: [6, 4, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      hooks: { setCursor: [(plot) => this.#caption(plot.cursor.idx)] },
      scales: { x: { range: () => this.window }, y: { range: upTo(top) } },
      axes: [
        axis({ size: 22, gap: 6, space: 60, values: (_, at) => at.map(clock) }),
        axis({ size: 44, space: 28, values: (_, at) => at.map(this.lines[0].format) }),
      ],
      series: [
        {},
        ...this.lines.map((_, index) => ({
          stroke: seriesColour(index),
          width: 1.5,
          points: { show: false, filter: alone, size: 4 },
        })),
      ],
    };
  }

  /** `columns`: the times, then the values of each line. */
  update(columns, window) {
    this.columns = columns;
    this.window = window;
    if (this.plot) this.plot.setData(columns);
    else this.plot = mount(this.host, this.options, columns);
    if (this.plot.cursor.idx == null) this.#caption(null);
    this.host.setAttribute("aria-label", this.#described());
  }

  #caption(index) {
    const at = index ?? this.columns[0].length - 1;
    this.values.forEach((value, line) => {
      value.textContent = this.lines[line].format(this.columns[line + 1][at]);
    });
    this.when.textContent = index == null ? "" : clock(this.columns[0][index]);
  }

  #described() {
    const parts = this.lines.map(({ name, format }, line) => {
      const values = this.columns[line + 1];
      const most = Math.max(...values.filter((value) => value != null));
      const peak = Number.isFinite(most) ? `, at most ${format(most)}` : "";
      return `${name} now ${format(values.at(-1))}${peak}`;
    });
    return `${this.title}, last 15 minutes: ${parts.join("; ")}`;
  }
}

/** Bars by day; each of `stacks` [{name, values}] lies on those after it. */
export function stackedBars(days, stacks, format, label) {
  const host = el("div", { role: "img", "aria-label": label, class: "plot" });
  const heights = [];
  for (const { values } of [...stacks].reverse()) {
    const below = heights[0] ?? days.map(() => 0);
    heights.unshift(values.map((value, day) => value + below[day]));
  }
  const options = {
    height: 220,
    padding: [8, 8, 0, 0],
    cursor: { show: false },
    scales: { x: { time: false, range: [-0.6, days.length - 0.4] }, y: { range: upTo(1) } },
    axes: [
      axis({
        size: 22,
        incrs: [1, 2, 7, 14, 28, 56],
        values: (_, at) => at.map((day) => days[day]?.slice(5) ?? ""),
      }),
      axis({ size: 56, values: (_, at) => at.map(format) }),
    ],
    series: [
      {},
      ...stacks.map((_, index) => ({
        stroke: seriesColour(index),
        fill: seriesColour(index),
        width: 0,
        points: { show: false },
        paths: uPlot.paths.bars({ size: [0.7, 40] }),
      })),
    ],
  };
  // uPlot measures its host, which has a width only once it is in the document.
  requestAnimationFrame(() => mount(host, options, [days.map((_, day) => day), ...heights]));
  return host;
}
