// Built from pipeline/view/page/src, SHA-256 eef9e6ac2a9c0fbdd1909361f4a2c10476a71cb2d0454617ff2afbe169d6519c

// src/dom.ts
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
function makeSvg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}
function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element ${id}`);
  return element;
}
function debounced(action, wait) {
  let timer2 = 0;
  return () => {
    clearTimeout(timer2);
    timer2 = window.setTimeout(action, wait);
  };
}
function arrange(parent, children) {
  const same = children.length === parent.children.length && children.every((child, at) => child === parent.children[at]);
  if (same) return;
  const focused = document.activeElement;
  parent.replaceChildren(...children);
  if (focused instanceof HTMLElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}
var messageOf = (error) => error instanceof Error ? error.message : String(error);

// src/api.ts
var Refused = class extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
  code;
};
async function get(path, signal, more = {}) {
  const response = await fetch(path, { ...signal ? { signal } : {}, ...more });
  if (!response.ok) throw refusal(await response.text(), response.statusText);
  return response;
}
async function getJson(path, signal) {
  const answer = await (await get(path, signal)).json();
  if (answer.error !== void 0) throw new Refused(answer.error, answer.code ?? null);
  return answer;
}
async function getBinary(path, signal, more = {}) {
  const response = await get(path, signal, more);
  if (response.headers.get("Content-Type") === "application/json") throw refusal(await response.text(), "");
  return response;
}
function refusal(text, otherwise) {
  try {
    const problem = JSON.parse(text);
    return new Refused(problem.error, problem.code ?? null);
  } catch {
    return new Refused(text || otherwise, null);
  }
}
var encoded = (query) => encodeURIComponent(JSON.stringify(query));
var fetchRun = async () => getJson("/api/run");
var fetchRows = async (query, offset, limit) => getJson(`/api/rows?query=${encoded(query)}&offset=${offset}&limit=${limit}`);
var fetchHistograms = async (query, columns2, signal) => getJson(`/api/histograms?query=${encoded(query)}&columns=${columns2.join(",")}`, signal);
var fetchChanges = async (query, signal) => getJson(`/api/changes?query=${encoded(query)}`, signal);
var fetchAgreement = async (against, query, signal) => getJson(`/api/agreement/${against}?query=${encoded(query)}`, signal);
var startComparing = async (query) => getJson(`/api/compare?query=${encoded(query)}`);
var fetchRow = async (key) => getJson(`/api/row?key=${encodeURIComponent(key)}`);
var fetchPosition = async (key, query, signal) => getJson(`/api/position?query=${encoded(query)}&key=${encodeURIComponent(key)}`, signal);
var fetchThumbnail = async (id, picture, signal) => (
  // after what is asked for meanwhile: a browser has six connections to a server, and a screen has many thumbnails
  (await getBinary(`/api/rows/${id}/thumbnail?picture=${picture}`, signal, { priority: "low" })).blob()
);
var fetchImage = async (id, signal) => createImageBitmap(await (await getBinary(`/api/rows/${id}/image`, signal)).blob());
var fetchLayer = (id, name, signal) => getLayer(`/api/rows/${id}/layers/${name}`, signal);
async function getLayer(path, signal) {
  const response = await getBinary(path, signal);
  return {
    height: Number(response.headers.get("X-Height")),
    width: Number(response.headers.get("X-Width")),
    values: new Uint8Array(await response.arrayBuffer())
  };
}
var fetchChoice = async (images) => getJson(`/api/choice?images=${images}`);
async function handOver(keys3, tool) {
  const posted = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(keys3) };
  const response = await getBinary(`/api/hand-over/${tool}`, void 0, posted);
  return { archive: await response.blob(), left_out: response.headers.get("X-Left-Out") ?? "" };
}
var fetchRasters = async () => getJson("/api/rasters");
var fetchRaster = async (number) => getJson(`/api/rasters/${number}`);
var fetchSourceTile = async (number, at, signal) => {
  const path = `/api/rasters/${number}/source/${at.level}/${at.row}/${at.column}`;
  return createImageBitmap(await (await getBinary(path, signal)).blob());
};
var fetchMaskTile = (number, at, signal) => getLayer(`/api/rasters/${number}/mask/${at.level}/${at.row}/${at.column}`, signal);
function fetchOutlines(number, kind, { y, x, height, width }, level, signal) {
  const query = `y=${y}&x=${x}&height=${height}&width=${width}&level=${level}`;
  return getJson(`/api/rasters/${number}/outlines/${kind}?${query}`, signal);
}
var fetchOutline = (number, kind, shape2) => getJson(`/api/rasters/${number}/outlines/${kind}/${shape2}`);

// src/viewport.ts
var MOST_ZOOM = 40;
var STILL = 4;
var Viewport = class {
  constructor(element, actions) {
    this.element = element;
    this.actions = actions;
    new ResizeObserver(() => this.resize()).observe(element);
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
  }
  element;
  actions;
  /** Size of the picture, in its own pixels. */
  width = 1;
  height = 1;
  /** Screen pixels per pixel of the picture, and the place of its first pixel on the screen. */
  scale = 1;
  left = 0;
  top = 0;
  fitted = true;
  travelled = 0;
  pointers = /* @__PURE__ */ new Map();
  /** Size of the picture; the same size again keeps the part in sight. */
  setSize(height, width) {
    const same = height === this.height && width === this.width;
    [this.height, this.width] = [height, width];
    if (same && !this.fitted) this.actions.draw();
    else this.fit();
  }
  fit() {
    const { clientWidth, clientHeight } = this.element;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height);
    this.left = (clientWidth - this.width * this.scale) / 2;
    this.top = (clientHeight - this.height * this.scale) / 2;
    this.fitted = true;
    this.actions.draw();
  }
  /** Show a place of the picture in the middle. */
  centre(x, y, scale) {
    this.scale = this.limited(scale);
    this.left = this.element.clientWidth / 2 - x * this.scale;
    this.top = this.element.clientHeight / 2 - y * this.scale;
    this.fitted = false;
    this.actions.draw();
  }
  /** Zoom around a place on the screen, by default the middle. */
  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    const scale = this.limited(this.scale * factor);
    this.left = x - (x - this.left) / this.scale * scale;
    this.top = y - (y - this.top) / this.scale * scale;
    this.scale = scale;
    this.fitted = false;
    this.actions.draw();
  }
  pan(x, y) {
    this.left += x;
    this.top += y;
    this.fitted = false;
    this.actions.draw();
  }
  /** Place of the picture in the middle of the screen. */
  get middle() {
    const { clientWidth, clientHeight } = this.element;
    return { x: (clientWidth / 2 - this.left) / this.scale, y: (clientHeight / 2 - this.top) / this.scale };
  }
  /** Clear a context of the canvas; what is drawn next is in pixels of the picture. */
  begin(context) {
    const dense = window.devicePixelRatio || 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.element.width, this.element.height);
    context.setTransform(this.scale * dense, 0, 0, this.scale * dense, this.left * dense, this.top * dense);
    context.imageSmoothingEnabled = this.scale < 1;
  }
  limited(scale) {
    const { clientWidth, clientHeight } = this.element;
    const least = Math.min(clientWidth / this.width, clientHeight / this.height, 1) / 4;
    return Math.min(MOST_ZOOM, Math.max(least, scale));
  }
  resize() {
    const dense = window.devicePixelRatio || 1;
    this.element.width = Math.max(1, Math.round(this.element.clientWidth * dense));
    this.element.height = Math.max(1, Math.round(this.element.clientHeight * dense));
    if (this.fitted) this.fit();
    else this.actions.draw();
  }
  wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  }
  down(event) {
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    this.travelled = this.pointers.size > 1 ? Infinity : 0;
  }
  up(event) {
    const pressed = this.pointers.delete(event.pointerId);
    if (pressed && this.travelled <= STILL) this.actions.click?.(...this.place(event));
  }
  move(event) {
    const before = this.pointers.get(event.pointerId);
    const here = { x: event.offsetX, y: event.offsetY };
    this.actions.readout(...this.place(event));
    if (!before) return;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, here);
    if (other) {
      const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y);
      this.zoom(apart(here) / Math.max(apart(before), 1), (here.x + other.x) / 2, (here.y + other.y) / 2);
      return;
    }
    this.travelled += Math.hypot(here.x - before.x, here.y - before.y);
    this.pan(here.x - before.x, here.y - before.y);
  }
  place(event) {
    return [(event.offsetX - this.left) / this.scale, (event.offsetY - this.top) / this.scale];
  }
};

// src/canvas.ts
var Canvas = class {
  view;
  image = null;
  overlay = null;
  beside = null;
  /** Share of the stage, from the left, behind which `beside` is drawn in place of `overlay`. */
  divider = 1;
  opacity = 0.5;
  constructor(element, readout3) {
    this.view = new Viewport(element, { draw: () => this.draw(), readout: readout3 });
    element.addEventListener("dblclick", () => this.fit());
  }
  clear() {
    this.image?.close();
    this.image = null;
    this.overlay = this.beside = null;
    this.draw();
  }
  setImage(image) {
    this.image = image;
    this.setSize(image.height, image.width);
  }
  /** Size of the image in its own pixels, which overlays are stretched to. */
  setSize(height, width) {
    this.view.setSize(height, width);
  }
  /** Pixels laid over the image, and those laid over it behind the divider. */
  setOverlays(overlay2, beside2) {
    [this.overlay, this.beside] = [overlay2, beside2];
    this.draw();
  }
  setDivider(share) {
    this.divider = share;
    this.draw();
  }
  setOpacity(opacity) {
    this.opacity = opacity;
    this.draw();
  }
  fit() {
    this.view.fit();
  }
  zoom(factor) {
    this.view.zoom(factor);
  }
  draw() {
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
  drawOverlay(context, overlay2, from, to) {
    if (!overlay2 || to <= from) return;
    context.save();
    context.beginPath();
    context.rect(from, -1e6, to - from, 2e6);
    context.clip();
    context.imageSmoothingEnabled = overlay2.smooth;
    context.globalAlpha = this.image ? this.opacity : 1;
    context.drawImage(overlay2.pixels, 0, 0, this.view.width, this.view.height);
    context.restore();
  }
};
function overlaid(pixels, smooth) {
  if (!pixels) return null;
  const canvas3 = new OffscreenCanvas(pixels.width, pixels.height);
  canvas3.getContext("2d")?.putImageData(pixels, 0, 0);
  return { pixels: canvas3, smooth };
}

// src/numbers.ts
var whole = new Intl.NumberFormat("en");
var count = (value) => whole.format(value);
function figure(column, value) {
  if (value === null || value === void 0) return "–";
  if (typeof value === "string") return value;
  return column.kind === "share" ? percent(value) : Number(value.toPrecision(3)).toLocaleString("en");
}
function percent(share) {
  const shown2 = (share * 100).toFixed(1);
  if (share > 0 && shown2 === "0.0") return "<0.1 %";
  if (share < 1 && shown2 === "100.0") return ">99.9 %";
  return `${shown2.replace(/\.0$/, "")} %`;
}
function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : `${Math.round(seconds)} s`;
}

// src/run.ts
var REFRESH_MS = 3e3;
var latest;
var run = () => latest;
var colourOf = ({ colour }) => `rgb(${colour.join(" ")})`;
async function startRun(grown2) {
  latest = await fetchRun();
  show();
  const again = async () => {
    const before = latest;
    try {
      latest = await fetchRun();
      show();
      if ((before.problem || isSilent) && !latest.problem) byId("problem").textContent = "";
      const wasSilent = isSilent;
      isSilent = false;
      const seen = ({ rows, revision, pace }) => JSON.stringify([rows, revision, pace]);
      if (wasSilent || seen(latest) !== seen(before)) grown2();
    } catch (error) {
      isSilent = true;
      byId("problem").textContent = `no answer from the server: ${messageOf(error)}`;
    }
    waitIfChanging();
  };
  const waitIfChanging = () => {
    window.clearTimeout(timer);
    if (!isComplete()) timer = window.setTimeout(() => void again(), REFRESH_MS);
  };
  watch = waitIfChanging;
  waitIfChanging();
}
var timer = 0;
var isSilent = false;
var watch;
function comparingBegan(pace) {
  latest = { ...latest, pace };
  watch();
}
var isComplete = () => latest.settled && !latest.pace?.is_working;
function show() {
  document.title = `${nameOf(latest.run)} – Atrous`;
  byId("run").textContent = nameOf(latest.run);
  byId("run").title = latest.run;
  byId("progress").textContent = [indexing(), working()].filter(Boolean).join(" · ");
  if (latest.problem) byId("problem").textContent = latest.problem;
}
var nameOf = (url) => url.split("/").slice(-1)[0] ?? url;
function indexing() {
  const { indexed, known } = latest.parts;
  return indexed < known ? `reading: ${count(indexed)} of ${count(known)} parts, ${count(latest.rows)} rows so far` : "";
}
function working() {
  if (latest.finished) return "";
  const progress = latest.progress;
  if (!progress) return "not finished, and no progress is on record";
  const failed = Object.entries(progress.failed).map(([code, rows]) => `${count(rows)} ${code}`);
  return [
    `${progress.phase}: ${count(progress.done)} of ${progress.planned === null ? "?" : count(progress.planned)} images`,
    `${progress.images_per_s.toFixed(1)} images/s`,
    progress.eta_s === null ? "" : `${duration(progress.eta_s)} left`,
    progress.bottleneck ? `bottleneck ${progress.bottleneck} ${Math.round(progress.bottleneck_busy * 100)} %` : "",
    failed.length ? `failed: ${failed.join(", ")}` : ""
  ].filter(Boolean).join(", ");
}

// src/classes.ts
function classLine(id, hidden3, changed2, note = "") {
  const info = run().classes[id];
  const box = make("input", { type: "checkbox", checked: !hidden3.has(id) });
  box.addEventListener("change", () => {
    if (box.checked) hidden3.delete(id);
    else hidden3.add(id);
    changed2();
  });
  const swatch = make("span", { class: "swatch" });
  if (info) swatch.style.background = colourOf(info);
  const name = make("span", { class: "word" }, info?.name ?? String(id));
  return make("label", {}, box, swatch, name, make("small", {}, note));
}
function classTable(caption, titles, lines) {
  const head = ["class", ...titles].map((title) => make("th", { scope: "col" }, title));
  const rows = lines.map((cells, id) => {
    const name = make("th", { scope: "row" }, run().classes[id]?.name ?? String(id));
    return make("tr", {}, name, ...cells.map((cell2) => make("td", {}, cell2)));
  });
  return [make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)];
}

// src/marks.ts
var marked = /* @__PURE__ */ new Set();
var listeners = [];
var place = () => `marked ${run().run}`;
var isMarked = (key) => marked.has(key);
function onMark(listener) {
  listeners.push(listener);
}
function toggleMark(key) {
  if (!marked.delete(key)) marked.add(key);
  changed();
}
function startMarks() {
  marked = new Set(read());
  byId("choose").addEventListener("submit", (event) => {
    event.preventDefault();
    void choose(Number(byId("choose-count").value));
  });
  byId("unmark").addEventListener("click", () => {
    marked.clear();
    changed();
  });
  byId("send").addEventListener("click", () => void send(byId("send-to").value));
  window.addEventListener("storage", ({ key }) => {
    if (key !== place() && key !== null) return;
    marked = new Set(read());
    show2();
  });
  show2();
}
function changed() {
  localStorage.setItem(place(), JSON.stringify([...marked]));
  show2();
}
function show2() {
  byId("marked").textContent = `${count(marked.size)} marked`;
  for (const id of ["unmark", "send"]) byId(id).disabled = marked.size === 0;
  for (const listener of listeners) listener();
}
function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(place()) ?? "[]");
    return Array.isArray(kept) ? kept.filter((key) => typeof key === "string") : [];
  } catch {
    return [];
  }
}
async function choose(images) {
  tell("choosing …");
  try {
    const { keys: keys3, left_out } = await fetchChoice(images);
    for (const key of keys3) marked.add(key);
    changed();
    const reasons = Object.entries(left_out).map(([reason, rows]) => `${count(rows)} ${reason}`);
    tell(`${count(keys3.length)} chosen${reasons.length ? `; not considered: ${reasons.join(", ")}` : ""}`);
  } catch (error) {
    tell(messageOf(error));
  }
}
async function send(to) {
  if (to === "keys") {
    save(new Blob([JSON.stringify([...marked], null, 1)], { type: "application/json" }), "keys.json");
    return;
  }
  tell("gathering images …");
  try {
    const { archive, left_out } = await handOver([...marked], to);
    save(archive, `${to}.zip`);
    tell(left_out ? `left out: ${left_out}` : "");
  } catch (error) {
    tell(messageOf(error));
  }
}
function save(content, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 6e4);
}
function tell(text) {
  byId("marks-said").textContent = text;
}

// src/state.ts
var MOST_LETTERS = 500;
var EMPTY = { text: "", ranges: [], choices: [], sort: "key", descending: false };
var listeners2 = [];
var columns = [];
var current;
function startState(run2) {
  columns = run2.columns;
  current = fromHash();
  window.addEventListener("popstate", () => enter(fromHash()));
}
var state = () => current;
function onChange(listener) {
  listeners2.push(listener);
}
function change(part, { replace = false } = {}) {
  const next = { ...current, unknown: [], ...part };
  const hash = toHash(next);
  if (replace) history.replaceState(null, "", hash);
  else history.pushState(null, "", hash);
  enter(next);
}
var addressOf = (part) => toHash({ ...current, ...part });
var changeQuery = (part, options = {}) => change({ query: { ...current.query, ...part } }, options);
function setRange(column, low, high) {
  const others = current.query.ranges.filter((range) => range.column !== column);
  changeQuery({ ranges: low === null && high === null ? others : [...others, { column, low, high }] });
}
function setChoice(column, values) {
  const others = current.query.choices.filter((choice) => choice.column !== column);
  changeQuery({ choices: values.length ? [...others, { column, values }] : others });
}
var isFiltered = ({ text, ranges, choices }) => text !== "" || ranges.length > 0 || choices.length > 0;
var clearFilters = () => changeQuery({ text: "", ranges: [], choices: [] });
function enter(next) {
  const before = current;
  current = next;
  for (const listener of listeners2) listener(next, before);
}
function toHash({ query, picture, open, list: list2, raster, at }) {
  const params = new URLSearchParams();
  if (JSON.stringify(query) !== JSON.stringify(EMPTY)) params.set("query", JSON.stringify(query));
  if (picture !== "overlay") params.set("picture", picture);
  if (list2) params.set("list", "rasters");
  if (raster !== null) params.set("raster", raster);
  if (raster !== null && at) params.set("at", [at.x, at.y, at.scale].filter((one) => one !== null).join(","));
  if (open !== null) params.set("key", open);
  return `#${params}`;
}
function fromHash() {
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
    at: readPlace(params.get("at"))
  };
}
function readPlace(text) {
  const [x, y, scale] = (text ?? "").split(",").map((part) => part.trim() ? Number(part) : NaN);
  if (x === void 0 || y === void 0 || !Number.isFinite(x) || !Number.isFinite(y)) return null;
  return { x, y, scale: scale !== void 0 && Number.isFinite(scale) && scale > 0 ? scale : null };
}
function withKnown(query) {
  const kinds = new Map(columns.map(({ name, kind }) => [name, kind]));
  const unknown = /* @__PURE__ */ new Set();
  const isKnown = (column, fits) => {
    const kind = kinds.get(column);
    const known = kind !== void 0 && fits(kind);
    if (!known) unknown.add(column);
    return known;
  };
  const sorts = query.sort === EMPTY.sort || isKnown(query.sort, () => true);
  const order = sorts ? {} : { sort: EMPTY.sort, descending: EMPTY.descending };
  const ranges = query.ranges.filter(({ column }) => isKnown(column, (kind) => kind !== "word"));
  const choices = query.choices.filter(({ column }) => isKnown(column, (kind) => kind === "word"));
  return { query: { ...query, ...order, ranges, choices }, unknown: [...unknown] };
}
var oneEach = (conditions) => [
  ...new Map(conditions.map((one) => [one.column, one])).values()
];
function readQuery(text) {
  let given = {};
  try {
    given = Object(JSON.parse(text ?? "{}"));
  } catch {
    return EMPTY;
  }
  const list2 = (value) => Array.isArray(value) ? value.map(Object) : [];
  const isBound = (value) => value === null || typeof value === "number";
  const isWord = (value) => value === null || typeof value === "string";
  return {
    text: typeof given.text === "string" ? given.text.slice(0, MOST_LETTERS) : "",
    ranges: oneEach(
      list2(given.ranges).flatMap(
        ({ column, low = null, high = null }) => typeof column === "string" && isBound(low) && isBound(high) ? [{ column, low, high }] : []
      )
    ),
    choices: oneEach(
      list2(given.choices).flatMap(
        ({ column, values }) => typeof column === "string" && Array.isArray(values) && values.length && values.every(isWord) ? [{ column, values }] : []
      )
    ),
    sort: typeof given.sort === "string" ? given.sort : EMPTY.sort,
    descending: given.descending === true
  };
}

// src/grid.ts
var PAGE_ROWS = 100;
var KEPT_PAGES = 60;
var CARD_WIDTH = 190;
var CAPTION_HEIGHT = 44;
var GAP = 10;
var MOST_HEIGHT = 8e6;
var scroller = byId("grid");
var sheet = byId("sheet");
var cards = /* @__PURE__ */ new Map();
var pages = /* @__PURE__ */ new Map();
var total = 0;
var asked = 0;
var isStale = false;
var Card = class {
  element = make("div", { class: "card", role: "listitem" });
  link = make("a");
  frame = make("span", { class: "frame" });
  caption = make("span", { class: "caption" });
  mark = make("button", { type: "button", class: "mark", tabindex: "-1" });
  stop = new AbortController();
  row = null;
  shown = "";
  /** True where the picture did not come, though the row may have it. */
  isMissed = false;
  constructor() {
    this.link.append(this.frame, this.caption);
    this.element.append(this.link, this.mark);
    this.mark.addEventListener("click", () => this.toggleMark());
    this.link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      if (this.row) change({ open: this.row.key });
    });
  }
  /** Number of its row; null until the row has come. */
  get id() {
    return this.row?.id ?? null;
  }
  set position(position2) {
    this.element.dataset["position"] = String(position2);
  }
  async fill(row, picture) {
    const found = await row.catch((error) => this.badge(messageOf(error)));
    if (!found || this.isGone) return;
    this.describe(found);
    await this.showPicture(found, picture);
  }
  /** The same row again, whose values may have changed; a picture that did not come is asked for again. */
  update(row, picture) {
    this.describe(row);
    if (this.isMissed) void this.showPicture(row, picture);
  }
  describe(row) {
    this.row = row;
    this.showMark();
    this.element.dataset["key"] = row.key;
    this.link.href = addressOf({ open: row.key, list: false, raster: null, at: null });
    this.link.title = row.key;
    this.caption.replaceChildren(make("span", { class: "key" }, shortKey(row.key)), make("small", {}, subtitle(row)));
  }
  async showPicture(row, picture) {
    this.isMissed = false;
    this.frame.replaceChildren();
    try {
      const blob = await fetchThumbnail(row.id, picture, this.stop.signal);
      if (!this.isGone) this.show(blob, `${row.key}, ${picture}`);
    } catch (error) {
      this.isMissed = await this.explain(row, error);
    }
  }
  get isGone() {
    return this.stop.signal.aborted;
  }
  /** A row without this picture: its mask alone where the image is gone, and the reason. True where asking again may help. */
  async explain(row, error) {
    let isMissed = !(error instanceof Refused);
    const reason = error instanceof Refused ? error.code ?? error.message : messageOf(error);
    if (row.status === "ok") {
      try {
        const blob = await fetchThumbnail(row.id, "mask", this.stop.signal);
        if (!this.isGone) this.show(blob, `${row.key}, mask without image: ${reason}`);
      } catch (other) {
        isMissed ||= !(other instanceof Refused);
      }
    }
    if (!this.isGone) this.badge(row.error_code ?? reason);
    return isMissed;
  }
  badge(text) {
    this.frame.append(make("span", { class: "badge" }, text));
  }
  toggleMark() {
    if (this.row) toggleMark(this.row.key);
  }
  showMark() {
    const on = this.row !== null && isMarked(this.row.key);
    this.element.classList.toggle("marked", on);
    this.mark.setAttribute("aria-pressed", String(on));
    this.mark.setAttribute("aria-label", `mark ${this.row?.key ?? ""}`);
    this.mark.textContent = on ? "✓" : "";
  }
  show(blob, text) {
    this.forget();
    this.shown = URL.createObjectURL(blob);
    this.frame.replaceChildren(make("img", { src: this.shown, alt: text, decoding: "async" }));
  }
  forget() {
    if (this.shown) URL.revokeObjectURL(this.shown);
  }
  remove() {
    this.stop.abort();
    this.forget();
    this.element.remove();
  }
};
var shortKey = (key) => key.length > 60 ? `…${key.slice(-58)}` : key;
function subtitle(row) {
  if (row.error_code) return row.error_code;
  const sort = state().query.sort;
  const column = run().columns.find(({ name }) => name === (sort === "key" ? "confidence" : sort));
  return column ? `${column.title} ${figure(column, row[column.name])}` : "";
}
function shape() {
  const inside2 = scroller.clientWidth - GAP;
  const columns2 = Math.max(2, Math.floor(inside2 / (CARD_WIDTH + GAP)));
  const width = Math.floor(inside2 / columns2) - GAP;
  const height = width + CAPTION_HEIGHT + GAP;
  const full = Math.ceil(total / columns2) * height + GAP;
  const sheet2 = Math.min(full, MOST_HEIGHT);
  const view = scroller.clientHeight;
  const top = scroller.scrollTop * (sheet2 > view ? (full - view) / (sheet2 - view) : 1);
  const first = Math.max(0, Math.floor((top - view) / height)) * columns2;
  const last = Math.min(total, Math.ceil((top + 2 * view) / height) * columns2);
  return { columns: columns2, width, height, sheet: sheet2, top, first, last };
}
async function rowAt(position2) {
  const number = Math.floor(position2 / PAGE_ROWS);
  let page = pages.get(number);
  if (!page) {
    page = fetchRows(state().query, number * PAGE_ROWS, PAGE_ROWS).then(({ rows }) => rows);
    pages.set(number, page);
    page.catch(() => pages.get(number) === page && pages.delete(number));
    if (pages.size > KEPT_PAGES) pages.delete(pages.keys().next().value);
  }
  return (await page)[position2 - number * PAGE_ROWS];
}
var totalRows = () => total;
async function reload({ grown: grown2 = false } = {}) {
  const query = state().query;
  const turn2 = ++asked;
  isStale ||= !grown2;
  try {
    const first = await fetchRows(query, 0, PAGE_ROWS);
    if (turn2 !== asked) return;
    pages = /* @__PURE__ */ new Map([[0, Promise.resolve(first.rows)]]);
    total = first.total;
    byId("problem").textContent = "";
  } catch (error) {
    if (turn2 === asked) byId("problem").textContent = messageOf(error);
    return;
  }
  byId("count").textContent = `${count(total)} ${total === 1 ? "row" : "rows"}`;
  byId("none").hidden = total > 0;
  if (isStale) {
    scroller.scrollTop = 0;
    clear();
  } else await rearrange(turn2);
  if (turn2 !== asked) return;
  isStale = false;
  draw();
}
async function rearrange(turn2) {
  const { first, last } = shape();
  const positions = Array.from({ length: Math.max(last - first, 0) }, (_, at) => first + at);
  const rows = await Promise.all(positions.map((position2) => rowAt(position2).catch(() => void 0)));
  if (turn2 !== asked) return;
  const held = new Map([...cards.values()].map((card) => [card.id, card]));
  const [before, { picture }] = [cards, state()];
  cards = /* @__PURE__ */ new Map();
  positions.forEach((position2, at) => {
    const row = rows[at];
    const card = row && held.get(row.id);
    if (!row || !card) return;
    card.position = position2;
    card.update(row, picture);
    cards.set(position2, card);
  });
  const kept = new Set(cards.values());
  for (const card of before.values()) if (!kept.has(card)) card.remove();
}
function clear() {
  for (const card of cards.values()) card.remove();
  cards.clear();
}
function draw() {
  const { columns: columns2, width, height, sheet: tall, top, first, last } = shape();
  sheet.style.height = `${tall}px`;
  for (const [position2, card] of cards) {
    if (position2 < first || position2 >= last) {
      card.remove();
      cards.delete(position2);
    }
  }
  for (let position2 = first; position2 < last; position2++) {
    const card = cards.get(position2) ?? add(position2);
    const style = card.element.style;
    style.width = `${width}px`;
    style.height = `${height - GAP}px`;
    style.left = `${GAP + position2 % columns2 * (width + GAP)}px`;
    style.top = `${GAP + Math.floor(position2 / columns2) * height + scroller.scrollTop - top}px`;
  }
}
function add(position2) {
  const card = new Card();
  card.position = position2;
  cards.set(position2, card);
  sheet.append(card.element);
  void card.fill(rowAt(position2), state().picture);
  return card;
}
function moveFocus(event) {
  const { columns: columns2 } = shape();
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns2, ArrowDown: columns2 };
  const step2 = steps[event.key];
  const here = document.activeElement?.closest(".card")?.dataset["position"];
  if (event.key === "m" && here !== void 0) cards.get(Number(here))?.toggleMark();
  if (step2 === void 0 || here === void 0) return;
  event.preventDefault();
  const next = cards.get(Number(here) + step2)?.link;
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}
function startGrid() {
  scroller.addEventListener("scroll", draw, { passive: true });
  scroller.addEventListener("keydown", moveFocus);
  new ResizeObserver(draw).observe(scroller);
  onMark(() => cards.forEach((card) => card.showMark()));
}

// src/layers.ts
var OVERLAYS = [
  { name: "mask", title: "mask" },
  { name: "network", title: "network's mask" },
  { name: "changed", title: "changed by the refiner" },
  { name: "confidence", title: "confidence" },
  { name: "truth", title: "label" },
  { name: "errors", title: "errors" },
  { name: "other", title: "other run's mask" },
  { name: "differs", title: "differs from the other run" },
  { name: "none", title: "image alone" }
];
var MARKED = [208, 52, 44];
var Layers = class {
  constructor(id, available, signal) {
    this.id = id;
    this.available = available;
    this.signal = signal;
  }
  id;
  available;
  signal;
  held = /* @__PURE__ */ new Map();
  asked = /* @__PURE__ */ new Map();
  /** Names of the layers that an overlay is drawn from; null when the row cannot have them. */
  needs(overlay2) {
    const has = (name) => this.available.includes(name);
    const needed = {
      mask: ["mask"],
      network: ["network"],
      changed: has("changed") ? ["changed"] : ["mask", "network"],
      confidence: has("confidence") ? ["confidence"] : ["network_confidence"],
      truth: ["truth"],
      errors: ["mask", "truth"],
      other: ["other"],
      differs: ["mask", "other"],
      none: []
    };
    return needed[overlay2].every(has) ? needed[overlay2] : null;
  }
  fetch(name) {
    let layer = this.asked.get(name);
    if (!layer) {
      layer = fetchLayer(this.id, name, this.signal);
      this.asked.set(name, layer);
      layer.then((found) => this.held.set(name, found)).catch(() => void 0);
    }
    return layer;
  }
  /** A layer that has come. */
  get(name) {
    return this.held.get(name);
  }
  /** Value of a layer that has come, at a place of the image. */
  at(name, x, y, cell2 = 1) {
    const layer = this.held.get(name);
    const [column, row] = [Math.floor(x / cell2), Math.floor(y / cell2)];
    if (!layer || column < 0 || row < 0 || column >= layer.width || row >= layer.height) return void 0;
    return layer.values[row * layer.width + column];
  }
};
function compose(overlay2, parts, hidden3) {
  const [first, second] = parts;
  if (!first) return null;
  const colour = colouring(overlay2, first, second, hidden3);
  const pixels = new ImageData(first.width, first.height);
  const out = new Uint32Array(pixels.data.buffer);
  for (let at = 0; at < out.length; at++) out[at] = colour(first.values[at], at);
  return pixels;
}
function colouring(overlay2, first, second, hidden3) {
  if (overlay2 === "confidence") return (value) => packed(255 - value, 255 - value, 255 - value);
  if (overlay2 === "changed" && !second) return (value) => value ? packed(...MARKED) : 0;
  if (second && second.values.length !== first.values.length) return () => 0;
  if (second) return differing(second, overlay2 === "errors" ? run().ignore_id : -1, hidden3);
  const table2 = new Uint32Array(256);
  run().classes.forEach(({ colour }, id) => {
    if (!hidden3.has(id)) table2[id] = packed(...colour);
  });
  return (value) => table2[value];
}
function differing(other, ignored, hidden3) {
  return (value, at) => {
    const theirs = other.values[at];
    return theirs !== value && theirs !== ignored && !hidden3.has(theirs) ? packed(...MARKED) : 0;
  };
}
var packed = (red, green, blue) => (255 << 24 | blue << 16 | green << 8 | red) >>> 0;

// src/detail.ts
var dialog = byId("detail");
var canvas = new Canvas(byId("canvas"), readout);
var hidden = /* @__PURE__ */ new Set();
var overlay = "mask";
var beside = null;
var layers = null;
var stop = new AbortController();
var locating = new AbortController();
var position = null;
function startDetail() {
  const actions = {
    close: () => change({ open: null }),
    previous: () => void step(-1),
    next: () => void step(1),
    "zoom-in": () => canvas.zoom(1.5),
    "zoom-out": () => canvas.zoom(1 / 1.5),
    fit: () => canvas.fit(),
    "in-raster": showInRaster
  };
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  const slider = byId("opacity");
  slider.addEventListener("input", () => canvas.setOpacity(Number(slider.value) / 100));
  const divider = byId("divider");
  divider.addEventListener("input", () => canvas.setDivider(Number(divider.value) / 100));
  const right = byId("beside");
  right.addEventListener("change", () => {
    beside = right.value || null;
    void showOverlay();
  });
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    change({ open: null });
  });
  dialog.addEventListener("keydown", keys);
}
async function showOpened(at) {
  const key = state().open;
  stop.abort();
  stop = new AbortController();
  if (key === null) {
    dialog.close();
    return;
  }
  if (!dialog.open) dialog.showModal();
  setPosition(at);
  if (at === null) void locate();
  await show3(key, stop.signal);
}
function setPosition(at) {
  position = at;
  byId("place").textContent = at === null ? "" : `${count(at + 1)} of ${count(totalRows())}`;
  const buttons = ["previous", "next"].map((id) => byId(id));
  if (at === null && buttons.some((button) => button === document.activeElement)) dialog.focus();
  for (const button of buttons) button.disabled = at === null;
}
async function locate() {
  const { open, query } = state();
  if (open === null) return;
  locating.abort();
  locating = new AbortController();
  const signal = AbortSignal.any([stop.signal, locating.signal]);
  try {
    const { position: at } = await fetchPosition(open, query, signal);
    if (!signal.aborted) setPosition(at);
  } catch (error) {
    if (!signal.aborted) tell2(messageOf(error));
  }
}
async function show3(key, signal) {
  layers = null;
  canvas.clear();
  tell2("");
  byId("key").textContent = key;
  for (const id of ["facts", "classes", "overlays", "beside"]) byId(id).replaceChildren();
  keepFocus();
  try {
    const { id, row, layers: available } = await fetchRow(key);
    if (signal.aborted) return;
    layers = new Layers(id, available, signal);
    describe(row);
    drawChoices();
    if (typeof row["height"] === "number") canvas.setSize(row["height"], Number(row["width"]));
    if (row["error_code"]) tell2(`${row["error_code"]}: ${row["error_detail"]}`);
    if (available.includes("mask")) void layers.fetch("mask");
    if (available.includes("truth")) layers.fetch("truth").catch(() => void 0);
    await Promise.all([showImage(id, signal), showOverlay()]);
  } catch (error) {
    if (!signal.aborted) tell2(messageOf(error));
  }
}
async function showImage(id, signal) {
  try {
    const image = await fetchImage(id, signal);
    if (!signal.aborted) canvas.setImage(image);
  } catch (error) {
    if (!signal.aborted && !byId("image-problem").textContent) tell2(`the image cannot be shown: ${messageOf(error)}`);
  }
}
function tell2(text) {
  byId("image-problem").textContent = text;
}
async function step(by) {
  const { signal } = stop;
  try {
    const here = position === null ? void 0 : await rowAt(position);
    if (here?.key !== state().open) await locate();
    for (let next = (position ?? NaN) + by; next >= 0 && next < totalRows(); next += by) {
      const row = await rowAt(next);
      if (!row || signal.aborted) return;
      if (row.key === state().open) continue;
      steppedTo = next;
      return change({ open: row.key }, { replace: true });
    }
  } catch (error) {
    if (!signal.aborted) tell2(messageOf(error));
  }
}
var steppedTo = null;
function takeStep() {
  const taken = steppedTo;
  steppedTo = null;
  return taken;
}
function drawChoices() {
  const buttons = OVERLAYS.map(({ name, title }, index) => {
    const button = make("button", { type: "button", "aria-pressed": String(name === overlay) }, title);
    button.disabled = !layers?.needs(name);
    button.hidden = (name === "other" || name === "differs") && !run().other;
    button.title = button.disabled ? "this row does not have it" : `key ${index + 1}`;
    button.addEventListener("click", () => choose2(name));
    return button;
  });
  byId("overlays").replaceChildren(...buttons.filter(({ hidden: away }) => !away));
  const possible = OVERLAYS.filter(({ name }) => layers?.needs(name));
  const option = (name, title) => make("option", { value: name, selected: name === (beside ?? "") }, title);
  byId("beside").replaceChildren(option("", "the same"), ...possible.map(({ name, title }) => option(name, title)));
  keepFocus();
}
function choose2(name) {
  if (!layers?.needs(name)) return;
  overlay = name;
  drawChoices();
  void showOverlay();
}
function keepFocus() {
  if (!dialog.contains(document.activeElement)) dialog.focus();
}
async function showOverlay() {
  const [here, chosen, right] = [layers, overlay, beside];
  const isPast = () => here !== layers || chosen !== overlay || right !== beside;
  canvas.setDivider(right ? Number(byId("divider").value) / 100 : 1);
  byId("divider").hidden = !right;
  if (!here) return;
  const drawn2 = async (name) => {
    const needs = here.needs(name) ?? [];
    if (needs.some((need) => need.startsWith("network") && !here.get(need))) tellWork("asking the network …");
    const parts = await Promise.all(needs.map((need) => here.fetch(need)));
    return overlaid(compose(name, parts, hidden), name === "confidence");
  };
  tellWork("");
  try {
    const [first, second] = await Promise.all([drawn2(chosen), right ? drawn2(right) : null]);
    if (isPast()) return;
    canvas.setOverlays(first, second);
    tellWork("");
  } catch (error) {
    if (isPast()) return;
    canvas.setOverlays(null, null);
    tellWork(messageOf(error));
  }
}
function tellWork(text) {
  byId("working").textContent = text;
}
function readout(x, y) {
  const named = (id) => run().classes[id]?.name ?? "no class";
  const names = [
    ["mask", ""],
    ["network", "network "],
    ["truth", "label "],
    ["other", "other run "]
  ];
  const texts = [];
  for (const [name, title] of names) {
    const id = layers?.at(name, x, y);
    if (id !== void 0) texts.push(title + named(id));
  }
  const confidence = layers?.at("confidence", x, y, 4) ?? layers?.at("network_confidence", x, y);
  if (confidence !== void 0) texts.push(`confidence ${percent(confidence / 255)}`);
  byId("readout").textContent = texts.length ? `(${Math.floor(x)}, ${Math.floor(y)}) ${texts.join(", ")}` : "";
}
function describe(row) {
  byId("key").textContent = String(row["key"]);
  const pixels = row["class_pixels"];
  const counts = Array.isArray(pixels) ? pixels : [];
  const sum = counts.reduce((one, two) => one + two, 0);
  const order = counts.map((_, id) => id).sort((one, two) => (counts[two] ?? 0) - (counts[one] ?? 0));
  byId("classes").replaceChildren(...order.map((id) => classLine(id, hidden, redraw, percent(sum ? (counts[id] ?? 0) / sum : 0))));
  byId("in-raster").hidden = windowOf(String(row["key"])) === null;
  const facts = Object.entries(row).filter(([name, value]) => value !== null && name !== "class_pixels");
  const text = (value) => Array.isArray(value) ? value.join(", ") : String(value);
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, text(value))]));
}
var redraw = () => void showOverlay();
function windowOf(key) {
  const [, raster, y, x] = /^(.*)#(\d+),(\d+)$/s.exec(key) ?? [];
  if (!run().of_rasters || raster === void 0) return null;
  return { raster, at: { x: Number(x), y: Number(y), scale: null } };
}
function showInRaster() {
  const window2 = windowOf(state().open ?? "");
  if (window2) change({ open: null, ...window2 });
}
function keys(event) {
  if (event.target instanceof HTMLInputElement && event.target.type === "range") return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    Escape: () => change({ open: null }),
    // a browser may close every open dialog by one Escape
    ArrowLeft: () => void step(-1),
    ArrowRight: () => void step(1),
    "+": () => canvas.zoom(1.5),
    "-": () => canvas.zoom(1 / 1.5),
    "0": () => canvas.fit()
  };
  OVERLAYS.forEach(({ name }, index) => actions[String(index + 1)] = () => choose2(name));
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

// src/agreement.ts
var TITLES = {
  labels: { caption: "Labels and masks", here: "label", there: "mask" },
  other: { caption: "Masks of both runs", here: "here", there: "there" }
};
var stop2 = new AbortController();
var boxes = [];
function startAgreements() {
  boxes = run().agreements.map((against) => new Box(against));
  byId("agreements").replaceChildren(...boxes.map(({ element }) => element));
}
async function refreshAgreements() {
  stop2.abort();
  stop2 = new AbortController();
  const { query } = state();
  for (const box of boxes) {
    try {
      box.show(await fetchAgreement(box.against, query, stop2.signal));
    } catch (error) {
      if (error instanceof DOMException) return;
      box.tell(messageOf(error));
    }
  }
}
var Box = class {
  constructor(against) {
    this.against = against;
    this.element = make("section", { class: "agreement", "data-against": against }, this.classes, this.said, this.ask);
    this.ask.addEventListener("click", () => void this.compare());
  }
  against;
  element;
  classes = make("table", { hidden: true });
  said = make("p");
  ask = make("button", { type: "button", class: "compare", hidden: true });
  show(agreement) {
    this.classes.replaceChildren(...table(this.against, agreement.classes));
    this.classes.hidden = agreement.compared === 0;
    this.tell(coverage(agreement));
    const { compared, refused, comparable } = agreement;
    const left = comparable - compared - refused;
    const which = isFiltered(state().query) ? "these" : "all";
    this.ask.hidden = left === 0;
    this.ask.textContent = `compare ${which} ${count(left)}${run().pace?.is_working ? " now" : ""}`;
  }
  tell(text) {
    this.said.textContent = text;
  }
  /** Ask for the rows that are left, in place of those that are being compared: of many rows the masks are gigabytes. */
  async compare() {
    this.ask.disabled = true;
    try {
      comparingBegan(await startComparing(state().query));
      void refreshAgreements();
    } catch (error) {
      this.tell(messageOf(error));
    } finally {
      this.ask.disabled = false;
    }
  }
};
function coverage({ compared, refused, comparable }) {
  const pace = run().pace;
  return [
    `exact for ${count(compared)} of ${count(comparable)} rows`,
    refused ? `${count(refused)} cannot be compared` : "",
    pace?.is_working ? `comparing, ${count(Math.round(pace.rows_per_s))} rows/s` : "",
    pace?.problem ? `ended: ${pace.problem}` : ""
  ].filter(Boolean).join("; ");
}
function table(against, classes) {
  const { caption, here, there } = TITLES[against];
  const sum = (side) => classes.reduce((total2, one) => total2 + one[side], 0) || 1;
  const [first, second] = [sum("here"), sum("there")];
  const lines = classes.map((one) => {
    const union = one.here + one.there - one.both;
    return [percent(one.here / first), percent(one.there / second), union ? percent(one.both / union) : "–"];
  });
  return classTable(caption, [here, there, "IoU"], lines);
}

// src/histogram.ts
var WIDTH = 200;
var HEIGHT = 36;
var LABELS = { low: "at least", high: "at most" };
var Histogram = class {
  constructor(column) {
    this.column = column;
    this.unit = column.kind === "share" ? 100 : 1;
    this.fields = { low: this.field("low"), high: this.field("high") };
    const bounds = make("div", { class: "bounds" }, this.fields.low, "to", this.fields.high, this.unit === 100 ? "%" : "");
    this.body = make("div", { class: "body" }, this.svg, bounds, this.without);
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.from = this.shareAt(event);
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => this.drag(event));
    this.svg.addEventListener("pointerup", (event) => this.drop(event));
    this.svg.addEventListener("pointercancel", () => this.release());
  }
  column;
  body;
  svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "histogram", role: "img" });
  brush = makeSvg("rect", { x: 0, y: 0, width: 0, height: HEIGHT, class: "brush" });
  fields;
  without = make("small");
  /** Bounds as the fields were last given them. */
  written = { low: "", high: "" };
  bins = { low: 0, high: 1, counts: [], without: 0 };
  /** Share of the width where a drag began; null without one. */
  from = null;
  /** Counts that came during a drag. */
  later = null;
  /** Shares are typed in percent. */
  unit;
  show(bins) {
    if (this.from !== null) {
      this.later = bins;
      return;
    }
    this.bins = bins;
    const ends = `${figure(this.column, bins.low)} to ${figure(this.column, bins.high)}`;
    this.svg.setAttribute("aria-label", `${this.column.title}: histogram from ${ends}`);
    const most = Math.max(...bins.counts, 1);
    const wide = WIDTH / bins.counts.length;
    const bars = bins.counts.map((rows, bin) => {
      const tall = rows ? Math.max(1, (HEIGHT - 2) * Math.sqrt(rows / most)) : 0;
      return makeSvg("rect", { x: bin * wide + 0.5, y: HEIGHT - tall, width: wide - 1, height: tall, class: "bar" });
    });
    this.svg.replaceChildren(...bars, this.brush);
    const range = this.range();
    this.paint(range);
    for (const side of ["low", "high"]) this.write(side, range[side]);
    this.without.textContent = bins.without ? `${count(bins.without)} without a value` : "";
  }
  range() {
    return state().query.ranges.find(({ column }) => column === this.column.name) ?? { low: null, high: null };
  }
  // ---------------------------------------------------------------- brush
  /** Drag over the bars to choose a range, click without dragging to take it back. */
  drag(event) {
    if (this.from === null) return;
    const here = this.shareAt(event);
    this.paint({ low: this.valueAt(Math.min(this.from, here)), high: this.valueAt(Math.max(this.from, here)) });
  }
  drop(event) {
    if (this.from === null) return;
    const [low, high] = [Math.min(this.from, this.shareAt(event)), Math.max(this.from, this.shareAt(event))];
    if (high - low < 1 / WIDTH) setRange(this.column.name, null, null);
    else setRange(this.column.name, low > 0 ? this.rounded(low, Math.floor) : null, high < 1 ? this.rounded(high, Math.ceil) : null);
    this.release();
  }
  release() {
    this.from = null;
    this.show(this.later ?? this.bins);
    this.later = null;
  }
  /** Value at a share of the width, rounded to a decimal step that is finer than a pixel. */
  rounded(share, round) {
    const step2 = 10 ** Math.floor(Math.log10((this.bins.high - this.bins.low) / WIDTH || 1));
    return exact(round(this.valueAt(share) / step2) * step2);
  }
  shareAt(event) {
    const box = this.svg.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  }
  valueAt(share) {
    return this.bins.low + share * (this.bins.high - this.bins.low);
  }
  paint({ low, high }) {
    const { low: first, high: last } = this.bins;
    const place2 = (value) => (value - first) / (last - first || 1) * WIDTH;
    const [begin, end] = [place2(low ?? first), place2(high ?? last)];
    this.brush.setAttribute("x", String(begin));
    this.brush.setAttribute("width", String(low === null && high === null ? 0 : Math.max(end - begin, 1)));
  }
  // ---------------------------------------------------------------- fields
  /** One bound: for the keyboard, and for exact numbers. */
  field(side) {
    const text = `${this.column.title}: ${LABELS[side]}${this.unit === 100 ? ", percent" : ""}`;
    const input = make("input", { type: "number", step: "any", "aria-label": text });
    input.addEventListener("change", () => {
      const range = { ...this.range() };
      this.written[side] = input.value;
      if (input.validity.badInput) return this.give(side, range[side]);
      range[side] = input.value === "" ? null : exact(Number(input.value) / this.unit);
      setRange(this.column.name, range.low, range.high);
    });
    return input;
  }
  /** Give a field its bound, unless it has it: what is being typed there stays. */
  write(side, bound) {
    this.fields[side].placeholder = String(Number((this.bins[side] * this.unit).toPrecision(3)));
    if (this.textOf(bound) !== this.written[side]) this.give(side, bound);
  }
  give(side, bound) {
    this.fields[side].value = this.written[side] = this.textOf(bound);
  }
  textOf(bound) {
    return bound === null ? "" : String(exact(bound * this.unit));
  }
};
var exact = (value) => Number(value.toPrecision(12));

// src/words.ts
var WordList = class {
  constructor(column) {
    this.column = column;
  }
  column;
  body = make("div", { class: "body" });
  lines = /* @__PURE__ */ new Map();
  rarer = make("small");
  show({ words, without, others }) {
    const chosen = this.chosen();
    const counted = without ? [...words, [null, without]] : words;
    const unseen = chosen.filter((value) => !counted.some(([word]) => word === value));
    const values = [...counted, ...unseen.map((value) => [value, others ? null : 0])];
    const elements = values.map(([value, rows]) => {
      const line2 = this.lines.get(value) ?? this.add(value);
      line2.box.checked = chosen.includes(value);
      line2.rows.textContent = rows === null ? "" : count(rows);
      return line2.element;
    });
    this.rarer.textContent = others ? `${count(others)} rows of rarer values` : "";
    arrange(this.body, [...elements, this.rarer]);
  }
  chosen() {
    return state().query.choices.find(({ column }) => column === this.column.name)?.values ?? [];
  }
  add(value) {
    const [box, rows] = [make("input", { type: "checkbox" }), make("small")];
    box.addEventListener("change", () => {
      const others = this.chosen().filter((other) => other !== value);
      setChoice(this.column.name, box.checked ? [...others, value] : others);
    });
    const element = make("label", {}, box, make("span", { class: "word" }, value ?? "none"), rows);
    const line2 = { element, box, rows };
    this.lines.set(value, line2);
    return line2;
  }
};

// src/filters.ts
var FIRST_CLASSES = 12;
var panel = byId("filters");
var stop3 = new AbortController();
var allClasses = false;
var boxes2 = /* @__PURE__ */ new Map();
var searched = "";
function startFilters() {
  const search = byId("search");
  const find = () => {
    if (search.value.trim() === searched) return;
    searched = search.value.trim();
    changeQuery({ text: searched }, { replace: true });
  };
  search.addEventListener("input", debounced(find, 250));
  const sort = byId("sort");
  const sortable = run().columns.filter(({ kind }) => kind !== "word");
  sort.append(make("option", { value: "key" }, "key"));
  sort.append(...sortable.map(({ name, title }) => make("option", { value: name }, title)));
  sort.addEventListener("change", () => changeQuery({ sort: sort.value }));
  byId("direction").addEventListener("click", () => changeQuery({ descending: !state().query.descending }));
  byId("clear").addEventListener("click", () => {
    search.value = "";
    clearFilters();
  });
  build();
}
function build() {
  const columns2 = run().columns;
  const classes = columns2.filter(({ class_id }) => class_id !== null);
  const first = classes.filter(({ name }, at) => allClasses || at < FIRST_CLASSES || isUsed(name));
  const shown2 = [...columns2.filter(({ class_id }) => class_id === null), ...first];
  const before = boxes2;
  boxes2 = new Map(
    shown2.map((column) => {
      const held = before.get(column.name);
      if (held) return [column.name, held];
      const box = column.kind === "word" ? new WordList(column) : new Histogram(column);
      const section = make("section", { class: "filter", "data-column": column.name }, heading(column), box.body);
      return [column.name, { section, box }];
    })
  );
  const sections = [...boxes2.values()].map(({ section }) => section);
  if (first.length < classes.length) {
    const more = make("button", { type: "button" }, `all ${classes.length} classes`);
    more.addEventListener("click", () => {
      allClasses = true;
      build();
      void refreshFilters();
    });
    sections.push(more);
  }
  arrange(panel, sections);
}
function heading(column) {
  const chosen = column.class_id === null ? void 0 : run().classes[column.class_id];
  const swatch = chosen ? make("span", { class: "swatch" }) : null;
  if (swatch && chosen) swatch.style.background = colourOf(chosen);
  return make("h3", { title: column.meaning }, swatch, column.title);
}
async function refreshFilters() {
  stop3.abort();
  stop3 = new AbortController();
  const { query } = state();
  if (run().columns.some(({ name }) => isUsed(name) && !boxes2.has(name))) build();
  if (query.text !== searched) byId("search").value = query.text;
  searched = query.text;
  byId("clear").hidden = !isFiltered(query);
  byId("sort").value = query.sort;
  const direction = byId("direction");
  direction.textContent = query.descending ? "↓" : "↑";
  direction.setAttribute("aria-label", query.descending ? "largest first" : "smallest first");
  try {
    const found = await fetchHistograms(query, [...boxes2.keys()], stop3.signal);
    for (const [name, { section, box }] of boxes2) {
      const counts = found[name];
      if (!counts) continue;
      if (box instanceof Histogram && "counts" in counts) box.show(counts);
      if (box instanceof WordList && "words" in counts) box.show(counts);
      section.hidden = isEmpty(counts) && !isUsed(name);
    }
    if (run().other) drawChanges(await fetchChanges(query, stop3.signal));
  } catch (error) {
    if (error instanceof DOMException) return;
    byId("problem").textContent = messageOf(error);
  }
}
function drawChanges(changes) {
  const sum = (side) => changes.reduce((total2, change2) => total2 + change2[side], 0) || 1;
  const [before, after] = [sum("before"), sum("after")];
  const lines = changes.map((change2) => {
    const [here, there] = [change2.before / before, change2.after / after];
    const points = ((there - here) * 100).toFixed(2);
    return [percent(here), percent(there), points.startsWith("-") ? points : `+${points}`];
  });
  const table2 = byId("changes");
  table2.replaceChildren(...classTable("Classes here and in the other run", ["here", "there", "points"], lines));
  table2.hidden = false;
}
var isUsed = (name) => [...state().query.ranges, ...state().query.choices].some(({ column }) => column === name);
var isEmpty = (counts) => "counts" in counts ? counts.counts.every((rows) => rows === 0) : counts.words.length + (counts.without ? 1 : 0) < 2;

// src/outlines.ts
var MARGIN = 0.5;
var CLOSER = 1.5;
var LINES = { polygons: ["#ffffff", 1], zones: ["#ffe14d", 2] };
var SELECTED = "#ff3df2";
var Outlines = class {
  constructor(number, kind) {
    this.number = number;
    this.kind = kind;
  }
  number;
  kind;
  selected = null;
  fetched = null;
  asked = new AbortController();
  /** Fetch what is in sight at a level, unless it is here. */
  async show(view, level) {
    const sight = inSight(view, 0);
    const { fetched } = this;
    const isComplete2 = !fetched?.left_out || view.scale < CLOSER * fetched.scale;
    if (fetched?.level === level && isComplete2 && covers(fetched.window, sight)) return;
    this.asked.abort();
    const { signal } = this.asked = new AbortController();
    const [window2, { scale }] = [inSight(view, MARGIN), view];
    try {
      const { shapes, left_out } = await fetchOutlines(this.number, this.kind, window2, level, signal);
      if (signal.aborted) return;
      const drawn2 = shapes.map((shape2) => ({ ...shape2, kind: this.kind, path: pathOf(shape2.rings), bounds: boundsOf(shape2.rings) }));
      this.fetched = { level, scale, window: window2, shapes: drawn2, left_out };
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }
  get leftOut() {
    return this.fetched?.left_out ?? 0;
  }
  /** How many are in sight: those of the margin are here too. */
  countIn(view) {
    const sight = inSight(view, 0);
    return (this.fetched?.shapes ?? []).filter(({ bounds }) => touch(bounds, sight)).length;
  }
  /** Draw those whose class is not hidden, in a context that is in pixels of the raster. */
  draw(context, scale, hidden3) {
    const [colour, width] = LINES[this.kind];
    const shown2 = this.shown(hidden3);
    context.lineJoin = "round";
    for (const [style, wide] of [
      ["rgb(0 0 0 / .6)", width + 1.5],
      [colour, width]
    ]) {
      context.strokeStyle = style;
      context.lineWidth = wide / scale;
      for (const { path } of shown2) context.stroke(path);
    }
    const chosen = shown2.find(({ number }) => number === this.selected);
    if (!chosen) return;
    context.strokeStyle = SELECTED;
    context.lineWidth = 3 / scale;
    context.stroke(chosen.path);
  }
  /** The smallest one that holds a place of the raster. */
  at(x, y, hidden3) {
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    const largestFirst = this.shown(hidden3);
    return largestFirst.reverse().find(({ path }) => context?.isPointInPath(path, x, y, "evenodd"));
  }
  shown(hidden3) {
    return (this.fetched?.shapes ?? []).filter(({ class_id }) => class_id === null || !hidden3.has(class_id));
  }
  close() {
    this.asked.abort();
  }
};
function inSight(view, margin) {
  const [width, height] = [view.element.clientWidth / view.scale, view.element.clientHeight / view.scale];
  const limited = (value, most) => Math.round(Math.min(Math.max(value, 0), most));
  const left = limited(-view.left / view.scale - margin * width, view.width);
  const top = limited(-view.top / view.scale - margin * height, view.height);
  const right = limited(-view.left / view.scale + (1 + margin) * width, view.width);
  const bottom = limited(-view.top / view.scale + (1 + margin) * height, view.height);
  return { y: top, x: left, height: bottom - top, width: right - left };
}
var covers = (outer, inner) => outer.x <= inner.x && outer.y <= inner.y && outer.x + outer.width >= inner.x + inner.width && outer.y + outer.height >= inner.y + inner.height;
var touch = (one, other) => one.x <= other.x + other.width && other.x <= one.x + one.width && one.y <= other.y + other.height && other.y <= one.y + one.height;
function boundsOf(rings) {
  const [low, high] = [[Infinity, Infinity], [-Infinity, -Infinity]];
  for (const ring of rings) {
    ring.forEach((value, at) => {
      const axis = at % 2;
      low[axis] = Math.min(low[axis], value);
      high[axis] = Math.max(high[axis], value);
    });
  }
  return { x: low[0], y: low[1], width: high[0] - low[0], height: high[1] - low[1] };
}
function pathOf(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    for (let at = 0; at + 1 < ring.length; at += 2) {
      const [x, y] = [ring[at], ring[at + 1]];
      if (at === 0) path.moveTo(x, y);
      else path.lineTo(x, y);
    }
    path.closePath();
  }
  return path;
}

// src/tiles.ts
var KEPT_SCREENS = 3;
var FEWEST_KEPT = 48;
var nameOf2 = ({ level, row, column }) => `${level}/${row}/${column}`;
var Tiles = class {
  constructor(fetch2, arrived) {
    this.fetch = fetch2;
    this.arrived = arrived;
  }
  fetch;
  arrived;
  held = /* @__PURE__ */ new Map();
  asked = /* @__PURE__ */ new Map();
  /** Why tiles in sight did not come. */
  refused = /* @__PURE__ */ new Map();
  /** Ask for the tiles in sight that are not here; those that went out of sight are not waited for any more. */
  want(places) {
    const names = new Set(places.map(nameOf2));
    for (const [name, stop4] of this.asked) if (!names.has(name)) stop4.abort();
    for (const name of this.refused.keys()) if (!names.has(name)) this.refused.delete(name);
    for (const place2 of places) {
      const name = nameOf2(place2);
      const held = this.held.get(name);
      if (held) {
        this.held.delete(name);
        this.held.set(name, held);
      } else if (!this.asked.has(name) && !this.refused.has(name)) void this.ask(name, place2);
    }
    const most = Math.max(FEWEST_KEPT, KEPT_SCREENS * places.length);
    for (const name of this.held.keys()) {
      if (this.held.size <= most) break;
      this.held.delete(name);
    }
  }
  async ask(name, place2) {
    const stop4 = new AbortController();
    this.asked.set(name, stop4);
    try {
      const tile = await this.fetch(place2, stop4.signal);
      if (!stop4.signal.aborted) this.held.set(name, { place: place2, tile });
    } catch (error) {
      if (!stop4.signal.aborted) this.refused.set(name, error);
    }
    this.asked.delete(name);
    this.arrived();
  }
  get(place2) {
    return this.held.get(nameOf2(place2))?.tile;
  }
  /** Tiles that are here, the coarsest first, down to a level. */
  from(level) {
    return [...this.held.values()].filter(({ place: place2 }) => place2.level >= level).sort((one, other) => other.place.level - one.place.level);
  }
  /** How many of the tiles in sight have not come yet. */
  get waiting() {
    return this.asked.size;
  }
  /** Why one of the tiles in sight did not come; undefined where none was refused. */
  get problem() {
    return [...this.refused.values()].at(-1);
  }
  close() {
    for (const stop4 of this.asked.values()) stop4.abort();
    this.held.clear();
  }
};

// src/raster_canvas.ts
var RasterCanvas = class {
  constructor(element, hidden3, actions) {
    this.hidden = hidden3;
    this.actions = actions;
    const { readout: readout3, click } = actions;
    this.view = new Viewport(element, { draw: () => this.draw(), readout: readout3, click });
  }
  hidden;
  actions;
  view;
  outlines = [];
  opacity = 0.5;
  /** Edge of the windows whose grid is drawn; 0 for none. */
  gridPx = 0;
  shown = null;
  maskLayer = new OffscreenCanvas(1, 1);
  /** Show another raster, as a whole; null for none. */
  show(number, raster) {
    this.shown?.source.close();
    this.shown?.mask.close();
    this.shown = null;
    this.outlines = [];
    if (!raster) return this.draw();
    const arrived = () => this.draw();
    const mask = async (place2, signal) => ({
      layer: await fetchMaskTile(number, place2, signal),
      painted: null
    });
    this.shown = {
      raster,
      source: new Tiles((place2, signal) => fetchSourceTile(number, place2, signal), arrived),
      mask: new Tiles(mask, arrived)
    };
    const [height, width] = raster.sizes[0];
    this.view.setSize(height, width);
    this.view.fit();
  }
  /** Level whose pixels are at most as large as those of the screen. */
  get level() {
    const coarsest = (this.shown?.raster.sizes.length ?? 1) - 1;
    return Math.min(Math.max(Math.floor(Math.log2(1 / this.view.scale)), 0), coarsest);
  }
  /** Whether the source is drawn at the level in sight. */
  get hasSource() {
    return this.shown?.raster.source_levels.includes(this.level) ?? false;
  }
  /** Tiles that have not come yet. */
  get waiting() {
    return this.shown ? this.shown.source.waiting + this.shown.mask.waiting : 0;
  }
  /** Why a tile in sight did not come; undefined where none was refused. */
  get problem() {
    return this.shown?.source.problem ?? this.shown?.mask.problem;
  }
  /** Class id of the finest tile that is here, at a place of the raster. */
  classAt(x, y) {
    if (!this.shown) return void 0;
    const { raster, mask } = this.shown;
    for (let level = 0; level < raster.sizes.length; level++) {
      const [across, down] = [Math.floor(x / 2 ** level), Math.floor(y / 2 ** level)];
      const place2 = { level, row: Math.floor(down / raster.tile_px), column: Math.floor(across / raster.tile_px) };
      const layer = mask.get(place2)?.layer;
      if (layer) return layer.values[down % raster.tile_px * layer.width + across % raster.tile_px];
    }
    return void 0;
  }
  /** Paint the classes anew, after one was switched on or off. */
  repaint() {
    for (const { tile } of this.shown?.mask.from(0) ?? []) tile.painted = null;
    this.draw();
  }
  draw() {
    const { view, shown: shown2 } = this;
    const context = view.element.getContext("2d");
    if (!context) return;
    view.begin(context);
    if (!shown2) return;
    const places = this.inSight(shown2.raster);
    shown2.source.want(this.hasSource ? places : []);
    shown2.mask.want(shown2.raster.mask_levels.includes(this.level) ? places : []);
    context.save();
    context.beginPath();
    context.rect(0, 0, view.width, view.height);
    context.clip();
    if (this.hasSource) {
      for (const { place: place2, tile } of shown2.source.from(this.level)) this.put(context, place2, tile, tile);
    }
    this.drawMask(context, shown2);
    this.drawGrid(context);
    context.restore();
    for (const outlines of this.outlines) outlines.draw(context, view.scale, this.hidden);
    this.actions.drawn();
  }
  /** Mask in a layer of its own, since finer tiles replace coarser ones, and only then are transparent. */
  drawMask(context, shown2) {
    const { view, maskLayer } = this;
    [maskLayer.width, maskLayer.height] = [view.element.width, view.element.height];
    const layer = maskLayer.getContext("2d");
    if (!layer) return;
    view.begin(layer);
    layer.imageSmoothingEnabled = false;
    for (const { place: place2, tile } of shown2.mask.from(this.level)) {
      tile.painted ??= this.painted(tile.layer);
      layer.clearRect(...this.box(place2, tile.layer));
      this.put(layer, place2, tile.painted, tile.layer);
    }
    const transform = context.getTransform();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = this.hasSource ? this.opacity : 1;
    context.drawImage(maskLayer, 0, 0);
    context.globalAlpha = 1;
    context.setTransform(transform);
  }
  painted(layer) {
    const canvas3 = new OffscreenCanvas(layer.width, layer.height);
    const pixels = compose("mask", [layer], this.hidden);
    if (pixels) canvas3.getContext("2d")?.putImageData(pixels, 0, 0);
    return canvas3;
  }
  drawGrid(context) {
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
  put(context, place2, image, size) {
    context.drawImage(image, ...this.box(place2, size));
  }
  /** Left, top, width and height of a tile, in pixels of the raster. */
  box({ level, row, column }, size) {
    const step2 = (this.shown?.raster.tile_px ?? 1) * 2 ** level;
    return [column * step2, row * step2, size.width * 2 ** level, size.height * 2 ** level];
  }
  /** Tiles of the level in sight, those in the middle first. */
  inSight(raster) {
    const { view, level } = this;
    const step2 = raster.tile_px * 2 ** level;
    const end = (start2, screen) => (start2 + screen / view.scale) / step2;
    const [left, top] = [-view.left / view.scale, -view.top / view.scale];
    const [height, width] = raster.sizes[level];
    const last = {
      row: Math.min(Math.ceil(height / raster.tile_px), Math.ceil(end(top, view.element.clientHeight))),
      column: Math.min(Math.ceil(width / raster.tile_px), Math.ceil(end(left, view.element.clientWidth)))
    };
    const places = [];
    for (let row = Math.max(0, Math.floor(top / step2)); row < last.row; row++) {
      for (let column = Math.max(0, Math.floor(left / step2)); column < last.column; column++) {
        places.push({ level, row, column });
      }
    }
    const { x, y } = view.middle;
    const away = ({ row, column }) => Math.hypot((column + 0.5) * step2 - x, (row + 0.5) * step2 - y);
    return places.sort((one, other) => away(one) - away(other));
  }
};

// src/raster.ts
var MOST_LISTED = 500;
var PAN_PX = 100;
var SETTLED_MS = 250;
var list = byId("rasters");
var dialog2 = byId("raster");
var hidden2 = /* @__PURE__ */ new Set();
var canvas2 = new RasterCanvas(byId("raster-canvas"), hidden2, {
  readout: readout2,
  click: (x, y) => void select(x, y),
  drawn
});
var rasters = null;
var shown = null;
var written = "";
var turn = 0;
var outlinesTurn = 0;
var cursor = null;
var settled = debounced(() => {
  if (!shown) return;
  const { x, y } = canvas2.view.middle;
  const at = { x: Math.round(x), y: Math.round(y), scale: Number(canvas2.view.scale.toPrecision(4)) };
  written = JSON.stringify(at);
  change({ at }, { replace: true });
  void showOutlines();
}, SETTLED_MS);
function tell3(id, text) {
  byId(id).textContent = text;
}
function startRasters() {
  byId("list-rasters").hidden = !run().of_rasters;
  const clicks = {
    "list-rasters": () => change({ list: true }),
    "rasters-close": () => change({ list: false }),
    "raster-close": close,
    "raster-zoom-in": () => canvas2.view.zoom(1.5),
    "raster-zoom-out": () => canvas2.view.zoom(1 / 1.5),
    "raster-fit": () => canvas2.view.fit(),
    "raster-window": () => openWindow(canvas2.view.middle)
  };
  for (const [id, action] of Object.entries(clicks)) byId(id).addEventListener("click", action);
  const slider = byId("raster-opacity");
  slider.addEventListener("input", () => {
    canvas2.opacity = Number(slider.value) / 100;
    canvas2.draw();
  });
  byId("rasters-search").addEventListener("input", () => void drawList());
  for (const [element, back] of [
    [list, () => change({ list: false })],
    [dialog2, close]
  ]) {
    element.addEventListener("cancel", (event) => {
      event.preventDefault();
      back();
    });
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      back();
    });
  }
  dialog2.addEventListener("keydown", keys2);
  canvas2.view.element.addEventListener("dblclick", () => cursor && openWindow(cursor));
}
var close = () => change({ raster: null, at: null });
function followRasters(next, before) {
  if (next.list !== (before?.list ?? false)) void showList(next.list);
  const moved = next.at !== null && JSON.stringify(next.at) !== written;
  if (next.raster !== (before?.raster ?? null)) void showRaster(next.raster);
  else if (next.raster !== null && moved && shown) show4(next.at);
}
function infos(again = false) {
  if (again || !rasters) {
    rasters = fetchRasters().then(({ rasters: found, unreadable }) => {
      tell3("rasters-unreadable", unreadable ? `${count(unreadable)} could not be read and are not listed` : "");
      return found;
    });
    rasters.catch(() => rasters = null);
  }
  return rasters;
}
async function showList(open) {
  if (!open) return list.close();
  if (!list.open) list.showModal();
  rasters = null;
  await drawList();
}
async function drawList() {
  const part = byId("rasters-search").value.toLowerCase();
  try {
    const matching = (await infos()).filter(({ uri }) => uri.toLowerCase().includes(part));
    byId("rasters-lines").replaceChildren(...matching.slice(0, MOST_LISTED).map(line));
    const more = matching.length - MOST_LISTED;
    tell3("rasters-count", `${count(matching.length)} ${matching.length === 1 ? "raster" : "rasters"}`);
    tell3("rasters-more", more > 0 ? `${count(more)} more: type a part of the name` : "");
  } catch (error) {
    tell3("rasters-more", messageOf(error));
  }
}
function line(info) {
  const link = make("a", { href: `#${new URLSearchParams({ raster: info.uri })}` }, info.uri);
  link.addEventListener("click", (event) => {
    event.preventDefault();
    change({ raster: info.uri, at: null });
  });
  const mask = info.assembled ? "yes" : "not assembled";
  const cells = [`${count(info.width)} × ${count(info.height)}`, count(info.windows), mask];
  return make("tr", {}, make("th", { scope: "row" }, link), ...cells.map((text) => make("td", {}, text)));
}
async function showRaster(uri) {
  const here = ++turn;
  outlinesTurn++;
  shown = null;
  written = "";
  canvas2.show(0, null);
  for (const id of ["raster-working", "raster-readout", "raster-counts"]) tell3(id, "");
  describeShape(null, null);
  if (uri === null) return dialog2.close();
  if (!dialog2.open) dialog2.showModal();
  tell3("raster-name", uri);
  byId("raster-problems").replaceChildren();
  byId("raster-facts").replaceChildren();
  try {
    const all = await infos(true);
    const number = all.findIndex((one) => one.uri === uri);
    const info = all[number];
    if (!info) throw new Error("the run has no such raster");
    const levels = await fetchRaster(number);
    if (here !== turn) return;
    shown = { number, info, levels };
    drawPanel();
    canvas2.show(number, levels);
    canvas2.outlines = outlinesOf();
    show4(state().at);
  } catch (error) {
    if (here === turn) tell3("raster-working", messageOf(error));
  }
}
function show4(at) {
  if (!shown || !at) return;
  written = JSON.stringify(at);
  if (at.scale) canvas2.view.centre(at.x, at.y, at.scale);
  else showWindow(at, shown.info);
  void showOutlines();
}
function showWindow(at, info) {
  const [width, height] = [Math.min(info.core_px, info.width - at.x), Math.min(info.core_px, info.height - at.y)];
  const { clientWidth, clientHeight } = canvas2.view.element;
  canvas2.view.centre(at.x + width / 2, at.y + height / 2, Math.min(clientWidth / width, clientHeight / height));
}
function drawPanel() {
  if (!shown) return;
  const { info, levels } = shown;
  byId("raster-classes").replaceChildren(...run().classes.map((_, id) => classLine(id, hidden2, () => canvas2.repaint())));
  const boxes3 = [
    ...levels.outlines.map((kind) => checkbox(kind, kind, kind === "zones")),
    checkbox("windows", `windows of ${count(info.core_px)} pixels`, false)
  ];
  byId("raster-outlines").replaceChildren(...boxes3);
  canvas2.gridPx = 0;
  const facts = { width: info.width, height: info.height, windows: info.windows, levels: levels.sizes.length };
  const terms = Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, count(value))]);
  byId("raster-facts").replaceChildren(...terms);
}
function checkbox(value, title, checked) {
  const box = make("input", { type: "checkbox", value, checked });
  box.addEventListener("change", () => {
    if (!shown) return;
    if (value === "windows") canvas2.gridPx = box.checked ? shown.info.core_px : 0;
    else canvas2.outlines = outlinesOf();
    canvas2.draw();
    void showOutlines();
  });
  return make("label", {}, box, title);
}
function outlinesOf() {
  const number = shown?.number ?? 0;
  const boxes3 = [...document.querySelectorAll("#raster-outlines input:checked")];
  const chosen = boxes3.map(({ value }) => value);
  const kinds = ["polygons", "zones"].filter((kind) => chosen.includes(kind));
  return kinds.map((kind) => canvas2.outlines.find((one) => one.kind === kind) ?? new Outlines(number, kind));
}
async function showOutlines() {
  const { level, outlines } = canvas2;
  const here = ++outlinesTurn;
  try {
    await Promise.all(outlines.map((one) => one.show(canvas2.view, level)));
    if (here !== outlinesTurn) return;
    const lines = outlines.map((one) => {
      const more = one.leftOut ? `, ${count(one.leftOut)} smaller ones here and around are left out` : "";
      return `${count(one.countIn(canvas2.view))} ${one.kind} here${more}`;
    });
    tell3("raster-counts", lines.join("; "));
    canvas2.draw();
  } catch (error) {
    tell3("raster-counts", messageOf(error));
  }
}
function drawn() {
  if (!shown) return;
  const { source_levels, source_problem, mask_problem } = shown.levels;
  const problems = [
    source_problem && !source_levels.includes(canvas2.level) ? source_problem : "",
    mask_problem ?? ""
  ];
  byId("raster-problems").replaceChildren(...problems.filter(Boolean).map((text) => make("p", {}, text)));
  tell3("raster-working", canvas2.problem ? `a tile is not shown: ${messageOf(canvas2.problem)}` : "");
  const away = canvas2.waiting;
  byId("raster-level").textContent = `1 : ${2 ** canvas2.level}${away ? `, ${count(away)} tiles to come` : ""}`;
  const { x, y } = canvas2.view.middle;
  const at = { x: Math.round(x), y: Math.round(y), scale: Number(canvas2.view.scale.toPrecision(4)) };
  if (JSON.stringify(at) !== written) settled();
}
function inside(x, y) {
  return shown !== null && x >= 0 && y >= 0 && x < shown.info.width && y < shown.info.height;
}
function readout2(x, y) {
  cursor = inside(x, y) ? { x, y } : null;
  if (!cursor) return tell3("raster-readout", "");
  const id = canvas2.classAt(x, y);
  const name = id === void 0 ? "" : run().classes[id]?.name ?? "no class";
  tell3("raster-readout", `(${Math.floor(x)}, ${Math.floor(y)}) ${name}`);
}
function openWindow({ x, y }) {
  if (!shown || !inside(x, y)) return;
  const { uri, core_px } = shown.info;
  const start2 = (value) => Math.floor(value / core_px) * core_px;
  change({ open: `${uri}#${start2(y)},${start2(x)}` });
}
async function select(x, y) {
  const found = [...canvas2.outlines].reverse().flatMap((one) => one.at(x, y, hidden2) ?? [])[0];
  for (const one of canvas2.outlines) one.selected = one.kind === found?.kind ? found.number : null;
  canvas2.draw();
  if (!found || !shown) return describeShape(null, null);
  const here = turn;
  try {
    const table2 = await fetchOutline(shown.number, found.kind, found.number);
    if (here === turn) describeShape(found, table2);
  } catch (error) {
    tell3("raster-counts", messageOf(error));
  }
}
function describeShape(shape2, table2) {
  const place2 = byId("raster-shape");
  if (!shape2 || !table2) return place2.replaceChildren();
  const lines = table2.columns.map((column, at) => {
    const texts = table2.rows.map((row) => cell(row[at]));
    const same = texts.every((text) => text === texts[0]);
    const cells = same ? [make("td", { colspan: Math.max(texts.length, 1) }, texts[0] ?? "")] : texts.map((text) => make("td", {}, text));
    return make("tr", {}, make("th", { scope: "row" }, column), ...cells);
  });
  const title = shape2.kind === "zones" ? "Zone" : "Polygon";
  place2.replaceChildren(make("h3", {}, title), make("div", { class: "wide" }, make("table", {}, ...lines)));
}
function cell(value) {
  if (value === null || value === void 0) return "–";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(4)));
}
function keys2(event) {
  if (event.target instanceof HTMLInputElement && event.target.type === "range") return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { view } = canvas2;
  const actions = {
    ArrowLeft: () => view.pan(PAN_PX, 0),
    ArrowRight: () => view.pan(-PAN_PX, 0),
    ArrowUp: () => view.pan(0, PAN_PX),
    ArrowDown: () => view.pan(0, -PAN_PX),
    "+": () => view.zoom(1.5),
    "-": () => view.zoom(1 / 1.5),
    "0": () => view.fit(),
    w: () => openWindow(cursor ?? view.middle)
  };
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

// src/main.ts
var pictures = document.querySelectorAll("input[name=picture]");
function startPictures() {
  for (const input of pictures) input.addEventListener("change", () => change({ picture: input.value }));
  showPicture();
}
function showPicture() {
  for (const input of pictures) input.checked = input.value === state().picture;
}
function showUnknown({ unknown }) {
  const names = unknown.slice(0, 5).map((name) => name.slice(0, 40)).join(", ");
  byId("unknown").textContent = names && `left out of the address, as this run has no such column: ${names}`;
}
function positionOf(key) {
  const cards2 = [...document.querySelectorAll(".card")];
  const card = cards2.find((one) => one.dataset["key"] === key);
  return card ? Number(card.dataset["position"]) : null;
}
function follow(next, before) {
  showUnknown(next);
  if (JSON.stringify(next.query) !== JSON.stringify(before.query)) {
    void reload().then(locate);
    void refreshFilters();
    void refreshAgreements();
  }
  if (next.picture !== before.picture) {
    showPicture();
    clear();
    draw();
  }
  followRasters(next, before);
  if (next.open !== before.open) void showOpened(takeStep() ?? positionOf(next.open));
}
function grown() {
  void reload({ grown: true }).then(locate);
  void refreshFilters();
  void refreshAgreements();
}
async function start() {
  try {
    await startRun(grown);
  } catch (error) {
    byId("problem").textContent = messageOf(error);
    return;
  }
  startState(run());
  showUnknown(state());
  if (matchMedia("(max-width: 48rem)").matches) byId("side").open = false;
  startFilters();
  startAgreements();
  startPictures();
  startMarks();
  startGrid();
  startDetail();
  startRasters();
  onChange(follow);
  await reload();
  void refreshFilters();
  followRasters(state(), null);
  void refreshAgreements();
  if (state().open !== null) void showOpened(positionOf(state().open));
}
void start();
