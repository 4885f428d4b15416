// What a client asks, apart from `send` and `ack`, and which answer belongs to it.

import type { Channel, Convo, Device, Group, Page } from './frames.js';

/** By `t`: the fields, and the answer. */
export interface Operations {
  sync: { fields: { convos?: Record<string, number> }; answer: { convos: Record<string, number> } };
  history: { fields: { convo: string; before?: number; limit?: number }; answer: Page };
  convos: { fields: { after?: string; limit?: number }; answer: { convos: Convo[] } };
  'group.create': { fields: { convo: string; members: string[] }; answer: Group };
  'group.add': { fields: { convo: string; members: string[] }; answer: Group };
  'group.remove': { fields: { convo: string; members: string[] }; answer: Group };
  'group.role': {
    fields: { convo: string; members: string[]; role: 'admin' | 'member' };
    answer: Group;
  };
  'group.leave': { fields: { convo: string }; answer: Group };
  'group.info': { fields: { convo: string }; answer: Group };
  'channel.create': { fields: { convo: string }; answer: Channel };
  'channel.subscribe': { fields: { convo: string }; answer: Channel };
  'channel.unsubscribe': { fields: { convo: string }; answer: Channel };
  'convo.set': {
    fields: { convo: string; expire_s: number };
    answer: { convo: string; expire_s: number };
  };
  devices: { fields: object; answer: { devices: Device[] } };
  'device.revoke': { fields: { device: string }; answer: { devices: Device[] } };
  privacy: {
    fields: { presence: 'everyone' | 'nobody' };
    answer: { presence: 'everyone' | 'nobody' };
  };
  ping: { fields: object; answer: { ts: number } };
}

export type OperationName = keyof Operations;

const ANSWERS: Record<OperationName, string> = {
  sync: 'synced',
  history: 'page',
  convos: 'convos',
  'group.create': 'group',
  'group.add': 'group',
  'group.remove': 'group',
  'group.role': 'group',
  'group.leave': 'group',
  'group.info': 'group',
  'channel.create': 'channel',
  'channel.subscribe': 'channel',
  'channel.unsubscribe': 'channel',
  'convo.set': 'convo',
  devices: 'devices',
  'device.revoke': 'devices',
  privacy: 'privacy',
  ping: 'pong',
};

/** These change nothing, so they are asked again on the next connection. */
const REPEATABLE: ReadonlySet<string> = new Set(['history', 'convos', 'group.info', 'devices']);

interface Question {
  ref: number;
  t: OperationName;
  fields: object;
  expiresAt: number;
  isAsked: boolean;
}

/** The questions that are not answered yet. */
export class Questions {
  private readonly questions = new Map<number, Question>();

  add(ref: number, t: OperationName, fields: object, expiresAt: number): void {
    this.questions.set(ref, { ref, t, fields, expiresAt, isAsked: false });
  }

  /** What is to be asked on a connection that just came to be, or now. */
  due(): object[] {
    const due = [];
    for (const question of this.questions.values()) {
      if (question.isAsked) continue;
      question.isAsked = true;
      due.push({ t: question.t, ref: question.ref, ...question.fields });
    }
    return due;
  }

  /** Whether a frame with this `ref` is its answer; an answered question is forgotten. */
  answer(ref: number, t: string): boolean {
    const question = this.questions.get(ref);
    if (question === undefined || (t !== 'error' && t !== ANSWERS[question.t])) return false;
    return this.questions.delete(ref);
  }

  /** The connection is gone. Returns those of which nobody knows whether they were done. */
  cut(): number[] {
    const unknown = [];
    for (const question of this.questions.values()) {
      if (REPEATABLE.has(question.t)) question.isAsked = false;
      else unknown.push(question.ref);
    }
    for (const ref of unknown) this.questions.delete(ref);
    return unknown;
  }

  clear(): number[] {
    const refs = [...this.questions.keys()];
    this.questions.clear();
    return refs;
  }

  expire(now: number): number[] {
    const late = [...this.questions.values()].filter(({ expiresAt }) => expiresAt <= now);
    for (const { ref } of late) this.questions.delete(ref);
    return late.map(({ ref }) => ref);
  }

  get nextExpiry(): number | undefined {
    // They all have the same patience, so the first one expires first.
    return this.questions.values().next().value?.expiresAt;
  }
}

export function mayWait(t: OperationName): boolean {
  return REPEATABLE.has(t);
}
