// Keeps an open page current. Every page is complete without it: the server renders everything, and this script only
// asks again and inserts what is new.
"use strict";

async function fetchPage() {
  const answer = await fetch(location.href, { cache: "no-store" });
  if (!answer.ok) throw new Error(`the page answered ${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

function renew(main, seconds) {
  setInterval(async () => {
    // Not while somebody reads: what was opened or focused stays.
    const inUse = main.contains(document.activeElement) || main.querySelector("details[open]");
    if (document.hidden || inUse || String(getSelection())) return;
    try {
      main.innerHTML = (await fetchPage()).querySelector("main").innerHTML;
      main.classList.remove("cut-off");
    } catch {
      main.classList.add("cut-off");
    }
  }, seconds * 1000);
}

function follow(list, live) {
  let position = list.dataset.position;
  let arrived = 0;
  let asked = false;
  let asking = false;

  async function bringNew() {
    asked = true;
    if (asking) return;
    asking = true;
    while (asked) {
      asked = false;
      try {
        const rows = (await fetchPage()).querySelectorAll("#alerts > li");
        const fresh = [...rows].filter((row) => !document.getElementById(row.id));
        for (const row of fresh) row.classList.add("new");
        list.prepend(...fresh);
        arrived += fresh.length;
        for (const row of [...list.children].slice(Number(list.dataset.limit))) {
          if (!row.querySelector("details[open]")) row.remove();
        }
      } catch {
        asked = true;
      }
      showState();
      await new Promise((done) => setTimeout(done, 500)); // a burst of alerts asks once, not a hundred times
    }
    asking = false;
  }

  let connected = false;
  function showState() {
    const count = arrived ? `, ${arrived} new since you opened the page` : "";
    const words = connected ? `Live${count}` : `Reconnecting${count}`;
    live.classList.toggle("on", connected);
    if (live.textContent !== words) live.textContent = words;
  }

  function connect() {
    const stream = new EventSource(`${list.dataset.stream}?after=${encodeURIComponent(position)}`);
    stream.onopen = () => {
      connected = true;
      showState();
    };
    stream.addEventListener("alert", (event) => {
      position = event.lastEventId;
      bringNew();
    });
    stream.onerror = () => {
      connected = false;
      showState();
      // The browser reconnects by itself where it can; where it gave up, resume after the last alert seen.
      if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
    };
  }
  connect();
}

const main = document.querySelector("main");
if (main.dataset.refreshSeconds) renew(main, Number(main.dataset.refreshSeconds));
const list = document.getElementById("alerts");
if (list) follow(list, document.getElementById("live"));
