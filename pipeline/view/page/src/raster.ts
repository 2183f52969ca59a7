// Rasters of a run: their list, and one of them with its mask, zones and polygons, by zoom and pan.

import { fetchOutline, fetchRaster, fetchRasters, type RasterInfo, type RasterLevels, type Table } from "./api.js";
import { classLine } from "./classes.js";
import { byId, debounced, make, messageOf } from "./dom.js";
import { count } from "./numbers.js";
import { Outlines, type Drawn } from "./outlines.js";
import { RasterCanvas } from "./raster_canvas.js";
import { run } from "./run.js";
import { change, state, type At, type State } from "./state.js";

const MOST_LISTED = 500;
const PAN_PX = 100;
const SETTLED_MS = 250;

const list = byId<HTMLDialogElement>("rasters");
const dialog = byId<HTMLDialogElement>("raster");
const hidden = new Set<number>();
const canvas = new RasterCanvas(byId<HTMLCanvasElement>("raster-canvas"), hidden, {
  readout,
  click: (x, y) => void select(x, y),
  drawn,
});
let rasters: Promise<RasterInfo[]> | null = null;
let shown: { number: number; info: RasterInfo; levels: RasterLevels } | null = null;
/** Part in sight, as this page has last written it to the address. */
let written = "";
/** Numbers of the latest raster, and of the latest request for outlines: what an earlier one brings is not shown. */
let turn = 0;
let outlinesTurn = 0;
let cursor: { x: number; y: number } | null = null;

const settled = debounced(() => {
  if (!shown) return;
  const { x, y } = canvas.view.middle;
  const at = { x: Math.round(x), y: Math.round(y), scale: Number(canvas.view.scale.toPrecision(4)) };
  written = JSON.stringify(at);
  change({ at }, { replace: true });
  void showOutlines();
}, SETTLED_MS);

function tell(id: string, text: string): void {
  byId(id).textContent = text;
}

export function startRasters(): void {
  byId("list-rasters").hidden = !run().of_rasters;
  const clicks: Record<string, () => void> = {
    "list-rasters": () => change({ list: true }),
    "rasters-close": () => change({ list: false }),
    "raster-close": close,
    "raster-zoom-in": () => canvas.view.zoom(1.5),
    "raster-zoom-out": () => canvas.view.zoom(1 / 1.5),
    "raster-fit": () => canvas.view.fit(),
    "raster-window": () => openWindow(canvas.view.middle),
  };
  for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", action);
  const slider = byId<HTMLInputElement>("raster-opacity");
  slider.addEventListener("input", () => {
    canvas.opacity = Number(slider.value) / 100;
    canvas.draw();
  });
  byId("rasters-search").addEventListener("input", () => void drawList());
  for (const [element, back] of [
    [list, () => change({ list: false })],
    [dialog, close],
  ] as const) {
    element.addEventListener("cancel", (event) => {
      event.preventDefault();
      back();
    });
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault(); // a browser may close every open dialog by one Escape
      back();
    });
  }
  dialog.addEventListener("keydown", keys);
  canvas.view.element.addEventListener("dblclick", () => cursor && openWindow(cursor));
}

const close = (): void => change({ raster: null, at: null });

/** Show what of the rasters the state says: the list, and one raster over it. */
export function followRasters(next: State, before: State | null): void {
  if (next.list !== (before?.list ?? false)) void showList(next.list);
  const moved = next.at !== null && JSON.stringify(next.at) !== written;
  if (next.raster !== (before?.raster ?? null)) void showRaster(next.raster);
  else if (next.raster !== null && moved && shown) show(next.at);
}

// ---------------------------------------------------------------- list

/** Rasters of the run; `again` asks for them anew, since a mask may have come. */
function infos(again = false): Promise<RasterInfo[]> {
  if (again || !rasters) {
    rasters = fetchRasters().then(({ rasters: found, unreadable }) => {
      tell("rasters-unreadable", unreadable ? `${count(unreadable)} could not be read and are not listed` : "");
      return found;
    });
    rasters.catch(() => (rasters = null));
  }
  return rasters;
}

async function showList(open: boolean): Promise<void> {
  if (!open) return list.close();
  if (!list.open) list.showModal();
  rasters = null;
  await drawList();
}

async function drawList(): Promise<void> {
  const part = byId<HTMLInputElement>("rasters-search").value.toLowerCase();
  try {
    const matching = (await infos()).filter(({ uri }) => uri.toLowerCase().includes(part));
    byId("rasters-lines").replaceChildren(...matching.slice(0, MOST_LISTED).map(line));
    const more = matching.length - MOST_LISTED;
    tell("rasters-count", `${count(matching.length)} ${matching.length === 1 ? "raster" : "rasters"}`);
    tell("rasters-more", more > 0 ? `${count(more)} more: type a part of the name` : "");
  } catch (error) {
    tell("rasters-more", messageOf(error));
  }
}

function line(info: RasterInfo): HTMLElement {
  const link = make("a", { href: `#${new URLSearchParams({ raster: info.uri })}` }, info.uri);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    change({ raster: info.uri, at: null });
  });
  const mask = info.assembled ? "yes" : "not assembled";
  const cells = [`${count(info.width)} × ${count(info.height)}`, count(info.windows), mask];
  return make("tr", {}, make("th", { scope: "row" }, link), ...cells.map((text) => make("td", {}, text)));
}

// ---------------------------------------------------------------- one raster

async function showRaster(uri: string | null): Promise<void> {
  const here = ++turn;
  outlinesTurn++;
  shown = null;
  written = "";
  canvas.show(0, null);
  for (const id of ["raster-working", "raster-readout", "raster-counts"]) tell(id, "");
  describeShape(null, null);
  if (uri === null) return dialog.close();
  if (!dialog.open) dialog.showModal();
  tell("raster-name", uri);
  byId("raster-problems").replaceChildren();
  byId("raster-facts").replaceChildren();
  try {
    const all = await infos(true);
    const number = all.findIndex((one) => one.uri === uri);
    const info = all[number];
    if (!info) throw new Error("the run has no such raster");
    const levels = await fetchRaster(number);
    if (here !== turn) return;
    shown = { number, info, levels };
    drawPanel();
    canvas.show(number, levels);
    canvas.outlines = outlinesOf();
    show(state().at);
  } catch (error) {
    if (here === turn) tell("raster-working", messageOf(error));
  }
}

/** Show a part of the raster; without a scale the window that begins there. */
function show(at: At | null): void {
  if (!shown || !at) return;
  written = JSON.stringify(at);
  if (at.scale) canvas.view.centre(at.x, at.y, at.scale);
  else showWindow(at, shown.info);
  void showOutlines();
}

function showWindow(at: At, info: RasterInfo): void {
  const [width, height] = [Math.min(info.core_px, info.width - at.x), Math.min(info.core_px, info.height - at.y)];
  const { clientWidth, clientHeight } = canvas.view.element;
  canvas.view.centre(at.x + width / 2, at.y + height / 2, Math.min(clientWidth / width, clientHeight / height));
}

function drawPanel(): void {
  if (!shown) return;
  const { info, levels } = shown;
  byId("raster-classes").replaceChildren(...run().classes.map((_, id) => classLine(id, hidden, () => canvas.repaint())));
  const boxes = [
    ...levels.outlines.map((kind) => checkbox(kind, kind, kind === "zones")),
    checkbox("windows", `windows of ${count(info.core_px)} pixels`, false),
  ];
  byId("raster-outlines").replaceChildren(...boxes);
  canvas.gridPx = 0;
  const facts = { width: info.width, height: info.height, windows: info.windows, levels: levels.sizes.length };
  const terms = Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, count(value))]);
  byId("raster-facts").replaceChildren(...terms);
}

function checkbox(value: string, title: string, checked: boolean): HTMLElement {
  const box = make("input", { type: "checkbox", value, checked });
  box.addEventListener("change", () => {
    if (!shown) return;
    if (value === "windows") canvas.gridPx = box.checked ? shown.info.core_px : 0;
    else canvas.outlines = outlinesOf();
    canvas.draw();
    void showOutlines();
  });
  return make("label", {}, box, title);
}

function outlinesOf(): Outlines[] {
  const number = shown?.number ?? 0;
  const boxes = [...document.querySelectorAll<HTMLInputElement>("#raster-outlines input:checked")];
  const chosen = boxes.map(({ value }) => value);
  const kinds = (["polygons", "zones"] as const).filter((kind) => chosen.includes(kind));
  return kinds.map((kind) => canvas.outlines.find((one) => one.kind === kind) ?? new Outlines(number, kind));
}

/** Fetch the outlines in sight, and say how many are drawn and left out. */
async function showOutlines(): Promise<void> {
  const { level, outlines } = canvas;
  const here = ++outlinesTurn;
  try {
    await Promise.all(outlines.map((one) => one.show(canvas.view, level)));
    if (here !== outlinesTurn) return;
    const lines = outlines.map((one) => {
      const more = one.leftOut ? `, ${count(one.leftOut)} smaller ones here and around are left out` : "";
      return `${count(one.countIn(canvas.view))} ${one.kind} here${more}`;
    });
    tell("raster-counts", lines.join("; "));
    canvas.draw();
  } catch (error) {
    tell("raster-counts", messageOf(error));
  }
}

/** After each drawing: what is missing at this level and why, and what is still on its way. */
function drawn(): void {
  if (!shown) return;
  const { source_levels, source_problem, mask_problem } = shown.levels;
  const problems = [
    source_problem && !source_levels.includes(canvas.level) ? source_problem : "",
    mask_problem ?? "",
  ];
  byId("raster-problems").replaceChildren(...problems.filter(Boolean).map((text) => make("p", {}, text)));
  tell("raster-working", canvas.problem ? `a tile is not shown: ${messageOf(canvas.problem)}` : "");
  const away = canvas.waiting;
  byId("raster-level").textContent = `1 : ${2 ** canvas.level}${away ? `, ${count(away)} tiles to come` : ""}`;
  const { x, y } = canvas.view.middle;
  const at = { x: Math.round(x), y: Math.round(y), scale: Number(canvas.view.scale.toPrecision(4)) };
  if (JSON.stringify(at) !== written) settled();
}

// ---------------------------------------------------------------- the cursor

function inside(x: number, y: number): boolean {
  return shown !== null && x >= 0 && y >= 0 && x < shown.info.width && y < shown.info.height;
}

function readout(x: number, y: number): void {
  cursor = inside(x, y) ? { x, y } : null;
  if (!cursor) return tell("raster-readout", "");
  const id = canvas.classAt(x, y);
  const name = id === undefined ? "" : (run().classes[id]?.name ?? "no class");
  tell("raster-readout", `(${Math.floor(x)}, ${Math.floor(y)}) ${name}`);
}

/** Open the row of the window at a place. */
function openWindow({ x, y }: { x: number; y: number }): void {
  if (!shown || !inside(x, y)) return;
  const { uri, core_px } = shown.info;
  const start = (value: number): number => Math.floor(value / core_px) * core_px;
  change({ open: `${uri}#${start(y)},${start(x)}` });
}

/** Show the columns of the outline at a place: of a zone before those of a polygon. */
async function select(x: number, y: number): Promise<void> {
  const found = [...canvas.outlines].reverse().flatMap((one) => one.at(x, y, hidden) ?? [])[0];
  for (const one of canvas.outlines) one.selected = one.kind === found?.kind ? found.number : null;
  canvas.draw();
  if (!found || !shown) return describeShape(null, null);
  const here = turn;
  try {
    const table = await fetchOutline(shown.number, found.kind, found.number);
    if (here === turn) describeShape(found, table);
  } catch (error) {
    tell("raster-counts", messageOf(error));
  }
}

/** Columns of an outline as a table: a line for each column, with one value where all its rows have the same. */
function describeShape(shape: Drawn | null, table: Table | null): void {
  const place = byId("raster-shape");
  if (!shape || !table) return place.replaceChildren();
  const lines = table.columns.map((column, at) => {
    const texts = table.rows.map((row) => cell(row[at]));
    const same = texts.every((text) => text === texts[0]);
    const cells = same
      ? [make("td", { colspan: Math.max(texts.length, 1) }, texts[0] ?? "")]
      : texts.map((text) => make("td", {}, text));
    return make("tr", {}, make("th", { scope: "row" }, column), ...cells);
  });
  const title = shape.kind === "zones" ? "Zone" : "Polygon";
  place.replaceChildren(make("h3", {}, title), make("div", { class: "wide" }, make("table", {}, ...lines)));
}

function cell(value: number | string | boolean | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(4)));
}

function keys(event: KeyboardEvent): void {
  if (event.target instanceof HTMLInputElement && event.target.type === "range") return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { view } = canvas;
  const actions: Record<string, () => void> = {
    ArrowLeft: () => view.pan(PAN_PX, 0),
    ArrowRight: () => view.pan(-PAN_PX, 0),
    ArrowUp: () => view.pan(0, PAN_PX),
    ArrowDown: () => view.pan(0, -PAN_PX),
    "+": () => view.zoom(1.5),
    "-": () => view.zoom(1 / 1.5),
    "0": () => view.fit(),
    w: () => openWindow(cursor ?? view.middle),
  };
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}
