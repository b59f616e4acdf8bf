// Keeps times current, shows exact values, copies ids, opens dialogs, and refreshes pages with `data-live`.
"use strict";

const TIMEOUT_MS = 5000;
const TICK_MS = 1000;
const PING_MS = 10000;
const MINUTE = 60;
const HOUR = 3600;
const DAY = 86400;
const RELATIVE_DAYS = 30;
const byId = (id) => document.getElementById(id);

// Times. The server shows them in the same words (`relative` in formats.py).

function age(seconds) {
  const [size, unit] = seconds >= DAY ? [DAY, "d"] : seconds >= HOUR ? [HOUR, "h"] : seconds >= MINUTE ? [MINUTE, "min"] : [1, "s"];
  return `${Math.floor(seconds / size)} ${unit}`;
}

function relative(at) {
  const seconds = Math.round((Date.now() - at) / 1000);
  if (Math.abs(seconds) > RELATIVE_DAYS * DAY) return `${at.toISOString().slice(0, 10)} UTC`;
  return seconds < 0 ? `in ${age(-seconds)}` : `${age(seconds)} ago`;
}

function exact(at) {
  const local = at.toLocaleString("sv-SE", { timeZoneName: "short" });
  return `${at.toISOString().slice(0, 19).replace("T", " ")} UTC\n${local}`;
}

function showTimes() {
  for (const time of document.querySelectorAll("main time")) {
    const text = relative(new Date(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
}

// One tip for all elements with an exact time or `data-tip`; it also says "Copied".

function showTip(element, text) {
  const tip = byId("tip");
  tip.textContent = text;
  tip.showPopover();
  const { left, top, bottom, width } = element.getBoundingClientRect();
  const x = left + width / 2 - tip.offsetWidth / 2;
  tip.style.left = `${Math.max(4, Math.min(x, document.documentElement.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${top > tip.offsetHeight + 8 ? top - tip.offsetHeight - 6 : bottom + 6}px`;
}

function showTipOf(event) {
  const element = event.target.closest?.("time, [data-tip]");
  if (!element) return byId("tip").hidePopover();
  element.removeAttribute("title"); // The tip says more.
  return showTip(element, element.dateTime ? exact(new Date(element.dateTime)) : element.dataset.tip);
}

async function copy(button) {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    showTip(button, "Copied");
  } catch { // Browsers allow it only over HTTPS and on localhost. Select the id, so that one key copies it.
    getSelection().selectAllChildren(button.previousElementSibling);
    showTip(button, "Selected: press Ctrl+C");
  }
}

document.addEventListener("pointerover", showTipOf);
document.addEventListener("focusin", showTipOf);
document.addEventListener("scroll", () => byId("tip").hidePopover(), { passive: true });
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button");
  if (button?.dataset.copy) copy(button);
  else if (button?.hasAttribute("data-dialog")) button.nextElementSibling.showModal();
  else if (button?.hasAttribute("data-close")) button.closest("dialog").close();
  else showTipOf(event);
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea, [contenteditable]") || document.querySelector("dialog[open]");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey || !byId("search")) return;
  event.preventDefault();
  byId("search").select();
});

// Whether the server answers, and how old the page is.

let updatedAt = new Date();
let answeredAt = updatedAt;
let failure = "";

const clock = (at) => `${at.toISOString().slice(11, 19)} UTC`;

function showAge() {
  byId("freshness").textContent = `Updated ${relative(updatedAt)}`;
  const bar = failure && `${failure} ${clock(answeredAt)}. This page shows the state of ${clock(updatedAt)}.`;
  byId("outage").hidden = !failure;
  if (byId("outage").textContent !== bar) byId("outage").textContent = bar;
  document.body.classList.toggle("stale", failure !== "");
  showTimes();
}

async function request(url, options) {
  try {
    const response = await fetch(url, { credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT_MS), headers: { "X-Refresh": "1" }, ...options });
    if (response.ok) {
      failure = "";
      answeredAt = new Date();
      return response;
    }
    failure = response.status === 401 ? "You are signed out since" : `The server has answered with errors (${response.status}) since`;
  } catch { // It is unreachable or hangs. Try again next time.
    failure = "The server has not answered since";
  }
  return null;
}

function isEntering(main) {
  const typing = main.contains(document.activeElement) && document.activeElement.matches("input, select, textarea");
  const entered = [...main.querySelectorAll("input")].some((input) => input.value !== input.defaultValue || input.checked !== input.defaultChecked);
  return typing || entered || document.querySelector("dialog[open]") || !getSelection().isCollapsed;
}

async function update(main) {
  const response = await request(location.href);
  const page = response && new DOMParser().parseFromString(await response.text(), "text/html");
  if (!page || isEntering(main)) return;
  main.replaceWith(page.querySelector("main"));
  updatedAt = new Date();
}

const ping = () => request(document.querySelector("link[rel=icon]").href, { method: "HEAD", cache: "no-store" });

function refresh() {
  const main = document.querySelector("main");
  setTimeout(async () => {
    if (!document.hidden) await (main.dataset.live && !isEntering(main) ? update(main) : ping());
    showAge();
    refresh();
  }, Number(main.dataset.live) || PING_MS);
}

if (byId("freshness")) {
  const { timeZone } = Intl.DateTimeFormat().resolvedOptions();
  if (timeZone !== "UTC") byId("zone").textContent = ` and in ${timeZone}`;
  showAge();
  setInterval(showAge, TICK_MS);
  refresh();
}

// Lists: tick rows; find text in a payload.

function showTicked() {
  for (const number of document.querySelectorAll("[data-ticked]")) number.textContent = document.querySelectorAll("td.tick input:checked").length;
}

document.addEventListener("change", (event) => {
  if (event.target.hasAttribute("data-tick-all")) {
    for (const box of document.querySelectorAll("td.tick input:enabled")) box.checked = event.target.checked;
  }
  showTicked();
});

function find(text, pre) {
  const whole = pre.textContent;
  const parts = [];
  let from = 0;
  for (let at = text ? whole.toLowerCase().indexOf(text) : -1; at >= 0; at = whole.toLowerCase().indexOf(text, from)) {
    const mark = document.createElement("mark");
    mark.textContent = whole.slice(at, at + text.length);
    parts.push(whole.slice(from, at), mark);
    from = at + text.length;
  }
  pre.replaceChildren(...parts, whole.slice(from));
  pre.querySelector("mark")?.scrollIntoView({ block: "nearest" });
}

document.addEventListener("input", (event) => {
  if (event.target.dataset.find) find(event.target.value.toLowerCase(), byId(event.target.dataset.find));
});
