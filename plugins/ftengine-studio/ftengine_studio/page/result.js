import { chance, choice, el, fail, get, number, percent, personName, post, say, svg, textOf } from "./dom.js";

let contest = 0;
/** Comparisons, with a person's name, whose result that person asked for before all pairs were judged. */
const revealed = new Set();

/** What the judgements come to. */
export async function show(place, overview) {
  if (contest >= overview.contests.length) contest = 0;
  const content = el("div");
  const titles = overview.contests.map((one) => one.title);
  const open = async (i) => {
    contest = i;
    content.replaceChildren(el("p", { class: "hint" }, "Computing …"));
    try {
      const own = await judged(i);
      if (overview.contests[i].pairs && own.next !== null && !revealed.has(`${i} ${personName()}`)) return content.replaceChildren(...hidden(own, () => open(i)));
      content.replaceChildren(...drawn(await get(`/api/result/${i}`)));
    } catch (error) {
      fail(error);
    }
  };
  place.append(el("h1", {}, "Result"), el("div", { class: "controls" }, choice("Comparison", titles, contest, open)), content);
  await open(contest);
}

/** How far the person is who looks; without a name nobody has judged. */
async function judged(i) {
  const name = personName();
  return name ? get(`/api/judge/${i}?name=${encodeURIComponent(name)}`) : { judged: 0, total: null, next: 0 };
}

/** In place of a result that would tell a judge, who has pairs left, which model is which. */
function hidden({ judged, total }, open) {
  const far = total === null ? "You have judged nothing yet." : `You have judged ${judged} of ${total} pairs.`;
  const show = () => (revealed.add(`${contest} ${personName()}`), open());
  return [
    el("p", {}, `${far} The result tells which model is preferred, and with it how each writes; who has seen it no longer judges blind.`),
    el("p", {}, el("a", { href: "#judge" }, "Judge the others first"), ", or ", el("button", { type: "button", onclick: show }, "show the result now")),
  ];
}

function drawn(result) {
  const { people, models, stale } = result;
  const old = stale ? [el("p", {}, el("span", { class: "badge note" }, "note"), ` ${number(stale)} ${stale === 1 ? "judgement is" : "judgements are"} of answers that have changed since: kept in judgements.jsonl, and not counted here.`)] : [];
  if (!people && !Object.keys(models).length) {
    return [...old, el("p", { class: "hint" }, `Nobody has judged ${stale ? "the present answers" : "yet"}; ${result.pairs} pairs wait in Judge.`)];
  }
  const parts = people ? figures(result, people, `${people.rate.judges === 1 ? "one person" : `${people.rate.judges} people`}`) : [];
  for (const [name, own] of Object.entries(models)) {
    if (own) parts.push(el("h2", {}, `Judged by the model ${name}, not by people`), ...figures(result, own, `the model ${name}`), ...ofModel(result, own));
  }
  if (result.in_report) parts.push(el("h2", {}, "Verdict of the run"), conclude());
  if (result.notes.length) parts.push(el("h2", {}, "Notes"), el("ul", { class: "rows" }, result.notes.map(noteOf)));
  return [...old, ...parts];
}

function figures(result, own, who) {
  const { rate, length, agreement } = own;
  const level = own.position?.most || (rate.settled && result.people === own && rate.value <= 0.5) ? "alarm" : rate.settled && result.people === own ? "good" : "note";
  const better = called(rate.value >= 0.5 ? result.side : result.other);
  const sentence = rate.settled
    ? `${better[0].toUpperCase()}${better.slice(1)} is preferred: ${called(result.side)} wins ${percent(rate.value)} (95 % interval ${percent(rate.low)} to ${percent(rate.high)}).`
    : `No preference beyond chance: ${called(result.side)} wins ${percent(rate.value)} (95 % interval ${percent(rate.low)} to ${percent(rate.high)}).`;
  return [
    el(
      "div",
      { class: `verdict ${level}` },
      own.position?.most ? el("p", { class: "headline" }, `Not to be relied on: the order decides ${own.position.flipped} of ${own.position.pairs} verdicts.`) : null,
      el("p", { class: own.position?.most ? "" : "headline" }, sentence),
      el("p", {}, `${rate.judgements} judgements by ${who} on ${rate.prompts} of ${result.pairs} prompts${own.skipped ? `, ${own.skipped} skipped` : ""}. Ties and two bad answers count as halves.`),
      el("p", {}, needed(rate)),
    ),
    bar(rate, result),
    table(["", "value"], [
      [`prompts with ${result.side} ahead`, number(rate.wins)],
      [`prompts with ${result.other} ahead`, number(rate.losses)],
      ["equally good", percent(rate.ties)],
      ["both bad", percent(rate.both_bad)],
      ["sign test, p", chance(rate.p)],
    ]),
    el("h2", {}, "Does length decide?"),
    el("p", {}, lengths(length, result)),
    ...(agreement || result.people === own ? [el("h2", {}, "Do people agree?"), el("p", {}, agreed(agreement))] : []),
    kappas(agreement),
    ...slices(own.slices, result),
    table(["judge", "judgements"], Object.entries(own.judges).map(([name, count]) => [name, number(count)])),
  ].filter(Boolean);
}

/** What a judging model's figures need beside them: its bias by position, and what people correct. */
function ofModel(result, { position, garbage, powered, with_people: people }) {
  const parts = [];
  if (garbage) parts.push(`${garbage} replies had no verdict.`);
  for (const [name, one] of Object.entries(people)) parts.push(`It says what ${name} says on ${percent(one.same)} of ${one.prompts} prompts.`);
  return [...biased(position), ...(parts.length ? [el("p", {}, parts.join(" "))] : []), ...corrected(result, powered)];
}

function biased(position) {
  if (!position || position.rate === null) return [];
  return [
    el("h2", {}, "Does the order decide?"),
    el("p", {}, `Each pair was asked in both orders. A verdict that changes sides with the order counts as a tie: ${position.flipped} of ${position.pairs} pairs, ${percent(position.rate)} (95 % interval ${percent(position.low)} to ${percent(position.high)}).`),
    table(["position bias", "pairs"], [
      ["the answer that stood first preferred in both orders", number(position.first)],
      ["the answer that stood second preferred in both orders", number(position.second)],
      ["verdicts that differ otherwise, as a tie in one order", number(position.unsteady)],
      ["exact test that no position is preferred, p", chance(position.p)],
    ]),
  ];
}

/** Few judgements of people correct many of the model (prediction-powered inference). */
function corrected(result, powered) {
  if (!powered) return [];
  const range = `${percent(powered.value)} (95 % interval ${percent(powered.low)} to ${percent(powered.high)})`;
  return [
    el("h2", {}, "People and model together"),
    el("p", {}, `Corrected by people's judgements of ${powered.people_prompts} prompts, those of the model on ${number(powered.model_prompts)} further ones say that ${called(result.side)} wins ${range}. This is prediction-powered inference: however biased the model is, the estimate is not, where people's prompts are a random part of all.`),
    bar(powered, result),
    table(["", `${result.side} wins`], [
      ["people alone", percent(powered.people)],
      ["the model alone", percent(powered.model)],
      ["together", percent(powered.value)],
    ]),
  ];
}

function needed(rate) {
  if (rate.needed === 0) return "The sign test has decided; more judgements would narrow the interval.";
  if (rate.needed === null) return "The preference is too near to a half to say how many more judgements would decide it.";
  return `About ${number(rate.needed)} more prompts would decide it in four cases of five, if the preference is as large as it looks.`;
}

function lengths(length, result) {
  const total = length.longer_wins + length.shorter_wins;
  if (!total) return "No prompt has answers of different lengths and a preferred one.";
  const longer = length.longer_wins >= length.shorter_wins;
  const [which, wins] = longer ? ["longer", length.longer_wins] : ["shorter", length.shorter_wins];
  const parts = [`The ${which} answer is preferred on ${wins} of ${total} prompts where lengths differ (sign test, p ${chance(length.p)}).`];
  if (length.preferred !== null) parts.push(`Preferred answers have ${number(Math.round(length.preferred))} characters on average, the others ${number(Math.round(length.other))}.`);
  if (length.controlled) {
    const [value, low, high] = length.controlled;
    parts.push(`If both were equally long, ${result.side} would win ${percent(value)} (${percent(low)} to ${percent(high)}).`);
  }
  return parts.join(" ");
}

function agreed(agreement) {
  if (!agreement) return "No prompt was judged by several.";
  const alpha = agreement.alpha === null ? "is undefined, as all say the same" : `is ${number(agreement.alpha)} (1: full agreement, 0: that of chance)`;
  return `${agreement.prompts} prompts have several judges; ${percent(agreement.same)} of their pairs of judgements are the same, where a tie and two bad answers count as one: neither is better. Krippendorff's alpha ${alpha}.`;
}

function kappas(agreement) {
  const rows = agreement ? Object.entries(agreement.kappas) : [];
  return rows.length ? table(["judges", "Cohen's kappa"], rows.map(([pair, value]) => [pair, number(value)])) : null;
}

function slices(found, result) {
  if (!found.length) return [];
  const rows = found.map(({ column, value, rate, p }) => [
    `${column}: ${value}`, percent(rate.value), `${percent(rate.low)} to ${percent(rate.high)}`, number(rate.prompts), chance(p),
  ]);
  return [el("h2", {}, "By slice"), table(["slice", `${result.side} wins`, "95 % interval", "prompts", "p, for all slices"], rows)];
}

function bar(rate, result) {
  const x = (value) => 10 + 480 * value;
  return el(
    "figure",
    {},
    svg(
      "svg",
      { viewBox: "0 0 500 60", class: "plot", role: "img", "aria-label": `win rate of ${result.side}: ${percent(rate.value)}` },
      svg("path", { class: "axis", d: `M${x(0)} 25H${x(1)}` }),
      svg("path", { class: "half", d: `M${x(0.5)} 8V42` }),
      svg("path", { class: "c0", d: `M${x(rate.low)} 25H${x(rate.high)}`, "stroke-width": 3 }),
      svg("circle", { class: "c0", cx: x(rate.value), cy: 25, r: 6 }),
      svg("text", { x: x(0), y: 56 }, `${result.other} always`),
      svg("text", { x: x(0.5), y: 56, "text-anchor": "middle" }, "50 %"),
      svg("text", { x: x(1), y: 56, "text-anchor": "end" }, `${result.side} always`),
    ),
  );
}

function table(columns, rows) {
  const cell = (value, i) => el(i ? "td" : "th", i ? { class: "num" } : { scope: "row" }, value);
  const head = el("tr", {}, columns.map((name, i) => el("th", { scope: "col", class: i ? "num" : "" }, name)));
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell))))));
}

function called(maker) {
  return maker === "tuned" || maker === "base" ? `the ${maker} model` : `run ${maker}`;
}

function noteOf(note) {
  return el(
    "li",
    { class: "row" },
    el("p", { class: "head hint" }, `${note.judge}: ${note.verdict}`),
    textOf(note.note),
    el("details", {}, el("summary", {}, "Prompt"), textOf(note.prompt)),
  );
}

function conclude() {
  const button = el("button", { type: "button" }, "Bring these judgements into verdict and report");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const { headline } = await post(`/api/result/${contest}`, {});
      say(`Written: ${headline}`);
    } catch (error) {
      fail(error);
    } finally {
      button.disabled = false;
    }
  });
  return el("p", {}, button);
}
