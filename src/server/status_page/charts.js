// Throughput and latency of the last ten minutes, drawn by uPlot.

import { clock, latency, rate } from "./format.js";
import { setText } from "./table.js";

const WINDOW_SECONDS = 600;

/** Shorter than anything that is measured, and none of it is zero on a logarithmic scale. */
const LATENCY_MIN = 1e-6;

const color = (name) => () => getComputedStyle(document.body).getPropertyValue(name).trim();

const translucent = (name) => () => `${color(name)()}26`;

const AXIS = {
  stroke: color("--muted"),
  font: "12px system-ui, sans-serif",
  ticks: { show: false },
  grid: { stroke: color("--rule"), width: 1 },
};

const TIME_AXIS = {
  ...AXIS,
  grid: { show: false },
  space: 64,
  size: 28,
  values: (_, times) => times.map((time) => clock(time).slice(0, 5)),
};

/** Without needless zeros behind the point. */
const short = (text) => text.replace(/\.0+(?= )/, "");

const BYTES_AXIS = {
  ...AXIS,
  size: 76,
  space: 36,
  incrs: Array.from({ length: 50 }, (_, power) => 2 ** power),
  values: (_, values) => values.map((value) => (value === 0 ? "0" : short(rate(value)))),
};

/** Whole powers of ten only, or `null`. */
const decadesOf = (_, values) =>
  values.map((value) => {
    const power = Math.log10(value);
    return Math.abs(power - Math.round(power)) < 1e-9 ? value : null;
  });

const LATENCY_AXIS = {
  ...AXIS,
  size: 76,
  space: 24,
  filter: decadesOf,
  grid: { ...AXIS.grid, filter: decadesOf },
  values: (_, values) => values.map((value) => (value === null ? "" : short(latency(value)))),
};

/** A sample between two that are missing has no line, so it gets a point. */
const lonely = (plot, series) => {
  const values = plot.data[series];
  const isMissing = (place) => (values[place] ?? null) === null;
  return [...values.keys()].filter(
    (place) => !isMissing(place) && isMissing(place - 1) && isMissing(place + 1),
  );
};

const LINE = { width: 1.75, points: { show: true, size: 4, filter: lonely } };

class Chart {
  #plot;
  #element;
  #moment = document.createElement("span");
  #values;

  /** `lines` has for each series what it is called and how its values are written. */
  constructor(name, { scales, ...options }, lines) {
    this.#element = document.getElementById(`${name}-chart`);
    const readout = document.getElementById(`${name}-readout`);
    readout.append(this.#moment);
    this.#values = lines.map(([label, format]) => {
      const [key, value] = [document.createElement("span"), document.createElement("span")];
      key.className = `key ${label}`;
      readout.append(key, label === "" ? "" : `${label} `, value);
      return [value, format];
    });
    const empty = [[], ...options.series.slice(1).map(() => [])];
    this.#plot = new uPlot(
      {
        ...this.#size(),
        padding: [8, 4, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
        scales: { x: { time: true }, ...scales },
        hooks: { setCursor: [() => this.#tell()] },
        ...options,
      },
      empty,
      this.#element,
    );
    new ResizeObserver(() => this.#plot.setSize(this.#size())).observe(this.#element);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", () => this.#plot.redraw());
    this.#element.addEventListener("keydown", (event) => this.#move(event));
    this.#element.addEventListener("blur", () => this.#plot.setCursor({ left: -10, top: -10 }));
  }

  /** Times in seconds, and the values of each series. */
  show(end, times, series, summary) {
    this.#plot.batch(() => {
      this.#plot.setData([times, ...series], false);
      this.#plot.setScale("x", { min: end - WINDOW_SECONDS, max: end });
    });
    const title = document.getElementById(this.#element.id.replace("chart", "title")).textContent;
    this.#element.setAttribute("aria-label", `${title}, last ten minutes: ${summary}`);
    this.#tell();
  }

  /** The values under the cursor, else the newest. */
  #tell() {
    if (!this.#plot) return;
    const [times, ...series] = this.#plot.data;
    const index = this.#plot.cursor.idx ?? times.length - 1;
    setText(this.#moment, index < 0 ? "no samples yet" : clock(times[index]));
    for (const [place, [value, format]] of this.#values.entries()) {
      setText(value, index < 0 ? "–" : format(series[place][index]));
    }
  }

  /** Arrow keys move the cursor from sample to sample. */
  #move(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const times = this.#plot.data[0];
    if (!step || times.length === 0) return;
    event.preventDefault();
    const from = this.#plot.cursor.idx ?? times.length - (step < 0 ? 0 : 1);
    const index = Math.min(times.length - 1, Math.max(0, from + step));
    this.#plot.setCursor({ left: this.#plot.valToPos(times[index], "x"), top: 1 });
  }

  #size() {
    return { width: this.#element.clientWidth, height: this.#element.clientHeight };
  }
}

export class Charts {
  #throughput = new Chart(
    "throughput",
    {
      scales: { y: { range: (_, __, most) => [0, Math.max(most || 0, 1024) * 1.1] } },
      axes: [TIME_AXIS, BYTES_AXIS],
      series: [{}, { ...LINE, stroke: color("--first"), fill: translucent("--first") }],
    },
    [["", rate]],
  );

  #latency = new Chart(
    "latency",
    {
      scales: { y: { distr: 3, range: (_, least, most) => decades(least, most) } },
      axes: [TIME_AXIS, LATENCY_AXIS],
      series: [
        {},
        { ...LINE, stroke: color("--first"), dash: [5, 3] },
        { ...LINE, stroke: color("--second") },
      ],
    },
    [["p50", latency], ["p99", latency]],
  );

  show(history) {
    const { interval_seconds: interval, end_unix_seconds: end } = history;
    const read = history.read_bytes_per_second;
    const times = read.map((_, index) => end - (read.length - 1 - index) * interval);
    const positive = (values) =>
      values.map((value) => (value === null ? null : Math.max(value, LATENCY_MIN)));
    const [half, most] = [history.latency_p50_seconds, history.latency_p99_seconds].map(positive);
    const highest = (values) => values.reduce((high, value) => Math.max(high, value ?? 0), 0);
    const inWords = `${rate(read.at(-1) ?? 0)} now, ${rate(highest(read))} at most`;
    this.#throughput.show(end, times, [read], inWords);
    const slowest = highest(most);
    this.#latency.show(
      end,
      times,
      [half, most],
      slowest > 0
        ? `now half of them within ${latency(half.at(-1))}, 99 % within ${latency(most.at(-1))}; ` +
          `at worst 99 % within ${latency(slowest)}`
        : "no reads",
    );
  }
}

/** Whole powers of ten around the values. */
function decades(min, max) {
  if (!(max > 0)) return [1e-5, 1e-1];
  const low = Math.floor(Math.log10(Math.max(min, LATENCY_MIN)));
  const high = Math.ceil(Math.log10(max));
  return [10 ** low, 10 ** Math.max(high, low + 1)];
}

