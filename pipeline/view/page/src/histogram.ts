// Histogram of a column of numbers: bars, a brush over them, and the chosen range as two fields.

import type { Bins, Column } from "./api.js";
import { make, makeSvg } from "./dom.js";
import { count, figure } from "./numbers.js";
import { setRange, state } from "./state.js";

const WIDTH = 200;
const HEIGHT = 36;

interface Range {
  low: number | null;
  high: number | null;
}

type Side = keyof Range;
const LABELS: Record<Side, string> = { low: "at least", high: "at most" };

/** Elements that stay while the counts change, so that what is typed or dragged meanwhile is kept. */
export class Histogram {
  readonly body: HTMLElement;
  private readonly svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "histogram", role: "img" });
  private readonly brush = makeSvg("rect", { x: 0, y: 0, width: 0, height: HEIGHT, class: "brush" });
  private readonly fields: Record<Side, HTMLInputElement>;
  private readonly without = make("small");
  /** Bounds as the fields were last given them. */
  private readonly written: Record<Side, string> = { low: "", high: "" };
  private bins: Bins = { low: 0, high: 1, counts: [], without: 0 };
  /** Share of the width where a drag began; null without one. */
  private from: number | null = null;
  /** Counts that came during a drag. */
  private later: Bins | null = null;
  /** Shares are typed in percent. */
  private readonly unit: number;

  constructor(private readonly column: Column) {
    this.unit = column.kind === "share" ? 100 : 1;
    this.fields = { low: this.field("low"), high: this.field("high") };
    const bounds = make("div", { class: "bounds" }, this.fields.low, "to", this.fields.high, this.unit === 100 ? "%" : "");
    this.body = make("div", { class: "body" }, this.svg, bounds, this.without);
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.from = this.shareAt(event);
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => this.drag(event));
    this.svg.addEventListener("pointerup", (event) => this.drop(event));
    this.svg.addEventListener("pointercancel", () => this.release());
  }

  show(bins: Bins): void {
    if (this.from !== null) {
      this.later = bins; // not under the hand: its scale may be another
      return;
    }
    this.bins = bins;
    const ends = `${figure(this.column, bins.low)} to ${figure(this.column, bins.high)}`;
    this.svg.setAttribute("aria-label", `${this.column.title}: histogram from ${ends}`);
    const most = Math.max(...bins.counts, 1);
    const wide = WIDTH / bins.counts.length;
    const bars = bins.counts.map((rows, bin) => {
      // Square roots: a bin of one row stays visible beside one of a million.
      const tall = rows ? Math.max(1, (HEIGHT - 2) * Math.sqrt(rows / most)) : 0;
      return makeSvg("rect", { x: bin * wide + 0.5, y: HEIGHT - tall, width: wide - 1, height: tall, class: "bar" });
    });
    this.svg.replaceChildren(...bars, this.brush);
    const range = this.range();
    this.paint(range);
    for (const side of ["low", "high"] as const) this.write(side, range[side]);
    this.without.textContent = bins.without ? `${count(bins.without)} without a value` : "";
  }

  private range(): Range {
    return state().query.ranges.find(({ column }) => column === this.column.name) ?? { low: null, high: null };
  }

  // ---------------------------------------------------------------- brush

  /** Drag over the bars to choose a range, click without dragging to take it back. */
  private drag(event: PointerEvent): void {
    if (this.from === null) return;
    const here = this.shareAt(event);
    this.paint({ low: this.valueAt(Math.min(this.from, here)), high: this.valueAt(Math.max(this.from, here)) });
  }

  private drop(event: PointerEvent): void {
    if (this.from === null) return;
    const [low, high] = [Math.min(this.from, this.shareAt(event)), Math.max(this.from, this.shareAt(event))];
    if (high - low < 1 / WIDTH) setRange(this.column.name, null, null);
    // An end of the histogram is no bound: rounded, it would leave out the rows that lie on it.
    else setRange(this.column.name, low > 0 ? this.rounded(low, Math.floor) : null, high < 1 ? this.rounded(high, Math.ceil) : null);
    this.release();
  }

  private release(): void {
    this.from = null;
    this.show(this.later ?? this.bins);
    this.later = null;
  }

  /** Value at a share of the width, rounded to a decimal step that is finer than a pixel. */
  private rounded(share: number, round: (value: number) => number): number {
    const step = 10 ** Math.floor(Math.log10((this.bins.high - this.bins.low) / WIDTH || 1));
    return exact(round(this.valueAt(share) / step) * step);
  }

  private shareAt(event: PointerEvent): number {
    const box = this.svg.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  }

  private valueAt(share: number): number {
    return this.bins.low + share * (this.bins.high - this.bins.low);
  }

  private paint({ low, high }: Range): void {
    const { low: first, high: last } = this.bins;
    const place = (value: number): number => ((value - first) / (last - first || 1)) * WIDTH;
    const [begin, end] = [place(low ?? first), place(high ?? last)];
    this.brush.setAttribute("x", String(begin));
    this.brush.setAttribute("width", String(low === null && high === null ? 0 : Math.max(end - begin, 1)));
  }

  // ---------------------------------------------------------------- fields

  /** One bound: for the keyboard, and for exact numbers. */
  private field(side: Side): HTMLInputElement {
    const text = `${this.column.title}: ${LABELS[side]}${this.unit === 100 ? ", percent" : ""}`;
    const input = make("input", { type: "number", step: "any", "aria-label": text });
    input.addEventListener("change", () => {
      const range = { ...this.range() };
      this.written[side] = input.value;
      // Of what is no number the browser gives nothing: the bound stays, and is written again.
      if (input.validity.badInput) return this.give(side, range[side]);
      range[side] = input.value === "" ? null : exact(Number(input.value) / this.unit);
      setRange(this.column.name, range.low, range.high);
    });
    return input;
  }

  /** Give a field its bound, unless it has it: what is being typed there stays. */
  private write(side: Side, bound: number | null): void {
    this.fields[side].placeholder = String(Number((this.bins[side] * this.unit).toPrecision(3)));
    if (this.textOf(bound) !== this.written[side]) this.give(side, bound);
  }

  private give(side: Side, bound: number | null): void {
    this.fields[side].value = this.written[side] = this.textOf(bound);
  }

  private textOf(bound: number | null): string {
    return bound === null ? "" : String(exact(bound * this.unit));
  }
}

/** Without the last digits of a binary fraction: 0.07 * 100 is 7. */
const exact = (value: number): number => Number(value.toPrecision(12));
