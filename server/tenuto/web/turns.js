// The turns of a conversation: what was said, and what came of it.

import { Answer } from "./answer.js";
import { button, el } from "./dom.js";
import { count, rate, seconds } from "./format.js";

export class UserTurn {
  role = "user";

  constructor(content, onEdit) {
    this.content = content;
    this.element = el(
      "article",
      { class: "turn user" },
      el(
        "header",
        {},
        el("h3", {}, "You"),
        button("Edit", () => onEdit(this), { class: "quiet" }),
      ),
      el("div", { class: "text" }, content),
    );
  }
}

/** `onTake`: for completions, whose text may be added to the prompt. */
export class AnswerTurn {
  role = "assistant";

  constructor(model, onTake) {
    this.answer = new Answer();
    this.pieces = [];
    this.began = performance.now();
    this.facts = el("span", { class: "muted" }, "…");
    this.raw = el("pre", { tabindex: "0" });
    this.rawBox = el("details", { class: "raw", hidden: true, ontoggle: () => this.#fill() });
    this.rawBox.append(el("summary", {}, "Raw"), this.raw);
    this.take = onTake && button("Add to the prompt", () => onTake(this), { class: "quiet" });
    this.element = el(
      "article",
      { class: "turn assistant" },
      el("header", {}, el("h3", {}, model), this.take),
      this.answer.element,
      el("footer", {}, this.facts, this.rawBox),
    );
  }

  get content() {
    return this.answer.text;
  }

  get isEmpty() {
    return this.pieces.length === 0;
  }

  add(piece) {
    this.firstAt ??= performance.now();
    this.pieces.push(piece);
    this.answer.add(piece);
  }

  /** `note`: why it ended, when it did not end by itself. Returns what is said of it. */
  end(note) {
    const lasted_s = (performance.now() - this.began) / 1000;
    const { usage } = this.answer;
    const cached = usage?.prompt_tokens_details?.cached_tokens;
    const isStreamed = this.pieces.length > 1;
    const told = [
      note ?? this.answer.finish,
      usage &&
        `${count(usage.prompt_tokens)} prompt tokens${cached ? ` (${count(cached)} cached)` : ""}`,
      usage && `${count(usage.completion_tokens)} completion tokens`,
      isStreamed && `first after ${seconds((this.firstAt - this.began) / 1000)}`,
      usage && `${rate(usage.completion_tokens / lasted_s)} tokens/s`,
      `${seconds(lasted_s)} in all`,
    ];
    this.facts.textContent = told.filter(Boolean).join(" · ");
    this.rawBox.hidden = this.isEmpty;
    return this.facts.textContent;
  }

  #fill() {
    const texts = this.pieces.map((piece) =>
      JSON.stringify(piece, null, this.pieces.length > 1 ? 0 : 2),
    );
    this.raw.textContent = texts.join("\n");
  }
}
