import { VERDICTS, choice, el, fail, get, isTyping, keepName, personName, post, say, textOf, verdictOf } from "./dom.js";

/** Blind comparison of two answers, one pair after the other. */
export async function show(place, overview) {
  const judgeable = overview.contests.map((contest, i) => [contest, i]).filter(([contest]) => contest.pairs > 0);
  if (!judgeable.length) {
    place.append(el("h1", {}, "Judge"), nothing(overview));
    return null;
  }
  const view = new Judging(place, judgeable);
  await view.begin();
  return () => view.leave();
}

function nothing(overview) {
  const training = overview.runs.some((run) => run.state === "running");
  return el(
    "p",
    { class: "hint" },
    training
      ? "There are no answers yet: this run is being trained. They are written at its end; Runs shows how far it is."
      : "There are no answers to judge. Start the page with --new 50, and both models answer 50 held-out prompts; or set evaluation.answers in the recipe before training. A task that writes no text has none.",
  );
}

class Judging {
  constructor(place, judgeable) {
    this.place = place;
    this.judgeable = judgeable;
    this.contest = judgeable[0][1];
    this.pair = null;
    this.busy = false;
    this.onkey = (event) => this.key(event);
    addEventListener("keydown", this.onkey);
  }

  leave() {
    removeEventListener("keydown", this.onkey);
  }

  async begin() {
    if (!personName()) return this.ask();
    try {
      this.progress = await get(`/api/judge/${this.contest}?name=${encodeURIComponent(personName())}`);
      await this.open(this.progress.next);
    } catch (error) {
      fail(error);
    }
  }

  ask() {
    const input = el("input", { name: "name", required: true, maxlength: 60, autocomplete: "name", value: personName() });
    const start = (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      keepName(input.value.trim());
      this.begin();
    };
    this.place.replaceChildren(
      el("h1", {}, "Judge"),
      el("p", {}, "You will see a prompt and two answers, in random order and side. You are not told which model wrote which; say which answer is better."),
      el(
        "form",
        { class: "controls", onsubmit: start },
        el("label", {}, "Your name, so that several people can judge", input),
        el("button", { class: "main", type: "submit" }, "Begin"),
      ),
    );
    input.focus();
  }

  async open(number) {
    this.pair = null;
    if (number !== null) {
      this.pair = await get(`/api/judge/${this.contest}/${number}?name=${encodeURIComponent(personName())}`);
    }
    this.draw();
  }

  head() {
    const names = this.judgeable.map(([contest]) => contest.title);
    const at = this.judgeable.findIndex(([, i]) => i === this.contest);
    const { judged, total } = this.progress;
    return [
      el("h1", {}, this.pair ? `Pair ${this.pair.number + 1} of ${total}` : "Judge"),
      el(
        "div",
        { class: "controls" },
        choice("Compare", names, at, (i) => {
          this.contest = this.judgeable[i][1];
          this.begin();
        }),
        el("span", { class: "hint" }, `${judged} of ${total} judged as ${personName()} `),
        el("button", { type: "button", onclick: () => this.ask() }, "Another person"),
      ),
      el("progress", { max: total, value: judged, "aria-label": `${judged} of ${total} judged` }),
    ];
  }

  draw() {
    if (!this.pair) {
      const back = this.progress.total > 0 ? el("button", { type: "button", onclick: () => this.back() }, "Back to the last pair") : null;
      const more = "All pairs are judged. Result shows what they come to; --new makes more answers.";
      this.place.replaceChildren(...this.head(), el("p", {}, more), el("p", {}, back));
      return;
    }
    const { pair } = this;
    const side = (name, label) =>
      el(
        "section",
        { class: pair.verdict === name ? "sheet chosen" : "sheet", "aria-label": label },
        el("h3", {}, label),
        textOf(pair[name], "(no text)"),
      );
    this.note = el("textarea", { placeholder: "A note, if you like", "aria-label": "Note", rows: 1, maxlength: 4000 });
    this.note.value = pair.note || "";
    const reference = pair.reference ? el("details", {}, el("summary", {}, "The answer in the data"), textOf(pair.reference)) : null;
    const same = pair.left === pair.right ? el("p", { class: "hint" }, "The two answers are the same.") : null;
    const buttons = VERDICTS.map(([name, label, , shown]) =>
      el(
        "button",
        { type: "button", "aria-pressed": String(pair.verdict === name), "data-verdict": name, onclick: () => this.judge(name) },
        el("span", {}, label),
        el("kbd", {}, shown),
      ),
    );
    this.place.replaceChildren(
      ...this.head(),
      el("section", { class: "sheet", "aria-label": "Prompt" }, el("h3", {}, "Prompt"), textOf(pair.prompt)),
      el("div", { class: "pair" }, side("left", "Left"), side("right", "Right")),
      ...[same, reference].filter(Boolean),
      el("div", { class: "verdicts", role: "group", "aria-label": "Verdict" }, buttons),
      el(
        "div",
        { class: "below" },
        this.note,
        el("button", { type: "button", onclick: () => this.back(), disabled: pair.number === 0 }, "Back ", el("kbd", {}, "b")),
        pair.verdict ? el("button", { type: "button", onclick: () => this.forward() }, "Forward ", el("kbd", {}, "f")) : null,
        el("span", { class: "hint keys" }, el("kbd", {}, "n"), " note, ", el("kbd", {}, "Esc"), " leaves it"),
      ),
    );
    document.getElementById("view").focus({ preventScroll: true });
    scrollTo(0, 0);
  }

  async judge(verdict) {
    if (this.busy || !this.pair) return;
    this.busy = true;
    const { number, shown } = this.pair;
    try {
      const content = { name: personName(), verdict, note: this.note.value, shown };
      this.progress = await post(`/api/judge/${this.contest}/${number}`, content);
      say(`${VERDICTS.find(([name]) => name === verdict)[1]}: kept`);
      await this.open(this.following(number));
    } catch (error) {
      fail(error);
    } finally {
      this.busy = false;
    }
  }

  /** The next open pair; after a correction of an earlier one the one behind it. */
  following(number) {
    const { next, total } = this.progress;
    return this.revisiting && number + 1 < total && (next === null || number + 1 < next) ? number + 1 : this.done(next);
  }

  done(next) {
    this.revisiting = false;
    return next;
  }

  async back() {
    const number = this.pair ? this.pair.number - 1 : this.progress.total - 1;
    if (number < 0) return;
    this.revisiting = true;
    await this.open(number).catch(fail);
  }

  /** Leave a pair that is judged already as it is. */
  async forward() {
    if (this.pair.verdict) await this.open(this.following(this.pair.number)).catch(fail);
  }

  key(event) {
    if (event.key === "Escape" && event.target === this.note) this.note.blur();
    if (isTyping(event) || !this.pair || event.repeat) return;
    const verdict = verdictOf(event);
    if (verdict) this.judge(verdict);
    else if (event.key === "b") this.back();
    else if (event.key === "f") this.forward();
    else if (event.key === "n") this.note.focus();
    else return;
    event.preventDefault();
  }
}
