// Tokens in colours, the less likely the stronger; the alternatives of one under pointer or focus.

import { el } from "./dom.js";

const MOVES = { ArrowRight: 1, ArrowLeft: -1 };
const tooltip = el("div", { id: "alternatives", role: "tooltip", hidden: true });
document.body.append(tooltip);

const probability = (logprob) => Math.exp(logprob);
// Without the sign of a zero.
const rounded = (logprob) => (Math.round(logprob * 1000) / 1000 + 0).toFixed(3);
const inPercent = (logprob) => `${(probability(logprob) * 100).toFixed(1)} %`;

function show(element, { token, logprob, top }) {
  const rows = top.some((other) => other.token === token) ? top : [{ token, logprob }, ...top];
  const ordered = [...rows].sort((a, b) => b.logprob - a.logprob);
  tooltip.replaceChildren(
    ...ordered.map((row) => {
      const bar = el("i", { class: "share" });
      bar.style.setProperty("--share", probability(row.logprob));
      const mark = row.token === token ? "taken" : null;
      return el(
        "div",
        { class: mark },
        el("code", {}, JSON.stringify(row.token)),
        bar,
        el("span", {}, inPercent(row.logprob)),
        el("span", { class: "muted" }, rounded(row.logprob)),
      );
    }),
  );
  tooltip.hidden = false;
  element.setAttribute("aria-describedby", tooltip.id);
  place(element.getBoundingClientRect());
}

/** Beneath the token, or above it where there is no room. */
function place(at) {
  const { offsetWidth: width, offsetHeight: height } = tooltip;
  const left = Math.max(8, Math.min(at.left, innerWidth - width - 8));
  const below = at.bottom + 6;
  const top = below + height < innerHeight ? below : at.top - height - 6;
  tooltip.style.left = `${left}px`;
  tooltip.style.top = `${Math.max(8, top)}px`;
}

function hide(element) {
  tooltip.hidden = true;
  element.removeAttribute("aria-describedby");
}

/** One stop of the tab key; arrows move within it. */
export class Tokens {
  constructor() {
    this.element = el("div", {
      class: "text tokens",
      role: "group",
      "aria-label": "Tokens; arrow keys move between them",
      onkeydown: (event) => this.#move(event),
    });
  }

  add(tokens) {
    this.element.append(...tokens.map((token) => this.#span(token)));
    if (!this.element.querySelector("[tabindex='0']")) {
      this.element.firstChild?.setAttribute("tabindex", "0");
    }
  }

  #span(token) {
    const element = el("span", { class: "token", tabindex: -1 }, token.token);
    if (token.logprob == null) return element;
    element.style.setProperty("--doubt", (1 - probability(token.logprob)).toFixed(3));
    for (const name of ["pointerenter", "focus"]) {
      element.addEventListener(name, () => show(element, token));
    }
    for (const name of ["pointerleave", "blur"]) {
      element.addEventListener(name, () => hide(element));
    }
    return element;
  }

  #move(event) {
    const here = event.target;
    if (event.key === "Escape") hide(here);
    const to = MOVES[event.key] === 1 ? here.nextSibling : MOVES[event.key] && here.previousSibling;
    if (!to) return;
    event.preventDefault();
    here.setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
  }
}
