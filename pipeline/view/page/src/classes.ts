// Classes in the panels: the line of one, which switches it on and off, and tables with a line for each.

import { make } from "./dom.js";
import { colourOf, run } from "./run.js";

/** Line of a class whose box keeps `hidden`; `changed` is called after it was switched. */
export function classLine(id: number, hidden: Set<number>, changed: () => void, note = ""): HTMLElement {
  const info = run().classes[id];
  const box = make("input", { type: "checkbox", checked: !hidden.has(id) });
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(id);
    else hidden.add(id);
    changed();
  });
  const swatch = make("span", { class: "swatch" });
  if (info) swatch.style.background = colourOf(info);
  const name = make("span", { class: "word" }, info?.name ?? String(id));
  return make("label", {}, box, swatch, name, make("small", {}, note));
}

/** Parts of a table with a line for each class, in the order of their ids; `lines` has the other cells of each. */
export function classTable(caption: string, titles: string[], lines: string[][]): HTMLElement[] {
  const head = ["class", ...titles].map((title) => make("th", { scope: "col" }, title));
  const rows = lines.map((cells, id) => {
    const name = make("th", { scope: "row" }, run().classes[id]?.name ?? String(id));
    return make("tr", {}, name, ...cells.map((cell) => make("td", {}, cell)));
  });
  return [make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)];
}
