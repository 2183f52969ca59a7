// Agreement pixel by pixel, with labels or with another run: how many rows it covers, and the IoU of each class.

import { fetchAgreement, startComparing, type Against, type Agreement } from "./api.js";
import { byId, make } from "./dom.js";
import { count, percent } from "./numbers.js";
import { comparingBegan, run } from "./run.js";
import { isFiltered, state } from "./state.js";

const TITLES: Record<Against, { caption: string; here: string; there: string }> = {
  labels: { caption: "Labels and masks", here: "label", there: "mask" },
  other: { caption: "Masks of both runs", here: "here", there: "there" },
};
let stop = new AbortController();

/** A box for each thing that the masks can be compared with; its numbers come later. */
export function startAgreements(): void {
  const boxes = run().agreements.map((against) => make("section", { class: "agreement", "data-against": against }));
  byId("agreements").replaceChildren(...boxes);
}

/** Count again under the present query. */
export async function refreshAgreements(): Promise<void> {
  stop.abort();
  stop = new AbortController();
  const { query } = state();
  for (const box of byId("agreements").querySelectorAll<HTMLElement>(".agreement")) {
    const against = box.dataset["against"] as Against;
    try {
      const agreement = await fetchAgreement(against, query, stop.signal);
      box.replaceChildren(table(against, agreement), make("p", {}, coverage(agreement)), ...button(agreement));
    } catch (error) {
      if (error instanceof DOMException) return; // a later query has taken its place
      box.replaceChildren(make("p", {}, error instanceof Error ? error.message : String(error)));
    }
  }
}

/** What the figures stand on: they are those of the compared rows alone. */
function coverage({ compared, refused, comparable }: Agreement): string {
  const pace = run().pace;
  return [
    `exact for ${count(compared)} of ${count(comparable)} rows`,
    refused ? `${count(refused)} cannot be compared` : "",
    pace?.is_working ? `comparing, ${count(Math.round(pace.rows_per_s))} rows/s` : "",
    pace?.problem ? `ended: ${pace.problem}` : "",
  ]
    .filter(Boolean)
    .join("; ");
}

/** Asks for the rows that are left: of many rows the masks are gigabytes to read. */
function button({ compared, refused, comparable }: Agreement): HTMLElement[] {
  const left = comparable - compared - refused;
  if (left === 0 || run().pace?.is_working) return [];
  const { query } = state();
  const ask = make("button", { type: "button", class: "compare" }, `compare ${isFiltered(query) ? "these" : "all"} ${count(left)}`);
  ask.addEventListener("click", () => {
    ask.disabled = true;
    startComparing(query).then(comparingBegan, (error: unknown) => ask.replaceWith(make("p", {}, String(error))));
  });
  return [ask];
}

function table(against: Against, { compared, classes }: Agreement): HTMLElement {
  const { caption, here, there } = TITLES[against];
  const sum = (side: "here" | "there"): number => classes.reduce((total, one) => total + one[side], 0) || 1;
  const [first, second] = [sum("here"), sum("there")];
  const head = ["class", here, there, "IoU"].map((title) => make("th", { scope: "col" }, title));
  const lines = classes.map((one, id) => {
    const union = one.here + one.there - one.both;
    const cells = [percent(one.here / first), percent(one.there / second), union ? percent(one.both / union) : "–"];
    const name = run().classes[id]?.name ?? String(id);
    return make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell)));
  });
  const parts = [make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines)];
  const element = make("table", {}, ...parts);
  element.hidden = compared === 0;
  return element;
}
