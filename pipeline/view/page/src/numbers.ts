// Numbers as people read them.

import type { Column } from "./api.js";

const whole = new Intl.NumberFormat("en");

export const count = (value: number): string => whole.format(value);

/** Value of a column: shares in percent, others with three significant digits; a dash for no value. */
export function figure(column: Column, value: number | string | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value;
  return column.kind === "share" ? percent(value) : Number(value.toPrecision(3)).toLocaleString("en");
}

/** Percent with one decimal; never 0 % above 0 and never 100 % below 1. */
export function percent(share: number): string {
  const shown = (share * 100).toFixed(1);
  if (share > 0 && shown === "0.0") return "<0.1 %";
  if (share < 1 && shown === "100.0") return ">99.9 %";
  return `${shown.replace(/\.0$/, "")} %`;
}

export function duration(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : `${Math.round(seconds)} s`;
}
