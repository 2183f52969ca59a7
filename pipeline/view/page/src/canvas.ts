// Canvas of one image: the image and an overlay of any size stretched over it.

import { Viewport } from "./viewport.js";

interface Overlaid {
  pixels: OffscreenCanvas;
  /** True for values that were averaged over cells. */
  smooth: boolean;
}

export class Canvas {
  private readonly view: Viewport;
  private image: ImageBitmap | null = null;
  private overlay: Overlaid | null = null;
  private beside: Overlaid | null = null;
  /** Share of the stage, from the left, behind which `beside` is drawn in place of `overlay`. */
  private divider = 1;
  private opacity = 0.5;

  constructor(element: HTMLCanvasElement, readout: (x: number, y: number) => void) {
    this.view = new Viewport(element, { draw: () => this.draw(), readout });
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
    this.view.setSize(height, width);
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
    this.view.fit();
  }

  zoom(factor: number): void {
    this.view.zoom(factor);
  }

  private draw(): void {
    const { view } = this;
    const context = view.element.getContext("2d");
    if (!context) return;
    view.begin(context);
    if (this.image) context.drawImage(this.image, 0, 0, view.width, view.height);
    const edge = (view.element.clientWidth * this.divider - view.left) / view.scale;
    const far = 1e6;
    this.drawOverlay(context, this.overlay, -far, edge);
    this.drawOverlay(context, this.beside, edge, far);
    if (this.divider < 1) {
      context.fillStyle = "#fff";
      context.fillRect(edge - 1 / view.scale, -far, 2 / view.scale, 2 * far);
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
    context.drawImage(overlay.pixels, 0, 0, this.view.width, this.view.height);
    context.restore();
  }
}

/** An overlay for a canvas, of pixels. */
export function overlaid(pixels: ImageData | null, smooth: boolean): Overlaid | null {
  if (!pixels) return null;
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  return { pixels: canvas, smooth };
}
