// Built from pipeline/view/page/src, SHA-256 03751f201be65e65d119947d770c767bb934f345a25a5fb0c3988ceaedfdb71d

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
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = window.setTimeout(action, wait);
  };
}

// src/api.ts
var Refused = class extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
  code;
};
async function get(path, signal, body) {
  const posted = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, { ...signal ? { signal } : {}, ...body === void 0 ? {} : posted });
  if (!response.ok) throw refusal(await response.text(), response.statusText);
  return response;
}
async function getBinary(path, signal) {
  const response = await get(path, signal);
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
var fetchRun = async () => (await get("/api/run")).json();
var fetchRows = async (query, offset, limit) => (await get(`/api/rows?query=${encoded(query)}&offset=${offset}&limit=${limit}`)).json();
var fetchHistograms = async (query, columns, signal) => (await get(`/api/histograms?query=${encoded(query)}&columns=${columns.join(",")}`, signal)).json();
var fetchChanges = async (query, signal) => (await get(`/api/changes?query=${encoded(query)}`, signal)).json();
var fetchRow = async (key) => (await get(`/api/row?key=${encodeURIComponent(key)}`)).json();
var fetchThumbnail = async (id, picture, signal) => (await getBinary(`/api/rows/${id}/thumbnail?picture=${picture}`, signal)).blob();
var fetchImage = async (id, signal) => createImageBitmap(await (await getBinary(`/api/rows/${id}/image`, signal)).blob());
async function fetchLayer(id, name, signal) {
  const response = await getBinary(`/api/rows/${id}/layers/${name}`, signal);
  return {
    height: Number(response.headers.get("X-Height")),
    width: Number(response.headers.get("X-Width")),
    values: new Uint8Array(await response.arrayBuffer())
  };
}
var fetchChoice = async (images) => (await get(`/api/choice?images=${images}`)).json();
async function handOver(keys2, tool) {
  const response = await get(`/api/hand-over/${tool}`, void 0, keys2);
  return { archive: await response.blob(), left_out: response.headers.get("X-Left-Out") ?? "" };
}

// src/canvas.ts
var MOST_ZOOM = 40;
var Canvas = class {
  constructor(element, readout2) {
    this.element = element;
    this.readout = readout2;
    new ResizeObserver(() => this.resize()).observe(element);
    element.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      element.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    element.addEventListener("dblclick", () => this.fit());
  }
  element;
  readout;
  image = null;
  overlay = null;
  beside = null;
  /** Share of the stage, from the left, behind which `beside` is drawn in place of `overlay`. */
  divider = 1;
  opacity = 0.5;
  width = 1;
  height = 1;
  /** Screen pixels per image pixel, and the place of the image's first pixel on the screen. */
  scale = 1;
  left = 0;
  top = 0;
  fitted = true;
  pointers = /* @__PURE__ */ new Map();
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
    const same = height === this.height && width === this.width;
    [this.height, this.width] = [height, width];
    if (same && !this.fitted) this.draw();
    else this.fit();
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
    const { clientWidth, clientHeight } = this.element;
    this.scale = Math.min(clientWidth / this.width, clientHeight / this.height);
    this.left = (clientWidth - this.width * this.scale) / 2;
    this.top = (clientHeight - this.height * this.scale) / 2;
    this.fitted = true;
    this.draw();
  }
  /** Zoom around a place on the screen, by default the middle. */
  zoom(factor, x = this.element.clientWidth / 2, y = this.element.clientHeight / 2) {
    const least = Math.min(this.element.clientWidth / this.width, this.element.clientHeight / this.height, 1) / 4;
    const scale = Math.min(MOST_ZOOM, Math.max(least, this.scale * factor));
    this.left = x - (x - this.left) / this.scale * scale;
    this.top = y - (y - this.top) / this.scale * scale;
    this.scale = scale;
    this.fitted = false;
    this.draw();
  }
  resize() {
    const dense = window.devicePixelRatio || 1;
    this.element.width = Math.max(1, Math.round(this.element.clientWidth * dense));
    this.element.height = Math.max(1, Math.round(this.element.clientHeight * dense));
    if (this.fitted) this.fit();
    else this.draw();
  }
  draw() {
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
  drawOverlay(context, overlay2, from, to) {
    if (!overlay2 || to <= from) return;
    context.save();
    context.beginPath();
    context.rect(from, -1e6, to - from, 2e6);
    context.clip();
    context.imageSmoothingEnabled = overlay2.smooth;
    context.globalAlpha = this.image ? this.opacity : 1;
    context.drawImage(overlay2.pixels, 0, 0, this.width, this.height);
    context.restore();
  }
  wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  }
  down(event) {
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  }
  move(event) {
    const before = this.pointers.get(event.pointerId);
    const here = { x: event.offsetX, y: event.offsetY };
    this.readout((here.x - this.left) / this.scale, (here.y - this.top) / this.scale);
    if (!before) return;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, here);
    if (other) {
      const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y);
      this.zoom(apart(here) / Math.max(apart(before), 1), (here.x + other.x) / 2, (here.y + other.y) / 2);
      return;
    }
    this.left += here.x - before.x;
    this.top += here.y - before.y;
    this.fitted = false;
    this.draw();
  }
};
function overlaid(pixels, smooth) {
  if (!pixels) return null;
  const canvas2 = new OffscreenCanvas(pixels.width, pixels.height);
  canvas2.getContext("2d")?.putImageData(pixels, 0, 0);
  return { pixels: canvas2, smooth };
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
  const shown = (share * 100).toFixed(1);
  if (share > 0 && shown === "0.0") return "<0.1 %";
  if (share < 1 && shown === "100.0") return ">99.9 %";
  return `${shown.replace(/\.0$/, "")} %`;
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
    const before = latest.rows;
    try {
      latest = await fetchRun();
      show();
      if (latest.rows !== before) grown2();
    } catch (error) {
      byId("problem").textContent = `no answer from the server: ${error instanceof Error ? error.message : error}`;
    }
    if (!isComplete()) window.setTimeout(() => void again(), REFRESH_MS);
  };
  if (!isComplete()) window.setTimeout(() => void again(), REFRESH_MS);
}
var isComplete = () => latest.finished && latest.parts.indexed >= latest.parts.known && !latest.problem;
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
  changed();
}
function changed() {
  localStorage.setItem(place(), JSON.stringify([...marked]));
  byId("marked").textContent = `${count(marked.size)} marked`;
  for (const id of ["unmark", "send"]) byId(id).disabled = marked.size === 0;
  for (const listener of listeners) listener();
}
function read() {
  try {
    return JSON.parse(localStorage.getItem(place()) ?? "[]");
  } catch {
    return [];
  }
}
async function choose(images) {
  tell("choosing …");
  try {
    const { keys: keys2, left_out } = await fetchChoice(images);
    for (const key of keys2) marked.add(key);
    changed();
    const reasons = Object.entries(left_out).map(([reason, rows]) => `${count(rows)} ${reason}`);
    tell(`${count(keys2.length)} chosen${reasons.length ? `; not considered: ${reasons.join(", ")}` : ""}`);
  } catch (error) {
    tell(error instanceof Error ? error.message : String(error));
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
    tell(error instanceof Error ? error.message : String(error));
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
var EMPTY = { text: "", ranges: [], choices: [], sort: "key", descending: false };
var listeners2 = [];
var current = fromHash();
var state = () => current;
function onChange(listener) {
  listeners2.push(listener);
}
function change(part, { replace = false } = {}) {
  const next = { ...current, ...part };
  const hash = toHash(next);
  if (replace) history.replaceState(null, "", hash);
  else history.pushState(null, "", hash);
  enter(next);
}
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
function toHash({ query, picture, open }) {
  const params = new URLSearchParams();
  if (JSON.stringify(query) !== JSON.stringify(EMPTY)) params.set("query", JSON.stringify(query));
  if (picture !== "overlay") params.set("picture", picture);
  if (open !== null) params.set("key", open);
  return `#${params}`;
}
function fromHash() {
  const params = new URLSearchParams(location.hash.slice(1));
  const picture = params.get("picture");
  return {
    query: readQuery(params.get("query")),
    picture: picture === "image" || picture === "mask" ? picture : "overlay",
    open: params.get("key")
  };
}
function readQuery(text) {
  let given = {};
  try {
    given = Object(JSON.parse(text ?? "{}"));
  } catch {
    return EMPTY;
  }
  const list2 = (value, test) => Array.isArray(value) ? value.filter((one) => test(Object(one))) : [];
  return {
    text: typeof given.text === "string" ? given.text : "",
    ranges: list2(given.ranges, ({ column }) => typeof column === "string"),
    choices: list2(given.choices, ({ column, values }) => typeof column === "string" && Array.isArray(values)),
    sort: typeof given.sort === "string" ? given.sort : "key",
    descending: given.descending === true
  };
}
window.addEventListener("popstate", () => enter(fromHash()));

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
var Card = class {
  element = make("div", { class: "card", role: "listitem" });
  link = make("a");
  frame = make("span", { class: "frame" });
  caption = make("span", { class: "caption" });
  mark = make("button", { type: "button", class: "mark", tabindex: "-1" });
  stop = new AbortController();
  row = null;
  shown = "";
  constructor(position2) {
    this.link.append(this.frame, this.caption);
    this.element.append(this.link, this.mark);
    this.mark.addEventListener("click", () => this.toggleMark());
    this.element.dataset["position"] = String(position2);
    this.link.addEventListener("click", (event) => {
      event.preventDefault();
      if (this.row) change({ open: this.row.key });
    });
  }
  async fill(row, picture) {
    const found = await row;
    if (!found || this.stop.signal.aborted) return;
    this.row = found;
    this.showMark();
    this.element.dataset["key"] = found.key;
    this.link.href = `#${new URLSearchParams({ key: found.key })}`;
    this.link.title = found.key;
    this.caption.replaceChildren(make("span", { class: "key" }, shortKey(found.key)), make("small", {}, subtitle(found)));
    try {
      const blob = await fetchThumbnail(found.id, picture, this.stop.signal);
      this.show(blob, `${found.key}, ${picture}`);
    } catch (error) {
      if (!this.stop.signal.aborted) await this.explain(found, error);
    }
  }
  /** A row without this picture: its mask alone where the image is gone, else the reason. */
  async explain(row, error) {
    const reason = error instanceof Refused ? error.code ?? error.message : String(error);
    const badge = make("span", { class: "badge" }, row.error_code ?? reason);
    if (row.status === "ok") {
      try {
        const blob = await fetchThumbnail(row.id, "mask", this.stop.signal);
        this.show(blob, `${row.key}, mask without image: ${reason}`);
      } catch {
        if (this.stop.signal.aborted) return;
      }
    }
    this.frame.append(badge);
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
  const inside = scroller.clientWidth - GAP;
  const columns = Math.max(2, Math.floor(inside / (CARD_WIDTH + GAP)));
  const width = Math.floor(inside / columns) - GAP;
  return { columns, width, height: width + CAPTION_HEIGHT + GAP, lines: Math.ceil(total / columns) };
}
async function rowAt(position2) {
  const number = Math.floor(position2 / PAGE_ROWS);
  let page = pages.get(number);
  if (!page) {
    page = fetchRows(state().query, number * PAGE_ROWS, PAGE_ROWS).then(({ rows }) => rows);
    pages.set(number, page);
    page.catch(() => pages.delete(number));
    if (pages.size > KEPT_PAGES) pages.delete(pages.keys().next().value);
  }
  return (await page)[position2 - number * PAGE_ROWS];
}
var totalRows = () => total;
async function reload({ keepPlace = false } = {}) {
  const query = state().query;
  const turn = ++asked;
  try {
    const first = await fetchRows(query, 0, PAGE_ROWS);
    if (turn !== asked) return;
    pages = /* @__PURE__ */ new Map([[0, Promise.resolve(first.rows)]]);
    total = first.total;
    byId("problem").textContent = "";
  } catch (error) {
    byId("problem").textContent = error instanceof Error ? error.message : String(error);
    return;
  }
  byId("count").textContent = `${count(total)} ${total === 1 ? "row" : "rows"}`;
  byId("none").hidden = total > 0;
  if (!keepPlace) scroller.scrollTop = 0;
  clear();
  draw();
}
function clear() {
  for (const card of cards.values()) card.remove();
  cards.clear();
}
function draw() {
  const { columns, width, height, lines } = shape();
  const full = lines * height + GAP;
  const shown = Math.min(full, MOST_HEIGHT);
  sheet.style.height = `${shown}px`;
  const view = scroller.clientHeight;
  const scale = shown > view ? (full - view) / (shown - view) : 1;
  const top = scroller.scrollTop * scale;
  const first = Math.max(0, Math.floor((top - view) / height)) * columns;
  const last = Math.min(total, Math.ceil((top + 2 * view) / height) * columns);
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
    style.left = `${GAP + position2 % columns * (width + GAP)}px`;
    style.top = `${GAP + Math.floor(position2 / columns) * height + scroller.scrollTop - top}px`;
  }
}
function add(position2) {
  const card = new Card(position2);
  cards.set(position2, card);
  sheet.append(card.element);
  void card.fill(rowAt(position2), state().picture);
  return card;
}
function moveFocus(event) {
  const { columns } = shape();
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
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
  at(name, x, y, cell = 1) {
    const layer = this.held.get(name);
    const [column, row] = [Math.floor(x / cell), Math.floor(y / cell)];
    if (!layer || column < 0 || row < 0 || column >= layer.width || row >= layer.height) return void 0;
    return layer.values[row * layer.width + column];
  }
};
function compose(overlay2, parts, hidden2) {
  const [first, second] = parts;
  if (!first) return null;
  const colour = colouring(overlay2, first, second, hidden2);
  const pixels = new ImageData(first.width, first.height);
  const out = new Uint32Array(pixels.data.buffer);
  for (let at = 0; at < out.length; at++) out[at] = colour(first.values[at], at);
  return pixels;
}
function colouring(overlay2, first, second, hidden2) {
  if (overlay2 === "confidence") return (value) => packed(255 - value, 255 - value, 255 - value);
  if (overlay2 === "changed" && !second) return (value) => value ? packed(...MARKED) : 0;
  if (second && second.values.length !== first.values.length) return () => 0;
  if (second) return differing(second, overlay2 === "errors" ? run().ignore_id : -1, hidden2);
  const table = new Uint32Array(256);
  run().classes.forEach(({ colour }, id) => {
    if (!hidden2.has(id)) table[id] = packed(...colour);
  });
  return (value) => table[value];
}
function differing(other, ignored, hidden2) {
  return (value, at) => {
    const theirs = other.values[at];
    return theirs !== value && theirs !== ignored && !hidden2.has(theirs) ? packed(...MARKED) : 0;
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
var position = null;
function startDetail() {
  const actions = {
    close: () => change({ open: null }),
    previous: () => void step(-1),
    next: () => void step(1),
    "zoom-in": () => canvas.zoom(1.5),
    "zoom-out": () => canvas.zoom(1 / 1.5),
    fit: () => canvas.fit()
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
  position = at;
  byId("place").textContent = at === null ? "" : `${count(at + 1)} of ${count(totalRows())}`;
  for (const button of ["previous", "next"]) byId(button).disabled = at === null;
  await show2(key, stop.signal);
}
async function show2(key, signal) {
  layers = null;
  canvas.clear();
  tell2("");
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
var messageOf = (error) => error instanceof Error ? error.message : String(error);
function tell2(text) {
  byId("image-problem").textContent = text;
}
async function step(by) {
  if (position === null) return;
  const next = position + by;
  const row = next >= 0 && next < totalRows() ? await rowAt(next) : void 0;
  if (!row) return;
  steppedTo = next;
  change({ open: row.key }, { replace: true });
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
}
function choose2(name) {
  if (!layers?.needs(name)) return;
  overlay = name;
  drawChoices();
  void showOverlay();
}
async function showOverlay() {
  const [here, chosen, right] = [layers, overlay, beside];
  const isPast = () => here !== layers || chosen !== overlay || right !== beside;
  canvas.setDivider(right ? Number(byId("divider").value) / 100 : 1);
  byId("divider").hidden = !right;
  if (!here) return;
  const drawn = async (name) => {
    const needs = here.needs(name) ?? [];
    if (needs.some((need) => need.startsWith("network") && !here.get(need))) tellWork("asking the network …");
    const parts = await Promise.all(needs.map((need) => here.fetch(need)));
    return overlaid(compose(name, parts, hidden), name === "confidence");
  };
  tellWork("");
  try {
    const [first, second] = await Promise.all([drawn(chosen), right ? drawn(right) : null]);
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
  byId("classes").replaceChildren(...order.map((id) => classLine(id, sum ? (counts[id] ?? 0) / sum : 0)));
  const facts = Object.entries(row).filter(([name, value]) => value !== null && name !== "class_pixels");
  const text = (value) => Array.isArray(value) ? value.join(", ") : String(value);
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, text(value))]));
}
function classLine(id, share) {
  const info = run().classes[id];
  const box = make("input", { type: "checkbox", checked: !hidden.has(id) });
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(id);
    else hidden.add(id);
    void showOverlay();
  });
  const swatch = make("span", { class: "swatch" });
  if (info) swatch.style.background = colourOf(info);
  const name = make("span", { class: "word" }, info?.name ?? String(id));
  return make("label", {}, box, swatch, name, make("small", {}, percent(share)));
}
function keys(event) {
  if (event.target instanceof HTMLInputElement && event.target.type === "range") return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
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

// src/filters.ts
var WIDTH = 200;
var HEIGHT = 36;
var FIRST_CLASSES = 12;
var panel = byId("filters");
var stop2 = new AbortController();
var allClasses = false;
var opened;
function startFilters() {
  const search = byId("search");
  search.value = state().query.text;
  const searched = debounced(() => changeQuery({ text: search.value.trim() }, { replace: true }), 250);
  search.addEventListener("input", searched);
  const sort = byId("sort");
  const sortable = run().columns.filter(({ kind }) => kind !== "word");
  sort.append(make("option", { value: "key" }, "key"));
  sort.append(...sortable.map(({ name, title }) => make("option", { value: name }, title)));
  sort.addEventListener("change", () => changeQuery({ sort: sort.value }));
  byId("direction").addEventListener("click", () => changeQuery({ descending: !state().query.descending }));
  byId("clear").addEventListener("click", clearFilters);
  build();
}
function build() {
  opened = /* @__PURE__ */ new Map();
  const columns = run().columns;
  const classes = columns.filter(({ class_id }) => class_id !== null);
  const first = allClasses ? classes : classes.slice(0, FIRST_CLASSES);
  const boxes = [...columns.filter(({ class_id }) => class_id === null), ...first].map((column) => {
    const body = make("div", { class: "body" });
    opened.set(column.name, body);
    return make("section", { class: "filter", "data-column": column.name }, heading(column), body);
  });
  panel.replaceChildren(...boxes);
  if (first.length < classes.length) {
    const more = make("button", { type: "button" }, `all ${classes.length} classes`);
    more.addEventListener("click", () => {
      allClasses = true;
      build();
      void refreshFilters();
    });
    panel.append(more);
  }
}
function heading(column) {
  const chosen = column.class_id === null ? void 0 : run().classes[column.class_id];
  const swatch = chosen ? make("span", { class: "swatch" }) : null;
  if (swatch && chosen) swatch.style.background = colourOf(chosen);
  return make("h3", { title: column.meaning }, swatch, column.title);
}
async function refreshFilters() {
  stop2.abort();
  stop2 = new AbortController();
  const { query } = state();
  byId("clear").hidden = !isFiltered(query);
  byId("sort").value = query.sort;
  const direction = byId("direction");
  direction.textContent = query.descending ? "↓" : "↑";
  direction.setAttribute("aria-label", query.descending ? "largest first" : "smallest first");
  try {
    const found = await fetchHistograms(query, [...opened.keys()], stop2.signal);
    for (const column of run().columns) {
      const [body, counts] = [opened.get(column.name), found[column.name]];
      if (body && counts) body.replaceChildren(..."counts" in counts ? bars(column, counts) : list(column, counts));
      if (body?.parentElement) body.parentElement.hidden = counts !== void 0 && isEmpty(counts) && !isUsed(column);
    }
    if (run().other) drawChanges(await fetchChanges(query, stop2.signal));
  } catch (error) {
    if (error instanceof DOMException) return;
    byId("problem").textContent = error instanceof Error ? error.message : String(error);
  }
}
function drawChanges(changes) {
  const sum = (side) => changes.reduce((total2, change2) => total2 + change2[side], 0) || 1;
  const [before, after] = [sum("before"), sum("after")];
  const head = ["class", "here", "there", "points"].map((title) => make("th", { scope: "col" }, title));
  const lines = changes.map((change2, id) => {
    const [here, there] = [change2.before / before, change2.after / after];
    const points = ((there - here) * 100).toFixed(2);
    const cells = [percent(here), percent(there), points.startsWith("-") ? points : `+${points}`];
    return make("tr", {}, make("th", { scope: "row" }, run().classes[id]?.name ?? String(id)), ...cells.map((cell) => make("td", {}, cell)));
  });
  const table = byId("changes");
  table.replaceChildren(make("caption", {}, "Classes here and in the other run"), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...lines));
  table.hidden = false;
}
var isUsed = ({ name }) => [...state().query.ranges, ...state().query.choices].some(({ column }) => column === name);
var isEmpty = (counts) => "counts" in counts ? counts.counts.every((rows) => rows === 0) : counts.words.length + (counts.without ? 1 : 0) < 2;
function bars(column, bins) {
  const most = Math.max(...bins.counts, 1);
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "histogram" });
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${column.title}: histogram from ${figure(column, bins.low)} to ${figure(column, bins.high)}`);
  const wide = WIDTH / bins.counts.length;
  bins.counts.forEach((rows, bin) => {
    const tall = rows ? Math.max(1, (HEIGHT - 2) * Math.sqrt(rows / most)) : 0;
    svg.append(makeSvg("rect", { x: bin * wide + 0.5, y: HEIGHT - tall, width: wide - 1, height: tall, class: "bar" }));
  });
  const range = state().query.ranges.find(({ column: name }) => name === column.name);
  const brush = makeSvg("rect", { y: 0, height: HEIGHT, x: 0, width: 0, class: "brush" });
  svg.append(brush);
  const place2 = (value) => (value - bins.low) / (bins.high - bins.low || 1) * WIDTH;
  const paint = (low, high) => {
    brush.setAttribute("x", String(place2(low)));
    brush.setAttribute("width", String(Math.max(place2(high) - place2(low), 1)));
  };
  if (range) paint(range.low ?? bins.low, range.high ?? bins.high);
  brushed(svg, column, bins, paint);
  const without = bins.without ? [make("small", {}, `${count(bins.without)} without a value`)] : [];
  return [svg, bounds(column, bins, range?.low ?? null, range?.high ?? null), ...without];
}
function brushed(svg, column, bins, paint) {
  let from = null;
  const valueAt = (event) => {
    const box = svg.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    return bins.low + share * (bins.high - bins.low);
  };
  svg.addEventListener("pointerdown", (event) => {
    from = valueAt(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (from !== null) paint(Math.min(from, valueAt(event)), Math.max(from, valueAt(event)));
  });
  svg.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const [low, high] = [Math.min(from, valueAt(event)), Math.max(from, valueAt(event))];
    from = null;
    if (high - low < (bins.high - bins.low) / WIDTH) setRange(column.name, null, null);
    else setRange(column.name, rounded(low), rounded(high));
  });
}
var rounded = (value) => Number(value.toPrecision(4));
function bounds(column, bins, low, high) {
  const unit = column.kind === "share" ? 100 : 1;
  const field = (value, hint, label) => {
    const shown = value === null ? "" : String(rounded(value * unit));
    const text = `${column.title}: ${label}${unit === 100 ? ", percent" : ""}`;
    const input = make("input", { type: "number", step: "any", value: shown, "aria-label": text });
    input.placeholder = String(Number((hint * unit).toPrecision(3)));
    return input;
  };
  const fields = [field(low, bins.low, "at least"), field(high, bins.high, "at most")];
  for (const input of fields) {
    input.addEventListener("change", () => {
      const [least, most] = fields.map(({ value }) => value === "" ? null : Number(value) / unit);
      setRange(column.name, least ?? null, most ?? null);
    });
  }
  return make("div", { class: "bounds" }, fields[0], "to", fields[1], unit === 100 ? "%" : "");
}
function list(column, words) {
  const chosen = state().query.choices.find(({ column: name }) => name === column.name)?.values ?? [];
  const values = words.without ? [...words.words, [null, words.without]] : words.words;
  const lines = values.map(([value, rows]) => {
    const box = make("input", { type: "checkbox", checked: chosen.includes(value) });
    box.addEventListener(
      "change",
      () => setChoice(column.name, box.checked ? [...chosen, value] : chosen.filter((other) => other !== value))
    );
    return make("label", {}, box, make("span", { class: "word" }, value ?? "none"), make("small", {}, count(rows)));
  });
  if (words.others) lines.push(make("label", {}, make("small", {}, `${count(words.others)} rows of rarer values`)));
  return lines;
}

// src/main.ts
function startPictures() {
  for (const input of document.querySelectorAll("input[name=picture]")) {
    input.checked = input.value === state().picture;
    input.addEventListener("change", () => change({ picture: input.value }));
  }
}
function positionOf(key) {
  const cards2 = [...document.querySelectorAll(".card")];
  const card = cards2.find((one) => one.dataset["key"] === key);
  return card ? Number(card.dataset["position"]) : null;
}
function follow(next, before) {
  if (JSON.stringify(next.query) !== JSON.stringify(before.query)) {
    void reload();
    void refreshFilters();
  }
  if (next.picture !== before.picture) {
    clear();
    draw();
  }
  if (next.open !== before.open) void showOpened(takeStep() ?? positionOf(next.open));
}
function grown() {
  void reload({ keepPlace: true });
  void refreshFilters();
}
async function start() {
  try {
    await startRun(grown);
  } catch (error) {
    byId("problem").textContent = error instanceof Error ? error.message : String(error);
    return;
  }
  if (matchMedia("(max-width: 48rem)").matches) byId("side").open = false;
  startFilters();
  startPictures();
  startMarks();
  startGrid();
  startDetail();
  onChange(follow);
  await reload();
  void refreshFilters();
  if (state().open !== null) void showOpened(positionOf(state().open));
}
void start();
