// Who is at the page: the server's status, the key dialog, and which controls there are.

import { call, events, key } from "./api.js";
import { button, byId, say, sayError, thousands } from "./dom.js";

export const session = { status: null };
const UNKNOWN = "The server does not know this key.";
const dialog = byId("key-dialog");

// Ask for the status, and show what it allows.
export async function refresh() {
  session.status = await call("GET", "v1/status");
  const { adapter: name, revision, counts, may_ask: mayAsk, may_edit: mayEdit, keys } = session.status;
  const more = mayAsk ? `, revision ${revision}, ${thousands(counts.active ?? 0)} active` : "";
  byId("adapter").textContent = `${name}${more}`;
  document.title = `${name} – MegEdit`;
  document.body.classList.toggle("may-edit", mayEdit);
  byId("needs-key").hidden = mayAsk;
  byId("report-link").hidden = !session.status.report;
  for (const place of document.querySelectorAll(".locked")) lock(place, mayEdit || !mayAsk, keys.edit);
  return session.status;
}

// The sentence in place of the controls that change something.
function lock(place, hidden, hasKey) {
  place.hidden = hidden;
  if (hasKey) place.replaceChildren("Changes need the edit key. ", button("Enter the key", () => open()));
  else place.replaceChildren("This server changes nothing. Start it with --edit-key to allow changes.");
}

// asked: by the server, and not by the user.
export function open(asked = false) {
  if (dialog.open) return;
  const keys = session.status?.keys;
  byId("key-text").textContent = asked ? "The server asks for a key."
    : keys?.edit ? "The edit key allows changes; the API key allows questions."
    : keys?.api ? "The API key allows questions. This server has no edit key, so it changes nothing."
    : "This server has no keys: everyone may ask, and nothing can be changed.";
  byId("key").value = key.get();
  byId("key-forget").hidden = !key.get();
  say(byId("key-error"), "");
  dialog.showModal();
}

// Take a key if the server knows it. reload: shows the present view anew.
async function take(value, reload) {
  const before = key.get();
  key.set(value.trim());
  try {
    const status = await refresh();
    if (value && !status.may_ask) throw new Error(UNKNOWN);
    dialog.close();
    reload();
  } catch (error) {
    key.set(before);
    sayError(byId("key-error"), error.code === "invalid_api_key" ? new Error(UNKNOWN) : error);
    byId("key").select();
  }
}

export function start(reload) {
  for (const name of ["open-key", "enter-key"]) byId(name).addEventListener("click", () => open());
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-forget").addEventListener("click", () => take("", reload));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    take(byId("key").value, reload);
  });
  events.addEventListener("key", () => open(true));
  events.addEventListener("changed", () => refresh().catch(() => {}));
  const banner = byId("away");
  events.addEventListener("back", () => { banner.hidden = true; });
  events.addEventListener("away", () => {
    banner.hidden = false;
    const words = "The server does not answer. What you see may be out of date. ";
    banner.replaceChildren(words, button("Try again", reload));
  });
}
