// What the server answers, and the requests for it. Paths: pipeline/view/server.py.

export interface Column {
  name: string;
  title: string;
  kind: "share" | "number" | "word";
  meaning: string;
  class_id: number | null;
}

export interface ClassInfo {
  name: string;
  colour: [number, number, number];
}

export interface Progress {
  phase: string;
  planned: number | null;
  done: number;
  committed: number;
  failed: Record<string, number>;
  images_per_s: number;
  eta_s: number | null;
  bottleneck: string | null;
  bottleneck_busy: number;
}

export type Against = "labels" | "other";

/** How far the comparison pixel by pixel is. */
export interface Pace {
  is_working: boolean;
  rows: number;
  rows_per_s: number;
  problem: string | null;
}

/** Rows of a query that were compared pixel by pixel, and their pixels of each class. */
export interface Agreement {
  compared: number;
  refused: number;
  comparable: number;
  classes: { both: number; here: number; there: number }[];
}

export interface Run {
  run: string;
  finished: boolean;
  rows: number;
  /** Whether the index has all rows that this run, and the other, will ever have. */
  settled: boolean;
  /** Changes of what the index shows. */
  revision: number;
  parts: { indexed: number; known: number };
  problem: string | null;
  progress: Progress | null;
  labels: boolean;
  /** True where the rows are windows of rasters. */
  of_rasters: boolean;
  /** URL of the run that this one is compared with. */
  other: string | null;
  /** What the masks can be compared with pixel by pixel. */
  agreements: Against[];
  pace: Pace | null;
  ignore_id: number;
  classes: ClassInfo[];
  columns: Column[];
}

export interface Row {
  id: number;
  key: string;
  height: number | null;
  width: number | null;
  status: string;
  error_code: string | null;
  [column: string]: number | string | null;
}

export interface Query {
  text: string;
  ranges: { column: string; low: number | null; high: number | null }[];
  choices: { column: string; values: (string | null)[] }[];
  sort: string;
  descending: boolean;
}

export interface Bins {
  low: number;
  high: number;
  counts: number[];
  without: number;
}

export interface Words {
  words: [string, number][];
  others: number;
  without: number;
}

/** Pixels of one layer at its own size: class ids, or a number for each pixel. */
export interface Layer {
  height: number;
  width: number;
  values: Uint8Array;
}

/** One raster of the run; its number is its place in the list. */
export interface RasterInfo {
  /** Start of the keys of its windows. */
  uri: string;
  height: number;
  width: number;
  windows: number;
  core_px: number;
  /** Whether its windows are joined to a mask. */
  assembled: boolean;
}

export type OutlineKind = "zones" | "polygons";

/** Levels of a raster's tiles, each half the former, and why the source or the mask is not shown. */
export interface RasterLevels {
  tile_px: number;
  sizes: [number, number][];
  source_levels: number[];
  source_problem: string | null;
  mask_levels: number[];
  mask_problem: string | null;
  outlines: OutlineKind[];
}

export interface Outline {
  number: number;
  class_id: number | null;
  /** Rings of x, y, x, y and so on, in pixels of the raster. */
  rings: number[][];
}

export interface Rectangle {
  y: number;
  x: number;
  height: number;
  width: number;
}

export interface Table {
  columns: string[];
  rows: (number | string | boolean | null)[][];
}

/** The server's refusal; `code` is that of the row or of the reading, such as `not_found`. */
export class Refused extends Error {
  constructor(
    message: string,
    readonly code: string | null,
  ) {
    super(message);
  }
}

export type Picture = "overlay" | "image" | "mask";

async function get(path: string, signal?: AbortSignal, more: RequestInit = {}): Promise<Response> {
  const response = await fetch(path, { ...(signal ? { signal } : {}), ...more });
  if (!response.ok) throw refusal(await response.text(), response.statusText);
  return response;
}

/** Plain data; what the run or its store gets wrong is answered by the reason. */
async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  const answer = (await (await get(path, signal)).json()) as T & { error?: string; code?: string };
  if (answer.error !== undefined) throw new Refused(answer.error, answer.code ?? null);
  return answer;
}

/** A picture, or bytes; a row without them is answered by the reason as JSON. */
async function getBinary(path: string, signal?: AbortSignal, more: RequestInit = {}): Promise<Response> {
  const response = await get(path, signal, more);
  if (response.headers.get("Content-Type") === "application/json") throw refusal(await response.text(), "");
  return response;
}

function refusal(text: string, otherwise: string): Refused {
  try {
    const problem = JSON.parse(text) as { error: string; code?: string };
    return new Refused(problem.error, problem.code ?? null);
  } catch {
    return new Refused(text || otherwise, null);
  }
}

const encoded = (query: Query): string => encodeURIComponent(JSON.stringify(query));

export const fetchRun = async (): Promise<Run> => getJson("/api/run");

export const fetchRows = async (query: Query, offset: number, limit: number): Promise<{ total: number; rows: Row[] }> =>
  getJson(`/api/rows?query=${encoded(query)}&offset=${offset}&limit=${limit}`);

export const fetchHistograms = async (
  query: Query,
  columns: string[],
  signal: AbortSignal,
): Promise<Record<string, Bins | Words>> =>
  getJson(`/api/histograms?query=${encoded(query)}&columns=${columns.join(",")}`, signal);

export const fetchChanges = async (query: Query, signal: AbortSignal): Promise<{ before: number; after: number }[]> =>
  getJson(`/api/changes?query=${encoded(query)}`, signal);

export const fetchAgreement = async (against: Against, query: Query, signal: AbortSignal): Promise<Agreement> =>
  getJson(`/api/agreement/${against}?query=${encoded(query)}`, signal);

export const startComparing = async (query: Query): Promise<Pace> => getJson(`/api/compare?query=${encoded(query)}`);

export const fetchRow = async (
  key: string,
): Promise<{ id: number; row: Record<string, unknown>; layers: string[] }> =>
  getJson(`/api/row?key=${encodeURIComponent(key)}`);

/** Place of a row in the order of a query, from 0; null where it is not among its rows. */
export const fetchPosition = async (key: string, query: Query, signal: AbortSignal): Promise<{ position: number | null }> =>
  getJson(`/api/position?query=${encoded(query)}&key=${encodeURIComponent(key)}`, signal);

export const fetchThumbnail = async (id: number, picture: Picture, signal: AbortSignal): Promise<Blob> =>
  // after what is asked for meanwhile: a browser has six connections to a server, and a screen has many thumbnails
  (await getBinary(`/api/rows/${id}/thumbnail?picture=${picture}`, signal, { priority: "low" })).blob();

export const fetchImage = async (id: number, signal: AbortSignal): Promise<ImageBitmap> =>
  createImageBitmap(await (await getBinary(`/api/rows/${id}/image`, signal)).blob());

export const fetchLayer = (id: number, name: string, signal: AbortSignal): Promise<Layer> =>
  getLayer(`/api/rows/${id}/layers/${name}`, signal);

async function getLayer(path: string, signal: AbortSignal): Promise<Layer> {
  const response = await getBinary(path, signal);
  return {
    height: Number(response.headers.get("X-Height")),
    width: Number(response.headers.get("X-Width")),
    values: new Uint8Array(await response.arrayBuffer()),
  };
}

export const fetchChoice = async (
  images: number,
): Promise<{ keys: string[]; left_out: Record<string, number> }> =>
  getJson(`/api/choice?images=${images}`);

/** Zip of the images of some rows with their masks for a tool, and what is left out of it, in words. */
export async function handOver(keys: string[], tool: string): Promise<{ archive: Blob; left_out: string }> {
  const posted = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(keys) };
  const response = await getBinary(`/api/hand-over/${tool}`, undefined, posted);
  return { archive: await response.blob(), left_out: response.headers.get("X-Left-Out") ?? "" };
}

export const fetchRasters = async (): Promise<{ rasters: RasterInfo[]; unreadable: number }> =>
  getJson("/api/rasters");

export const fetchRaster = async (number: number): Promise<RasterLevels> =>
  getJson(`/api/rasters/${number}`);

interface TilePlace {
  level: number;
  row: number;
  column: number;
}

export const fetchSourceTile = async (number: number, at: TilePlace, signal: AbortSignal): Promise<ImageBitmap> => {
  const path = `/api/rasters/${number}/source/${at.level}/${at.row}/${at.column}`;
  return createImageBitmap(await (await getBinary(path, signal)).blob());
};

export const fetchMaskTile = (number: number, at: TilePlace, signal: AbortSignal): Promise<Layer> =>
  getLayer(`/api/rasters/${number}/mask/${at.level}/${at.row}/${at.column}`, signal);

/** Outlines that touch a rectangle, the largest first, and how many others there are. */
export function fetchOutlines(
  number: number,
  kind: OutlineKind,
  { y, x, height, width }: Rectangle,
  level: number,
  signal: AbortSignal,
): Promise<{ shapes: Outline[]; left_out: number }> {
  const query = `y=${y}&x=${x}&height=${height}&width=${width}&level=${level}`;
  return getJson(`/api/rasters/${number}/outlines/${kind}?${query}`, signal);
}

export const fetchOutline = (number: number, kind: OutlineKind, shape: number): Promise<Table> =>
  getJson(`/api/rasters/${number}/outlines/${kind}/${shape}`);
