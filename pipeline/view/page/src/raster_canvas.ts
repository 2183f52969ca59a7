// Canvas of one raster: tiles of its source and its mask at the level in sight, and outlines over them.

import { fetchMaskTile, fetchSourceTile, type Layer, type RasterLevels } from "./api.js";
import { compose } from "./layers.js";
import type { Outlines } from "./outlines.js";
import { Tiles, type Place } from "./tiles.js";
import { Viewport } from "./viewport.js";

interface MaskTile {
  layer: Layer;
  /** Its pixels in class colours; null until it is drawn, and after a class was switched. */
  painted: OffscreenCanvas | null;
}

interface Actions {
  readout: (x: number, y: number) => void;
  click: (x: number, y: number) => void;
  /** Drawn anew: another part is in sight, or a tile has come. */
  drawn: () => void;
}

interface Shown {
  raster: RasterLevels;
  source: Tiles<ImageBitmap>;
  mask: Tiles<MaskTile>;
}

export class RasterCanvas {
  readonly view: Viewport;
  outlines: Outlines[] = [];
  opacity = 0.5;
  /** Edge of the windows whose grid is drawn; 0 for none. */
  gridPx = 0;
  private shown: Shown | null = null;
  private readonly maskLayer = new OffscreenCanvas(1, 1);

  constructor(
    element: HTMLCanvasElement,
    private readonly hidden: ReadonlySet<number>,
    private readonly actions: Actions,
  ) {
    const { readout, click } = actions;
    this.view = new Viewport(element, { draw: () => this.draw(), readout, click });
  }

  /** Show another raster, as a whole; null for none. */
  show(number: number, raster: RasterLevels | null): void {
    this.shown?.source.close();
    this.shown?.mask.close();
    this.shown = null;
    this.outlines = [];
    if (!raster) return this.draw();
    const arrived = (): void => this.draw();
    const mask = async (place: Place, signal: AbortSignal): Promise<MaskTile> => ({
      layer: await fetchMaskTile(number, place, signal),
      painted: null,
    });
    this.shown = {
      raster,
      source: new Tiles((place, signal) => fetchSourceTile(number, place, signal), arrived),
      mask: new Tiles(mask, arrived),
    };
    const [height, width] = raster.sizes[0] as [number, number];
    this.view.setSize(height, width);
    this.view.fit();
  }

  /** Level whose pixels are at most as large as those of the screen. */
  get level(): number {
    const coarsest = (this.shown?.raster.sizes.length ?? 1) - 1;
    return Math.min(Math.max(Math.floor(Math.log2(1 / this.view.scale)), 0), coarsest);
  }

  /** Whether the source is drawn at the level in sight. */
  get hasSource(): boolean {
    return this.shown?.raster.source_levels.includes(this.level) ?? false;
  }

  /** Tiles that have not come yet. */
  get waiting(): number {
    return this.shown ? this.shown.source.waiting + this.shown.mask.waiting : 0;
  }

  /** Why a tile in sight did not come; undefined where none was refused. */
  get problem(): unknown {
    return this.shown?.source.problem ?? this.shown?.mask.problem;
  }

  /** Class id of the finest tile that is here, at a place of the raster. */
  classAt(x: number, y: number): number | undefined {
    if (!this.shown) return undefined;
    const { raster, mask } = this.shown;
    for (let level = 0; level < raster.sizes.length; level++) {
      const [across, down] = [Math.floor(x / 2 ** level), Math.floor(y / 2 ** level)];
      const place = { level, row: Math.floor(down / raster.tile_px), column: Math.floor(across / raster.tile_px) };
      const layer = mask.get(place)?.layer;
      if (layer) return layer.values[(down % raster.tile_px) * layer.width + (across % raster.tile_px)];
    }
    return undefined;
  }

  /** Paint the classes anew, after one was switched on or off. */
  repaint(): void {
    for (const { tile } of this.shown?.mask.from(0) ?? []) tile.painted = null;
    this.draw();
  }

  draw(): void {
    const { view, shown } = this;
    const context = view.element.getContext("2d");
    if (!context) return;
    view.begin(context);
    if (!shown) return;
    const places = this.inSight(shown.raster);
    shown.source.want(this.hasSource ? places : []);
    shown.mask.want(shown.raster.mask_levels.includes(this.level) ? places : []);
    context.save();
    context.beginPath();
    context.rect(0, 0, view.width, view.height);
    context.clip();
    if (this.hasSource) {
      for (const { place, tile } of shown.source.from(this.level)) this.put(context, place, tile, tile);
    }
    this.drawMask(context, shown);
    this.drawGrid(context);
    context.restore();
    for (const outlines of this.outlines) outlines.draw(context, view.scale, this.hidden);
    this.actions.drawn();
  }

  /** Mask in a layer of its own, since finer tiles replace coarser ones, and only then are transparent. */
  private drawMask(context: CanvasRenderingContext2D, shown: Shown): void {
    const { view, maskLayer } = this;
    [maskLayer.width, maskLayer.height] = [view.element.width, view.element.height];
    const layer = maskLayer.getContext("2d");
    if (!layer) return;
    view.begin(layer);
    layer.imageSmoothingEnabled = false;
    for (const { place, tile } of shown.mask.from(this.level)) {
      tile.painted ??= this.painted(tile.layer);
      layer.clearRect(...this.box(place, tile.layer));
      this.put(layer, place, tile.painted, tile.layer);
    }
    const transform = context.getTransform();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = this.hasSource ? this.opacity : 1;
    context.drawImage(maskLayer, 0, 0);
    context.globalAlpha = 1;
    context.setTransform(transform);
  }

  private painted(layer: Layer): OffscreenCanvas {
    const canvas = new OffscreenCanvas(layer.width, layer.height);
    const pixels = compose("mask", [layer], this.hidden);
    if (pixels) canvas.getContext("2d")?.putImageData(pixels, 0, 0);
    return canvas;
  }

  private drawGrid(context: CanvasRenderingContext2D): void {
    const { view, gridPx } = this;
    if (!gridPx) return;
    context.beginPath();
    for (let x = gridPx; x < view.width; x += gridPx) {
      context.moveTo(x, 0);
      context.lineTo(x, view.height);
    }
    for (let y = gridPx; y < view.height; y += gridPx) {
      context.moveTo(0, y);
      context.lineTo(view.width, y);
    }
    context.strokeStyle = "#fff";
    context.lineWidth = 1 / view.scale;
    context.stroke();
  }

  private put(
    context: CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D,
    place: Place,
    image: CanvasImageSource,
    size: { width: number; height: number },
  ): void {
    context.drawImage(image, ...this.box(place, size));
  }

  /** Left, top, width and height of a tile, in pixels of the raster. */
  private box({ level, row, column }: Place, size: { width: number; height: number }): [number, number, number, number] {
    const step = (this.shown?.raster.tile_px ?? 1) * 2 ** level;
    return [column * step, row * step, size.width * 2 ** level, size.height * 2 ** level];
  }

  /** Tiles of the level in sight, those in the middle first. */
  private inSight(raster: RasterLevels): Place[] {
    const { view, level } = this;
    const step = raster.tile_px * 2 ** level;
    const end = (start: number, screen: number): number => (start + screen / view.scale) / step;
    const [left, top] = [-view.left / view.scale, -view.top / view.scale];
    const [height, width] = raster.sizes[level] as [number, number];
    const last = {
      row: Math.min(Math.ceil(height / raster.tile_px), Math.ceil(end(top, view.element.clientHeight))),
      column: Math.min(Math.ceil(width / raster.tile_px), Math.ceil(end(left, view.element.clientWidth))),
    };
    const places: Place[] = [];
    for (let row = Math.max(0, Math.floor(top / step)); row < last.row; row++) {
      for (let column = Math.max(0, Math.floor(left / step)); column < last.column; column++) {
        places.push({ level, row, column });
      }
    }
    const { x, y } = view.middle;
    const away = ({ row, column }: Place): number => Math.hypot((column + 0.5) * step - x, (row + 0.5) * step - y);
    return places.sort((one, other) => away(one) - away(other));
  }
}
