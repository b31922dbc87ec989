"use strict";

const token = document.querySelector("meta[name=review-token]").content;
const reviewer = document.getElementById("reviewer");
const toast = document.getElementById("toast");
const keys = document.getElementById("keys");
const cards = () => [...document.querySelectorAll(".grid .card, .card.large")];
let toastTimer;

function say(text, bad = false) {
  toast.textContent = text;
  toast.classList.toggle("bad", bad);
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, bad ? 8000 : 1800);
}

async function post(address, body) {
  const name = reviewer.value.trim();
  reviewer.classList.toggle("missing", !name);
  if (!name) {
    reviewer.focus();
    throw new Error("Write your name beside “Reviewer” first: marks carry it.");
  }
  let response;
  try {
    response = await fetch(address, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Review-Token": token },
      body: JSON.stringify({ ...body, reviewer: name }),
    });
  } catch {
    throw new Error("The server does not answer; the mark is not kept. Is flair.review still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(`The mark is not kept: ${answer.error || response.status}`);
  return answer;
}

function showMark(card, mark) {
  card.dataset.mark = mark;
  for (const button of card.querySelectorAll("[data-photo-mark]")) {
    button.setAttribute("aria-pressed", String(button.dataset.photoMark === mark));
  }
}

function showDecision(card, mark) {
  card.dataset.decision = mark;
  for (const button of card.querySelectorAll("[data-pair-mark][aria-pressed]")) {
    button.setAttribute("aria-pressed", String(button.dataset.pairMark === mark));
  }
}

function showMarks(marks) {
  for (const card of cards()) {
    if (Object.hasOwn(marks, card.dataset.photo)) showMark(card, marks[card.dataset.photo]);
  }
}

async function attempt(chosen, work) {
  chosen.forEach((card) => card.classList.add("busy"));
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  } finally {
    chosen.forEach((card) => card.classList.remove("busy"));
  }
}

function markPhotos(chosen, mark) {
  if (!chosen.length) return say("All photos of this page are marked.");
  return attempt(chosen, async () => {
    const answer = await post("/api/photos", { image_ids: chosen.map((card) => card.dataset.photo), mark });
    showMarks(answer.marks);
    say(mark === "none" ? "Taken back" : chosen.length > 1 ? `${chosen.length} photos marked ${mark}` : `Marked ${mark}`);
  });
}

function markInGroup(card, mark) {
  const group = card.closest(".group");
  if (!group) return say("Pairs are marked under “Near duplicates”.");
  return attempt([card], async () => {
    const answer = await post("/api/groups", {
      members: JSON.parse(group.dataset.members), image_id: card.dataset.photo, mark,
    });
    for (const other of group.querySelectorAll(".card")) {
      if (Object.hasOwn(answer.decisions, other.dataset.photo)) showDecision(other, answer.decisions[other.dataset.photo]);
    }
    const open = Object.values(answer.decisions).filter((decision) => decision === "none").length;
    group.querySelector(".open-decisions").textContent = `${open} to decide`;
    say(mark === "none" ? "Taken back" : mark === "not" ? "No duplicate" : "A duplicate");
  });
}

function takeBack(card) {
  if (card.dataset.mark && card.dataset.mark !== "none") return markPhotos([card], "none");
  if (card.dataset.decision && card.dataset.decision !== "none") return markInGroup(card, "none");
  return say("There is no mark to take back.");
}

function select(card) {
  for (const other of cards()) {
    for (const item of other.querySelectorAll("a, button")) item.tabIndex = -1;
  }
  for (const item of card.querySelectorAll("a, button")) item.tabIndex = 0;
  const link = card.querySelector(".open");
  link.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}

function neighbour(card, key) {
  const all = cards();
  const at = all.indexOf(card);
  if (key === "ArrowLeft") return all[at - 1];
  if (key === "ArrowRight") return all[at + 1];
  const here = card.getBoundingClientRect();
  const later = key === "ArrowDown";
  let best, bestRow, bestShift;
  for (const other of later ? all.slice(at + 1) : all.slice(0, at).reverse()) {
    const there = other.getBoundingClientRect();
    if (Math.abs(there.top - here.top) < 4) continue;
    if (bestRow !== undefined && Math.abs(there.top - bestRow) >= 4) break;
    const shift = Math.abs(there.left - here.left);
    if (best === undefined || shift < bestShift) [best, bestRow, bestShift] = [other, there.top, shift];
  }
  return best;
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const card = document.activeElement.closest(".card");
  const marks = { o: "ok", p: "problematic", b: "blacklist" };
  if (event.key.startsWith("Arrow")) {
    const next = card ? neighbour(card, event.key) : cards()[0];
    if (next) { select(next); event.preventDefault(); }
  } else if (event.key === "?") {
    keys.showModal();
  } else if (event.key === "/") {
    const first = document.querySelector(".filters select, .filters input");
    if (first) { first.focus(); event.preventDefault(); }
  } else if (event.key === "[" || event.key === "]") {
    const link = document.querySelector(`.pager a[rel=${event.key === "[" ? "prev" : "next"}]`);
    if (link) link.click();
  } else if ("opbdnu".includes(event.key) && event.key.length === 1) {
    const chosen = card || document.querySelector(".card.large");
    if (!chosen) return say("Choose a photo first: arrow keys, or a click.");
    if (!chosen.querySelector("[data-photo-mark]")) return say("Open this photo to mark it.");
    if (event.key in marks) markPhotos([chosen], marks[event.key]);
    else if (event.key === "u") takeBack(chosen);
    else markInGroup(chosen, event.key === "d" ? "duplicate" : "not");
  }
}

function click(event) {
  const button = event.target.closest("button");
  if (!button) return;
  const card = button.closest(".card");
  const pressed = button.getAttribute("aria-pressed") === "true";
  if (button.dataset.photoMark) markPhotos([card], pressed ? "none" : button.dataset.photoMark);
  else if (button.dataset.pairMark) markInGroup(card, pressed ? "none" : button.dataset.pairMark);
  else if (button.id === "rest-ok") markPhotos(cards().filter((other) => other.dataset.mark === "none"), "ok");
  else if (button.id === "help") keys.showModal();
  if (card) select(card);
}

/* Another window may have marked the same photos. */
async function refresh() {
  const ids = cards().filter((card) => card.dataset.mark).map((card) => card.dataset.photo);
  if (!ids.length) return;
  const response = await fetch(`/api/marks?ids=${ids.map(encodeURIComponent).join(",")}`).catch(() => undefined);
  if (response && response.ok) showMarks(await response.json());
}

async function propose(event) {
  const list = event.target.list;
  if (!list || list.children.length) return;
  const response = await fetch(event.target.dataset.proposals);
  for (const name of await response.json()) list.append(new Option(name, name));
}

reviewer.value = localStorage.getItem("reviewer") || reviewer.value;
reviewer.addEventListener("input", () => localStorage.setItem("reviewer", reviewer.value.trim()));
document.addEventListener("keydown", press);
document.addEventListener("click", click);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
window.addEventListener("focus", refresh);
window.addEventListener("pageshow", (event) => { if (event.persisted) refresh(); });
document.querySelector("[data-proposals]")?.addEventListener("focus", propose);
document.querySelector(".filters")?.addEventListener("submit", (event) => {
  for (const field of event.target.elements) if (!field.value) field.disabled = true;
});
