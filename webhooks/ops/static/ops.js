// Refreshes the main part of pages with `data-live` (milliseconds), until the page no longer has it, and says in
// #freshness how old the page is, or since when the server has not answered.
"use strict";

const TIMEOUT_MS = 5000;
const TICK_MS = 1000;
const freshness = document.getElementById("freshness");
let answeredAt = new Date();
let failure = "";

function age(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function show() {
  const at = answeredAt.toISOString().slice(11, 19);
  const text = failure ? `${failure} ${at} UTC` : `updated ${age(Date.now() - answeredAt)} ago`;
  if (freshness.textContent !== text) freshness.textContent = text;
  freshness.classList.toggle("bad", failure !== "");
  document.body.classList.toggle("stale", failure !== "");
}

async function update(main) {
  try {
    const options = { credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT_MS), headers: { "X-Refresh": "1" } };
    const response = await fetch(location.href, options);
    if (response.ok) {
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      main.replaceWith(page.querySelector("main"));
      answeredAt = new Date();
      failure = "";
    } else {
      failure = response.status === 401 ? "signed out; last updated" : `only errors (${response.status}) since`;
    }
  } catch {
    failure = "no answer since"; // The server is unreachable or hangs. Try again next time.
  }
  show();
}

function refresh() {
  const main = document.querySelector("main[data-live]");
  if (!main) return;
  setTimeout(async () => {
    const typing = main.contains(document.activeElement) && document.activeElement.matches("input, select");
    const entered = [...main.querySelectorAll("input")].some((input) => input.value !== input.defaultValue);
    if (!typing && !entered && !document.hidden) await update(main);
    refresh();
  }, Number(main.dataset.live));
}

if (freshness) {
  show();
  setInterval(show, TICK_MS);
}
refresh();
