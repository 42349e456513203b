/** Sends one photo to the server, and retries while the server is busy. */

const MAX_ATTEMPTS = 6;
const MAX_WAIT_S = 60;
const TIMEOUT_MS = 60_000;

/** A photo was not classified; the message is for the user. */
export class PredictError extends Error {}

/** The server needs a token, or rejected this one. */
export class TokenNeeded extends Error {}

/**
 * Classify one photo, sent unchanged.
 *
 * @param {Blob} photo
 * @param {object} options
 * @param {string | null} options.token for a server that needs one
 * @param {AbortSignal} options.signal stops it, with an AbortError
 * @param {(seconds: number) => void} options.onBusy is called before each wait
 * @param {() => void} options.onSend is called before each attempt
 * @returns {Promise<{label: string, probability: number, probabilities: Object<string, number>,
 *   model: {name: string, version: string | null}, elapsedMs: number}>} `elapsedMs` is the time of
 *   the last attempt
 * @throws {PredictError | TokenNeeded}
 */
export async function predict(photo, { token, signal, onBusy, onSend }) {
  for (let attempt = 1; ; attempt += 1) {
    onSend();
    const { response, body, elapsedMs } = await send(photo, token, signal);
    if (response.ok) return { ...checked(body), elapsedMs };
    if (response.status === 401) throw new TokenNeeded(detailOf(response, body));
    const isBusy = response.status === 429 || response.status === 503;
    const waitS = retryAfterS(response) ?? 2 ** (attempt - 1);
    if (!isBusy || attempt === MAX_ATTEMPTS || waitS > MAX_WAIT_S) {
      throw new PredictError(detailOf(response, body));
    }
    onBusy(waitS);
    // Up to a quarter longer, so that waiting clients do not all retry at once.
    await sleep(waitS * 1000 * (1 + Math.random() / 4), signal);
  }
}

async function send(photo, token, signal) {
  const isImage = photo.type.startsWith("image/");
  const headers = { "Content-Type": isImage ? photo.type : "application/octet-stream" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const attempt = new AbortController();
  let isLate = false;
  // By hand: Safari before 17.4 has no AbortSignal.any.
  const stop = () => attempt.abort();
  const timer = setTimeout(() => {
    isLate = true;
    stop();
  }, TIMEOUT_MS);
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  const startedMs = performance.now();
  try {
    const response = await fetch("predict", {
      method: "POST",
      body: photo,
      headers,
      signal: attempt.signal,
    });
    const text = await response.text();
    return { response, body: parsed(text), elapsedMs: performance.now() - startedMs };
  } catch (error) {
    if (signal.aborted) throw error;
    if (isLate) throw new PredictError(`No answer within ${TIMEOUT_MS / 1000} s.`);
    throw new PredictError(
      "The server could not be reached, or the photo could not be read. Is the server running?",
    );
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function checked(body) {
  const isPrediction =
    typeof body?.label === "string" &&
    typeof body.probability === "number" &&
    typeof body.probabilities === "object";
  if (!isPrediction) throw new PredictError("The server's answer is not a prediction.");
  return body;
}

function detailOf(response, body) {
  const detail = body?.detail ?? body?.title;
  if (typeof detail === "string") return detail;
  return `The server answered ${response.status} ${response.statusText}`.trim();
}

/** Seconds from now, from either form of RFC 9110, section 10.2.3; null if there is none. */
function retryAfterS(response) {
  const value = response.headers.get("Retry-After")?.trim();
  if (!value) return null;
  const seconds = /^\d+$/.test(value) ? Number(value) : (Date.parse(value) - Date.now()) / 1000;
  return Number.isNaN(seconds) ? null : Math.max(seconds, 0);
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
