// The last report of the conformance kit: what passed, and what did not and why.

import { byId, el, notice, problem, table } from "./dom.js";
import { count, seconds } from "./format.js";
import { getJson } from "./server.js";

const COUNTS = [
  "passed",
  "failed",
  "differs",
  "expected",
  "not_applicable",
  "not_judged",
  "not_run",
];
const words = (name) => name.replaceAll("_", " ");

/** As the report counts it: a failure may be expected, or be of a case that is only observed. */
function standing({ outcome, expected, level }) {
  if (outcome !== "failed") return outcome;
  if (expected != null) return "expected";
  return level === "observed" ? "differs" : "failed";
}

function heading(report) {
  const facts = [
    report.target,
    new Date(report.began_at).toLocaleString(),
    `${count(report.counts.cases)} cases in ${seconds(report.elapsed_s)}`,
    `kit ${report.kit_version}`,
  ];
  return [
    el("h3", { class: report.conforms ? "verdict good" : "verdict bad" }, report.verdict),
    el(
      "p",
      { class: "summary" },
      facts.map((fact) => el("span", {}, fact)),
    ),
  ];
}

function levels(report) {
  const rows = Object.entries({ ...report.levels, all: report.counts }).map(([name, counts]) => [
    name,
    ...COUNTS.map((outcome) => count(counts[outcome])),
  ]);
  const columns = ["level", ...COUNTS.map(words)];
  return table("Cases by level", columns, rows, new Set(columns.slice(1)));
}

function exchange({ name, request, answer }) {
  return [
    el("h4", {}, name),
    el("pre", { tabindex: "0" }, request.curl),
    el("pre", { tabindex: "0" }, `${answer.status ?? answer.failure}\n${answer.text}`),
  ];
}

function entry(item) {
  const { id, way, message, quote, source, level, expected, exchanges = [] } = item;
  return el(
    "details",
    { class: "case" },
    el(
      "summary",
      {},
      el("span", { class: "state", "data-state": standing(item) }, standing(item)),
      el("code", {}, id),
      el("span", { class: "muted" }, [way, level].filter(Boolean).join(", ")),
    ),
    el("p", {}, message),
    expected && el("p", { class: "muted" }, `Expected: ${expected}`),
    quote && el("blockquote", {}, quote),
    source && el("p", { class: "muted" }, source),
    ...exchanges.flatMap(exchange),
  );
}

function untried(cases) {
  const reasons = new Map();
  for (const { outcome, message } of cases) {
    if (outcome === "passed" || outcome === "failed") continue;
    const reason = `${outcome}: ${message}`;
    reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
  }
  if (reasons.size === 0) return null;
  const items = [...reasons].map(([reason, number]) => el("li", {}, `${count(number)} ${reason}`));
  return el("details", {}, el("summary", {}, "Cases that were not tried"), el("ul", {}, items));
}

function shown(report) {
  const failed = report.cases.filter((item) => item.outcome === "failed");
  const order = { failed: 0, differs: 1, expected: 2 };
  failed.sort((a, b) => order[standing(a)] - order[standing(b)]);
  return [
    ...heading(report),
    levels(report),
    el("h3", {}, failed.length ? "Cases that did not pass" : "Every case that was tried passed"),
    ...failed.map(entry),
    untried(report.cases),
  ].filter(Boolean);
}

export class ConformanceView {
  async show() {
    const body = byId("conformance-body");
    try {
      const report = await getJson("admin/conformance");
      body.replaceChildren(el("div", { class: "panel" }, shown(report)));
    } catch (error) {
      body.replaceChildren(...this.#missing(error));
    }
  }

  #missing(error) {
    if (error.status === 404) {
      const how = "tenuto conform run --base-url … --json STATE_DIR/conformance.json writes one.";
      return [notice("No report yet", how)];
    }
    const isClosed = [401, 403].includes(error.status);
    const why = isClosed && notice("For owners", "The report is shown for an admin key.");
    return [why, problem(error)].filter(Boolean);
  }
}
