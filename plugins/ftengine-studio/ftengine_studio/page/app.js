import { el, fail, get } from "./dom.js";
import * as data from "./data.js";
import * as judge from "./judge.js";
import * as result from "./result.js";
import * as runs from "./runs.js";
import * as talk from "./talk.js";

const VIEWS = { judge, result, data, runs, talk };
const place = document.getElementById("view");
let leave = () => {};
let turn = 0;

/** Show the view that the address names; each returns what to do when it is left. */
async function show() {
  const name = location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "judge";
  const now = ++turn;
  leave();
  leave = () => {};
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · ftengine studio`;
  try {
    const overview = await get("/api/overview");
    if (now !== turn) return;
    const own = el("div");
    place.replaceChildren(own);
    leave = (await VIEWS[name].show(own, overview)) || (() => {});
  } catch (error) {
    place.replaceChildren(el("p", { class: "hint" }, error.message));
    fail(error);
  }
}

addEventListener("hashchange", show);
show();
