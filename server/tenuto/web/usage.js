// Who used what: sums by day, key and model, for owners.

import { byId, el, notice, problem, table } from "./dom.js";
import { count } from "./format.js";
import { stackedBars, swatch } from "./plots.js";
import { ask, getJson } from "./server.js";

const DAY_MS = 24 * 3600 * 1000;
const MAX_ROWS = 500;
const COLUMNS = {
  requests: "requests",
  errors: "errors",
  prompt_tokens: "prompt tokens",
  cached_tokens: "cached",
  completion_tokens: "completion tokens",
};
const MEASURES = {
  tokens: (row) => row.prompt_tokens + row.completion_tokens,
  requests: (row) => row.requests,
};

const day = (milliseconds) => new Date(milliseconds).toISOString().slice(0, 10);
const short = new Intl.NumberFormat("en", { notation: "compact" });

function days(since, until) {
  const found = [];
  for (let at = Date.parse(since); at <= Date.parse(until); at += DAY_MS) found.push(day(at));
  return found;
}

const keyOf = (row) => (row.note ? `${row.key} (${row.note})` : row.key);

/** Sums by what the bars are stacked of, the largest first: [{name, values, total}]. */
function stacks(rows, all, nameOf, measure) {
  const found = new Map();
  for (const row of rows) {
    const name = nameOf(row);
    if (!found.has(name)) found.set(name, { name, values: all.map(() => 0), total: 0 });
    const value = measure(row);
    found.get(name).values[all.indexOf(row.day)] += value;
    found.get(name).total += value;
  }
  return [...found.values()].sort((a, b) => b.total - a.total);
}

export class UsageView {
  constructor() {
    byId("until").value = day(Date.now());
    byId("since").value = day(Date.now() - 29 * DAY_MS);
    byId("usage-form").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["since", "until"]) byId(id).addEventListener("change", () => this.show());
    for (const id of ["measure", "stack"])
      byId(id).addEventListener("change", () => this.#render());
    byId("csv").addEventListener("click", () => this.#download());
  }

  #question(format) {
    const { value: since } = byId("since");
    const { value: until } = byId("until");
    const asked = new URLSearchParams({ since, until, format });
    for (const name of ["day", "key", "model"]) asked.append("by", name);
    return `admin/usage?${asked}`;
  }

  async show() {
    const turn = (this.turn = {});
    try {
      const { data } = await getJson(this.#question("json"));
      if (turn !== this.turn) return;
      this.rows = data;
      this.#render();
    } catch (error) {
      if (turn !== this.turn) return;
      this.rows = null;
      const isClosed = [401, 403].includes(error.status);
      const why = isClosed && notice("For owners", "Usage is shown for an admin key.");
      byId("usage-body").replaceChildren(...[why, problem(error)].filter(Boolean));
    }
  }

  #render() {
    if (!this.rows) return;
    const body = byId("usage-body");
    if (this.rows.length === 0) {
      body.replaceChildren(notice("No requests", "Nothing was asked on these days (UTC)."));
      return;
    }
    body.replaceChildren(this.#plot(), this.#table());
  }

  #plot() {
    const measure = byId("measure").value;
    const by = byId("stack").value;
    const last = this.rows.at(-1).day;
    const all = days(byId("since").value || this.rows[0].day, byId("until").value || last);
    const nameOf = by === "key" ? keyOf : (row) => row.model;
    const found = stacks(this.rows, all, nameOf, MEASURES[measure]);
    const total = found.reduce((sum, stack) => sum + stack.total, 0);
    const span = all.length === 1 ? all[0] : `${all.length} days`;
    const text = `${count(total)} ${measure} ${all.length === 1 ? "on" : "in"} ${span}`;
    const legend = found.map(({ name, total: part }, index) =>
      el("span", {}, swatch(index), `${name} `, el("b", {}, count(part))),
    );
    return el(
      "figure",
      { class: "panel" },
      el("figcaption", {}, el("span", { class: "title" }, text), ...legend),
      stackedBars(all, found, (value) => short.format(value), `${text}, by ${by} and day`),
    );
  }

  #table() {
    const fields = Object.keys(COLUMNS);
    const newest = [...this.rows].reverse().slice(0, MAX_ROWS);
    const cells = newest.map((row) => [
      row.day,
      keyOf(row),
      row.model,
      ...fields.map((name) => count(row[name])),
    ]);
    const numbers = new Set(Object.values(COLUMNS));
    const shown = table(
      "Usage by day, key and model",
      ["day", "key", "model", ...numbers],
      cells,
      numbers,
    );
    const left = this.rows.length - newest.length;
    const more =
      left > 0 && el("p", { class: "muted" }, `${count(left)} older rows are in the CSV.`);
    return el("div", { class: "panel" }, shown, more || "");
  }

  async #download() {
    try {
      const file = await (await ask(this.#question("csv"))).blob();
      const url = URL.createObjectURL(file);
      el("a", {
        href: url,
        download: `usage-${byId("since").value}-${byId("until").value}.csv`,
      }).click();
      URL.revokeObjectURL(url);
    } catch (error) {
      byId("usage-body").replaceChildren(problem(error));
    }
  }
}
