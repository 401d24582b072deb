import { el, fail, get, number, post, say, svg, textOf, visible } from "./dom.js";

const CURVES = { loss: "training loss", validation_loss: "validation loss", learning_rate: "learning rate", grad_norm: "gradient norm", reward: "reward" };
const POINTS = 600;
const EVERY = 1000;

/** Runs side by side: curves that follow, figures, answers. */
export async function show(place, overview) {
  const view = new Runs(place, overview.runs);
  await view.begin();
  return () => view.leave();
}

class Runs {
  constructor(place, runs) {
    this.runs = runs.map((run, i) => ({ ...run, i, lines: [], after: 0, file: "", shown: true }));
    this.head = el("div", { class: "scroll" });
    this.charts = el("div", { class: "charts" });
    this.details = el("div");
    this.left = false;
    place.append(el("h1", {}, "Runs"), this.head, this.charts, this.details);
  }

  leave() {
    this.left = true;
    clearTimeout(this.timer);
  }

  async begin() {
    await this.follow();
    await this.describe();
  }

  /** Read what was added to each run's metrics, draw, and come back while one is running. */
  async follow() {
    try {
      const before = this.runs.map((run) => [run.state, run.trained]).join();
      const changed = await Promise.all(this.runs.map((run) => this.read(run)));
      if (this.left) return;
      const now = this.runs.map((run) => [run.state, run.trained]).join();
      if (changed.some(Boolean) || now !== before || !this.drawn) this.draw();
      if (this.drawn && now !== before) await this.describe();
      this.drawn = true;
    } catch (error) {
      fail(error);
    }
    if (!this.left) this.timer = setTimeout(() => this.follow(), EVERY);
  }

  async read(run) {
    let changed = false;
    let more = true;
    while (more && !this.left) {
      const got = await get(`/api/runs/${run.i}/metrics?after=${run.after}&file=${encodeURIComponent(run.file)}`);
      if (got.anew) run.lines = [];
      changed ||= got.anew || got.lines.length > 0;
      run.lines.push(...got.lines);
      Object.assign(run, { after: got.after, file: got.file, state: got.state, trained: got.trained });
      more = got.more;
    }
    return changed;
  }

  draw() {
    this.head.replaceChildren(this.table());
    const charts = Object.entries(CURVES)
      .map(([key, title]) => chart(key, title, this.runs.filter((run) => run.shown)))
      .filter(Boolean);
    this.charts.replaceChildren(...charts);
    if (!charts.length) this.charts.append(el("p", { class: "hint" }, "No step is done yet; curves begin with the first."));
  }

  table() {
    const rows = this.runs.map((run) => {
      const last = (key) => run.lines.findLast((line) => key in line)?.[key];
      const show = el("input", { type: "checkbox", checked: run.shown, "aria-label": `show the curves of ${run.name}`, onchange: (e) => ((run.shown = e.target.checked), this.draw()) });
      show.checked = run.shown;
      const stop = run.state === "running" && !run.trained ? el("button", { type: "button", onclick: () => this.stop(run) }, "Stop after this step") : null;
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, el("label", { class: "inline" }, show, el("span", { class: `dot c${run.i % 6}` }), run.name)),
        el("td", {}, el("span", { class: `badge ${run.state}` }, run.state)),
        ["step", "loss", "validation_loss"].map((key) => el("td", { class: "num", "data-key": key, "data-label": key.replace("_", " ") }, number(last(key)))),
        el("td", {}, stop ?? (run.state === "stopped" ? "goes on with train --resume" : run.state === "running" ? "is being evaluated" : "")),
      );
    });
    const columns = ["run", "state", "step", "loss", "validation loss", ""];
    const head = el("tr", {}, columns.map((name, i) => el("th", { scope: "col", class: i > 1 && i < 5 ? "num" : "" }, name)));
    return el("table", { class: "runs" }, el("thead", {}, head), el("tbody", {}, rows));
  }

  async stop(run) {
    if (!confirm(`Stop ${run.name} after its step? A checkpoint is saved, and train --resume goes on from there.`)) return;
    try {
      await post(`/api/runs/${run.i}/stop`, {});
      say(`${run.name} was asked to stop; it ends its step and saves a checkpoint`);
    } catch (error) {
      fail(error);
    }
  }

  async describe() {
    const found = await Promise.all(this.runs.map((run) => get(`/api/runs/${run.i}`).catch(() => null)));
    if (this.left) return;
    const finished = found.filter((run) => run && (run.headline || run.figures.length));
    this.details.replaceChildren(...(finished.length ? [figures(finished), ...finished.map(verdict)] : []));
  }
}

function chart(key, title, runs) {
  const series = runs.map((run) => ({ run, points: thinned(run.lines.filter((line) => key in line).map((line) => [line.step, line[key]])) })).filter((one) => one.points.length);
  if (!series.length) return null;
  const all = series.flatMap((one) => one.points);
  const [left, right, top, bottom] = [84, 470, 10, 190];
  const steps = Math.max(...all.map(([step]) => step), 1);
  let [low, high] = [Math.min(...all.map(([, y]) => y)), Math.max(...all.map(([, y]) => y))];
  if (low === high) [low, high] = [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
  const x = (step) => left + ((right - left) * step) / steps;
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
  const drawing = svg("svg", { viewBox: "0 0 480 216", class: "plot", role: "img", "aria-label": `${title} by step` });
  for (const value of [low, (low + high) / 2, high]) {
    drawing.append(svg("path", { class: "axis", d: `M${left} ${y(value)}H${right}` }), svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  drawing.append(svg("text", { x: left, y: 210 }, "0"), svg("text", { x: right, y: 210, "text-anchor": "end" }, `step ${number(steps)}`));
  for (const { run, points } of series) {
    if (points.length === 1) drawing.append(svg("circle", { class: `c${run.i % 6}`, cx: x(points[0][0]), cy: y(points[0][1]), r: 3 }));
    else drawing.append(svg("path", { class: `c${run.i % 6}`, d: `M${points.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("L")}` }));
  }
  const last = series.map(({ run, points }) => `${run.name} ${number(points.at(-1)[1])}`).join(", ");
  return el("figure", {}, el("figcaption", {}, `${title}: ${last}`), drawing);
}

/** At most POINTS points, each the mean of its neighbours. */
function thinned(points) {
  if (points.length <= POINTS) return points;
  const size = Math.ceil(points.length / POINTS);
  const means = [];
  for (let i = 0; i < points.length; i += size) {
    const some = points.slice(i, i + size);
    means.push([some.at(-1)[0], some.reduce((sum, [, value]) => sum + value, 0) / some.length]);
  }
  return means;
}

function figures(runs) {
  const metrics = [...new Set(runs.flatMap((run) => run.figures.map((figure) => figure.metric)))];
  const head = el("tr", {}, el("th", { scope: "col" }, "metric"), runs.flatMap((run) => [el("th", { scope: "col", class: "num" }, `${run.name}, base`), el("th", { scope: "col", class: "num" }, `${run.name}, tuned`)]));
  const body = metrics.map((metric) => {
    const cells = runs.flatMap((run) => {
      const own = run.figures.find((figure) => figure.metric === metric);
      const ends = own && own.low !== null ? ` (${number(own.low)} to ${number(own.high)})` : "";
      return [el("td", { class: "num" }, number(own?.base)), el("td", { class: "num" }, number(own?.tuned), ends)];
    });
    return el("tr", {}, el("th", { scope: "row" }, metric.replaceAll("_", " ")), cells);
  });
  return el("section", {}, el("h2", {}, "Figures"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, body))));
}

function verdict(run) {
  const answers = run.answers.map((answer) =>
    el(
      "li",
      { class: "row" },
      el("p", { class: "place" }, visible(answer.place)),
      textOf(answer.prompt),
      el("div", { class: "pair" }, side("base", answer.base), side("tuned", answer.tuned)),
      answer.wanted ? el("details", {}, el("summary", {}, "The answer in the data"), textOf(answer.wanted)) : null,
    ),
  );
  return el(
    "section",
    {},
    el("h2", {}, run.name),
    el("div", { class: `verdict ${run.level}` }, el("p", { class: "headline" }, visible(run.headline)), el("p", { class: "place" }, `${run.folder}/report.html has the whole report`)),
    el("details", {}, el("summary", {}, `Findings (${run.findings.length})`), el("ul", { class: "findings" }, run.findings.map((f) => el("li", {}, el("span", { class: `badge ${f.level}` }, f.level), el("span", {}, visible(f.text)))))),
    answers.length ? el("details", {}, el("summary", {}, `Answers before and after (${answers.length}); this tells who wrote what`), el("ul", { class: "rows" }, answers)) : null,
  );
}

function side(name, text) {
  return el("div", { class: "sheet" }, el("h3", {}, name), textOf(text));
}
