// Follows the agent: each event carries the page's content, rendered by the server. What is shown is brought to it in
// place, so that what is open, selected or scrolled to stays. If events stop, the page says how old it is.
"use strict";

(() => {
  const content = document.getElementById("content");
  const fresh = document.getElementById("fresh");
  const staleAfter = 4000; // milliseconds without an event; they come every second
  let heard = performance.now();
  let following = false;

  // become makes the children of `now` those of `next`.
  function become(now, next) {
    const wanted = [...next.childNodes];
    wanted.forEach((want, i) => {
      const have = now.childNodes[i];
      if (!have) {
        now.append(want);
      } else if (have.nodeType !== want.nodeType || have.nodeName !== want.nodeName || key(have) !== key(want)) {
        have.replaceWith(want);
      } else if (want.nodeType === Node.ELEMENT_NODE) {
        attributes(have, want);
        become(have, want);
      } else if (have.data !== want.data) {
        have.data = want.data;
      }
    });
    while (now.childNodes.length > wanted.length) now.lastChild.remove();
  }

  const key = (node) => (node.dataset ? node.dataset.key : undefined);

  function attributes(have, want) {
    for (const { name } of [...have.attributes]) {
      if (!want.hasAttribute(name) && !(name === "open" && have.nodeName === "DETAILS")) have.removeAttribute(name);
    }
    for (const { name, value } of want.attributes) {
      if (have.getAttribute(name) !== value) have.setAttribute(name, value);
    }
  }

  // A handover that comes in on top must not close the one that is being read.
  const opened = () => new Set([...content.querySelectorAll("details[open]")].map(key));

  function show(html) {
    const next = new DOMParser().parseFromString("<main>" + html + "</main>", "text/html").querySelector("main");
    const open = opened();
    become(content, next);
    for (const d of content.querySelectorAll("details")) d.open = open.has(key(d));
  }

  const clock = (ms) => new Date(ms).toISOString().slice(11, 19) + " UTC";

  function tell() {
    const shown = content.querySelector("[data-at]");
    const at = shown ? clock(Number(shown.dataset.at)) : "";
    const silent = performance.now() - heard;
    const stale = silent > staleAfter;
    document.body.classList.toggle("stale", stale);
    fresh.className = "fresh " + (stale ? "old" : following ? "live" : "");
    const text = stale ? `No news for ${Math.floor(silent / 1000)} s. What is shown is of ${at}.` : following ? `live, ${at}` : `as of ${at}`;
    if (fresh.textContent !== text) fresh.textContent = text;
  }

  const events = new EventSource("/events");
  events.addEventListener("status", (e) => {
    heard = performance.now();
    following = true;
    show(e.data);
    tell();
  });
  events.addEventListener("error", () => {
    following = false;
    if (events.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 10000); // the server refused: try the whole page again
    tell();
  });
  setInterval(tell, 500);
})();
