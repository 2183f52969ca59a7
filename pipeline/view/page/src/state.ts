// State of the page: the query, the kind of thumbnails, and the row that is open. It lives in the URL, so that a
// reload, a bookmark and the browser's back button keep it.

import type { Column, Picture, Query } from "./api.js";

export interface State {
  query: Query;
  picture: Picture;
  /** Key of the open row; null for what lies under it. */
  open: string | null;
  /** Whether the list of rasters is open. */
  list: boolean;
  /** Start of the keys of the open raster's windows; null for none. */
  raster: string | null;
  /** Part of the raster in sight. */
  at: At | null;
  /** Columns of the address that this run does not have, by which it is neither sorted nor filtered. */
  unknown: string[];
}

/** Middle of a part of a raster and the screen pixels of each of its pixels; without a scale, the start of a window. */
export interface At {
  x: number;
  y: number;
  scale: number | null;
}

type Listener = (state: State, before: State) => void;

/** Letters of a search, as the server takes them. */
const MOST_LETTERS = 500;
const EMPTY: Query = { text: "", ranges: [], choices: [], sort: "key", descending: false };
const listeners: Listener[] = [];
/** Columns of the run. */
let columns: readonly Column[] = [];
let current: State;

/** Read the address, as far as this run can answer it, and follow it. */
export function startState(run: { columns: Column[] }): void {
  columns = run.columns;
  current = fromHash();
  window.addEventListener("popstate", () => enter(fromHash()));
}

export const state = (): State => current;

export function onChange(listener: Listener): void {
  listeners.push(listener);
}

/** Change some of the state. `replace` leaves no step for the back button, as for each letter of a search. */
export function change(part: Partial<State>, { replace = false } = {}): void {
  const next = { ...current, unknown: [], ...part };
  const hash = toHash(next);
  if (replace) history.replaceState(null, "", hash);
  else history.pushState(null, "", hash);
  enter(next);
}

/** Address of the page with some of the state changed. */
export const addressOf = (part: Partial<State>): string => toHash({ ...current, ...part });

export const changeQuery = (part: Partial<Query>, options = {}): void =>
  change({ query: { ...current.query, ...part } }, options);

/** Keep only rows whose value of a column lies in a range; null for no bound on this side. */
export function setRange(column: string, low: number | null, high: number | null): void {
  const others = current.query.ranges.filter((range) => range.column !== column);
  changeQuery({ ranges: low === null && high === null ? others : [...others, { column, low, high }] });
}

/** Keep only rows with one of these values of a column; none of them for all rows. */
export function setChoice(column: string, values: (string | null)[]): void {
  const others = current.query.choices.filter((choice) => choice.column !== column);
  changeQuery({ choices: values.length ? [...others, { column, values }] : others });
}

export const isFiltered = ({ text, ranges, choices }: Query): boolean =>
  text !== "" || ranges.length > 0 || choices.length > 0;

export const clearFilters = (): void => changeQuery({ text: "", ranges: [], choices: [] });

function enter(next: State): void {
  const before = current;
  current = next;
  for (const listener of listeners) listener(next, before);
}

function toHash({ query, picture, open, list, raster, at }: State): string {
  const params = new URLSearchParams();
  if (JSON.stringify(query) !== JSON.stringify(EMPTY)) params.set("query", JSON.stringify(query));
  if (picture !== "overlay") params.set("picture", picture);
  if (list) params.set("list", "rasters");
  if (raster !== null) params.set("raster", raster);
  if (raster !== null && at) params.set("at", [at.x, at.y, at.scale].filter((one) => one !== null).join(","));
  if (open !== null) params.set("key", open);
  return `#${params}`;
}

function fromHash(): State {
  const params = new URLSearchParams(location.hash.slice(1));
  const picture = params.get("picture");
  const { query, unknown } = withKnown(readQuery(params.get("query")));
  return {
    query,
    unknown,
    picture: picture === "image" || picture === "mask" ? picture : "overlay",
    open: params.get("key"),
    list: params.get("list") === "rasters",
    raster: params.get("raster"),
    at: readPlace(params.get("at")),
  };
}

function readPlace(text: string | null): At | null {
  const [x, y, scale] = (text ?? "").split(",").map((part) => (part.trim() ? Number(part) : NaN));
  if (x === undefined || y === undefined || !Number.isFinite(x) || !Number.isFinite(y)) return null;
  return { x, y, scale: scale !== undefined && Number.isFinite(scale) && scale > 0 ? scale : null };
}

/** What of a query this run can answer, and the columns of all else. */
function withKnown(query: Query): { query: Query; unknown: string[] } {
  const kinds = new Map(columns.map(({ name, kind }) => [name, kind]));
  const unknown = new Set<string>();
  const isKnown = (column: string, fits: (kind: Column["kind"]) => boolean): boolean => {
    const kind = kinds.get(column);
    const known = kind !== undefined && fits(kind);
    if (!known) unknown.add(column);
    return known;
  };
  const sorts = query.sort === EMPTY.sort || isKnown(query.sort, () => true);
  const order = sorts ? {} : { sort: EMPTY.sort, descending: EMPTY.descending };
  const ranges = query.ranges.filter(({ column }) => isKnown(column, (kind) => kind !== "word"));
  const choices = query.choices.filter(({ column }) => isKnown(column, (kind) => kind === "word"));
  return { query: { ...query, ...order, ranges, choices }, unknown: [...unknown] };
}

/** The last condition of each column: a filter has one. */
const oneEach = <T extends { column: string }>(conditions: T[]): T[] => [
  ...new Map(conditions.map((one) => [one.column, one])).values(),
];

/** Query of an address, which anyone may have typed: what is no query is left out. */
function readQuery(text: string | null): Query {
  let given: Partial<Record<keyof Query, unknown>> = {};
  try {
    given = Object(JSON.parse(text ?? "{}")) as typeof given;
  } catch {
    return EMPTY;
  }
  const list = (value: unknown): Record<string, unknown>[] => (Array.isArray(value) ? value.map(Object) : []);
  const isBound = (value: unknown): value is number | null => value === null || typeof value === "number";
  const isWord = (value: unknown): value is string | null => value === null || typeof value === "string";
  return {
    text: typeof given.text === "string" ? given.text.slice(0, MOST_LETTERS) : "",
    ranges: oneEach(
      list(given.ranges).flatMap(({ column, low = null, high = null }) =>
        typeof column === "string" && isBound(low) && isBound(high) ? [{ column, low, high }] : [],
      ),
    ),
    choices: oneEach(
      list(given.choices).flatMap(({ column, values }) =>
        typeof column === "string" && Array.isArray(values) && values.length && values.every(isWord) ? [{ column, values }] : [],
      ),
    ),
    sort: typeof given.sort === "string" ? given.sort : EMPTY.sort,
    descending: given.descending === true,
  };
}
