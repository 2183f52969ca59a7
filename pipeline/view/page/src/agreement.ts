// Agreement pixel by pixel, with labels or with another run: how many rows it covers, and the IoU of each class.

import { fetchAgreement, startComparing, type Against, type Agreement } from "./api.js";
import { classTable } from "./classes.js";
import { byId, make, messageOf } from "./dom.js";
import { count, percent } from "./numbers.js";
import { comparingBegan, run } from "./run.js";
import { isFiltered, state } from "./state.js";

const TITLES: Record<Against, { caption: string; here: string; there: string }> = {
  labels: { caption: "Labels and masks", here: "label", there: "mask" },
  other: { caption: "Masks of both runs", here: "here", there: "there" },
};
let stop = new AbortController();
let boxes: Box[] = [];

/** A box for each thing that the masks can be compared with; its numbers come later. */
export function startAgreements(): void {
  boxes = run().agreements.map((against) => new Box(against));
  byId("agreements").replaceChildren(...boxes.map(({ element }) => element));
}

/** Count again under the present query. */
export async function refreshAgreements(): Promise<void> {
  stop.abort();
  stop = new AbortController();
  const { query } = state();
  for (const box of boxes) {
    try {
      box.show(await fetchAgreement(box.against, query, stop.signal));
    } catch (error) {
      if (error instanceof DOMException) return; // a later query has taken its place
      box.tell(messageOf(error));
    }
  }
}

/** One comparison: its table, what the figures stand on, and the button for the rows that are left. */
class Box {
  readonly element: HTMLElement;
  private readonly classes = make("table", { hidden: true });
  private readonly said = make("p");
  private readonly ask = make("button", { type: "button", class: "compare", hidden: true });

  constructor(readonly against: Against) {
    this.element = make("section", { class: "agreement", "data-against": against }, this.classes, this.said, this.ask);
    this.ask.addEventListener("click", () => void this.compare());
  }

  show(agreement: Agreement): void {
    this.classes.replaceChildren(...table(this.against, agreement.classes));
    this.classes.hidden = agreement.compared === 0;
    this.tell(coverage(agreement));
    const { compared, refused, comparable } = agreement;
    const left = comparable - compared - refused;
    const which = isFiltered(state().query) ? "these" : "all";
    this.ask.hidden = left === 0;
    this.ask.textContent = `compare ${which} ${count(left)}${run().pace?.is_working ? " now" : ""}`;
  }

  tell(text: string): void {
    this.said.textContent = text;
  }

  /** Ask for the rows that are left, in place of those that are being compared: of many rows the masks are gigabytes. */
  private async compare(): Promise<void> {
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
}

/** What the figures stand on: they are those of the compared rows alone. */
function coverage({ compared, refused, comparable }: Agreement): string {
  const pace = run().pace;
  return [
    `exact for ${count(compared)} of ${count(comparable)} rows`,
    refused ? `${count(refused)} cannot be compared` : "",
    pace?.is_working ? `comparing, ${count(Math.round(pace.rows_per_s))} rows/s` : "",
    pace?.problem ? `ended: ${pace.problem}` : "",
  ]
    .filter(Boolean)
    .join("; ");
}

function table(against: Against, classes: Agreement["classes"]): HTMLElement[] {
  const { caption, here, there } = TITLES[against];
  const sum = (side: "here" | "there"): number => classes.reduce((total, one) => total + one[side], 0) || 1;
  const [first, second] = [sum("here"), sum("there")];
  const lines = classes.map((one) => {
    const union = one.here + one.there - one.both;
    return [percent(one.here / first), percent(one.there / second), union ? percent(one.both / union) : "–"];
  });
  return classTable(caption, [here, there, "IoU"], lines);
}
