// Sends a file in parts, and goes on where it stopped when the connection was lost: docs/api.md, "Large archives".
import { csrfToken, root } from "./app.js";
import { logIn } from "./login.js";

// Bytes in a part. A proxy that refuses a part as too large (413) gets smaller ones: nginx takes 1 MB by default.
const PARTS = [8 << 20, 2 << 20, 512 << 10];
const PAUSES_S = [1, 2, 4, 8, 15];
const GIVE_UP_S = 600;
export const NO_ANSWER = "no answer";

export class Refused extends Error {
  constructor(request) {
    super(`status ${request.status}`);
    this.request = request;
  }
}

// Resolves with the answer, whatever its status; rejects where there is none.
function once(method, url, headers, body, onSent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    request.responseType = "json";
    const all = { Accept: "application/json", "X-CSRF-Token": csrfToken(), ...headers };
    for (const [name, value] of Object.entries(all)) request.setRequestHeader(name, value);
    if (onSent) request.upload.onprogress = (event) => onSent(event.loaded);
    request.onload = () => resolve(request);
    request.onerror = () => reject(new Error(NO_ANSWER));
    request.send(body);
  });
}

// As `once`; a login that expired is made anew first, and any other answer but the expected one rejects.
export async function call(method, url, { headers = {}, body = null, onSent = null, onLogin = () => {} } = {}) {
  for (;;) {
    const request = await once(method, url, headers, body, onSent);
    if (request.status < 300) return request;
    if (request.status !== 401) throw new Refused(request);
    onLogin();
    await logIn();
  }
}

// Where a page that was closed meanwhile finds its upload again.
function bookmark(file) {
  return `genderline-upload ${root} ${file.name} ${file.size} ${file.lastModified}`;
}

const sending = new Set();

async function begun(file, isOwner, onLogin) {
  const known = isOwner && localStorage.getItem(bookmark(file));
  if (known) {
    try {
      return (await call("GET", `${root}/api/v1/uploads/${known}`, { onLogin })).response;
    } catch (error) {
      if (!(error instanceof Refused && error.request.status === 404)) throw error; // else it was used, or is too old
    }
  }
  const headers = { "Upload-Length": file.size };
  const { response } = await call("POST", `${root}/api/v1/uploads`, { headers, onLogin });
  if (isOwner) localStorage.setItem(bookmark(file), response.upload_id);
  return response;
}

async function whereToGoOn(upload, onLogin) {
  return (await call("GET", `${root}/api/v1/uploads/${upload.upload_id}`, { onLogin })).response;
}

// Sends all of the file, then gives the upload's id to `finish`, which makes a run or job of it.
// onProgress(bytes that are there), onTrouble(error) where the line is cut, onLogin() where a person has to log in.
export async function sendInParts(file, finish, { onProgress, onTrouble, onLogin }) {
  const isOwner = !sending.has(bookmark(file)); // the same file dropped twice at once is two uploads
  if (isOwner) sending.add(bookmark(file));
  try {
    const answer = await finish(await sendAll(file, isOwner, onProgress, onTrouble, onLogin));
    if (isOwner) localStorage.removeItem(bookmark(file));
    return answer;
  } finally {
    if (isOwner) sending.delete(bookmark(file));
  }
}

async function sendAll(file, isOwner, onProgress, onTrouble, onLogin) {
  let size = 0;
  let tries = 0;
  let trouble = null;
  let upload = null;
  let asked = true;
  for (;;) {
    try {
      upload ??= await begun(file, isOwner, onLogin);
      if (!asked) upload = await whereToGoOn(upload, onLogin);
      asked = true;
      const { offset } = upload;
      onProgress(offset);
      if (offset === file.size) return upload.upload_id;
      const request = await call("PATCH", `${root}/api/v1/uploads/${upload.upload_id}`, {
        headers: { "Content-Type": "application/offset+octet-stream", "Upload-Offset": offset },
        body: file.slice(offset, offset + PARTS[size]),
        onSent: (bytes) => onProgress(offset + bytes),
        onLogin,
      });
      upload.offset = Number(request.getResponseHeader("Upload-Offset"));
      tries = 0;
      trouble = null;
    } catch (error) {
      const status = error instanceof Refused ? error.request.status : error.message === NO_ANSWER ? 0 : null;
      if (status === 413 && size + 1 < PARTS.length && upload) {
        size += 1;
        continue;
      }
      // A proxy says 502 to 504 where the dashboard is away; 409 tells of another offset.
      if (![0, 409, 502, 503, 504].includes(status)) throw error;
      trouble ??= performance.now();
      if (performance.now() - trouble > 1000 * GIVE_UP_S) throw error;
      onTrouble(error);
      await new Promise((resolve) => setTimeout(resolve, 1000 * PAUSES_S[Math.min(tries, PAUSES_S.length - 1)]));
      tries += 1;
      asked = false;
    }
  }
}
