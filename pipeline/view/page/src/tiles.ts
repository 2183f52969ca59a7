// Tiles of one picture of a raster: asked for when they come into sight, and kept in a bounded number.

export interface Place {
  level: number;
  row: number;
  column: number;
}

const KEPT_SCREENS = 3;
const FEWEST_KEPT = 48;

const nameOf = ({ level, row, column }: Place): string => `${level}/${row}/${column}`;

/** Tiles of one kind, such as those of the mask. */
export class Tiles<T> {
  private readonly held = new Map<string, { place: Place; tile: T }>();
  private readonly asked = new Map<string, AbortController>();
  /** Why tiles in sight did not come. */
  private readonly refused = new Map<string, unknown>();

  constructor(
    private readonly fetch: (place: Place, signal: AbortSignal) => Promise<T>,
    private readonly arrived: () => void,
  ) {}

  /** Ask for the tiles in sight that are not here; those that went out of sight are not waited for any more. */
  want(places: Place[]): void {
    const names = new Set(places.map(nameOf));
    for (const [name, stop] of this.asked) if (!names.has(name)) stop.abort();
    for (const name of this.refused.keys()) if (!names.has(name)) this.refused.delete(name); // asked again when it comes back
    for (const place of places) {
      const name = nameOf(place);
      const held = this.held.get(name);
      if (held) {
        this.held.delete(name); // those wanted last are forgotten last
        this.held.set(name, held);
      } else if (!this.asked.has(name) && !this.refused.has(name)) void this.ask(name, place);
    }
    const most = Math.max(FEWEST_KEPT, KEPT_SCREENS * places.length);
    for (const name of this.held.keys()) {
      if (this.held.size <= most) break;
      this.held.delete(name);
    }
  }

  private async ask(name: string, place: Place): Promise<void> {
    const stop = new AbortController();
    this.asked.set(name, stop);
    try {
      const tile = await this.fetch(place, stop.signal);
      if (!stop.signal.aborted) this.held.set(name, { place, tile });
    } catch (error) {
      if (!stop.signal.aborted) this.refused.set(name, error);
    }
    this.asked.delete(name);
    this.arrived();
  }

  get(place: Place): T | undefined {
    return this.held.get(nameOf(place))?.tile;
  }

  /** Tiles that are here, the coarsest first, down to a level. */
  from(level: number): { place: Place; tile: T }[] {
    return [...this.held.values()]
      .filter(({ place }) => place.level >= level)
      .sort((one, other) => other.place.level - one.place.level);
  }

  /** How many of the tiles in sight have not come yet. */
  get waiting(): number {
    return this.asked.size;
  }

  /** Why one of the tiles in sight did not come; undefined where none was refused. */
  get problem(): unknown {
    return [...this.refused.values()].at(-1);
  }

  close(): void {
    for (const stop of this.asked.values()) stop.abort();
    this.held.clear();
  }
}
