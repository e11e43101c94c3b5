// A background job and its progress.

import { call, finished } from "./api.js";
import { button, element, thousands } from "./dom.js";

// The job of a kind that runs now, begun from this page or another; null where there is none.
export async function running(kind) {
  const { data } = await call("GET", "v1/jobs");
  return data.find((job) => job.kind === kind && job.status === "running") ?? null;
}

// Show a job's progress at a place until it ends; what comes of it. before: words in front of its stage.
// While the server is away, the job may go on: the reader says when to look again.
export async function followed(job, place, before = "") {
  const progress = element("progress", { "aria-label": "Progress" });
  const words = element("span", { class: "muted" });
  const show = ({ stage, done, total }) => {
    if (total) Object.assign(progress, { max: total, value: done });
    else progress.removeAttribute("value");
    const name = [before, stage ?? "Working"].filter(Boolean).join(" · ");
    words.textContent = total ? `${name}: ${thousands(done)} of ${thousands(total)}` : name;
  };
  for (;;) {
    place.className = "message job";
    place.replaceChildren(progress, words);
    try {
      return await finished(job, show);
    } catch (error) {
      if (error.code !== "away") throw error;
      const looked = new Promise((look) => {
        place.replaceChildren(`${error.message} The job may go on. `, button("Look again", look));
      });
      await looked;
    }
  }
}
