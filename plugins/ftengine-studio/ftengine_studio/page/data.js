import { choice, el, fail, get, keepName, number, personName, post, say, visible } from "./dom.js";

const PAGE = 50;
const FINDINGS = { duplicates: "duplicates and near duplicates", leaks: "leaks: in training and held out", contradictions: "contradictions: one input, several answers", marked: "marked to be dropped" };

let run = 0;

/** Rows as the model sees them, with filters and marks. */
export async function show(place, overview) {
  if (run >= overview.runs.length) run = 0;
  const view = new Data(place, overview.runs.map((one) => one.name));
  view.open(run);
  return () => view.leave();
}

class Data {
  constructor(place, names) {
    this.content = el("div");
    this.left = false;
    place.append(el("h1", {}, "Data"), el("div", { class: "controls" }, choice("Run", names, run, (i) => this.open(i))), this.content);
  }

  leave() {
    this.left = true;
  }

  async open(i) {
    run = i;
    this.filters = { split: "", least: "", most: "", finding: "", offset: 0 };
    try {
      let state = await get(`/api/data/${i}`);
      while (state.state === "reading" && !this.left && run === i) {
        this.content.replaceChildren(el("p", { class: "hint" }, "Reading the data, as training would … ", state.message || ""));
        await new Promise((resolve) => setTimeout(resolve, 400));
        state = await get(`/api/data/${i}`);
      }
      if (this.left || run !== i) return;
      if (state.state === "failed") this.content.replaceChildren(el("p", {}, "The data cannot be shown: ", visible(state.message)));
      else this.draw(state);
    } catch (error) {
      fail(error);
    }
  }

  draw(state) {
    this.state = state;
    this.rows = el("div");
    this.marks = el("p", { class: "hint" });
    const findings = state.findings.filter((finding) => finding.level !== "good");
    this.content.replaceChildren(
      ...(state.note ? [el("p", { class: "badge note" }, state.note)] : []),
      el(
        "details",
        { open: findings.length > 0 && findings.length < 4 },
        el("summary", {}, findings.length ? `What the audit found (${findings.length})` : "The audit found nothing to look at"),
        el("ul", { class: "findings" }, findings.map((f) => el("li", {}, el("span", { class: `badge ${f.level}` }, f.level), el("span", {}, visible(f.text))))),
      ),
      this.form(),
      this.marks,
      this.rows,
    );
    this.drawMarks(state);
    this.page();
  }

  form() {
    const change = (key) => (event) => {
      this.filters[key] = event.target.value;
      this.filters.offset = 0;
      this.page();
    };
    const option = (value, text) => el("option", { value }, text);
    const splits = Object.entries(this.state.splits).map(([name, count]) => option(name, `${name} (${number(count)})`));
    const counts = { ...this.state.counts, marked: null };
    const findings = Object.entries(FINDINGS).map(([name, text]) => option(name, counts[name] === null ? text : `${text} (${number(counts[name])})`));
    const size = (key, label) => el("label", {}, label, el("input", { type: "number", min: 0, size: 7, inputmode: "numeric", onchange: change(key) }));
    return el(
      "div",
      { class: "controls" },
      el("label", {}, "Split", el("select", { onchange: change("split") }, option("", "all"), splits)),
      el("label", {}, "Finding", el("select", { onchange: change("finding") }, option("", "all rows"), findings)),
      size("least", "Tokens from"),
      size("most", `to (longest ${number(this.state.longest)})`),
    );
  }

  async page() {
    const turn = (this.turn = (this.turn || 0) + 1);
    const query = new URLSearchParams({ ...this.filters, limit: PAGE });
    try {
      const { total, rows } = await get(`/api/data/${run}/rows?${query}`);
      if (turn === this.turn && !this.left) this.drawRows(total, rows);
    } catch (error) {
      fail(error);
    }
  }

  drawRows(total, rows) {
    const { offset } = this.filters;
    const items = [];
    let open = null;
    for (const row of rows) {
      if (row.group === null) items.push(this.row(row));
      else {
        if (!open || open.number !== row.group) items.push((open = { number: row.group, list: el("ul", { class: "rows group" }) }).list);
        open.list.append(this.row(row));
      }
    }
    const turn = (by) => {
      this.filters.offset = Math.max(0, offset + by);
      this.page();
      scrollTo(0, 0);
    };
    const shown = total ? `rows ${number(offset + 1)} to ${number(offset + rows.length)} of ${number(total)}` : "no row passes these filters";
    const paged = () =>
      el(
        "div",
        { class: "paged" },
        el("button", { type: "button", disabled: offset === 0, onclick: () => turn(-PAGE) }, "Previous"),
        el("span", { class: "hint" }, shown),
        el("button", { type: "button", disabled: offset + rows.length >= total, onclick: () => turn(PAGE) }, "Next"),
      );
    const legend = el("p", { class: "hint" }, "What is trained on is ", el("span", { class: "trained" }, "marked"), ".");
    this.rows.replaceChildren(paged(), legend, el("ul", { class: "rows" }, items.map((item) => (item.tagName === "UL" ? el("li", {}, item) : item))), rows.length > 5 ? paged() : "");
  }

  row(row) {
    const button = el("button", { type: "button", "aria-pressed": String(row.marked) }, row.marked ? "Keep" : "Drop");
    const item = el(
      "li",
      { class: row.marked ? "row marked" : "row" },
      el("div", { class: "head place" }, el("span", {}, visible(row.place)), el("span", {}, row.split), el("span", {}, `${number(row.length)} tokens`), button),
      el("div", { class: "text", dir: "auto", tabindex: 0, "aria-label": `row ${row.place}` }, row.pieces.map(([text, trained]) => (trained ? el("span", { class: "trained" }, visible(text)) : visible(text)))),
    );
    button.addEventListener("click", () => this.mark(row, item, button));
    return item;
  }

  async mark(row, item, button) {
    const name = personName() || prompt("Your name, which is kept with the mark:") || "";
    if (!name) return;
    keepName(name);
    try {
      this.drawMarks(await post(`/api/data/${run}/marks`, { row: row.row, marked: !row.marked, name }));
      row.marked = !row.marked;
      item.classList.toggle("marked", row.marked);
      button.textContent = row.marked ? "Keep" : "Drop";
      button.setAttribute("aria-pressed", String(row.marked));
      say(row.marked ? "Marked to be dropped" : "Kept");
    } catch (error) {
      fail(error);
    }
  }

  drawMarks({ marked, file }) {
    this.marks.replaceChildren(
      ...(marked
        ? [`${number(marked)} ${marked === 1 ? "row is" : "rows are"} marked. Your data is unchanged; the next run leaves ${marked === 1 ? "it" : "them"} out with `, el("code", {}, `--set data.exclude=${file}`), "."]
        : ["Drop marks a row to be left out of the next run; your data is not changed."]),
    );
  }
}
