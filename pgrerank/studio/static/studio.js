// The script of studio: sliders that order anew, lines between columns, judging, keys, progress.
"use strict";

const find = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const csrf = find("meta[name=csrf]").content;
const ask = find("#ask");
const orders = find("#orders");
const why = find("#why");

async function fetched(address, options = {}) {
  try {
    return await fetch(address, { ...options, headers: { "X-Studio": "part", ...options.headers } });
  } catch {
    return new Response('<div class="problem" role="alert"><p>Studio does not answer any more: start it again.</p></div>', { status: 503 });
  }
}

// The form's fields as an address: the search that is shown, by the knobs as they stand.
function address(path, more = {}) {
  const fields = new URLSearchParams(new FormData(ask));
  fields.set("search", orders.dataset.search);
  Object.entries(more).forEach(([name, value]) => fields.set(name, value));
  return `${path}?${fields}`;
}

// ---- Columns: rows glide to their new places, lines follow.

const places = () => new Map(all(".row").map((row) =>
  [`${all(".column").indexOf(row.closest(".column"))} ${row.dataset.key}`, row.getBoundingClientRect().top]));

function show(html) {
  const before = places(), scrolled = find(".scroller", orders)?.scrollLeft ?? 0;
  const focused = document.activeElement?.closest(".row");
  const wanted = focused && [all(".column").indexOf(focused.closest(".column")), focused.dataset.key];
  orders.innerHTML = html;
  const scroller = find(".scroller", orders);
  if (scroller) scroller.scrollLeft = scrolled;
  if (wanted) rowAt(...wanted)?.querySelector(".doc").focus({ preventScroll: true });
  draw();
  find("#told").textContent = find("#moved span", orders).textContent;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const after = places();
  all(".row").forEach((row) => {
    const name = `${all(".column").indexOf(row.closest(".column"))} ${row.dataset.key}`;
    const moved = before.has(name) ? before.get(name) - after.get(name) : 0;
    if (moved) row.animate([{ transform: `translateY(${moved}px)` }, { transform: "none" }], { duration: 280, easing: "ease-out" });
    else if (!before.has(name)) row.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 280 });
  });
}

const rowAt = (column, key) => all(".row", all(".column")[column]).find((row) => row.dataset.key === key);

function draw() {
  const columns = find(".columns");
  if (!columns) return;
  const lines = find(".lines", columns), from = columns.getBoundingClientRect();
  const made = [], sections = all(".column", columns);
  sections.slice(1).forEach((section, number) => {
    const left = new Map(all(".row", sections[number]).map((row) => [row.dataset.key, row]));
    const right = new Map(all(".row", section).map((row) => [row.dataset.key, row]));
    const edge = sections[number].getBoundingClientRect().right - from.left, begin = section.getBoundingClientRect().left - from.left;
    const middle = (row) => row.getBoundingClientRect().top - from.top + row.offsetHeight / 2;
    new Set([...left.keys(), ...right.keys()]).forEach((key) => {
      const [one, other] = [left.get(key), right.get(key)];
      const y = one && middle(one), end = other && middle(other), bend = (begin - edge) / 2;
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      // What comes from below the column before, or goes below this one, has a stub alone.
      path.setAttribute("d", !one ? `M${begin - 16},${end + 16}Q${begin - 14},${end} ${begin},${end}`
        : !other ? `M${edge},${y}Q${edge + 14},${y} ${edge + 16},${y + 16}`
          : `M${edge},${y}C${edge + bend},${y} ${begin - bend},${end} ${begin},${end}`);
      path.dataset.key = key;
      const judged = [...(other ?? one).classList].filter((name) => name === "judged-2");
      path.classList.add(...judged, ...(one && (!other || end > y - 1) ? [] : ["up"]));
      made.push(path);
    });
  });
  lines.replaceChildren(...made);
}

function point(key) {
  find(".columns")?.classList.toggle("pointing", key !== undefined);
  all(".row, .lines path", orders).forEach((one) => one.classList.toggle("on", one.dataset.key === key));
}

// ---- Knobs: one request at a time, always the latest.

let running = false, next = null;

async function order(more = {}) {
  next = more;
  if (running) return;
  running = true;
  while (next) {
    const wanted = address("/orders", next);
    next = null;
    const answer = await fetched(wanted);
    const text = await answer.text();
    if (answer.ok) show(text);
    else if (!next) orders.insertAdjacentHTML("afterbegin", text);
  }
  running = false;
}

function tell() {
  all(".slider").forEach((slider) => { find("output", slider).value = Math.round(100 * find("input", slider).value) / 100; });
}

if (orders) {
  const knobs = find("#knobs");
  knobs.addEventListener("input", () => { tell(); order(); });
  knobs.addEventListener("change", () => order({ complete: 1 }));
  ask.addEventListener("reset", () => setTimeout(() => { tell(); order(); }));
  ask.elements.shown.addEventListener("change", () => order());
  ask.elements.set.addEventListener("change", () => { find("#tally").textContent = ""; order(); });
  orders.addEventListener("pointerover", (event) => point(event.target.closest(".row")?.dataset.key));
  orders.addEventListener("pointerleave", () => point(document.activeElement?.closest(".row")?.dataset.key));
  orders.addEventListener("focusin", (event) => point(event.target.closest(".row")?.dataset.key));
  orders.addEventListener("focusout", () => point());
  new ResizeObserver(draw).observe(orders);
  document.fonts.ready.then(draw);
}
// Another reranker has other stages and sizes: its own hold.
find("[data-resets]")?.addEventListener("change", () => {
  const fields = new URLSearchParams({ reranker: ask.elements.reranker.value, query: ask.elements.query.value });
  location.assign(`/?${fields}`);
});

// ---- Why, and judging.

document.addEventListener("click", async (event) => {
  const doc = event.target.closest(".doc"), judged = event.target.closest(".judge button");
  if (judged) await judge(judged.dataset.key, judged.dataset.relevance);
  else if (doc) await explain(doc);
  else if (event.target === why) why.close();
});

async function explain(doc) {
  doc.setAttribute("aria-busy", "true");
  const answer = await fetched(address("/why", { key: doc.dataset.key }));
  why.innerHTML = await answer.text();
  if (!answer.ok) why.insertAdjacentHTML("afterbegin", '<form method="dialog"><button class="close" aria-label="Close">✕</button></form>');
  doc.removeAttribute("aria-busy");
  if (!why.open) why.showModal();
  why.scrollTop = 0;
}

const counted = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;

async function judge(key, relevance) {
  const buttons = all(".judge button").filter((one) => one.dataset.key === key);
  const wanted = (one) => one.dataset.relevance === relevance;
  const isSo = buttons.find(wanted)?.getAttribute("aria-pressed") === "true";
  const fields = { set: ask.elements.set.value, query: ask.elements.query.defaultValue, key, relevance: isSo ? "" : relevance };
  const answer = await fetched("/judge", { method: "POST", body: new URLSearchParams(fields), headers: { "X-CSRF-Token": csrf } });
  if (!answer.ok) {
    (why.open ? why : orders).insertAdjacentHTML("afterbegin", await answer.text());
    return;
  }
  const counts = await answer.json();
  find("#tally").textContent = `${counted(counts.judgements, "judgement")} of ${counted(counts.queries, "question")}`;
  buttons.forEach((one) => one.setAttribute("aria-pressed", String(!isSo && wanted(one))));
  all(".row").filter((row) => row.dataset.key === key).forEach((row) => {
    row.classList.remove("judged-0", "judged-1", "judged-2");
    if (!isSo) row.classList.add(`judged-${relevance}`);
  });
  draw();
}

// ---- Keys.

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input:not([type=range], [type=checkbox]), textarea, select");
  if (event.key === "/" && !typing && ask) {
    ask.elements.query.focus();
    ask.elements.query.select();
    event.preventDefault();
  }
  const duel = find("#duel");
  const vote = { ArrowLeft: "left", ArrowDown: "same", ArrowRight: "right" }[event.key];
  if (duel && vote && !typing) {
    event.preventDefault();
    find(`[value=${vote}]`, duel).click();
  }
  const row = event.target.closest(".row");
  if (row && !why.open) walk(event, row);
  // Nothing has the focus yet, or the question has: into the final order.
  const arrow = event.target === document.body ? event.key.startsWith("Arrow") : event.target.id === "query" && event.key === "ArrowDown";
  const first = arrow && !why?.open && find(".last .doc");
  if (first) {
    event.preventDefault();
    first.focus();
  }
});

function walk(event, row) {
  const columns = all(".column"), at = columns.indexOf(row.closest(".column"));
  const relevance = { 1: "2", 2: "1", 3: "0" }[event.key];
  const step = { ArrowUp: [row.previousElementSibling], ArrowDown: [row.nextElementSibling],
    ArrowLeft: [rowAt(at - 1, row.dataset.key), columns[at - 1]], ArrowRight: [rowAt(at + 1, row.dataset.key), columns[at + 1]] }[event.key];
  if (relevance) judge(row.dataset.key, relevance);
  if (!step) return;
  event.preventDefault();
  const there = step[0] ?? (step[1] && all(".row", step[1])[all(".row", columns[at]).indexOf(row)]);
  if (there) find(".doc", there).focus();
}

// ---- Progress of a job.

async function follow(job) {
  const bar = find("#progress");
  for (;;) {
    const answer = await fetched(job.dataset.progress);
    if (!answer.ok) {
      job.insertAdjacentHTML("afterbegin", await answer.text());
      return;
    }
    const now = await answer.json();
    if (now.state !== "running") break;
    find("#phase").textContent = now.phase;
    find("#count").textContent = now.total ? `${now.done} of ${now.total}` : "";
    if (now.total) {
      bar.max = now.total;
      bar.value = now.done;
    } else bar.removeAttribute("value");
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  location.reload();
}

if (find("#job")) follow(find("#job"));
