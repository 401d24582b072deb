// Elements from plain values, and requests. Text of models and data only ever becomes text nodes.

export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
// eslint-disable-next-line no-control-regex
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** Text with its invisible marks shown: control characters, and those that turn the direction of writing. */
export function visible(text) {
  return String(text)
    .replace(/\r\n/g, "\n")
    .replace(CONTROL, (c) => (c < " " ? String.fromCodePoint(0x2400 + c.codePointAt(0)) : code(c)))
    .replace(BIDI, code);
}

function code(character) {
  return `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** A block of somebody else's text. */
export function textOf(text, empty = "(empty)") {
  const blank = text === null || text === undefined || text.trim() === "";
  return el("p", { class: blank ? "text empty" : "text", dir: "auto" }, blank ? empty : visible(text));
}

export async function get(path) {
  return answer(await fetch(path, { credentials: "same-origin" }));
}

export async function post(path, content) {
  const body = JSON.stringify(content);
  const headers = { "Content-Type": "application/json" };
  return answer(await fetch(path, { method: "POST", credentials: "same-origin", headers, body }));
}

async function answer(response) {
  let content = null;
  try {
    content = await response.json();
  } catch {
    content = null;
  }
  if (!response.ok) {
    const text = response.status === 403 ? "The server no longer knows this page: open the address that it printed." : content?.error;
    throw Object.assign(new Error(text || `The server answered ${response.status}.`), { status: response.status });
  }
  return content;
}

let hiding = 0;

/** Show a message at the foot of the page; alarms stay until the next one. */
export function say(text, level = "") {
  const place = document.getElementById("status");
  clearTimeout(hiding);
  place.replaceChildren(text ? el("span", { class: level }, text) : "");
  if (text && level !== "alarm") hiding = setTimeout(() => place.replaceChildren(), 2500);
}

/** Show what went wrong. */
export function fail(error) {
  say(error instanceof TypeError ? "The server does not answer: is it still running?" : error.message, "alarm");
}

/** A select for one of several, shown only where there is a choice. */
export function choice(label, names, chosen, change) {
  const options = names.map((name, i) => el("option", { value: i, selected: i === chosen }, name));
  return names.length < 2 ? null : el("label", {}, label, el("select", { onchange: (e) => change(Number(e.target.value)) }, options));
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${(100 * value).toFixed(0)} %`;
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 || (Math.abs(value) < 0.001 && value !== 0) ? value.toExponential(2) : value.toPrecision(3);
}

/** A probability under chance. */
export function chance(p) {
  return p === null || p === undefined ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3);
}

/** Verdicts with their labels, keys, and what is shown of these. */
export const VERDICTS = [
  ["left", "Left is better", ["1", "ArrowLeft"], "1 or ←"],
  ["right", "Right is better", ["2", "ArrowRight"], "2 or →"],
  ["tie", "Equally good", ["3"], "3"],
  ["both-bad", "Both are bad", ["4"], "4"],
  ["skip", "Skip", ["5"], "5"],
];

/** The verdict that a key means. */
export function verdictOf(event) {
  return VERDICTS.find(([, , keys]) => keys.includes(event.key))?.[0];
}

const NAME = "ftengine-studio-name";
const YEAR = 365 * 24 * 3600;

/** The person's name, kept in a cookie: unlike localStorage it is the same at the next server's port. */
export function personName() {
  const kept = document.cookie.split("; ").find((one) => one.startsWith(`${NAME}=`));
  try {
    return decodeURIComponent(kept?.slice(NAME.length + 1) ?? "");
  } catch {
    return "";
  }
}

export function keepName(name) {
  document.cookie = `${NAME}=${encodeURIComponent(name)}; Max-Age=${YEAR}; Path=/; SameSite=Strict`;
}

/** Where keys are typed, or mean something of their own. */
export function isTyping(event) {
  return event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select") !== null;
}
