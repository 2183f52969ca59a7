// Grid of thumbnails over any number of rows: only those in sight are in the page.
//
// A browser limits the height of an element, so above MOST_HEIGHT the scroll bar is scaled: a step of it skips rows,
// and the rows in sight are placed around it.

import { fetchRows, fetchThumbnail, Refused, type Picture, type Query, type Row } from "./api.js";
import { byId, make, messageOf } from "./dom.js";
import { isMarked, onMark, toggleMark } from "./marks.js";
import { count, figure } from "./numbers.js";
import { addressOf, change, state } from "./state.js";
import { run } from "./run.js";

const PAGE_ROWS = 100;
const KEPT_PAGES = 60;
const CARD_WIDTH = 190;
const CAPTION_HEIGHT = 44;
const GAP = 10;
const MOST_HEIGHT = 8_000_000;

/** Where cards are: their columns and size in pixels, and the part of all rows that is in the page. */
interface Shape {
  columns: number;
  width: number;
  height: number;
  /** Height of the sheet, whose scroll bar is scaled, and what of all lines is at the top of the view, pixels. */
  sheet: number;
  top: number;
  /** Positions of the rows in sight, and one screen on either side: the first, and that after the last. */
  first: number;
  last: number;
}

const scroller = byId("grid");
const sheet = byId("sheet");
/** Cards by the position of their row. */
let cards = new Map<number, Card>();
let pages = new Map<number, Promise<Row[]>>();
let total = 0;
/** Number of the latest request for the first rows: what an earlier one brings is not shown. */
let asked = 0;
/** Whether the rows in the page are those of an earlier query. */
let isStale = false;

/** One thumbnail with its caption: a link, which the keyboard reaches and a new tab can open, and its mark. */
class Card {
  readonly element = make("div", { class: "card", role: "listitem" });
  readonly link = make("a");
  private readonly frame = make("span", { class: "frame" });
  private readonly caption = make("span", { class: "caption" });
  private readonly mark = make("button", { type: "button", class: "mark", tabindex: "-1" });
  private readonly stop = new AbortController();
  private row: Row | null = null;
  private shown = "";
  /** True where the picture did not come, though the row may have it. */
  private isMissed = false;

  constructor() {
    this.link.append(this.frame, this.caption);
    this.element.append(this.link, this.mark);
    this.mark.addEventListener("click", () => this.toggleMark());
    this.link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab
      event.preventDefault();
      if (this.row) change({ open: this.row.key });
    });
  }

  /** Number of its row; null until the row has come. */
  get id(): number | null {
    return this.row?.id ?? null;
  }

  set position(position: number) {
    this.element.dataset["position"] = String(position);
  }

  async fill(row: Promise<Row | undefined>, picture: Picture): Promise<void> {
    const found = await row.catch((error: unknown) => this.badge(messageOf(error)));
    if (!found || this.isGone) return;
    this.describe(found);
    await this.showPicture(found, picture);
  }

  /** The same row again, whose values may have changed; a picture that did not come is asked for again. */
  update(row: Row, picture: Picture): void {
    this.describe(row);
    if (this.isMissed) void this.showPicture(row, picture);
  }

  private describe(row: Row): void {
    this.row = row;
    this.showMark();
    this.element.dataset["key"] = row.key;
    this.link.href = addressOf({ open: row.key, list: false, raster: null, at: null });
    this.link.title = row.key;
    this.caption.replaceChildren(make("span", { class: "key" }, shortKey(row.key)), make("small", {}, subtitle(row)));
  }

  private async showPicture(row: Row, picture: Picture): Promise<void> {
    this.isMissed = false;
    this.frame.replaceChildren();
    try {
      const blob = await fetchThumbnail(row.id, picture, this.stop.signal);
      if (!this.isGone) this.show(blob, `${row.key}, ${picture}`);
    } catch (error) {
      this.isMissed = await this.explain(row, error);
    }
  }

  private get isGone(): boolean {
    return this.stop.signal.aborted;
  }

  /** A row without this picture: its mask alone where the image is gone, and the reason. True where asking again may help. */
  private async explain(row: Row, error: unknown): Promise<boolean> {
    let isMissed = !(error instanceof Refused);
    const reason = error instanceof Refused ? (error.code ?? error.message) : messageOf(error);
    if (row.status === "ok") {
      try {
        const blob = await fetchThumbnail(row.id, "mask", this.stop.signal);
        if (!this.isGone) this.show(blob, `${row.key}, mask without image: ${reason}`);
      } catch (other) {
        isMissed ||= !(other instanceof Refused); // else it has no mask that can be shown: the badge alone says why
      }
    }
    if (!this.isGone) this.badge(row.error_code ?? reason);
    return isMissed;
  }

  private badge(text: string): void {
    this.frame.append(make("span", { class: "badge" }, text));
  }

  toggleMark(): void {
    if (this.row) toggleMark(this.row.key);
  }

  showMark(): void {
    const on = this.row !== null && isMarked(this.row.key);
    this.element.classList.toggle("marked", on);
    this.mark.setAttribute("aria-pressed", String(on));
    this.mark.setAttribute("aria-label", `mark ${this.row?.key ?? ""}`);
    this.mark.textContent = on ? "✓" : "";
  }

  private show(blob: Blob, text: string): void {
    this.forget();
    this.shown = URL.createObjectURL(blob);
    this.frame.replaceChildren(make("img", { src: this.shown, alt: text, decoding: "async" }));
  }

  private forget(): void {
    if (this.shown) URL.revokeObjectURL(this.shown);
  }

  remove(): void {
    this.stop.abort();
    this.forget();
    this.element.remove();
  }
}

const shortKey = (key: string): string => (key.length > 60 ? `…${key.slice(-58)}` : key);

/** Value by which the rows are sorted, or the error code. */
function subtitle(row: Row): string {
  if (row.error_code) return row.error_code;
  const sort = state().query.sort;
  const column = run().columns.find(({ name }) => name === (sort === "key" ? "confidence" : sort));
  return column ? `${column.title} ${figure(column, row[column.name])}` : "";
}

function shape(): Shape {
  const inside = scroller.clientWidth - GAP;
  const columns = Math.max(2, Math.floor(inside / (CARD_WIDTH + GAP)));
  const width = Math.floor(inside / columns) - GAP;
  const height = width + CAPTION_HEIGHT + GAP;
  const full = Math.ceil(total / columns) * height + GAP;
  const sheet = Math.min(full, MOST_HEIGHT);
  const view = scroller.clientHeight;
  const top = scroller.scrollTop * (sheet > view ? (full - view) / (sheet - view) : 1);
  const first = Math.max(0, Math.floor((top - view) / height)) * columns;
  const last = Math.min(total, Math.ceil((top + 2 * view) / height) * columns);
  return { columns, width, height, sheet, top, first, last };
}

/** Row at a position of the present order, fetched with its neighbours. */
export async function rowAt(position: number): Promise<Row | undefined> {
  const number = Math.floor(position / PAGE_ROWS);
  let page = pages.get(number);
  if (!page) {
    page = fetchRows(state().query, number * PAGE_ROWS, PAGE_ROWS).then(({ rows }) => rows);
    pages.set(number, page);
    page.catch(() => pages.get(number) === page && pages.delete(number));
    if (pages.size > KEPT_PAGES) pages.delete(pages.keys().next().value as number);
  }
  return (await page)[position - number * PAGE_ROWS];
}

export const totalRows = (): number => total;

/** Ask again for all rows: of another query, or, with `grown`, of the same one with more rows in the index. */
export async function reload({ grown = false } = {}): Promise<void> {
  const query: Query = state().query;
  const turn = ++asked;
  isStale ||= !grown;
  try {
    const first = await fetchRows(query, 0, PAGE_ROWS);
    if (turn !== asked) return;
    pages = new Map([[0, Promise.resolve(first.rows)]]);
    total = first.total;
    byId("problem").textContent = "";
  } catch (error) {
    if (turn === asked) byId("problem").textContent = messageOf(error);
    return;
  }
  byId("count").textContent = `${count(total)} ${total === 1 ? "row" : "rows"}`;
  byId("none").hidden = total > 0;
  if (isStale) {
    scroller.scrollTop = 0;
    clear();
  } else await rearrange(turn);
  if (turn !== asked) return;
  isStale = false;
  draw();
}

/** Move each card to where its row is now, so that pictures and the keyboard stay with their rows. */
async function rearrange(turn: number): Promise<void> {
  const { first, last } = shape();
  const positions = Array.from({ length: Math.max(last - first, 0) }, (_, at) => first + at);
  const rows = await Promise.all(positions.map((position) => rowAt(position).catch(() => undefined)));
  if (turn !== asked) return;
  const held = new Map([...cards.values()].map((card) => [card.id, card]));
  const [before, { picture }] = [cards, state()];
  cards = new Map();
  positions.forEach((position, at) => {
    const row = rows[at];
    const card = row && held.get(row.id);
    if (!row || !card) return;
    card.position = position;
    card.update(row, picture);
    cards.set(position, card);
  });
  const kept = new Set(cards.values());
  for (const card of before.values()) if (!kept.has(card)) card.remove();
}

export function clear(): void {
  for (const card of cards.values()) card.remove();
  cards.clear();
}

/** Put the rows in sight, and those around, into the page. */
export function draw(): void {
  const { columns, width, height, sheet: tall, top, first, last } = shape();
  sheet.style.height = `${tall}px`;
  for (const [position, card] of cards) {
    if (position < first || position >= last) {
      card.remove();
      cards.delete(position);
    }
  }
  for (let position = first; position < last; position++) {
    const card = cards.get(position) ?? add(position);
    const style = card.element.style;
    style.width = `${width}px`;
    style.height = `${height - GAP}px`;
    style.left = `${GAP + (position % columns) * (width + GAP)}px`;
    style.top = `${GAP + Math.floor(position / columns) * height + scroller.scrollTop - top}px`;
  }
}

function add(position: number): Card {
  const card = new Card();
  card.position = position;
  cards.set(position, card);
  sheet.append(card.element);
  void card.fill(rowAt(position), state().picture);
  return card;
}

/** Arrow keys move between cards, as in a file manager; m marks one. */
function moveFocus(event: KeyboardEvent): void {
  const { columns } = shape();
  const steps: Record<string, number> = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const step = steps[event.key];
  const here = document.activeElement?.closest<HTMLElement>(".card")?.dataset["position"];
  if (event.key === "m" && here !== undefined) cards.get(Number(here))?.toggleMark();
  if (step === undefined || here === undefined) return;
  event.preventDefault();
  const next = cards.get(Number(here) + step)?.link;
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

export function startGrid(): void {
  scroller.addEventListener("scroll", draw, { passive: true });
  scroller.addEventListener("keydown", moveFocus);
  new ResizeObserver(draw).observe(scroller);
  onMark(() => cards.forEach((card) => card.showMark()));
}
