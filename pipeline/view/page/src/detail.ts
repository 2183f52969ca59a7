// One image at full size: the image with one overlay, zoom and pan, the value under the cursor, and the row.

import { fetchImage, fetchPosition, fetchRow } from "./api.js";
import { Canvas, overlaid } from "./canvas.js";
import { classLine } from "./classes.js";
import { byId, make, messageOf } from "./dom.js";
import { rowAt, totalRows } from "./grid.js";
import { compose, Layers, OVERLAYS, type Overlay } from "./layers.js";
import { count, percent } from "./numbers.js";
import { run } from "./run.js";
import { change, state, type At } from "./state.js";

const dialog = byId<HTMLDialogElement>("detail");
const canvas = new Canvas(byId<HTMLCanvasElement>("canvas"), readout);
const hidden = new Set<number>();
let overlay: Overlay = "mask";
/** Overlay to the right of the divider; null without a divider. */
let beside: Overlay | null = null;
let layers: Layers | null = null;
let stop = new AbortController();
let locating = new AbortController();
/** Position of the open row in the present order; null where it is not known. */
let position: number | null = null;

export function startDetail(): void {
  const actions: Record<string, () => void> = {
    close: () => change({ open: null }),
    previous: () => void step(-1),
    next: () => void step(1),
    "zoom-in": () => canvas.zoom(1.5),
    "zoom-out": () => canvas.zoom(1 / 1.5),
    fit: () => canvas.fit(),
    "in-raster": showInRaster,
  };
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  const slider = byId<HTMLInputElement>("opacity");
  slider.addEventListener("input", () => canvas.setOpacity(Number(slider.value) / 100));
  const divider = byId<HTMLInputElement>("divider");
  divider.addEventListener("input", () => canvas.setDivider(Number(divider.value) / 100));
  const right = byId<HTMLSelectElement>("beside");
  right.addEventListener("change", () => {
    beside = (right.value || null) as Overlay | null;
    void showOverlay();
  });
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    change({ open: null });
  });
  dialog.addEventListener("keydown", keys);
}

/** Show the row of the state, or the grid again. `at` is its position in the present order, where it is known. */
export async function showOpened(at: number | null): Promise<void> {
  const key = state().open;
  stop.abort();
  stop = new AbortController();
  if (key === null) {
    dialog.close();
    return;
  }
  if (!dialog.open) dialog.showModal();
  setPosition(at);
  if (at === null) void locate();
  await show(key, stop.signal);
}

function setPosition(at: number | null): void {
  position = at;
  byId("place").textContent = at === null ? "" : `${count(at + 1)} of ${count(totalRows())}`;
  const buttons = ["previous", "next"].map((id) => byId<HTMLButtonElement>(id));
  if (at === null && buttons.some((button) => button === document.activeElement)) dialog.focus(); // for the keyboard
  for (const button of buttons) button.disabled = at === null;
}

/** Ask where the open row is in the present order: after a reload, or when rows have come before it. */
export async function locate(): Promise<void> {
  const { open, query } = state();
  if (open === null) return;
  locating.abort();
  locating = new AbortController();
  const signal = AbortSignal.any([stop.signal, locating.signal]);
  try {
    const { position: at } = await fetchPosition(open, query, signal);
    if (!signal.aborted) setPosition(at);
  } catch (error) {
    if (!signal.aborted) tell(messageOf(error));
  }
}

async function show(key: string, signal: AbortSignal): Promise<void> {
  layers = null;
  canvas.clear();
  tell("");
  byId("key").textContent = key;
  for (const id of ["facts", "classes", "overlays", "beside"]) byId(id).replaceChildren();
  keepFocus();
  try {
    const { id, row, layers: available } = await fetchRow(key);
    if (signal.aborted) return;
    layers = new Layers(id, available, signal);
    describe(row);
    drawChoices();
    if (typeof row["height"] === "number") canvas.setSize(row["height"], Number(row["width"]));
    if (row["error_code"]) tell(`${row["error_code"]}: ${row["error_detail"]}`);
    if (available.includes("mask")) void layers.fetch("mask");
    if (available.includes("truth")) layers.fetch("truth").catch(() => undefined);
    await Promise.all([showImage(id, signal), showOverlay()]);
  } catch (error) {
    if (!signal.aborted) tell(messageOf(error));
  }
}

async function showImage(id: number, signal: AbortSignal): Promise<void> {
  try {
    const image = await fetchImage(id, signal);
    if (!signal.aborted) canvas.setImage(image);
  } catch (error) {
    if (!signal.aborted && !byId("image-problem").textContent) tell(`the image cannot be shown: ${messageOf(error)}`);
  }
}

function tell(text: string): void {
  byId("image-problem").textContent = text;
}

async function step(by: number): Promise<void> {
  const { signal } = stop;
  try {
    const here = position === null ? undefined : await rowAt(position);
    if (here?.key !== state().open) await locate(); // rows have come before it
    for (let next = (position ?? NaN) + by; next >= 0 && next < totalRows(); next += by) {
      const row = await rowAt(next);
      if (!row || signal.aborted) return;
      if (row.key === state().open) continue; // a run that goes on may have two rows of one key
      steppedTo = next;
      return change({ open: row.key }, { replace: true });
    }
  } catch (error) {
    if (!signal.aborted) tell(messageOf(error));
  }
}

let steppedTo: number | null = null;

/** Position to which the last change of the open row stepped; null when it did not come from here. */
export function takeStep(): number | null {
  const taken = steppedTo;
  steppedTo = null;
  return taken;
}

// ---------------------------------------------------------------- overlays

function drawChoices(): void {
  const buttons = OVERLAYS.map(({ name, title }, index) => {
    const button = make("button", { type: "button", "aria-pressed": String(name === overlay) }, title);
    button.disabled = !layers?.needs(name);
    button.hidden = (name === "other" || name === "differs") && !run().other;
    button.title = button.disabled ? "this row does not have it" : `key ${index + 1}`;
    button.addEventListener("click", () => choose(name));
    return button;
  });
  byId("overlays").replaceChildren(...buttons.filter(({ hidden: away }) => !away));
  const possible = OVERLAYS.filter(({ name }) => layers?.needs(name));
  const option = (name: string, title: string): HTMLElement =>
    make("option", { value: name, selected: name === (beside ?? "") }, title);
  byId("beside").replaceChildren(option("", "the same"), ...possible.map(({ name, title }) => option(name, title)));
  keepFocus();
}

function choose(name: Overlay): void {
  if (!layers?.needs(name)) return;
  overlay = name;
  drawChoices();
  void showOverlay();
}

/** Keys are heard within the dialog: where what had the focus is gone, it has it itself. */
function keepFocus(): void {
  if (!dialog.contains(document.activeElement)) dialog.focus();
}

/** Draw the chosen overlays once their layers have come. */
async function showOverlay(): Promise<void> {
  const [here, chosen, right] = [layers, overlay, beside];
  const isPast = (): boolean => here !== layers || chosen !== overlay || right !== beside;
  canvas.setDivider(right ? Number(byId<HTMLInputElement>("divider").value) / 100 : 1);
  byId("divider").hidden = !right;
  if (!here) return;
  const drawn = async (name: Overlay): Promise<ReturnType<typeof overlaid>> => {
    const needs = here.needs(name) ?? [];
    if (needs.some((need) => need.startsWith("network") && !here.get(need))) tellWork("asking the network …");
    const parts = await Promise.all(needs.map((need) => here.fetch(need)));
    return overlaid(compose(name, parts, hidden), name === "confidence");
  };
  tellWork("");
  try {
    const [first, second] = await Promise.all([drawn(chosen), right ? drawn(right) : null]);
    if (isPast()) return;
    canvas.setOverlays(first, second);
    tellWork("");
  } catch (error) {
    if (isPast()) return;
    canvas.setOverlays(null, null);
    tellWork(messageOf(error));
  }
}

function tellWork(text: string): void {
  byId("working").textContent = text;
}

/** What lies under the cursor, by name. */
function readout(x: number, y: number): void {
  const named = (id: number): string => run().classes[id]?.name ?? "no class";
  const names = [
    ["mask", ""],
    ["network", "network "],
    ["truth", "label "],
    ["other", "other run "],
  ] as const;
  const texts: string[] = [];
  for (const [name, title] of names) {
    const id = layers?.at(name, x, y);
    if (id !== undefined) texts.push(title + named(id));
  }
  const confidence = layers?.at("confidence", x, y, 4) ?? layers?.at("network_confidence", x, y);
  if (confidence !== undefined) texts.push(`confidence ${percent(confidence / 255)}`);
  byId("readout").textContent = texts.length ? `(${Math.floor(x)}, ${Math.floor(y)}) ${texts.join(", ")}` : "";
}

// ---------------------------------------------------------------- the row

function describe(row: Record<string, unknown>): void {
  byId("key").textContent = String(row["key"]);
  const pixels = row["class_pixels"];
  const counts = Array.isArray(pixels) ? (pixels as number[]) : [];
  const sum = counts.reduce((one, two) => one + two, 0);
  const order = counts.map((_, id) => id).sort((one, two) => (counts[two] ?? 0) - (counts[one] ?? 0));
  byId("classes").replaceChildren(...order.map((id) => classLine(id, hidden, redraw, percent(sum ? (counts[id] ?? 0) / sum : 0))));
  byId("in-raster").hidden = windowOf(String(row["key"])) === null;
  const facts = Object.entries(row).filter(([name, value]) => value !== null && name !== "class_pixels");
  const text = (value: unknown): string => (Array.isArray(value) ? value.join(", ") : String(value));
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, text(value))]));
}

const redraw = (): void => void showOverlay();

/** Raster of a window's row and the window's first pixel, by its key; null for a photo. */
function windowOf(key: string): { raster: string; at: At } | null {
  const [, raster, y, x] = /^(.*)#(\d+),(\d+)$/s.exec(key) ?? [];
  if (!run().of_rasters || raster === undefined) return null;
  return { raster, at: { x: Number(x), y: Number(y), scale: null } };
}

function showInRaster(): void {
  const window = windowOf(state().open ?? "");
  if (window) change({ open: null, ...window });
}

function keys(event: KeyboardEvent): void {
  if (event.target instanceof HTMLInputElement && event.target.type === "range") return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const actions: Record<string, () => void> = {
    Escape: () => change({ open: null }), // a browser may close every open dialog by one Escape
    ArrowLeft: () => void step(-1),
    ArrowRight: () => void step(1),
    "+": () => canvas.zoom(1.5),
    "-": () => canvas.zoom(1 / 1.5),
    "0": () => canvas.fit(),
  };
  OVERLAYS.forEach(({ name }, index) => (actions[String(index + 1)] = () => choose(name)));
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}
