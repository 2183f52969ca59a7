// Outlines over a raster: zones and polygons in sight, and the one under the cursor.

import { fetchOutlines, type Outline, type OutlineKind, type Rectangle } from "./api.js";
import type { Viewport } from "./viewport.js";

/** Share of the part in sight that is fetched beyond each side, so that a short drag needs no answer. */
const MARGIN = 0.5;
/** Factor of zoom at one level after which those that were left out are asked for again: fewer are in sight then. */
const CLOSER = 1.5;
/** Colour and width in screen pixels. */
const LINES: Record<OutlineKind, [string, number]> = { polygons: ["#ffffff", 1], zones: ["#ffe14d", 2] };
const SELECTED = "#ff3df2";

export interface Drawn extends Outline {
  kind: OutlineKind;
  path: Path2D;
  /** Smallest rectangle around it. */
  bounds: Rectangle;
}

interface Fetched {
  level: number;
  /** Scale of the view then. */
  scale: number;
  window: Rectangle;
  shapes: Drawn[];
  left_out: number;
}

/** Outlines of one kind of one raster. */
export class Outlines {
  selected: number | null = null;
  private fetched: Fetched | null = null;
  private asked = new AbortController();

  constructor(
    readonly number: number,
    readonly kind: OutlineKind,
  ) {}

  /** Fetch what is in sight at a level, unless it is here. */
  async show(view: Viewport, level: number): Promise<void> {
    const sight = inSight(view, 0);
    const { fetched } = this;
    const isComplete = !fetched?.left_out || view.scale < CLOSER * fetched.scale;
    if (fetched?.level === level && isComplete && covers(fetched.window, sight)) return;
    this.asked.abort();
    const { signal } = (this.asked = new AbortController());
    const [window, { scale }] = [inSight(view, MARGIN), view];
    try {
      const { shapes, left_out } = await fetchOutlines(this.number, this.kind, window, level, signal);
      if (signal.aborted) return;
      const drawn = shapes.map((shape) => ({ ...shape, kind: this.kind, path: pathOf(shape.rings), bounds: boundsOf(shape.rings) }));
      this.fetched = { level, scale, window, shapes: drawn, left_out };
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  get leftOut(): number {
    return this.fetched?.left_out ?? 0;
  }

  /** How many are in sight: those of the margin are here too. */
  countIn(view: Viewport): number {
    const sight = inSight(view, 0);
    return (this.fetched?.shapes ?? []).filter(({ bounds }) => touch(bounds, sight)).length;
  }

  /** Draw those whose class is not hidden, in a context that is in pixels of the raster. */
  draw(context: CanvasRenderingContext2D, scale: number, hidden: ReadonlySet<number>): void {
    const [colour, width] = LINES[this.kind];
    const shown = this.shown(hidden);
    context.lineJoin = "round";
    for (const [style, wide] of [
      ["rgb(0 0 0 / .6)", width + 1.5],
      [colour, width],
    ] as const) {
      context.strokeStyle = style;
      context.lineWidth = wide / scale;
      for (const { path } of shown) context.stroke(path);
    }
    const chosen = shown.find(({ number }) => number === this.selected);
    if (!chosen) return;
    context.strokeStyle = SELECTED;
    context.lineWidth = 3 / scale;
    context.stroke(chosen.path);
  }

  /** The smallest one that holds a place of the raster. */
  at(x: number, y: number, hidden: ReadonlySet<number>): Drawn | undefined {
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    const largestFirst = this.shown(hidden);
    return largestFirst.reverse().find(({ path }) => context?.isPointInPath(path, x, y, "evenodd"));
  }

  private shown(hidden: ReadonlySet<number>): Drawn[] {
    return (this.fetched?.shapes ?? []).filter(({ class_id }) => class_id === null || !hidden.has(class_id));
  }

  close(): void {
    this.asked.abort();
  }
}

/** Part of the raster that is in sight, with a margin as a share of it, in whole pixels. */
function inSight(view: Viewport, margin: number): Rectangle {
  const [width, height] = [view.element.clientWidth / view.scale, view.element.clientHeight / view.scale];
  const limited = (value: number, most: number): number => Math.round(Math.min(Math.max(value, 0), most));
  const left = limited(-view.left / view.scale - margin * width, view.width);
  const top = limited(-view.top / view.scale - margin * height, view.height);
  const right = limited(-view.left / view.scale + (1 + margin) * width, view.width);
  const bottom = limited(-view.top / view.scale + (1 + margin) * height, view.height);
  return { y: top, x: left, height: bottom - top, width: right - left };
}

const covers = (outer: Rectangle, inner: Rectangle): boolean =>
  outer.x <= inner.x &&
  outer.y <= inner.y &&
  outer.x + outer.width >= inner.x + inner.width &&
  outer.y + outer.height >= inner.y + inner.height;

const touch = (one: Rectangle, other: Rectangle): boolean =>
  one.x <= other.x + other.width &&
  other.x <= one.x + one.width &&
  one.y <= other.y + other.height &&
  other.y <= one.y + one.height;

function boundsOf(rings: number[][]): Rectangle {
  const [low, high] = [[Infinity, Infinity], [-Infinity, -Infinity]] as [[number, number], [number, number]];
  for (const ring of rings) {
    ring.forEach((value, at) => {
      const axis = (at % 2) as 0 | 1;
      low[axis] = Math.min(low[axis], value);
      high[axis] = Math.max(high[axis], value);
    });
  }
  return { x: low[0], y: low[1], width: high[0] - low[0], height: high[1] - low[1] };
}

function pathOf(rings: number[][]): Path2D {
  const path = new Path2D();
  for (const ring of rings) {
    for (let at = 0; at + 1 < ring.length; at += 2) {
      const [x, y] = [ring[at] as number, ring[at + 1] as number];
      if (at === 0) path.moveTo(x, y);
      else path.lineTo(x, y);
    }
    path.closePath();
  }
  return path;
}
