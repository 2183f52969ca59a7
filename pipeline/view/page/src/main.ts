// Page of `atrous view`: the parts start, and follow the state.

import type { Picture } from "./api.js";
import { byId, messageOf } from "./dom.js";
import { locate, showOpened, startDetail, takeStep } from "./detail.js";
import { refreshAgreements, startAgreements } from "./agreement.js";
import { refreshFilters, startFilters } from "./filters.js";
import { clear, draw, reload, startGrid } from "./grid.js";
import { startMarks } from "./marks.js";
import { followRasters, startRasters } from "./raster.js";
import { run, startRun } from "./run.js";
import { change, onChange, startState, state, type State } from "./state.js";

const pictures = document.querySelectorAll<HTMLInputElement>("input[name=picture]");

function startPictures(): void {
  for (const input of pictures) input.addEventListener("change", () => change({ picture: input.value as Picture }));
  showPicture();
}

function showPicture(): void {
  for (const input of pictures) input.checked = input.value === state().picture;
}

/** Say what of the address this run cannot do, such as sorting by a comparison that is not open. */
function showUnknown({ unknown }: State): void {
  const names = unknown.slice(0, 5).map((name) => name.slice(0, 40)).join(", ");
  byId("unknown").textContent = names && `left out of the address, as this run has no such column: ${names}`;
}

/** Position of an open row in the grid, where its card is in the page. */
function positionOf(key: string | null): number | null {
  const cards = [...document.querySelectorAll<HTMLElement>(".card")];
  const card = cards.find((one) => one.dataset["key"] === key);
  return card ? Number(card.dataset["position"]) : null;
}

function follow(next: State, before: State): void {
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

function grown(): void {
  void reload({ grown: true }).then(locate);
  void refreshFilters();
  void refreshAgreements();
}

async function start(): Promise<void> {
  try {
    await startRun(grown);
  } catch (error) {
    byId("problem").textContent = messageOf(error);
    return;
  }
  startState(run());
  showUnknown(state());
  if (matchMedia("(max-width: 48rem)").matches) byId<HTMLDetailsElement>("side").open = false;
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
