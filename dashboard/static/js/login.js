// A login that expired while a page was open: the token is asked for on the page, so that nothing on it is lost.

let asking = null;

function ask() {
  const dialog = document.getElementById("login-dialog");
  const form = dialog.querySelector("form");
  const wrong = dialog.querySelector("[data-wrong]");
  wrong.hidden = true;
  dialog.showModal();
  return new Promise((resolve, reject) => {
    const end = (settle, value) => {
      form.onsubmit = null;
      dialog.onclose = null;
      dialog.close();
      form.reset();
      settle(value);
    };
    form.onsubmit = async (event) => {
      event.preventDefault();
      const headers = {
        Accept: "application/json",
        "X-CSRF-Token": document.querySelector('meta[name="csrf-token"]').content,
      };
      const answer = await fetch(form.action, { method: "POST", headers, body: new FormData(form) });
      if (answer.ok) {
        end(resolve);
        return;
      }
      const body = await answer.json().catch(() => ({}));
      wrong.textContent = body.error?.message ?? `The server answered ${answer.status}.`;
      wrong.hidden = false;
    };
    dialog.querySelector("[data-close]").onclick = () => dialog.close();
    dialog.onclose = () => end(reject, new Error("Your login has expired. Log in, then try again."));
  });
}

// Resolves once the person has logged in again; several requests that failed together ask once.
export function logIn() {
  if (!document.getElementById("login-dialog")) {
    return Promise.reject(new Error("Your login has expired. Reload the page to log in."));
  }
  asking ??= ask().finally(() => (asking = null));
  return asking;
}
