// Elements without markup: what a server sends is always text.

export const byId = (id) => document.getElementById(id);

/** `attributes` that are false or null are left out; one that begins with "on" is a listener. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

export const button = (label, onclick, attributes = {}) =>
  el("button", { type: "button", onclick, ...attributes }, label);

/** A table whose cells are texts; the columns named in `numbers` are aligned to the right. */
export function table(caption, columns, rows, numbers = new Set()) {
  const side = (index) => (numbers.has(columns[index]) ? "number" : null);
  const cell = (tag) => (text, index) => el(tag, { class: side(index) }, text);
  const head = columns.map((name, index) => el("th", { scope: "col", class: side(index) }, name));
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, head)),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, row.map(cell("td")))),
      ),
    ),
  );
}

/** What a server refused, in its own words. */
export function problem(error) {
  const facts = [
    ["parameter", error.param],
    ["type", error.type],
    ["code", error.code],
    ["request", error.requestId],
    ["retry after", error.retryAfter && `${error.retryAfter} s`],
  ].filter(([, value]) => value);
  return el(
    "div",
    { class: "problem", role: "alert" },
    el("p", {}, error.message),
    facts.length > 0 &&
      el(
        "dl",
        {},
        facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
      ),
  );
}

export const notice = (title, ...texts) =>
  el(
    "div",
    { class: "notice" },
    el("h3", {}, title),
    texts.map((text) => el("p", {}, text)),
  );
