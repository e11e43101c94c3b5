// Report: what evaluations have found, as the report of `meg eval`, in a frame of its own in which no script runs.

import { call } from "./api.js";
import { byId, say, sayError } from "./dom.js";

const message = byId("report-message"), frame = byId("report");

export function start() {
  frame.addEventListener("load", fit);
  window.addEventListener("resize", fit);
}

export async function show() {
  try {
    if (!frame.srcdoc) frame.srcdoc = (await call("GET", "v1/report")).html;
    frame.hidden = false;
    say(message, "");
    fit();
  } catch (error) {
    frame.hidden = true;
    sayError(message, error, show);
  }
}

// As high as what is in it, so that there is one scroll bar.
function fit() {
  const height = frame.contentDocument?.documentElement?.scrollHeight;
  if (height) frame.height = height;
}
