// Filters: a histogram for each column of numbers, brushed to choose a range, and a list for each column of words.

import { fetchChanges, fetchHistograms, type Bins, type Column, type Words } from "./api.js";
import { classTable } from "./classes.js";
import { arrange, byId, debounced, make, messageOf } from "./dom.js";
import { Histogram } from "./histogram.js";
import { percent } from "./numbers.js";
import { colourOf, run } from "./run.js";
import { changeQuery, clearFilters, isFiltered, state } from "./state.js";
import { WordList } from "./words.js";

/** Classes whose histograms are shown at once; the others after a click. */
const FIRST_CLASSES = 12;
const panel = byId("filters");
let stop = new AbortController();
let allClasses = false;
/** A box for each column that is shown, and the section that holds it. */
let boxes = new Map<string, { section: HTMLElement; box: Histogram | WordList }>();
/** Text of the query, as the search box has last shown or changed it. */
let searched = "";

export function startFilters(): void {
  const search = byId<HTMLInputElement>("search");
  const find = (): void => {
    if (search.value.trim() === searched) return;
    searched = search.value.trim();
    changeQuery({ text: searched }, { replace: true });
  };
  search.addEventListener("input", debounced(find, 250)); // after `clear filters` it finds nothing to change
  const sort = byId<HTMLSelectElement>("sort");
  const sortable = run().columns.filter(({ kind }) => kind !== "word");
  sort.append(make("option", { value: "key" }, "key"));
  sort.append(...sortable.map(({ name, title }) => make("option", { value: name }, title)));
  sort.addEventListener("change", () => changeQuery({ sort: sort.value }));
  byId("direction").addEventListener("click", () => changeQuery({ descending: !state().query.descending }));
  byId("clear").addEventListener("click", () => {
    search.value = "";
    clearFilters();
  });
  build();
}

/** A box for each column, also for those of later classes that filter; a box that is there stays. The counts come later. */
function build(): void {
  const columns = run().columns;
  const classes = columns.filter(({ class_id }) => class_id !== null);
  const first = classes.filter(({ name }, at) => allClasses || at < FIRST_CLASSES || isUsed(name));
  const shown = [...columns.filter(({ class_id }) => class_id === null), ...first];
  const before = boxes;
  boxes = new Map(
    shown.map((column) => {
      const held = before.get(column.name);
      if (held) return [column.name, held];
      const box = column.kind === "word" ? new WordList(column) : new Histogram(column);
      const section = make("section", { class: "filter", "data-column": column.name }, heading(column), box.body);
      return [column.name, { section, box }];
    }),
  );
  const sections = [...boxes.values()].map(({ section }) => section);
  if (first.length < classes.length) {
    const more = make("button", { type: "button" }, `all ${classes.length} classes`);
    more.addEventListener("click", () => {
      allClasses = true;
      build();
      void refreshFilters();
    });
    sections.push(more);
  }
  arrange(panel, sections);
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
  if (run().columns.some(({ name }) => isUsed(name) && !boxes.has(name))) build();
  if (query.text !== searched) byId<HTMLInputElement>("search").value = query.text; // by `clear filters`, or going back
  searched = query.text;
  byId("clear").hidden = !isFiltered(query);
  byId<HTMLSelectElement>("sort").value = query.sort;
  const direction = byId("direction");
  direction.textContent = query.descending ? "↓" : "↑";
  direction.setAttribute("aria-label", query.descending ? "largest first" : "smallest first");
  try {
    const found = await fetchHistograms(query, [...boxes.keys()], stop.signal);
    for (const [name, { section, box }] of boxes) {
      const counts = found[name];
      if (!counts) continue;
      if (box instanceof Histogram && "counts" in counts) box.show(counts);
      if (box instanceof WordList && "words" in counts) box.show(counts);
      section.hidden = isEmpty(counts) && !isUsed(name);
    }
    if (run().other) drawChanges(await fetchChanges(query, stop.signal));
  } catch (error) {
    if (error instanceof DOMException) return; // a later query has taken its place
    byId("problem").textContent = messageOf(error);
  }
}

/** Share of each class in this run and in the other, over the rows of the query that have a mask in both. */
function drawChanges(changes: { before: number; after: number }[]): void {
  const sum = (side: "before" | "after"): number => changes.reduce((total, change) => total + change[side], 0) || 1;
  const [before, after] = [sum("before"), sum("after")];
  const lines = changes.map((change) => {
    const [here, there] = [change.before / before, change.after / after];
    const points = ((there - here) * 100).toFixed(2);
    return [percent(here), percent(there), points.startsWith("-") ? points : `+${points}`];
  });
  const table = byId("changes");
  table.replaceChildren(...classTable("Classes here and in the other run", ["here", "there", "points"], lines));
  table.hidden = false;
}

const isUsed = (name: string): boolean =>
  [...state().query.ranges, ...state().query.choices].some(({ column }) => column === name);

/** True for a column that has no value, or a single word: nothing could be chosen by it. */
const isEmpty = (counts: Bins | Words): boolean =>
  "counts" in counts ? counts.counts.every((rows) => rows === 0) : counts.words.length + (counts.without ? 1 : 0) < 2;
