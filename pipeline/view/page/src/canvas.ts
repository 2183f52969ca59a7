// Canvas of one image: the image and an overlay of any size stretched over it, with zoom and pan.

type Readout = (x: number, y: number) => void;

const MOST_ZOOM = 40;

interface Overlaid {
  pixels: OffscreenCanvas;
  /** True for values that were averaged over cells. */
  smooth: boolean;
}

export class Canvas {
  private image: ImageBitmap | null = null;
  private overlay: Overlaid | null = null;
  private beside: Overlaid | null = null;
  /** Share of the stage, from the left, behind which `beside` is drawn in place of `overlay`. */
  private divider = 1;
  private opacity = 0.5;
  private width = 1;
  private height = 1;
  /** Screen pixels per image pixel, and the place of the image's first pixel on the screen. */
  private scale = 1;
  private left = 0;
  private top = 0;
  private fitted = true;
  private readonly pointers = new Map<number, { x: number; y: number }>();

  constructor(
    private readonly element: HTMLCanvasElement,
    private readonly readout: Readout,
  ) {
    new ResizeObserver(() => this.resize()).observe(element);
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"] as const) {
      element.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    element.addEventListener("dblclick", () => this.fit());
  }

  clear(): void {
    this.image?.close();
    this.image = null;
    this.overlay = this.beside = null;
    this.draw();
  }

  setImage(image: ImageBitmap): void {
    this.image = image;
    this.setSize(image.height, image.width);
  }

  /** Size of the image in its own pixels, which overlays are stretched to. */
  setSize(height: number, width: number): void {
    const same = height === this.height && width === this.width;
    [this.height, this.width] = [height, width];
    if (same && !this.fitted) this.draw();
    else this.fit();
  }

  /** Pixels laid over the image, and those laid over it behind the divider. */
  setOverlays(overlay: Overlaid | null, beside: Overlaid | null): void {
    [this.overlay, this.beside] = [overlay, beside];
    this.draw();
  }

  setDivider(share: number): void {
    this.divider = share;
    this.draw();
  }

  setOpacity(opacity: number): void {
    this.opacity = opacity;
    this.draw();
  }

  fit(): void {
    const { clientWidth, clientHeight } = this.element;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height);
    this.left = (clientWidth - this.width * this.scale) / 2;
    this.top = (clientHeight - this.height * this.scale) / 2;
    this.fitted = true;
    this.draw();
  }

  /** Zoom around a place on the screen, by default the middle. */
  zoom(factor: number, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2): void {
    const least = Math.min(this.element.clientWidth / this.width, this.element.clientHeight / this.height, 1) / 4;
    const scale = Math.min(MOST_ZOOM, Math.max(least, this.scale * factor));
    this.left = x - ((x - this.left) / this.scale) * scale;
    this.top = y - ((y - this.top) / this.scale) * scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }

  private resize(): void {
    const dense = window.devicePixelRatio || 1;
    this.element.width = Math.max(1, Math.round(this.element.clientWidth * dense));
    this.element.height = Math.max(1, Math.round(this.element.clientHeight * dense));
    if (this.fitted) this.fit();
    else this.draw();
  }

  private draw(): void {
    const context = this.element.getContext("2d");
    if (!context) return;
    const dense = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.element.width, this.element.height);
    context.setTransform(this.scale * dense, 0, 0, this.scale * dense, this.left * dense, this.top * dense);
    context.imageSmoothingEnabled = this.scale < 1;
    if (this.image) context.drawImage(this.image, 0, 0, this.width, this.height);
    const edge = (this.element.clientWidth * this.divider - this.left) / this.scale;
    const far = 1e6;
    this.drawOverlay(context, this.overlay, -far, edge);
    this.drawOverlay(context, this.beside, edge, far);
    if (this.divider < 1) {
      context.fillStyle = "#fff";
      context.fillRect(edge - 1 / this.scale, -far, 2 / this.scale, 2 * far);
    }
  }

  /** Draw an overlay between two columns of the image. */
  private drawOverlay(context: CanvasRenderingContext2D, overlay: Overlaid | null, from: number, to: number): void {
    if (!overlay || to <= from) return;
    context.save();
    context.beginPath();
    context.rect(from, -1e6, to - from, 2e6);
    context.clip();
    context.imageSmoothingEnabled = overlay.smooth;
    context.globalAlpha = this.image ? this.opacity : 1;
    context.drawImage(overlay.pixels, 0, 0, this.width, this.height);
    context.restore();
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  }

  private down(event: PointerEvent): void {
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  }

  private move(event: PointerEvent): void {
    const before = this.pointers.get(event.pointerId);
    const here = { x: event.offsetX, y: event.offsetY };
    this.readout((here.x - this.left) / this.scale, (here.y - this.top) / this.scale);
    if (!before) return;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, here);
    if (other) {
      const apart = (one: { x: number; y: number }): number => Math.hypot(one.x - other.x, one.y - other.y);
      this.zoom(apart(here) / Math.max(apart(before), 1), (here.x + other.x) / 2, (here.y + other.y) / 2);
      return;
    }
    this.left += here.x - before.x;
    this.top += here.y - before.y;
    this.fitted = false;
    this.draw();
  }
}

/** An overlay for a canvas, of pixels. */
export function overlaid(pixels: ImageData | null, smooth: boolean): Overlaid | null {
  if (!pixels) return null;
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  return { pixels: canvas, smooth };
}
