// Line of one class: a box that switches it on and off, its colour and its name.

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
