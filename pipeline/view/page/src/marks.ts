// Marked rows: chosen by hand or by the server, kept by the browser for each run, and sent to a labelling tool.

import { fetchChoice, handOver } from "./api.js";
import { byId, messageOf } from "./dom.js";
import { count } from "./numbers.js";
import { run } from "./run.js";

/** Keys of the marked rows, in the order of marking. */
let marked = new Set<string>();
const listeners: (() => void)[] = [];

const place = (): string => `marked ${run().run}`;

export const isMarked = (key: string): boolean => marked.has(key);

export function onMark(listener: () => void): void {
  listeners.push(listener);
}

export function toggleMark(key: string): void {
  if (!marked.delete(key)) marked.add(key);
  changed();
}

export function startMarks(): void {
  marked = new Set(read());
  byId("choose").addEventListener("submit", (event) => {
    event.preventDefault();
    void choose(Number(byId<HTMLInputElement>("choose-count").value));
  });
  byId("unmark").addEventListener("click", () => {
    marked.clear();
    changed();
  });
  byId("send").addEventListener("click", () => void send(byId<HTMLSelectElement>("send-to").value));
  window.addEventListener("storage", ({ key }) => {
    if (key !== place() && key !== null) return; // null: all of it was cleared
    marked = new Set(read()); // another tab has marked: what is marked here next must not undo it
    show();
  });
  show();
}

function changed(): void {
  localStorage.setItem(place(), JSON.stringify([...marked]));
  show();
}

function show(): void {
  byId("marked").textContent = `${count(marked.size)} marked`;
  for (const id of ["unmark", "send"]) byId<HTMLButtonElement>(id).disabled = marked.size === 0;
  for (const listener of listeners) listener();
}

function read(): string[] {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(place()) ?? "[]");
    return Array.isArray(kept) ? kept.filter((key) => typeof key === "string") : [];
  } catch {
    return [];
  }
}

/** Mark the rows that are most worth labelling, as `atrous select` chooses them. */
async function choose(images: number): Promise<void> {
  tell("choosing …");
  try {
    const { keys, left_out } = await fetchChoice(images);
    for (const key of keys) marked.add(key);
    changed();
    const reasons = Object.entries(left_out).map(([reason, rows]) => `${count(rows)} ${reason}`);
    tell(`${count(keys.length)} chosen${reasons.length ? `; not considered: ${reasons.join(", ")}` : ""}`);
  } catch (error) {
    tell(messageOf(error));
  }
}

/** Save keys as a text file, or images with masks for a labelling tool as a zip. */
async function send(to: string): Promise<void> {
  if (to === "keys") {
    save(new Blob([JSON.stringify([...marked], null, 1)], { type: "application/json" }), "keys.json");
    return;
  }
  tell("gathering images …");
  try {
    const { archive, left_out } = await handOver([...marked], to);
    save(archive, `${to}.zip`);
    tell(left_out ? `left out: ${left_out}` : "");
  } catch (error) {
    tell(messageOf(error));
  }
}

function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function tell(text: string): void {
  byId("marks-said").textContent = text;
}
