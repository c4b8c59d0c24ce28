// An answer while it comes, whole or in pieces: its choices side by side.

import { el } from "./dom.js";
import { Tokens } from "./tokens.js";

/** The same of a chunk and of a whole choice, of chats and of completions. */
function parts(choice) {
  const message = choice.delta ?? choice.message ?? { content: choice.text };
  return {
    text: message.content ?? "",
    reasoning: message.reasoning_content ?? "",
    calls: message.tool_calls ?? [],
    tokens: tokens(choice.logprobs),
    ids: choice.token_ids ?? [],
    finish: choice.finish_reason,
    stopped: choice.stop_reason,
  };
}

function tokens(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((token) => ({ ...token, top: token.top_logprobs }));
  }
  return logprobs.tokens.map((token, index) => {
    const top = Object.entries(logprobs.top_logprobs?.[index] ?? {});
    return {
      token,
      logprob: logprobs.token_logprobs[index],
      top: top.map(([other, logprob]) => ({ token: other, logprob })),
    };
  });
}

class Choice {
  constructor(index, group) {
    this.index = index;
    this.text = "";
    this.calls = [];
    this.radio = el("input", { type: "radio", name: group, value: index, checked: index === 0 });
    this.plain = el("div", { class: "text" });
    this.reasoning = el("div", { class: "thought" });
    this.reasoningBox = el(
      "details",
      { hidden: true },
      el("summary", {}, "Reasoning"),
      this.reasoning,
    );
    this.callsBox = el("pre", { hidden: true });
    this.ids = el("div", { class: "text mono", hidden: true });
    this.finish = el("footer", { class: "muted" });
    this.element = el(
      "section",
      { class: "choice", "aria-label": `Choice ${index + 1}` },
      el("label", { class: "pick" }, this.radio, ` Choice ${index + 1}`),
      this.reasoningBox,
      this.plain,
      this.callsBox,
      this.ids,
      this.finish,
    );
  }

  add({ text, reasoning, calls, tokens, ids, finish, stopped }) {
    this.text += text;
    if (tokens.length) this.#colour(tokens);
    else if (!this.tokens) this.plain.append(text);
    this.reasoning.append(reasoning);
    this.reasoningBox.hidden &&= !reasoning;
    calls.forEach((call, position) => this.#call(call, call.index ?? position));
    if (ids.length && !text && !tokens.length) this.#ids(ids);
    if (finish)
      this.finish.textContent = stopped == null ? finish : `${finish}: ${JSON.stringify(stopped)}`;
  }

  #colour(tokens) {
    if (!this.tokens) {
      this.tokens = new Tokens();
      this.plain.replaceWith(this.tokens.element);
    }
    this.tokens.add(tokens);
  }

  #call(piece, index) {
    const call = (this.calls[index] ??= { name: "", arguments: "" });
    call.name += piece.function.name ?? "";
    call.arguments += piece.function.arguments ?? "";
    this.callsBox.hidden = false;
    this.callsBox.textContent = this.calls.map((c) => `${c.name}(${c.arguments})`).join("\n");
  }

  #ids(ids) {
    this.ids.hidden = false;
    this.ids.append(`${ids.join(" ")} `);
  }
}

let answers = 0;

export class Answer {
  constructor() {
    this.choices = [];
    this.group = `answer-${(answers += 1)}`;
    this.element = el("div", { class: "choices" });
  }

  add(piece) {
    for (const choice of piece.choices) this.#choice(choice.index).add(parts(choice));
    this.usage = piece.usage ?? this.usage;
  }

  #choice(index) {
    if (!this.choices[index]) {
      this.choices[index] = new Choice(index, this.group);
      this.element.replaceChildren(...this.choices.filter(Boolean).map((choice) => choice.element));
    }
    return this.choices[index];
  }

  /** The text of the choice with which the conversation goes on. */
  get text() {
    return this.choices.find((choice) => choice?.radio.checked)?.text ?? "";
  }

  /** Of one choice; each of several says it itself. */
  get finish() {
    return this.choices.length === 1 && this.choices[0].finish.textContent;
  }
}
