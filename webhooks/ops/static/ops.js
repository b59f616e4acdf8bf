// Refreshes the main part of pages with `data-live` (milliseconds), until the page no longer has it.
"use strict";

function refresh() {
  const main = document.querySelector("main[data-live]");
  if (!main) return;
  setTimeout(async () => {
    const typing = main.contains(document.activeElement) && document.activeElement.matches("input, select");
    const entered = [...main.querySelectorAll("input")].some((input) => input.value !== input.defaultValue);
    if (!typing && !entered && !document.hidden) {
      try {
        const response = await fetch(location.href, { credentials: "same-origin", headers: { "X-Refresh": "1" } });
        if (response.ok) {
          const page = new DOMParser().parseFromString(await response.text(), "text/html");
          main.replaceWith(page.querySelector("main"));
        }
      } catch {
        // The server is unreachable. Try again next time.
      }
    }
    refresh();
  }, Number(main.dataset.live));
}

refresh();
