// The server's HTTP API: requests with the key, answers that stream, background jobs, and errors in words.

const KEY = "megedit.key";
const POLL = 600; // milliseconds between two looks at a job

// "key": a key is asked for. "away" and "back": the server stopped or began to answer. "changed": edits were changed.
export const events = new EventTarget();
const tell = (type) => events.dispatchEvent(new Event(type));

// An error to be shown as it is. code: of the contract, or "away" where there is no server.
export class ServerError extends Error {
  constructor(message, { code = null, status = 0, conflicts = [], retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { code, status, conflicts, retryAfter });
  }

  static of(error, status = 0, retryAfter = null) {
    return new ServerError(error?.message ?? `The server failed (${status}).`, {
      code: error?.code, conflicts: error?.conflicts ?? [], status, retryAfter,
    });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

// The response to a request, if it is a good one. body: an object becomes JSON, a file goes as it is.
async function send(method, path, body, signal) {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  const file = body instanceof Blob;
  if (body !== undefined) headers["Content-Type"] = file ? "application/octet-stream" : "application/json";
  let response;
  try {
    const sent = file || body === undefined ? body : JSON.stringify(body);
    response = await fetch(path, { method, headers, body: sent, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw away();
  }
  tell("back");
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  if (response.status === 401) tell("key");
  throw ServerError.of(answer?.error, response.status, response.headers.get("Retry-After"));
}

function away() {
  tell("away");
  return new ServerError("The server does not answer.", { code: "away" });
}

export async function call(method, path, body, signal) {
  const response = await send(method, path, body, signal);
  const answer = await response.json().catch((error) => {
    throw error.name === "AbortError" ? error : away();
  });
  if (method !== "GET" && answer.changes?.length) tell("changed");
  return answer;
}

// The JSON events of an answer that streams, one by one.
export async function* stream(path, body, signal) {
  const response = await send("POST", path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : away();
      });
      if (done) throw away(); // it was cut off
      const events = (rest + value).split(/\r?\n\r?\n/);
      rest = events.pop();
      for (const event of events) {
        const data = dataOf(event);
        if (data === "[DONE]") return;
        if (!data) continue;
        const parsed = JSON.parse(data);
        if (parsed.error) throw ServerError.of(parsed.error);
        yield parsed;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // a stream that was left early
  }
}

const dataOf = (event) =>
  event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");

// What comes of a job. progress: called with the job whenever it was looked at.
export async function finished(job, progress) {
  for (let misses = 0; job.status === "running"; ) {
    progress(job);
    await new Promise((resolve) => setTimeout(resolve, POLL));
    try {
      job = await call("GET", `v1/jobs/${encodeURIComponent(job.id)}`);
      misses = 0;
    } catch (error) {
      if (error.code !== "away" || ++misses > 5) throw error; // a short gap in the network ends no job
    }
  }
  progress(job);
  if (job.status === "failed") throw ServerError.of(job.error);
  tell("changed");
  return job.result;
}
