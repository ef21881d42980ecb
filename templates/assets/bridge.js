// What pages can do beyond being read: keys, copying, a live list, a range picked in a chart.
// Without it everything can still be read and done.
"use strict";

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);

// --- moments -------------------------------------------------------------------------------------------------

const STEPS = [[90, 1, "s"], [90 * 60, 60, "min"], [36 * 3600, 3600, "h"]];

function span(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const step = STEPS.find(([limit]) => seconds < limit);
  return step ? `${Math.round(seconds / step[1])} ${step[2]}` : `${Math.round(seconds / 86400)} days`;
}

// The server's clock counts, not this machine's: the page says what time it was made.
const ahead = Date.now() - Date.parse(document.documentElement.dataset.now);

function age() {
  for (const time of all("time[data-relative]")) {
    const seconds = (Date.now() - ahead - Date.parse(time.dateTime)) / 1000;
    if (Math.abs(seconds) >= 1) time.textContent = seconds > 0 ? `${span(seconds)} ago` : `in ${span(-seconds)}`;
  }
}

// --- copying -------------------------------------------------------------------------------------------------

function offerCopying(within) {
  for (const button of all("[data-copy]", within)) button.hidden = false;
}

async function copy(button) {
  const text = one("code", button.closest(".code")).textContent;
  const before = button.innerHTML;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy by hand";
  }
  setTimeout(() => { button.innerHTML = before; }, 1500);
}

// --- rows and keys -------------------------------------------------------------------------------------------

function move(by) {
  const rows = all("tbody tr[data-href]");
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.classList.contains("current"));
  const next = rows[Math.min(rows.length - 1, Math.max(0, at < 0 ? 0 : at + by))];
  rows[at]?.classList.remove("current");
  next.classList.add("current");
  // The link that leads where the row leads, for Enter on a link is the link's.
  (all("a", next).find((link) => link.getAttribute("href") === next.dataset.href) ?? one("a", next))?.focus();
  next.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  "/": () => one("input[type=search]")?.focus(),
  r: () => (one("tr.current [data-retry]") ?? one("main [data-retry]"))?.click(),
  "?": () => one("#keys")?.showModal(),
  Enter: () => { const row = one("tr.current[data-href]"); if (row) location.href = row.dataset.href; },
  Escape: () => { if (!closeDrop()) one("[data-back]")?.click(); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || one("dialog[open]")) return;
  const writing = event.target.closest("input, textarea, select");
  if (writing) {
    if (event.key === "Escape") writing.blur();
    return;
  }
  // Enter on a link or button is theirs.
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

document.addEventListener("click", (event) => {
  const target = event.target;
  const button = target.closest("[data-copy]");
  if (button) { copy(button); return; }
  if (target.closest("[data-help]")) { one("#keys")?.showModal(); return; }
  const row = target.closest("tr[data-href]");
  const own = target.closest("a, button, input, label, summary, pre, select");
  if (row && !own && !String(getSelection())) location.href = row.dataset.href;
});

// --- lists that drop down -------------------------------------------------------------------------------------

// <details class="drop"> closes when somebody goes on elsewhere.
document.addEventListener("click", (event) => {
  for (const drop of all("details.drop[open]")) if (!drop.contains(event.target)) drop.open = false;
});

function closeDrop() {
  const drop = one("details.drop[open]");
  if (!drop) return false;
  drop.open = false;
  one("summary", drop).focus();
  return true;
}

// --- a live list ---------------------------------------------------------------------------------------------

// <section data-live="URL" data-every="5">: replaced by its newer self while nobody reads in it. Who scrolls,
// points at a row, selects or has the focus in it is reading; then the list says so and waits. What is asked for
// and does not come is said, too: what stands there is old by then, and nothing in it may look well.
function live() {
  const list = one("[data-live]");
  const sign = one("[data-live-sign]");
  if (!list || !sign) return;
  sign.hidden = false;
  const every = Number(list.dataset.every || 5) * 1000;
  let wanted = true;
  let asked = 0; // since when an answer is waited for; 0: for none
  const reading = () => document.hidden || scrollY > 80 || list.matches(":hover") || list.contains(document.activeElement)
    || Boolean(String(getSelection()));
  const button = one("button", sign);
  const word = one("[data-word]", sign);
  const show = () => {
    const lost = asked && Date.now() - asked > 1.5 * every;
    const state = !wanted ? "off" : lost ? "lost" : reading() ? "paused" : "on";
    sign.dataset.state = state;
    list.toggleAttribute("data-lost", Boolean(lost));
    word.textContent = {
      on: "Live", paused: "Live, paused while you read", off: "Not live", lost: "Bridge does not answer: this is old",
    }[state];
    button.textContent = wanted ? "Stop" : "Go live";
    return state;
  };
  button.addEventListener("click", () => { wanted = !wanted; asked = 0; show(); });
  for (const event of ["scroll", "pointermove", "focusin", "selectionchange"]) {
    document.addEventListener(event, show, { passive: true });
  }
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.target === list) { asked = 0; show(); }
  });
  const refresh = () => {
    if (!["on", "lost"].includes(show())) return;
    asked ||= Date.now();
    htmx.trigger(list, "refresh");
  };
  document.addEventListener("visibilitychange", refresh); // who comes back sees how it is now
  setInterval(refresh, every);
  show();
}

// <div hx-trigger="every 2s" data-patient>: is not replaced while somebody reads in it. Nothing is asked for by a
// window that nobody sees.
document.addEventListener("htmx:beforeRequest", (event) => {
  const part = event.detail.elt;
  if (!part.matches("[hx-trigger^=every]")) return;
  const read = part.matches("[data-patient]")
    && (part.contains(document.activeElement) || one("details[open]", part) || String(getSelection()));
  if (document.hidden || read) event.preventDefault();
});

// Rows that were not there before are marked for a moment.
let known = new Set();
const ids = () => new Set(all("[data-live] tr[id]").map((row) => row.id));

function markFresh() {
  for (const row of all("[data-live] tr[id]")) {
    if (known.size && !known.has(row.id)) {
      row.classList.add("fresh");
      setTimeout(() => row.classList.remove("fresh"), 100);
    }
  }
  known = ids();
}

// --- a range in a chart --------------------------------------------------------------------------------------

// <div data-range="URL with FROM and TO">: dragging over the chart inside opens that span.
// Bars carry data-from and data-to.
function pickRange(box) {
  const svg = one("svg", box);
  if (!svg) return;
  let start = null;
  let picked = null;
  const barAt = (x) => {
    const bars = all("[data-from]", svg);
    const { left, width } = svg.getBoundingClientRect();
    const index = Math.floor(((x - left) / width) * bars.length);
    return bars[Math.min(bars.length - 1, Math.max(0, index))];
  };
  const draw = (from, to) => {
    picked ??= svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
    const { left, width } = svg.getBoundingClientRect();
    picked.setAttribute("class", "picked");
    picked.setAttribute("x", ((Math.min(from, to) - left) / width) * 1000);
    picked.setAttribute("width", (Math.abs(to - from) / width) * 1000);
    picked.setAttribute("y", 0);
    picked.setAttribute("height", 100);
  };
  svg.addEventListener("pointerdown", (event) => { if (event.button === 0) start = event.clientX; });
  svg.addEventListener("dragstart", (event) => event.preventDefault());
  // The chart listens itself, not the window: a live list brings a new one every few seconds.
  svg.addEventListener("pointermove", (event) => {
    if (start === null || (!picked && Math.abs(event.clientX - start) <= 4)) return;
    svg.setPointerCapture(event.pointerId);
    draw(start, event.clientX);
  });
  svg.addEventListener("pointercancel", () => { start = null; picked?.remove(); picked = null; });
  svg.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const [from, to] = [Math.min(start, event.clientX), Math.max(start, event.clientX)];
    start = null;
    if (!picked) return;
    const url = box.dataset.range.replace("FROM", encodeURIComponent(barAt(from).dataset.from)).replace("TO", encodeURIComponent(barAt(to).dataset.to));
    location.href = url;
  });
  svg.addEventListener("click", (event) => { if (picked) event.preventDefault(); }, true);
}

// --- start ---------------------------------------------------------------------------------------------------

function dress(within) {
  offerCopying(within);
  for (const box of all("[data-range]", within)) pickRange(box);
}

dress(document);
live();
known = ids();
setInterval(age, 5000);
const help = one("[data-help]");
if (help) help.hidden = false;
if (matchMedia("(max-width: 61.99rem)").matches) one(".side .menu")?.removeAttribute("open");
document.addEventListener("htmx:afterSwap", (event) => { dress(event.target); markFresh(); age(); });
