// List of the words of a column, each with a box: several can be chosen.

import type { Column, Words } from "./api.js";
import { arrange, make } from "./dom.js";
import { count } from "./numbers.js";
import { setChoice, state } from "./state.js";

interface Line {
  element: HTMLElement;
  box: HTMLInputElement;
  rows: HTMLElement;
}

/** Lines that stay while the counts change, so that the keyboard stays where it is. */
export class WordList {
  readonly body = make("div", { class: "body" });
  private readonly lines = new Map<string | null, Line>();
  private readonly rarer = make("small");

  constructor(private readonly column: Column) {}

  show({ words, without, others }: Words): void {
    const chosen = this.chosen();
    const counted: [string | null, number][] = without ? [...words, [null, without]] : words;
    // A chosen word is listed though no row has it now, or too few: it could not be taken back.
    const unseen = chosen.filter((value) => !counted.some(([word]) => word === value));
    const values = [...counted, ...unseen.map((value): [string | null, number | null] => [value, others ? null : 0])];
    const elements = values.map(([value, rows]) => {
      const line = this.lines.get(value) ?? this.add(value);
      line.box.checked = chosen.includes(value);
      line.rows.textContent = rows === null ? "" : count(rows); // null: it is counted among the rarer ones
      return line.element;
    });
    this.rarer.textContent = others ? `${count(others)} rows of rarer values` : "";
    arrange(this.body, [...elements, this.rarer]);
  }

  private chosen(): (string | null)[] {
    return state().query.choices.find(({ column }) => column === this.column.name)?.values ?? [];
  }

  private add(value: string | null): Line {
    const [box, rows] = [make("input", { type: "checkbox" }), make("small")];
    box.addEventListener("change", () => {
      const others = this.chosen().filter((other) => other !== value);
      setChoice(this.column.name, box.checked ? [...others, value] : others);
    });
    const element = make("label", {}, box, make("span", { class: "word" }, value ?? "none"), rows);
    const line = { element, box, rows };
    this.lines.set(value, line);
    return line;
  }
}
