// Layers of one row, and the overlays that are drawn from them.

import { fetchLayer, type Layer } from "./api.js";
import { run } from "./run.js";

export type Overlay = "mask" | "network" | "changed" | "confidence" | "truth" | "errors" | "other" | "differs" | "none";

/** The overlays in the order of their keys 1 to 9. */
export const OVERLAYS: { name: Overlay; title: string }[] = [
  { name: "mask", title: "mask" },
  { name: "network", title: "network's mask" },
  { name: "changed", title: "changed by the refiner" },
  { name: "confidence", title: "confidence" },
  { name: "truth", title: "label" },
  { name: "errors", title: "errors" },
  { name: "other", title: "other run's mask" },
  { name: "differs", title: "differs from the other run" },
  { name: "none", title: "image alone" },
];

const MARKED: [number, number, number] = [208, 52, 44];

/** Layers of one row: fetched once each, when first asked for. Those of the network take it seconds to make. */
export class Layers {
  private readonly held = new Map<string, Layer>();
  private readonly asked = new Map<string, Promise<Layer>>();

  constructor(
    readonly id: number,
    private readonly available: string[],
    private readonly signal: AbortSignal,
  ) {}

  /** Names of the layers that an overlay is drawn from; null when the row cannot have them. */
  needs(overlay: Overlay): string[] | null {
    const has = (name: string): boolean => this.available.includes(name);
    const needed: Record<Overlay, string[]> = {
      mask: ["mask"],
      network: ["network"],
      changed: has("changed") ? ["changed"] : ["mask", "network"],
      confidence: has("confidence") ? ["confidence"] : ["network_confidence"],
      truth: ["truth"],
      errors: ["mask", "truth"],
      other: ["other"],
      differs: ["mask", "other"],
      none: [],
    };
    return needed[overlay].every(has) ? needed[overlay] : null;
  }

  fetch(name: string): Promise<Layer> {
    let layer = this.asked.get(name);
    if (!layer) {
      layer = fetchLayer(this.id, name, this.signal);
      this.asked.set(name, layer);
      layer.then((found) => this.held.set(name, found)).catch(() => undefined);
    }
    return layer;
  }

  /** A layer that has come. */
  get(name: string): Layer | undefined {
    return this.held.get(name);
  }

  /** Value of a layer that has come, at a place of the image. */
  at(name: string, x: number, y: number, cell = 1): number | undefined {
    const layer = this.held.get(name);
    const [column, row] = [Math.floor(x / cell), Math.floor(y / cell)];
    if (!layer || column < 0 || row < 0 || column >= layer.width || row >= layer.height) return undefined;
    return layer.values[row * layer.width + column];
  }
}

/** Pixels of an overlay. Classes of `hidden` are left out. */
export function compose(overlay: Overlay, parts: Layer[], hidden: ReadonlySet<number>): ImageData | null {
  const [first, second] = parts;
  if (!first) return null;
  const colour = colouring(overlay, first, second, hidden);
  const pixels = new ImageData(first.width, first.height);
  const out = new Uint32Array(pixels.data.buffer);
  for (let at = 0; at < out.length; at++) out[at] = colour(first.values[at] as number, at);
  return pixels;
}

type Colouring = (value: number, at: number) => number;

function colouring(overlay: Overlay, first: Layer, second: Layer | undefined, hidden: ReadonlySet<number>): Colouring {
  if (overlay === "confidence") return (value) => packed(255 - value, 255 - value, 255 - value);
  if (overlay === "changed" && !second) return (value) => (value ? packed(...MARKED) : 0);
  if (second && second.values.length !== first.values.length) return () => 0;
  if (second) return differing(second, overlay === "errors" ? run().ignore_id : -1, hidden);
  const table = new Uint32Array(256);
  run().classes.forEach(({ colour }, id) => {
    if (!hidden.has(id)) table[id] = packed(...colour);
  });
  return (value) => table[value] as number;
}

/** Pixels that differ from another layer, but for those that are `ignored` or hidden there. */
function differing(other: Layer, ignored: number, hidden: ReadonlySet<number>): Colouring {
  return (value, at) => {
    const theirs = other.values[at] as number;
    return theirs !== value && theirs !== ignored && !hidden.has(theirs) ? packed(...MARKED) : 0;
  };
}

/** A pixel of ImageData as one number; the bytes are red, green, blue, alpha on every machine that runs a browser. */
const packed = (red: number, green: number, blue: number): number =>
  ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
