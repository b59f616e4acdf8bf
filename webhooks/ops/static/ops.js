// A page that shows work in progress is fetched again, and its main part swapped, until it says that all is done.
"use strict";

function live() {
  const main = document.querySelector("main[data-live]");
  if (!main) return;
  setTimeout(async () => {
    const typing = main.contains(document.activeElement) && document.activeElement.matches("input, select");
    if (!typing && !document.hidden) {
      try {
        const answer = await fetch(location.href, { credentials: "same-origin" });
        if (answer.ok) {
          const page = new DOMParser().parseFromString(await answer.text(), "text/html");
          main.replaceWith(page.querySelector("main"));
        }
      } catch {
        // The server is away for a moment: tried again.
      }
    }
    live();
  }, Number(main.dataset.live));
}

live();
