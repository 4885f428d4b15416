// The places (seqs) of one conversation: what was seen, what is missing, and what waits for it.
//
// Invariant: every place up to `watermark` was handed on, or is not there for this user. What came
// beyond a missing place is held until that one is there, so messages are handed on in order.

import type { Message } from './frames.js';

/** So far beyond the watermark messages are held; what is beyond that, `sync` brings again. */
export const HELD_MAX = 4_096;

export type Verdict = 'new' | 'repeat' | 'beyond';

export class Places {
  /** Null: not known yet. Only what the server pushed says where the run begins. */
  watermark: number | null;
  /** Null: a place of our own, known by `sent`. */
  private readonly held = new Map<number, Message | null>();
  /** Something was beyond what is held. */
  private isShort = false;

  constructor(watermark: number | null = null) {
    this.watermark = watermark;
  }

  /** The server pushed it. What can be handed on now is put at the end of `due`. */
  receive(message: Message, due: Message[]): Verdict {
    const { seq } = message;
    this.watermark ??= seq - 1;
    if (seq <= this.watermark || this.held.has(seq)) return 'repeat';
    if (seq > this.watermark + HELD_MAX) {
      this.isShort = true;
      return 'beyond';
    }
    this.held.set(seq, message);
    this.advance(due);
    return 'new';
  }

  /** Our own message has this place; the device that sent hears no `msg`. */
  fill(seq: number, due: Message[]): void {
    if (this.watermark === null && seq === 1) this.watermark = 0;
    if (this.watermark !== null && seq <= this.watermark) return;
    if (this.watermark !== null && seq > this.watermark + HELD_MAX) {
      this.isShort = true;
      return;
    }
    if (!this.held.has(seq)) this.held.set(seq, null);
    // Before the first push there is no end to what may be held: the oldest are forgotten.
    if (this.held.size > HELD_MAX) this.held.delete(this.held.keys().next().value!);
    this.advance(due);
  }

  /** What did not come up to `head` is not there for this user. */
  skipTo(head: number, due: Message[]): void {
    this.isShort = false;
    const skipped = [...this.held.keys()].filter((seq) => seq <= head).sort((a, b) => a - b);
    for (const seq of skipped) this.handOn(seq, due);
    this.watermark = Math.max(this.watermark ?? 0, head);
    this.advance(due);
  }

  /** Gives up what is missing below whatever is held. */
  skipHeld(due: Message[]): void {
    this.skipTo(Math.max(this.watermark ?? 0, ...this.held.keys()), due);
  }

  get hasGap(): boolean {
    return this.watermark !== null && (this.held.size > 0 || this.isShort);
  }

  private advance(due: Message[]): void {
    if (this.watermark === null) return;
    while (this.held.has(this.watermark + 1)) {
      this.watermark += 1;
      this.handOn(this.watermark, due);
    }
    if (this.held.size === 0) return;
    for (const seq of this.held.keys()) if (seq <= this.watermark) this.held.delete(seq);
  }

  private handOn(seq: number, due: Message[]): void {
    const message = this.held.get(seq);
    this.held.delete(seq);
    if (message) due.push(message);
  }
}
