// Viewport of a canvas: which part of a picture is in sight, moved by wheel, drag, pinch and keys.

export interface Point {
  x: number;
  y: number;
}

interface Actions {
  draw: () => void;
  /** The cursor is over a place of the picture, in its pixels. */
  readout: (x: number, y: number) => void;
  /** A press that did not move, in pixels of the picture. */
  click?: (x: number, y: number) => void;
}

const MOST_ZOOM = 40;
/** Screen pixels that a press may move and still be a click. */
const STILL = 4;

export class Viewport {
  /** Size of the picture, in its own pixels. */
  width = 1;
  height = 1;
  /** Screen pixels per pixel of the picture, and the place of its first pixel on the screen. */
  scale = 1;
  left = 0;
  top = 0;
  private fitted = true;
  private travelled = 0;
  private readonly pointers = new Map<number, Point>();

  constructor(
    readonly element: HTMLCanvasElement,
    private readonly actions: Actions,
  ) {
    new ResizeObserver(() => this.resize()).observe(element);
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
  }

  /** Size of the picture; the same size again keeps the part in sight. */
  setSize(height: number, width: number): void {
    const same = height === this.height && width === this.width;
    [this.height, this.width] = [height, width];
    if (same && !this.fitted) this.actions.draw();
    else this.fit();
  }

  fit(): void {
    const { clientWidth, clientHeight } = this.element;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height);
    this.left = (clientWidth - this.width * this.scale) / 2;
    this.top = (clientHeight - this.height * this.scale) / 2;
    this.fitted = true;
    this.actions.draw();
  }

  /** Show a place of the picture in the middle. */
  centre(x: number, y: number, scale: number): void {
    this.scale = this.limited(scale);
    this.left = this.element.clientWidth / 2 - x * this.scale;
    this.top = this.element.clientHeight / 2 - y * this.scale;
    this.fitted = false;
    this.actions.draw();
  }

  /** Zoom around a place on the screen, by default the middle. */
  zoom(factor: number, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2): void {
    const scale = this.limited(this.scale * factor);
    this.left = x - ((x - this.left) / this.scale) * scale;
    this.top = y - ((y - this.top) / this.scale) * scale;
    this.scale = scale;
    this.fitted = false;
    this.actions.draw();
  }

  pan(x: number, y: number): void {
    this.left += x;
    this.top += y;
    this.fitted = false;
    this.actions.draw();
  }

  /** Place of the picture in the middle of the screen. */
  get middle(): Point {
    const { clientWidth, clientHeight } = this.element;
    return { x: (clientWidth / 2 - this.left) / this.scale, y: (clientHeight / 2 - this.top) / this.scale };
  }

  /** Clear a context of the canvas; what is drawn next is in pixels of the picture. */
  begin(context: CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D): void {
    const dense = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.element.width, this.element.height);
    context.setTransform(this.scale * dense, 0, 0, this.scale * dense, this.left * dense, this.top * dense);
    context.imageSmoothingEnabled = this.scale < 1;
  }

  private limited(scale: number): number {
    const { clientWidth, clientHeight } = this.element;
    const least = Math.min(clientWidth / this.width, clientHeight / this.height, 1) / 4;
    return Math.min(MOST_ZOOM, Math.max(least, scale));
  }

  private resize(): void {
    const dense = window.devicePixelRatio || 1;
    this.element.width = Math.max(1, Math.round(this.element.clientWidth * dense));
    this.element.height = Math.max(1, Math.round(this.element.clientHeight * dense));
    if (this.fitted) this.fit();
    else this.actions.draw();
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  }

  private down(event: PointerEvent): void {
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    this.travelled = this.pointers.size > 1 ? Infinity : 0;
  }

  private up(event: PointerEvent): void {
    const pressed = this.pointers.delete(event.pointerId);
    if (pressed && this.travelled <= STILL) this.actions.click?.(...this.place(event));
  }

  private move(event: PointerEvent): void {
    const before = this.pointers.get(event.pointerId);
    const here = { x: event.offsetX, y: event.offsetY };
    this.actions.readout(...this.place(event));
    if (!before) return;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, here);
    if (other) {
      const apart = (one: Point): number => Math.hypot(one.x - other.x, one.y - other.y);
      this.zoom(apart(here) / Math.max(apart(before), 1), (here.x + other.x) / 2, (here.y + other.y) / 2);
      return;
    }
    this.travelled += Math.hypot(here.x - before.x, here.y - before.y);
    this.pan(here.x - before.x, here.y - before.y);
  }

  private place(event: PointerEvent): [number, number] {
    return [(event.offsetX - this.left) / this.scale, (event.offsetY - this.top) / this.scale];
  }
}
