// What goes into the core and what comes out of it.

import type {
  Failed, Frame, Goaway, Message, Presence, Receipt, Sent, ServerError, Welcome,
} from './frames.js';
import type { Outgoing } from './outbox.js';

export type State = 'DISCONNECTED' | 'CONNECTING' | 'CONNECTED' | 'RECONNECTING';

/** Why it is not connected. */
export type Reason =
  | 'asked'       // by the application
  | 'lost'        // the connection ended, and another one is tried
  | 'replaced'    // another connection of this device took its place
  | 'revoked'     // the token expired or the device was revoked, and there is no other token
  | 'not_me'      // the token or ticket is another user's
  | 'no_token';   // the application gave none

export interface Options {
  /** `wss://host/v1/connect`. */
  url: string;
  /** Who connects. With tokens it may be absent; else a token of another user is not used. */
  user?: string;
  device?: string;
  /** Identity by token: the driver asks for one when there is no ticket. */
  usesTokens?: boolean;
  /** `manual`: nothing is pushed before the first `sync`. */
  sync?: 'manual';
  /** `manual`: the application acknowledges `delivered` itself. */
  acknowledge?: 'auto' | 'manual';
  /**
   * How many sends are under way at once. With more than 1, one that was answered `unavailable` may
   * take its place behind those that were written after it.
   */
  sendWindow?: number;
  backoffMsMin?: number;
  backoffMsMax?: number;
  /** From the opening of a socket to `welcome`. */
  welcomeMsMax?: number;
  /** How long an answer may take. */
  answerMsMax?: number;
}

export interface Snapshot {
  /** By conversation: up to where it was acknowledged. */
  watermarks: Record<string, number>;
  outbox: Outgoing[];
}

export type Problem = Pick<ServerError, 'code' | 'message'> & Partial<ServerError>;

export type Happening =
  | { is: 'state'; state: State; reason?: Reason; retry_ms?: number }
  | { is: 'welcome'; welcome: Welcome }
  | { is: 'message'; message: Message }
  | { is: 'sent'; sent: Sent; outgoing: Outgoing }
  | { is: 'rejected'; outgoing: Outgoing; problem: Problem }
  | { is: 'postponed'; id: string; retry_ms: number; problem: Problem }
  | { is: 'answer'; ref: number; frame: Frame }
  | { is: 'no_answer'; ref: number; problem: Problem }
  | { is: 'receipt'; receipt: Receipt }
  | { is: 'presence'; presence: Presence }
  | { is: 'typing'; convo: string; from: string }
  | { is: 'failed'; failed: Failed }
  | { is: 'synced'; convos: Record<string, number> }
  | { is: 'goaway'; goaway: Goaway }
  | { is: 'behind' }
  | { is: 'unsupported'; operation: 'typing' | 'presence' }
  | { is: 'attempt_failed'; attempt: number; byToken: boolean }
  | { is: 'warning'; text: string }
  | { is: 'frame'; frame: Frame };

export type Effect =
  | { do: 'open'; connection: number; url: string; protocols: string[] }
  | { do: 'get_token'; connection: number }
  | { do: 'say'; text: string }
  | { do: 'close'; code: number }
  | { do: 'save' }
  | { do: 'tell'; happening: Happening };
