// The models as they are now and were in the last 15 minutes, and what an owner does with them.

import { button, byId, el, notice, problem } from "./dom.js";
import { bytes, count, duration, percent, rate, seconds } from "./format.js";
import { LinePlot } from "./plots.js";
import { getJson, isAdmin, post } from "./server.js";

const SPAN_S = 15 * 60;
const ACTIONS = {
  load: ["cold", "asleep", "failed"],
  sleep: ["ready"],
  unload: ["ready", "asleep", "failed"],
};
const WORKING = new Set(["ready", "waking", "suspending"]);
// These change within seconds.
const MOVING = new Set(["loading", "waking", "suspending", "unloading"]);
const MOVING_S = 1;

/** One model: its elements stay, so that focus and pointer stay where they are. */
class Card {
  constructor(id, act) {
    this.history = {};
    this.state = el("span", { class: "state" });
    this.reason = el("p", { class: "reason" });
    this.facts = el("dl", { class: "facts" });
    this.buttons = Object.keys(ACTIONS).map((name) => this.#button(id, name, act));
    this.actions = el("div", { class: "actions" }, this.buttons);
    this.trouble = el("div");
    this.plots = {
      tokens: new LinePlot("Tokens", [{ name: "per second", format: rate }], 10),
      requests: new LinePlot(
        "Requests",
        [
          { name: "running", format: count },
          { name: "waiting", format: count },
        ],
        4,
      ),
      ttft: new LinePlot(
        "First token",
        [
          { name: "p50", format: seconds },
          { name: "p99", format: seconds },
        ],
        0.05,
      ),
      cache: new LinePlot("KV cache", [{ name: "in use", format: percent }], 1),
    };
    this.figures = el(
      "div",
      { class: "figures" },
      Object.values(this.plots).map((p) => p.figure),
    );
    const head = el("header", {}, el("h3", {}, id), this.state, this.actions);
    this.element = el(
      "article",
      { class: "card", "aria-label": id },
      head,
      this.reason,
      this.trouble,
      this.facts,
      this.figures,
    );
  }

  #button(id, name, act) {
    const label = name[0].toUpperCase() + name.slice(1);
    const pressed = async () => {
      if (element.getAttribute("aria-disabled") === "true") return;
      this.trouble.replaceChildren();
      await act(id, name).catch((error) => this.trouble.replaceChildren(problem(error)));
    };
    const element = button(label, pressed, { "aria-label": `${label} ${id}`, "data-action": name });
    return element;
  }

  update(model, now, mayAct) {
    this.state.textContent = model.state + (model.pinned ? ", pinned" : "");
    this.state.dataset.state = model.state;
    this.reason.textContent = model.reason ?? "";
    this.reason.hidden = !model.reason;
    this.reason.dataset.state = model.state;
    this.actions.hidden = !mayAct;
    for (const element of this.buttons) {
      const possible = ACTIONS[element.dataset.action].includes(model.state);
      element.setAttribute("aria-disabled", String(!possible));
    }
    this.#extend(model.history, now);
    this.#draw(model, now);
    this.facts.replaceChildren(...facts(model, this.figures.hidden));
  }

  get tokensPerS() {
    return this.history.tokens_per_s.at(-1) ?? 0;
  }

  #extend(points, now) {
    for (const [name, values] of Object.entries(points)) {
      this.history[name] = [...(this.history[name] ?? []), ...values];
    }
    const old = this.history.at.findIndex((at) => at > now - SPAN_S);
    for (const values of Object.values(this.history)) {
      values.splice(0, old < 0 ? values.length : old);
    }
  }

  #draw(model, now) {
    const { at, ...of } = this.history;
    const wasUsed = of.running_requests.some(Boolean) || of.tokens_per_s.some(Boolean);
    this.figures.hidden = model.task !== "generate" || !(WORKING.has(model.state) || wasUsed);
    if (this.figures.hidden || at.length === 0) return;
    const window = [now - SPAN_S, now];
    this.plots.tokens.update([at, of.tokens_per_s], window);
    this.plots.requests.update([at, of.running_requests, of.waiting_requests], window);
    this.plots.ttft.update([at, of.ttft_p50_s, of.ttft_p99_s], window);
    this.plots.cache.update([at, of.kv_cache_usage], window);
  }
}

/** `isAlone`: there are no plots that say the rest. */
function facts(model, isAlone) {
  const rows = [
    ["Running", isAlone && count(model.running_requests)],
    ["Queue", isAlone && count(model.waiting_requests)],
    ["Weights", model.weights_bytes && bytes(model.weights_bytes)],
    ["KV cache", model.kv_cache_bytes && bytes(model.kv_cache_bytes)],
    [model.devices.length > 1 ? "GPUs" : "GPU", model.devices.join(", ")],
    ["Loaded in", model.load_s != null && seconds(model.load_s)],
    ["Woken in", model.wake_s != null && seconds(model.wake_s)],
  ].filter(([, value]) => value);
  return rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

function summary({ models, now, started_at: startedAt, version }, tokensPerS) {
  const of = (state) => models.filter((model) => model.state === state).length;
  const sum = (pick) => models.reduce((total, model) => total + (pick(model) ?? 0), 0);
  const failed = of("failed");
  return [
    `${models.length} ${models.length === 1 ? "model" : "models"}`,
    `${of("ready")} ready`,
    failed > 0 && `${failed} failed`,
    `${count(sum((model) => model.running_requests))} running`,
    `${count(sum((model) => model.waiting_requests))} waiting`,
    `${rate(tokensPerS)} tokens/s`,
    `up ${duration(now - startedAt)}`,
    `version ${version}`,
  ].filter(Boolean);
}

export class StatusView {
  constructor() {
    this.cards = new Map();
    document.addEventListener("visibilitychange", () => this.#poll());
  }

  show() {
    this.isShown = true;
    this.#forget();
    return this.#poll();
  }

  hide() {
    this.isShown = false;
    this.turn = null;
    clearTimeout(this.timer);
  }

  #forget() {
    this.since = undefined;
    this.cards.clear();
    byId("cards").replaceChildren();
  }

  /** Asks now, and again after the server's interval, while anybody can see it. */
  async #poll() {
    clearTimeout(this.timer);
    if (!this.isShown || document.hidden) return;
    const turn = (this.turn = {});
    let waitS = 5;
    try {
      const asked = this.since === undefined ? "status" : `status?since=${this.since}`;
      const [status, mayAct] = await Promise.all([getJson(asked), isAdmin()]);
      if (turn !== this.turn) return;
      const isMoving = status.models.some((model) => MOVING.has(model.state));
      waitS = isMoving ? MOVING_S : status.interval_s;
      this.#render(status, mayAct);
    } catch (error) {
      if (turn !== this.turn) return;
      this.#forget();
      byId("summary").textContent = "";
      byId("status-error").replaceChildren(problem(error));
      // Another key shows the view anew; this one would count as a guess each time.
      if (error.status === 401) return;
    }
    this.timer = setTimeout(() => this.#poll(), waitS * 1000);
  }

  #render(status, mayAct) {
    if (status.started_at !== this.startedAt && this.since !== undefined) {
      // Another process answers now, whose history is another.
      this.#forget();
    }
    this.startedAt = status.started_at;
    byId("status-error").replaceChildren();
    this.#keep(status.models.map((model) => model.id));
    for (const model of status.models) {
      this.cards.get(model.id).update(model, status.now, mayAct);
      this.since = Math.max(this.since ?? 0, ...model.history.at.slice(-1));
    }
    byId("summary").replaceChildren(
      ...summary(status, this.#tokensPerS()).map((text) => el("span", {}, text)),
    );
    if (status.models.length === 0) {
      const text = "No checkpoint of the registry is on this host, or the key may use none.";
      byId("cards").replaceChildren(notice("No models", text));
    }
  }

  #tokensPerS() {
    return [...this.cards.values()].reduce((sum, card) => sum + card.tokensPerS, 0);
  }

  #keep(ids) {
    for (const id of ids) {
      if (!this.cards.has(id)) this.cards.set(id, new Card(id, (...what) => this.#act(...what)));
    }
    for (const id of this.cards.keys()) if (!ids.includes(id)) this.cards.delete(id);
    const elements = ids.map((id) => this.cards.get(id).element);
    const shown = [...byId("cards").children];
    if (elements.length !== shown.length || elements.some((e, index) => e !== shown[index])) {
      byId("cards").replaceChildren(...elements);
    }
  }

  async #act(id, action) {
    await post(`admin/models/${encodeURIComponent(id)}/${action}`);
    await this.#poll();
  }
}
