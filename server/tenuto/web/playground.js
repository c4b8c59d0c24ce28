// A conversation or a completion with one model; every field of the request can be set.

import { byId, el, notice, problem } from "./dom.js";
import { count } from "./format.js";
import { Parameters } from "./parameters.js";
import { ApiError, events, getJson, post } from "./server.js";
import { asCurl, asPython, copy } from "./snippets.js";
import { AnswerTurn, UserTurn } from "./turns.js";

const ENDPOINTS = {
  chat: {
    path: "v1/chat/completions",
    schema: "ChatRequest",
    hint: "Enter sends, Shift+Enter starts a new line.",
    empty: ["Nothing said yet", "Write below. Parameters that you leave alone are not sent."],
  },
  completion: {
    path: "v1/completions",
    schema: "CompletionRequest",
    hint: "The model goes on with this text. Ctrl+Enter sends.",
    empty: ["Nothing completed yet", "Write a beginning below; the model goes on with it."],
  },
};
const COUNT_AFTER_MS = 250;

/** The pieces of an answer: one, or those of a stream, which has to end with its last event. */
async function* answered(path, body, signal) {
  const response = await post(path, body, signal);
  if (!body.stream) {
    yield await response.json();
    return;
  }
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const piece = JSON.parse(data);
    if (piece.error) throw new ApiError(piece.error, response);
    yield piece;
  }
  throw new ApiError({ message: "The stream ended before its last event." }, response);
}

export class PlaygroundView {
  constructor() {
    this.turns = { chat: [], completion: [] };
    this.models = new Map();
    byId("ask").addEventListener("submit", (event) => this.#submitted(event));
    byId("draft").addEventListener("keydown", (event) => this.#pressed(event));
    byId("stop").addEventListener("click", () => this.controller.abort());
    byId("clear").addEventListener("click", () => this.#drop(0));
    byId("model").addEventListener("change", () => this.#changed());
    byId("ask").addEventListener("input", (event) => this.#edited(event));
    byId("copy-curl").addEventListener("click", () =>
      this.#copied("copy-curl", (body) => asCurl(this.#way().path, body)),
    );
    byId("copy-python").addEventListener("click", () =>
      this.#copied("copy-python", (body) => asPython(this.#endpoint(), body)),
    );
  }

  async show() {
    try {
      const [{ components }, { data }] = await Promise.all([
        getJson("openapi.json"),
        getJson("v1/model/info"),
      ]);
      this.schemas = components.schemas;
      this.#list(data.filter(({ model_info: info }) => info.task === "generate"));
      this.#changed();
    } catch (error) {
      byId("turns").replaceChildren(problem(error));
    }
  }

  #endpoint() {
    return byId("ask").elements.endpoint.value;
  }

  #way() {
    return ENDPOINTS[this.#endpoint()];
  }

  #list(models) {
    this.models = new Map(
      models.flatMap(({ model_name: id, model_info: info }) =>
        [id, ...info.loras].map((name) => [name, info]),
      ),
    );
    const chosen = byId("model").value;
    byId("model").replaceChildren(...[...this.models.keys()].map((id) => el("option", {}, id)));
    if (this.models.has(chosen)) byId("model").value = chosen;
  }

  /** Another model or endpoint: its own controls, with what was set before. */
  #changed() {
    if (!this.schemas) return;
    const { schema, hint } = this.#way();
    const kept = this.parameters?.inputs() ?? {};
    const defaults = this.models.get(byId("model").value)?.sampling_defaults;
    this.parameters = new Parameters(byId("parameters"), this.schemas[schema], defaults);
    this.parameters.restore(kept);
    byId("system-box").hidden = this.#endpoint() !== "chat";
    byId("draft").placeholder = hint;
    this.#render();
    this.#count();
  }

  #edited({ target }) {
    if (target.name === "endpoint") this.#changed();
    else this.#count();
  }

  #pressed(event) {
    const sends = this.#endpoint() === "chat" ? !event.shiftKey : event.ctrlKey;
    if (event.key !== "Enter" || event.isComposing || !sends) return;
    event.preventDefault();
    byId("ask").requestSubmit();
  }

  #render() {
    const turns = this.turns[this.#endpoint()];
    const none = this.models.size ? this.#way().empty : ["No model", "None here generates text."];
    const elements = turns.length ? turns.map((turn) => turn.element) : [notice(...none)];
    byId("turns").replaceChildren(...elements);
    byId("turns").scrollTop = byId("turns").scrollHeight;
  }

  /** Forgets the turns from this one on. */
  #drop(index) {
    this.controller?.abort();
    this.turns[this.#endpoint()].splice(index);
    this.#render();
    this.#count();
    byId("draft").focus();
  }

  #edit(turn) {
    byId("draft").value = turn.content;
    this.#drop(this.turns.chat.indexOf(turn));
  }

  #take(turn) {
    byId("draft").value += turn.content;
    this.#drop(0);
  }

  /** The prompt as the request has it, the draft included. */
  #prompt() {
    const draft = byId("draft").value;
    if (this.#endpoint() === "completion") return { prompt: draft };
    const system = byId("system").value;
    const messages = this.turns.chat.map(({ role, content }) => ({ role, content }));
    if (system) messages.unshift({ role: "system", content: system });
    if (draft) messages.push({ role: "user", content: draft });
    return { messages };
  }

  /** The request; null when a parameter cannot be read. */
  #body() {
    const values = this.parameters?.values();
    if (!values) return null;
    const streamed = { stream: true, stream_options: { include_usage: true } };
    const stream = byId("stream").checked ? streamed : {};
    return { model: byId("model").value, ...this.#prompt(), ...stream, ...values };
  }

  async #submitted(event) {
    event.preventDefault();
    const draft = byId("draft").value;
    const body = draft && !this.controller && this.#body();
    if (!body) return;
    const turns = this.turns[this.#endpoint()];
    const turn = this.#opened(turns, draft, body.model);
    this.#running(new AbortController());
    try {
      for await (const piece of answered(this.#way().path, body, this.controller.signal)) {
        this.#follow(() => turn.add(piece));
      }
      this.#say(turn.end());
    } catch (error) {
      this.#failed(error, turn, turns, draft);
    } finally {
      this.#running(null);
      this.#count();
    }
  }

  #opened(turns, draft, model) {
    const isChat = turns === this.turns.chat;
    const turn = new AnswerTurn(model, isChat ? null : (taken) => this.#take(taken));
    if (isChat) {
      turns.push(new UserTurn(draft, (edited) => this.#edit(edited)), turn);
      byId("draft").value = "";
    } else {
      turns.splice(0, Infinity, turn);
    }
    this.#render();
    return turn;
  }

  /** A question without any answer goes back into the draft. */
  #failed(error, turn, turns, draft) {
    const isStopped = error.name === "AbortError";
    this.#say(turn.end(isStopped ? "stopped" : "failed"));
    if (turn.isEmpty && turns.includes(turn)) {
      turns.splice(turns.indexOf(turn) - (turns === this.turns.chat ? 1 : 0), 2);
      byId("draft").value ||= draft;
      this.#render();
    }
    if (isStopped) return;
    const box = problem(error);
    if (turn.isEmpty) byId("turns").append(box);
    else turn.element.append(box);
    box.scrollIntoView({ block: "nearest" });
    this.parameters.blame(error.param, error.message);
  }

  /** The reader stays at the end, unless he has scrolled away from it. */
  #follow(change) {
    const box = byId("turns");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    change();
    if (atEnd) box.scrollTop = box.scrollHeight;
  }

  #running(controller) {
    this.controller = controller;
    const [shown, other] = controller ? ["stop", "send"] : ["send", "stop"];
    const hadFocus = document.activeElement === byId(other);
    byId(shown).hidden = false;
    byId(other).hidden = true;
    if (hadFocus) byId(shown).focus();
    byId("turns").setAttribute("aria-busy", String(Boolean(controller)));
    if (controller) this.#say("Answering");
  }

  #say(text) {
    byId("said").textContent = text;
  }

  /** Counts once the typing rests; of several answers the newest alone is shown. */
  #count() {
    clearTimeout(this.counting);
    this.counter?.abort();
    this.counting = setTimeout(() => this.#counted(), COUNT_AFTER_MS);
  }

  async #counted() {
    const model = byId("model").value;
    const prompt = this.#prompt();
    if (!model || !(prompt.prompt || prompt.messages?.length)) {
      byId("count").textContent = "";
      return;
    }
    this.counter = new AbortController();
    const tools = this.parameters.value("tools");
    try {
      const answer = await post(
        "utils/token_counter",
        { model, ...prompt, tools },
        this.counter.signal,
      );
      const { total_tokens: total } = await answer.json();
      const most = this.models.get(model).max_model_len;
      byId("count").textContent =
        `Prompt: ${count(total)}${most ? ` of ${count(most)}` : ""} tokens`;
    } catch (error) {
      if (error.name !== "AbortError") byId("count").textContent = "";
    }
  }

  async #copied(id, make) {
    const body = this.#body();
    if (!body) return;
    await copy(make(body));
    const element = byId(id);
    element.dataset.label ??= element.textContent;
    element.textContent = "Copied";
    this.#say("Copied");
    setTimeout(() => (element.textContent = element.dataset.label), 1500);
  }
}
