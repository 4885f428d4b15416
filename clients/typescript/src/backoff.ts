// When to come back.

export const BACKOFF_MS_MIN = 250;
export const BACKOFF_MS_MAX = 10_000;

export interface BackoffBounds {
  /** The ceiling of the first wait; it doubles with every failure. */
  backoffMsMin: number;
  backoffMsMax: number;
}

/** Exponential backoff with full jitter: anything between nothing and the ceiling. */
export function backoffMs(attempt: number, random: number, bounds: BackoffBounds): number {
  const doubled = bounds.backoffMsMin * 2 ** Math.min(attempt, 30);
  return random * Math.min(bounds.backoffMsMax, doubled);
}
