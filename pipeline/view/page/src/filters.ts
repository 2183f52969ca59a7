// Filters: a histogram for each column of numbers, brushed to choose a range, and a list for each column of words.

import { fetchChanges, fetchHistograms, type Bins, type Column, type Words } from "./api.js";
import { byId, debounced, make, makeSvg } from "./dom.js";
import { count, figure, percent } from "./numbers.js";
import { colourOf, run } from "./run.js";
import { changeQuery, clearFilters, isFiltered, setChoice, setRange, state } from "./state.js";

const WIDTH = 200;
const HEIGHT = 36;
/** Classes whose histograms are shown at once; the others after a click. */
const FIRST_CLASSES = 12;
const panel = byId("filters");
let stop = new AbortController();
let allClasses = false;
let opened: Map<string, HTMLElement>;
/** Text of the query, as the search box has last shown or changed it. */
let searched = "";

export function startFilters(): void {
  const search = byId<HTMLInputElement>("search");
  const find = (): void => {
    searched = search.value.trim();
    changeQuery({ text: searched }, { replace: true });
  };
  search.addEventListener("input", debounced(find, 250));
  const sort = byId<HTMLSelectElement>("sort");
  const sortable = run().columns.filter(({ kind }) => kind !== "word");
  sort.append(make("option", { value: "key" }, "key"));
  sort.append(...sortable.map(({ name, title }) => make("option", { value: name }, title)));
  sort.addEventListener("change", () => changeQuery({ sort: sort.value }));
  byId("direction").addEventListener("click", () => changeQuery({ descending: !state().query.descending }));
  byId("clear").addEventListener("click", clearFilters);
  build();
}

/** A box for each column; the histograms come later. */
function build(): void {
  opened = new Map();
  const columns = run().columns;
  const classes = columns.filter(({ class_id }) => class_id !== null);
  const first = allClasses ? classes : classes.slice(0, FIRST_CLASSES);
  const boxes = [...columns.filter(({ class_id }) => class_id === null), ...first].map((column) => {
    const body = make("div", { class: "body" });
    opened.set(column.name, body);
    return make("section", { class: "filter", "data-column": column.name }, heading(column), body);
  });
  panel.replaceChildren(...boxes);
  if (first.length < classes.length) {
    const more = make("button", { type: "button" }, `all ${classes.length} classes`);
    more.addEventListener("click", () => {
      allClasses = true;
      build();
      void refreshFilters();
    });
    panel.append(more);
  }
}

function heading(column: Column): HTMLElement {
  const chosen = column.class_id === null ? undefined : run().classes[column.class_id];
  const swatch = chosen ? make("span", { class: "swatch" }) : null;
  if (swatch && chosen) swatch.style.background = colourOf(chosen);
  return make("h3", { title: column.meaning }, swatch, column.title);
}

/** Count again under the present query. */
export async function refreshFilters(): Promise<void> {
  stop.abort();
  stop = new AbortController();
  const { query } = state();
  if (query.text !== searched) byId<HTMLInputElement>("search").value = query.text; // by `clear filters`, or going back
  searched = query.text;
  byId("clear").hidden = !isFiltered(query);
  byId<HTMLSelectElement>("sort").value = query.sort;
  const direction = byId("direction");
  direction.textContent = query.descending ? "↓" : "↑";
  direction.setAttribute("aria-label", query.descending ? "largest first" : "smallest first");
  try {
    const found = await fetchHistograms(query, [...opened.keys()], stop.signal);
    for (const column of run().columns) {
      const [body, counts] = [opened.get(column.name), found[column.name]];
      if (body && counts) body.replaceChildren(...("counts" in counts ? bars(column, counts) : list(column, counts)));
      if (body?.parentElement) body.parentElement.hidden = counts !== undefined && isEmpty(counts) && !isUsed(column);
    }
    if (run().other) drawChanges(await fetchChanges(query, stop.signal));
  } catch (error) {
    if (error instanceof DOMException) return; // a later query has taken its place
    byId("problem").textContent = error instanceof Error ? error.message : String(error);
  }
}

/** Share of each class in this run and in the other, over the rows of the query that have a mask in both. */
function drawChanges(changes: { before: number; after: number }[]): void {
  const sum = (side: "before" | "after"): number => changes.reduce((total, change) => total + change[side], 0) || 1;
  const [before, after] = [sum("before"), sum("after")];
  const head = ["class", "here", "there", "points"].map((title) => make("th", { scope: "col" }, title));
  const lines = changes.map((change, id) => {
    const [here, there] = [change.before / before, change.after / after];
    const points = ((there - here) * 100).toFixed(2);
    const cells = [percent(here), percent(there), points.startsWith("-") ? points : `+${points}`];
    return make("tr", {}, make("th", { scope: "row" }, run().classes[id]?.name ?? String(id)), ...cells.map((cell) => make("td", {}, cell)));
  });
  const table = byId("changes");
  table.replaceChildren(make("caption", {}, "Classes here and in the other run"), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines));
  table.hidden = false;
}

const isUsed = ({ name }: Column): boolean =>
  [...state().query.ranges, ...state().query.choices].some(({ column }) => column === name);

/** True for a column that has no value, or a single word: nothing could be chosen by it. */
const isEmpty = (counts: Bins | Words): boolean =>
  "counts" in counts ? counts.counts.every((rows) => rows === 0) : counts.words.length + (counts.without ? 1 : 0) < 2;

// ---------------------------------------------------------------- numbers

function bars(column: Column, bins: Bins): Element[] {
  const most = Math.max(...bins.counts, 1);
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "histogram" });
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${column.title}: histogram from ${figure(column, bins.low)} to ${figure(column, bins.high)}`);
  const wide = WIDTH / bins.counts.length;
  bins.counts.forEach((rows, bin) => {
    // Square roots: a bin of one row stays visible beside one of a million.
    const tall = rows ? Math.max(1, (HEIGHT - 2) * Math.sqrt(rows / most)) : 0;
    svg.append(makeSvg("rect", { x: bin * wide + 0.5, y: HEIGHT - tall, width: wide - 1, height: tall, class: "bar" }));
  });
  const range = state().query.ranges.find(({ column: name }) => name === column.name);
  const brush = makeSvg("rect", { y: 0, height: HEIGHT, x: 0, width: 0, class: "brush" });
  svg.append(brush);
  const place = (value: number): number => ((value - bins.low) / (bins.high - bins.low || 1)) * WIDTH;
  const paint = (low: number, high: number): void => {
    brush.setAttribute("x", String(place(low)));
    brush.setAttribute("width", String(Math.max(place(high) - place(low), 1)));
  };
  if (range) paint(range.low ?? bins.low, range.high ?? bins.high);
  brushed(svg, column, bins, paint);
  const without = bins.without ? [make("small", {}, `${count(bins.without)} without a value`)] : [];
  return [svg, bounds(column, bins, range?.low ?? null, range?.high ?? null), ...without];
}

/** Drag over the bars to choose a range, click without dragging to take it back. */
function brushed(svg: SVGElement, column: Column, bins: Bins, paint: (low: number, high: number) => void): void {
  let from: number | null = null;
  const shareAt = (event: PointerEvent): number => {
    const box = svg.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const value = (share: number): number => bins.low + share * (bins.high - bins.low);
  svg.addEventListener("pointerdown", (event) => {
    from = shareAt(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (from !== null) paint(value(Math.min(from, shareAt(event))), value(Math.max(from, shareAt(event))));
  });
  svg.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const [low, high] = [Math.min(from, shareAt(event)), Math.max(from, shareAt(event))];
    from = null;
    if (high - low < 1 / WIDTH) setRange(column.name, null, null);
    // An end of the histogram is no bound: rounded, it would leave out the rows that lie on it.
    else setRange(column.name, low > 0 ? rounded(value(low)) : null, high < 1 ? rounded(value(high)) : null);
  });
}

const rounded = (value: number): number => Number(value.toPrecision(4));

/** The range as two fields: for the keyboard, and for exact numbers. Shares are typed in percent. */
function bounds(column: Column, bins: Bins, low: number | null, high: number | null): HTMLElement {
  const unit = column.kind === "share" ? 100 : 1;
  const field = (value: number | null, hint: number, label: string): HTMLInputElement => {
    const shown = value === null ? "" : String(rounded(value * unit));
    const text = `${column.title}: ${label}${unit === 100 ? ", percent" : ""}`;
    const input = make("input", { type: "number", step: "any", value: shown, "aria-label": text });
    input.placeholder = String(Number((hint * unit).toPrecision(3)));
    return input;
  };
  const fields = [field(low, bins.low, "at least"), field(high, bins.high, "at most")] as const;
  for (const input of fields) {
    input.addEventListener("change", () => {
      const [least, most] = fields.map(({ value }) => (value === "" ? null : Number(value) / unit));
      setRange(column.name, least ?? null, most ?? null);
    });
  }
  return make("div", { class: "bounds" }, fields[0], "to", fields[1], unit === 100 ? "%" : "");
}

// ---------------------------------------------------------------- words

function list(column: Column, words: Words): Element[] {
  const chosen = state().query.choices.find(({ column: name }) => name === column.name)?.values ?? [];
  const values: [string | null, number][] = words.without ? [...words.words, [null, words.without]] : words.words;
  const lines = values.map(([value, rows]) => {
    const box = make("input", { type: "checkbox", checked: chosen.includes(value) });
    box.addEventListener("change", () =>
      setChoice(column.name, box.checked ? [...chosen, value] : chosen.filter((other) => other !== value)),
    );
    return make("label", {}, box, make("span", { class: "word" }, value ?? "none"), make("small", {}, count(rows)));
  });
  if (words.others) lines.push(make("label", {}, make("small", {}, `${count(words.others)} rows of rarer values`)));
  return lines;
}
