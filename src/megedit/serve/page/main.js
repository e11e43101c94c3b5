// The page: which view is shown, by the part of the address behind "#".

import { byId } from "./dom.js";
import * as session from "./session.js";
import * as ask from "./ask.js";
import * as edits from "./edits.js";
import * as history from "./history.js";
import * as imports from "./import.js";
import * as report from "./report.js";

const views = { ask, edits, history, import: imports, report };
const chosen = () => (location.hash.slice(1) in views ? location.hash.slice(1) : "ask");

// Which view is to be seen, before anything is known of the server.
function reveal() {
  for (const name of Object.keys(views)) byId(`view-${name}`).hidden = name !== chosen();
  for (const link of document.querySelectorAll(".top nav a")) {
    if (link.hash === `#${chosen()}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function show() {
  reveal();
  if (!session.session.status?.may_ask) byId(`view-${chosen()}`).hidden = true; // there is a sentence instead
  else views[chosen()].show();
}

// The status first, since it says whether a key is needed.
async function load() {
  reveal();
  const status = await session.refresh().catch(() => null); // the banner says so
  if (status && !status.may_ask) session.open(true);
  show();
}

function shortcut(event) {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (chosen() !== "edits") location.hash = "#edits";
  show();
  byId("search").focus();
}

for (const view of Object.values(views)) view.start();
session.start(load);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which view it is
  byId("main").focus();
});
window.addEventListener("hashchange", show);
document.addEventListener("keydown", shortcut);
load();
