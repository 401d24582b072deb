import { VERDICTS, choice, el, fail, isTyping, keepName, personName, post, say, textOf, verdictOf } from "./dom.js";

let run = 0;

/** One message, answered by base and tuned model side by side. */
export async function show(place, overview) {
  if (run >= overview.runs.length) run = 0;
  const view = new Talk(place, overview.runs);
  return () => view.leave();
}

class Talk {
  constructor(place, runs) {
    this.onkey = (event) => this.key(event);
    addEventListener("keydown", this.onkey);
    this.columns = { left: el("div"), right: el("div") };
    this.titles = { left: el("h3", {}, "Left"), right: el("h3", {}, "Right") };
    this.blind = el("input", { type: "checkbox", onchange: () => this.anew() });
    this.message = el("textarea", { "aria-label": "Message", placeholder: "Ask both models something", maxlength: 20000 });
    this.send = el("button", { class: "main", type: "submit" }, "Send");
    this.verdicts = el("div", { class: "verdicts", role: "group", "aria-label": "Verdict", hidden: true });
    this.form = el("form", { class: "say", onsubmit: (event) => (event.preventDefault(), this.say()) }, this.message, this.send);
    this.message.addEventListener("input", () => this.load());
    this.message.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.say();
      } else if (event.key === "Escape") this.message.blur();
    });
    place.append(
      el("h1", {}, "Talk"),
      el(
        "div",
        { class: "controls" },
        choice("Run", runs.map((one) => one.name), run, (i) => ((run = i), this.anew())),
        el("label", { class: "inline" }, this.blind, "blind: I am not told who answers where"),
        el("button", { type: "button", onclick: () => this.anew() }, "New conversation"),
      ),
      el("div", { class: "talk" }, ...["left", "right"].map((side) => el("section", { "aria-label": side }, this.titles[side], this.columns[side]))),
      this.verdicts,
      this.form,
      el("p", { class: "hint keys" }, el("kbd", {}, "Enter"), " sends, ", el("kbd", {}, "Shift Enter"), " begins a line. The models are loaded while the first message is written."),
    );
    this.anew();
    this.prepare(false);
    this.message.focus();
  }

  leave() {
    removeEventListener("keydown", this.onkey);
    clearInterval(this.waiting);
    this.reader?.abort();
  }

  /** Let the server load the models while the first message is typed; what fails is said once it is sent. */
  load() {
    if (this.loaded === run) return;
    this.loaded = run;
    this.prepare(true);
  }

  prepare(models) {
    post(`/api/talk/${run}/load`, { models }).catch(() => {});
  }

  /** Show in the answers' places what they wait for, and for how long. */
  wait(text, answers) {
    this.doing = text;
    if (this.waiting) return;
    const began = Date.now();
    const show = () => {
      for (const side of ["left", "right"]) answers[side].replaceChildren(el("p", { class: "text empty" }, `${this.doing} … ${Math.round((Date.now() - began) / 1000)} s`));
    };
    show();
    this.waiting = setInterval(show, 1000);
  }

  /** The wait is over. */
  begun(answers) {
    if (!this.waiting) return;
    clearInterval(this.waiting);
    this.waiting = null;
    for (const side of ["left", "right"]) answers[side].replaceChildren("…");
  }

  anew() {
    this.reader?.abort();
    this.conversation = null;
    this.revealed = false;
    for (const side of ["left", "right"]) this.columns[side].replaceChildren();
    this.name(this.blind.checked ? null : { left: "base", right: "tuned" });
    this.verdicts.hidden = true;
    this.busy(false);
  }

  name(names) {
    for (const side of ["left", "right"]) this.titles[side].textContent = names ? names[side] : side === "left" ? "Left" : "Right";
  }

  busy(is) {
    this.sending = is;
    this.send.disabled = is;
  }

  async say() {
    const message = this.message.value.trim();
    if (!message || this.sending) return;
    this.message.value = "";
    this.busy(true);
    this.verdicts.hidden = true;
    const answers = {};
    for (const side of ["left", "right"]) {
      answers[side] = el("div", { class: "turn" }, "…");
      this.columns[side].append(el("div", { class: "turn user" }, textOf(message)), answers[side]);
    }
    try {
      await this.stream({ conversation: this.conversation, blind: this.blind.checked, message }, answers);
      if (this.blind.checked && !this.revealed) this.askVerdict();
      else this.message.focus();
    } catch (error) {
      if (error.name !== "AbortError") fail(error);
      this.message.value ||= message;
    } finally {
      this.begun(answers);
      this.busy(false);
    }
  }

  async stream(content, answers) {
    this.reader = new AbortController();
    const response = await fetch(`/api/talk/${run}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal: this.reader.signal });
    if (!response.ok) {
      if (response.status === 404) this.conversation = null;
      throw new Error((await response.json().catch(() => null))?.error || `The server answered ${response.status}.`);
    }
    const written = { left: "", right: "" };
    const decoder = new TextDecoder();
    let rest = "";
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) this.take(JSON.parse(line), written, answers);
    }
  }

  take(line, written, answers) {
    if (line.error) throw new Error(line.error);
    if (line.conversation) {
      this.conversation = line.conversation;
      this.name(line.names);
    } else if (line.state === "loading") this.wait(line.model ? `Loading model ${line.model} of ${line.models}` : "Opening the run", answers);
    else if (line.state === "waiting") this.wait("Another conversation is being answered", answers);
    else if (line.side) {
      this.begun(answers);
      if (line.piece !== undefined) written[line.side] += line.piece;
      if (line.text !== undefined) written[line.side] = line.text;
      if (line.state !== "begins") answers[line.side].replaceChildren(textOf(written[line.side], line.state === "ends" ? "(no text)" : "…"));
    }
  }

  askVerdict() {
    this.verdicts.hidden = false;
    this.verdicts.replaceChildren(
      ...VERDICTS.map(([name, label, , shown]) => el("button", { type: "button", onclick: () => this.judge(name) }, el("span", {}, label), el("kbd", {}, shown))),
    );
    this.message.blur();
  }

  async judge(verdict) {
    const name = personName() || prompt("Your name, which is kept with the judgement:") || "";
    if (!name || this.verdicts.hidden) return;
    keepName(name);
    try {
      const { names } = await post(`/api/talk/${run}/judge`, { conversation: this.conversation, verdict, name });
      this.name(names);
      this.revealed = true;
      this.verdicts.hidden = true;
      this.message.focus();
      say(`Kept. Left was ${names.left}, right ${names.right}.`);
    } catch (error) {
      fail(error);
    }
  }

  key(event) {
    if (isTyping(event) || this.verdicts.hidden || this.sending) return;
    const verdict = verdictOf(event);
    if (verdict) {
      event.preventDefault();
      this.judge(verdict);
    }
  }
}
