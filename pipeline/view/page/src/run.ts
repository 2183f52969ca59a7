// The run: what the server last said of it, and the line about its progress.

import { fetchRun, type ClassInfo, type Pace, type Run } from "./api.js";
import { byId, messageOf } from "./dom.js";
import { count, duration } from "./numbers.js";

const REFRESH_MS = 3000;
let latest: Run;

export const run = (): Run => latest;

export const colourOf = ({ colour }: ClassInfo): string => `rgb(${colour.join(" ")})`;

/** Ask for the run once, and again while it changes; `grown` is called when rows have changed or were compared. */
export async function startRun(grown: () => void): Promise<void> {
  latest = await fetchRun();
  show();
  const again = async (): Promise<void> => {
    const before = latest;
    try {
      latest = await fetchRun();
      show();
      if ((before.problem || isSilent) && !latest.problem) byId("problem").textContent = "";
      const wasSilent = isSilent; // what was asked for meanwhile did not come
      isSilent = false;
      const seen = ({ rows, revision, pace }: Run): string => JSON.stringify([rows, revision, pace]);
      if (wasSilent || seen(latest) !== seen(before)) grown();
    } catch (error) {
      isSilent = true;
      byId("problem").textContent = `no answer from the server: ${messageOf(error)}`;
    }
    waitIfChanging();
  };
  const waitIfChanging = (): void => {
    window.clearTimeout(timer);
    if (!isComplete()) timer = window.setTimeout(() => void again(), REFRESH_MS);
  };
  watch = waitIfChanging;
  waitIfChanging();
}

let timer = 0;
/** Whether the server gave no answer the last time. */
let isSilent = false;
let watch: () => void;

/** The server has begun to compare rows: follow how far it is. */
export function comparingBegan(pace: Pace): void {
  latest = { ...latest, pace };
  watch();
}

const isComplete = (): boolean => latest.settled && !latest.pace?.is_working;

function show(): void {
  document.title = `${nameOf(latest.run)} – Atrous`;
  byId("run").textContent = nameOf(latest.run);
  byId("run").title = latest.run;
  byId("progress").textContent = [indexing(), working()].filter(Boolean).join(" · ");
  if (latest.problem) byId("problem").textContent = latest.problem;
}

const nameOf = (url: string): string => url.split("/").slice(-1)[0] ?? url;

/** How much of the run the filters see. */
function indexing(): string {
  const { indexed, known } = latest.parts;
  return indexed < known ? `reading: ${count(indexed)} of ${count(known)} parts, ${count(latest.rows)} rows so far` : "";
}

function working(): string {
  if (latest.finished) return "";
  const progress = latest.progress;
  if (!progress) return "not finished, and no progress is on record";
  const failed = Object.entries(progress.failed).map(([code, rows]) => `${count(rows)} ${code}`);
  return [
    `${progress.phase}: ${count(progress.done)} of ${progress.planned === null ? "?" : count(progress.planned)} images`,
    `${progress.images_per_s.toFixed(1)} images/s`,
    progress.eta_s === null ? "" : `${duration(progress.eta_s)} left`,
    progress.bottleneck ? `bottleneck ${progress.bottleneck} ${Math.round(progress.bottleneck_busy * 100)} %` : "",
    failed.length ? `failed: ${failed.join(", ")}` : "",
  ]
    .filter(Boolean)
    .join(", ");
}
